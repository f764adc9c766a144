"""Header fields that a user sets, checked once: nothing in them can split a request, or contradict its framing."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable

from epollkit.errors import UsageError

Header = tuple[str, str]

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")        # token (RFC 9110 5.6.2)
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
ONCE = ("host", "user-agent", "content-type", "authorization")
OURS = {
    "content-length": "it is counted",
    "transfer-encoding": "bodies are sent with their length",
    "connection": "keep_alive says whether a connection is used again",
}


def text_of(value: object) -> str:
    """Bytes that are no UTF-8 survive, as they do in the arguments of a program (PEP 383)."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{text[:100]!r} can't be sent: it has a lone surrogate, which no UTF-8 has") from None


def checked_header(given: object) -> Header:
    """`Name: value`, or a pair of str or bytes. UsageError, in one sentence, for what is no header, or ours to set."""
    pair: tuple[object, ...]
    if isinstance(given, (str, bytes)):
        name, colon, value = text_of(given).partition(":")
        if not colon:
            raise UsageError(f"a header is written 'Name: value', not {given!r}")
        pair = (name, value.strip(" \t"))
    else:
        pair = tuple(given) if isinstance(given, Iterable) else ()
    if len(pair) != 2 or not all(isinstance(part, (str, bytes)) for part in pair):
        raise UsageError(f"a header is written 'Name: value', or is a pair of such, not {given!r}")
    name, value = map(text_of, pair)
    if not NAME.fullmatch(name):
        raise UsageError(f"a header's name is made of token characters (RFC 9110 5.6.2), not {name!r}")
    if CONTROL.search(value) or value != value.strip(" \t"):
        raise UsageError(f"the value of {name!r} has no control characters, and no whitespace at its ends "
                         f"(RFC 9110 5.5), not {value!r}")
    if name.lower() in OURS:
        raise UsageError(f"{name} can't be set: {OURS[name.lower()]}")
    return name, value


def checked_headers(given: object) -> tuple[Header, ...]:
    """Several of them; those that a request has once are there once."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UsageError(f"headers are a list, of 'Name: value' each, not {given!r}")
    headers = tuple(checked_header(header) for header in given)
    names = [name.lower() for name, _ in headers]
    for name in ONCE:
        if names.count(name) > 1:
            raise UsageError(f"a request has one {name.title()}, and headers have {names.count(name)}")
    return headers


def joined(*layers: Iterable[Header]) -> list[Header]:
    """The headers of all layers; a later one's replace an earlier one's of the same name."""
    found: list[Header] = []
    for layer in map(list, layers):
        replaced = {name.lower() for name, _ in layer}
        found = [header for header in found if header[0].lower() not in replaced] + layer
    return found
