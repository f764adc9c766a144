"""What is asked for: URLs as people write them, and siege's files of them."""
from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from epollkit.errors import UsageError
from epollkit.siege.fields import Header, bytes_of, checked_headers

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WITHOUT_BODY = ("GET", "HEAD")
PORTS = {"http": 80, "https": 443}

MOST_LINES = 100_000
MOST_BODY_BYTES = 16 * 1024 * 1024      # of all targets together: each is in memory once, in every process
MOST_FILE_BYTES = 64 * 1024 * 1024
LONGEST_URL_BYTES = 65536

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
NOT_IN_TARGET = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]")   # RFC 3986 3.3, 3.4
DEFINITION = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)", re.ASCII)
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)\}|\((\w+)\)|([A-Za-z_]\w*))", re.ASCII)


class Url(NamedTuple):
    """A URL, taken apart for whoever has to connect, and for the request's head."""

    scheme: str
    host: str               # to look up: no brackets, IDNA done
    port: int
    target: bytes           # path and query, as they stand in the request line
    host_field: bytes       # the Host header's value
    authorization: str      # the header's value; empty without a user in the URL


def parse(text: str) -> Url:
    """UsageError, in one sentence that names the URL, for what is none."""
    def wrong(why: str) -> UsageError:
        return UsageError(f"{masked(text)!r} is not a URL to ask for: {why}")

    stripped = text.strip()
    found = SCHEME.match(stripped)
    scheme = found[1].lower() if found else "http"
    if stripped.startswith("unix:"):
        raise wrong("a unix socket is named by uds, beside a URL like http://localhost/")
    if scheme not in PORTS:
        raise wrong(f"{scheme} is not spoken here, http and https are")
    if len(bytes_of(stripped)) > LONGEST_URL_BYTES:
        raise UsageError(f"a URL has at most {LONGEST_URL_BYTES} bytes, not {len(bytes_of(stripped))}")
    authority, rest = split_authority(stripped[found.end():] if found else stripped)
    user, at, place = authority.rpartition("@")
    host, port_text = split_port(place)
    if host is None:
        raise wrong("an IPv6 address stands in brackets, like http://[::1]:8000/")
    if port_text and not (re.fullmatch("[0-9]{1,5}", port_text) and 1 <= int(port_text) <= 65535):
        raise wrong(f"a port is a number from 1 to 65535, not {port_text!r}")
    try:
        host, shown = checked_host(host)
    except ValueError as error:
        raise wrong(str(error)) from None
    port = int(port_text or PORTS[scheme])
    path = NOT_IN_TARGET.sub(lambda odd: b"%%%02X" % odd[0][0], bytes_of(rest.partition("#")[0]))
    return Url(scheme, host, port, path if path.startswith(b"/") else b"/" + path,
               (shown if port == PORTS[scheme] else f"{shown}:{port}").encode(), basic(user) if at else "")


def split_authority(text: str) -> tuple[str, str]:
    end = re.search(r"[/?#]", text)
    return (text[:end.start()], text[end.start():]) if end else (text, "")


def split_port(place: str) -> tuple[str | None, str]:
    """The host, with its brackets, and the port; None for what can't be told apart."""
    if place.startswith("["):
        host, bracket, port = place.partition("]")
        return (host + bracket, port[1:]) if bracket and port[:1] in ("", ":") else (None, "")
    host, _, port = place.partition(":")
    return (None, "") if ":" in port else (host, port)


def checked_host(host: str) -> tuple[str, str]:
    """The host to look up, and to show. ValueError with the reason."""
    if host.startswith("["):
        address, _, zone = host[1:-1].partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise ValueError(f"{address!r} is not an IPv6 address") from None
        return address + (f"%{zone.removeprefix('25')}" if zone else ""), f"[{address}]"
    try:
        ascii_host = host.lower() if host.isascii() else host.encode("idna").decode().lower()
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host name (IDNA)") from None
    if not HOST.fullmatch(ascii_host):
        raise ValueError(f"{host!r} is not a host name" if host else "it names no host")
    return ascii_host, ascii_host


def basic(user: str) -> str:
    """`user:password` as a URL has them, percent-encoded, as the Authorization header wants them (RFC 7617)."""
    name, _, password = user.partition(":")
    pair = unquote_to_bytes(bytes_of(name)) + b":" + unquote_to_bytes(bytes_of(password))
    return "Basic " + base64.b64encode(pair).decode()


def masked(url: str) -> str:
    """The URL without its password, for whoever reads a report."""
    return re.sub(r"^((?:[A-Za-z][A-Za-z0-9+.-]*://)?[^/?#@:]*):[^/?#]*@", r"\1:***@", url.strip())


@dataclass(frozen=True)
class Target:
    """One request, as data: what a line of a URL file says. Its headers replace the scenario's of the same name."""

    url: str
    method: str = "GET"
    body: bytes = b""
    headers: tuple[Header, ...] = ()
    parsed: Url = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise UsageError(f"a URL is text, not {self.url!r}")
        if self.method not in METHODS:
            raise UsageError(f"a method is {', '.join(METHODS[:-1])} or {METHODS[-1]}, not {self.method!r}")
        if not isinstance(self.body, bytes):
            raise UsageError(f"a body is bytes, not {self.body!r}")
        if self.body and self.method in WITHOUT_BODY:
            raise UsageError(f"a {self.method} has no body; POST, PUT, PATCH, DELETE and OPTIONS may have one")
        object.__setattr__(self, "headers", checked_headers(self.headers))
        object.__setattr__(self, "parsed", parse(self.url))


def parse_line(line: str) -> Target:
    """`URL`, `URL METHOD`, `URL METHOD body` or `URL METHOD <file`, as siege writes them. UsageError."""
    url, *rest = line.strip().split(None, 2)
    if not rest:
        return Target(url)
    method, body = rest[0], bytes_of(rest[1]) if len(rest) > 1 else b""
    if method not in METHODS:
        raise UsageError(f"after a URL comes a method ({', '.join(METHODS)}), not {method!r}; a space in a URL is %20")
    if body.startswith(b"<"):
        body = read_bounded(os.fsdecode(body[1:].strip()), MOST_BODY_BYTES, "bodies")
    return Target(url, method, body)


def read_bounded(path: str, most_bytes: int, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:      # ValueError: a zero byte in the name
        raise UsageError(f"can't read {path!r}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most_bytes:
        raise UsageError(f"{path!r} is larger than {most_bytes >> 20} MiB, which is the most for {what}")
    return data


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with $NAME, ${NAME} and $(NAME) replaced, from the file's definitions or else the environment; $$ is $.
    UsageError for one that neither has."""
    def value(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        name = found[2] or found[3] or found[4]
        known = variables.get(name, os.environ.get(name))
        if known is None:
            raise UsageError(f"{found[0]} is not defined, in this file above or in the environment; "
                             "a $ that is no variable is written $$")
        return known
    return VARIABLE.sub(value, text)


def read(path: str) -> list[Target]:
    """The targets of a URL file. UsageError, with the file and the line, for what can't be one."""
    lines = read_bounded(path, MOST_FILE_BYTES, "a file of URLs").removeprefix(b"\xef\xbb\xbf").splitlines()
    if len(lines) > MOST_LINES:
        raise UsageError(f"{path}: {len(lines)} lines are more than {MOST_LINES}, the most for a file of URLs")
    targets: list[Target] = []
    variables: dict[str, str] = {}
    bodies_bytes = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode().strip()
            if not text or text.startswith("#"):
                continue
            if definition := DEFINITION.fullmatch(text):
                variables[definition[1]] = expand(definition[2], variables)
                continue
            targets.append(parse_line(expand(text, variables)))
            bodies_bytes += len(targets[-1].body)
            if bodies_bytes > MOST_BODY_BYTES:
                raise UsageError(f"bodies have at most {MOST_BODY_BYTES >> 20} MiB in all")
        except UnicodeDecodeError:
            raise UsageError(f"{path}, line {number}: this is not UTF-8") from None
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    if not targets:
        raise UsageError(f"{path} has no URL in it")
    return targets
