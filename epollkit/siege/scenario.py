"""A siege as data: what is asked for, by how many, for how long, and what must hold. Checked when it is made."""
from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from epollkit import __version__, _sockets
from epollkit._checks import checked_number
from epollkit.errors import UsageError
from epollkit.siege import urls
from epollkit.siege.assertions import Assertion
from epollkit.siege.fields import Header, bytes_of, checked_headers, text_of
from epollkit.siege.urls import Target

CLOSES = ("fin", "rst", "half", "abandon", "rst-mid-request", "rst-mid-response")
LEAVING = CLOSES[2:]                    # after each request
MOST_USERS = 1_000_000
MOST_NUMBER = 10**12
MOST_SECONDS = 1e6
MOST_RATE = 1e7
MOST_PIPELINE = 1024
MOST_PROCESSES = 256
MOST_SOURCES = 65536
MOST_EXPECTED_BYTES = 1024 * 1024
SECRETS = ("authorization", "cookie", "proxy-authorization")


@dataclass(frozen=True)
class Scenario:
    """What a siege does. `epollkit.siege.run(Scenario("http://127.0.0.1:8000/", users=64, seconds=10))`.

    At least one of `seconds`, `number` and `repetitions` says when it ends. Durations are seconds. UsageError, in one
    sentence that begins with the field's name, for what makes no sense.

    Attributes:
        targets: URLs, as str or `Target`; each user asks for them in turn.
        users: connections at a time. With `rate`, the most of them.
        seconds, number, repetitions: how long; requests of all users together; requests of each.
        delay: each user waits up to so long, at random, before a request.
        rate: open loop: so many requests a second, planned ahead, whatever the server does.
        pipeline: requests under way on one connection.
        keep_alive: use a connection again; False asks the server to close it, and makes a new one for each request.
        random_order: each request is for a target chosen at random.
        sources: addresses of this machine to connect from; "127.0.0.2-127.0.0.16" is a range.
        close: how connections are ended: one of `CLOSES`.
        warmup: so long nothing is counted.
        headers: "Name: value", or pairs; they replace what would be sent otherwise.
        agent: the User-Agent header, unless headers have one.
        uds: the path of a unix socket, for all targets.
        connect_timeout, timeout: for a connection, TLS included; for an answer, from the request on.
        grace: how long what is under way at the end may take.
        expect_status: statuses that are a success: numbers, or text like "2xx,304"; None: those below 400.
        expect_body: bytes that a body must contain.
        processes: worker processes; they share users, number and rate.
        seed: of random choices; None: a new one.
        insecure, cafile: certificates are not checked; or checked against this file's authorities.
        pid: the server's process, to be watched.
        assertions: what must hold, like "p99<5ms".
    """

    targets: Any
    users: int = 25
    seconds: float | None = None
    number: int | None = None
    repetitions: int | None = None
    delay: float = 0.0
    rate: float | None = None
    pipeline: int = 1
    keep_alive: bool = True
    random_order: bool = False
    sources: Any = ()
    close: str = "fin"
    warmup: float = 0.0
    headers: Any = ()
    agent: str = f"epollkit-siege/{__version__}"
    uds: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 30.0
    grace: float = 5.0
    expect_status: Any = None
    expect_body: Any = None
    processes: int = 1
    seed: int | None = None
    insecure: bool = False
    cafile: str | None = None
    pid: int | None = None
    assertions: Any = ()

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """What each is right alone, and wrong together."""
        if self.seconds is None and self.number is None and self.repetitions is None:
            raise UsageError("seconds, number or repetitions has to say when it ends")
        if self.number is not None and self.repetitions is not None:
            raise UsageError("number is of all users together, and repetitions of each: give one of them")
        if self.rate is not None and (self.repetitions is not None or self.delay):
            other = "repetitions" if self.repetitions is not None else "delay"
            raise UsageError(f"rate says when requests are sent, whoever sends them, so {other} has no meaning")
        if self.pipeline > 1 and not self.keep_alive:
            raise UsageError("pipeline needs connections that are kept, and keep_alive says that they are not")
        if self.pipeline > 1 and (self.close in LEAVING or self.delay):
            other = "delay" if self.delay else f"close {self.close}"
            raise UsageError(f"pipeline says that a user does not wait for an answer, and {other} says that he does")
        if self.uds is not None and self.sources:
            raise UsageError("sources are IP addresses, and a unix socket (uds) is not reached from one")
        for name in ("users", "number"):
            if (getattr(self, name) or self.processes) < self.processes:
                raise UsageError(f"{name} is shared by {self.processes} processes, so it is at least that, "
                                 f"not {getattr(self, name)}")
        for name, _ in self.headers:
            if name.lower() == "authorization" and any(target.parsed.authorization for target in self.targets):
                raise UsageError("headers have an Authorization, and so has a URL, as user:password@")

    def to_json(self, secrets: bool = False) -> dict[str, Any]:
        """What `from_json` reads. Passwords and cookies are masked unless they are asked for: reports get around."""
        made = {field.name: getattr(self, field.name) for field in fields(self)}
        made["targets"] = [target_to_json(target, secrets) for target in self.targets]
        made["headers"] = headers_to_json(self.headers, secrets)
        made["expect_body"] = None if self.expect_body is None else body_to_json(self.expect_body)
        for name in ("sources", "expect_status", "assertions"):
            made[name] = None if made[name] is None else list(made[name])
        return made

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scenario:
        """UsageError: it is none."""
        try:
            targets = [Target(target["url"], target["method"], body_from_json(target["body"]), target["headers"])
                       for target in data["targets"]]
            expected = data.get("expect_body")
            return cls(**{**data, "targets": targets,
                          "expect_body": None if expected is None else body_from_json(expected)})
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this is not a scenario's JSON: {error!r}") from None


# -- JSON --------------------------------------------------------------------------------------------------------------

def body_to_json(body: bytes) -> str | dict[str, str]:
    """Text where it is text, since people read it."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def body_from_json(body: str | dict[str, str]) -> bytes:
    return body.encode() if isinstance(body, str) else base64.b64decode(body["base64"])


def headers_to_json(headers: Iterable[Header], secrets: bool) -> list[list[str]]:
    return [[name, "***" if name.lower() in SECRETS and not secrets else value] for name, value in headers]


def target_to_json(target: Target, secrets: bool) -> dict[str, Any]:
    return {"url": target.url if secrets else urls.masked(target.url), "method": target.method,
            "body": body_to_json(target.body), "headers": headers_to_json(target.headers, secrets)}


# -- checks, one field each: (name, value) -> the value as it is kept --------------------------------------------------

def checked_targets(name: str, given: Any) -> tuple[Target, ...]:
    if isinstance(given, (str, Target)):
        given = (given,)
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise UsageError(f"{name} are URLs, not {given!r}")
    targets = tuple(target if isinstance(target, Target) else Target(target) for target in given)
    if not 1 <= len(targets) <= urls.MOST_LINES:
        raise UsageError(f"{name} are 1 to {urls.MOST_LINES} URLs, not {len(targets)}")
    if sum(len(target.body) for target in targets) > urls.MOST_BODY_BYTES:
        raise UsageError(f"{name} have bodies of {urls.MOST_BODY_BYTES >> 20} MiB in all at most")
    return targets


def number_between(least: int, most: int) -> Any:
    return lambda name, value: checked_number(name, value, least, most)


def seconds_between(least: float, most: float, what: str = "a number of seconds") -> Any:
    """Of a float; least 0.0 as such is meant where it is allowed, and a small number where it is not."""
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise UsageError(f"{name} is {what} from {least:g} to {most:g}, not {value!r}")
        return float(value)
    return check


def optional(check: Any) -> Any:
    return lambda name, value: None if value is None else check(name, value)


def checked_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} is True or False, not {value!r}")
    return value


def checked_text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is text, not {value!r}")
    return value


def checked_agent(name: str, value: Any) -> str:
    return field_headers(name, [("User-Agent", value)])[0][1]


def checked_close(name: str, value: Any) -> str:
    if value not in CLOSES:
        raise UsageError(f"{name} is {', '.join(CLOSES[:-1])} or {CLOSES[-1]}, not {value!r}")
    return str(value)


def checked_uds(name: str, value: Any) -> str:
    """A path, or `@name` for an abstract one."""
    try:
        path = _sockets.checked_target(value if isinstance(value, (str, bytes)) else b"")
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
    return "\0" + str(path)[1:] if str(path).startswith("@") else str(path)


def checked_sources(name: str, given: Any) -> tuple[str, ...]:
    """Numeric addresses of one family; a range has both ends in it."""
    found: list[str] = []
    for text in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
        first, _, last = str(text).partition("-")
        try:
            low, high = ipaddress.ip_address(first.strip()), ipaddress.ip_address((last or first).strip())
        except ValueError:
            raise UsageError(f"{name} are numeric addresses like 127.0.0.2, or ranges like 127.0.0.2-127.0.0.16, "
                             f"not {text!r}") from None
        if low.version != high.version or int(low) > int(high):
            raise UsageError(f"{name}: {text!r} does not run from a lower address to a higher one")
        if len(found) + int(high) - int(low) + 1 > MOST_SOURCES:
            raise UsageError(f"{name} are {MOST_SOURCES} addresses at most, and {text!r} is too many")
        found += (str(type(low)(number)) for number in range(int(low), int(high) + 1))
    if len({":" in address for address in found}) > 1:
        raise UsageError(f"{name} are all IPv4 or all IPv6, not some of each")
    return tuple(found)


def checked_statuses(name: str, given: Any) -> tuple[int, ...]:
    """Numbers, and text like "200", "2xx" or "200-299,304"."""
    found: set[int] = set()
    for part in given.split(",") if isinstance(given, str) else given if isinstance(given, Iterable) else [given]:
        text = str(part).strip().lower()
        if match := re.fullmatch("([1-9])xx", text):
            low, high = int(match[1]) * 100, int(match[1]) * 100 + 99
        elif match := re.fullmatch("([0-9]{3})(?:-([0-9]{3}))?", text):
            low, high = int(match[1]), int(match[2] or match[1])
        else:
            low, high = 0, 0
        if not 100 <= low <= high <= 999:
            raise UsageError(f"{name} are statuses like 200, 2xx or 200-299, separated by commas, not {part!r}")
        found.update(range(low, high + 1))
    if not found:
        raise UsageError(f"{name} has no status in it")
    return tuple(sorted(found))


def checked_body(name: str, value: Any) -> bytes:
    body = bytes_of(value) if isinstance(value, str) else value
    if not isinstance(body, bytes) or not 1 <= len(body) <= MOST_EXPECTED_BYTES:
        raise UsageError(f"{name} is text or bytes, 1 to {MOST_EXPECTED_BYTES} of them, not {text_of(value)[:100]!r}")
    return body


def checked_assertions(name: str, given: Any) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not texts and given not in ((), []):
        raise UsageError(f"{name} are texts like p99<5ms, not {given!r}")
    for text in texts:
        Assertion.parse(text)
    return texts


def field_headers(name: str, given: Any) -> tuple[Header, ...]:
    try:
        return checked_headers(given)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


CHECKS: dict[str, Any] = {
    "targets": checked_targets,
    "users": number_between(1, MOST_USERS),
    "seconds": optional(seconds_between(0.01, MOST_SECONDS)),
    "number": optional(number_between(1, MOST_NUMBER)),
    "repetitions": optional(number_between(1, MOST_NUMBER)),
    "delay": seconds_between(0.0, MOST_SECONDS),
    "rate": optional(seconds_between(0.001, MOST_RATE, "a number of requests a second")),
    "pipeline": number_between(1, MOST_PIPELINE),
    "keep_alive": checked_bool,
    "random_order": checked_bool,
    "sources": checked_sources,
    "close": checked_close,
    "warmup": seconds_between(0.0, MOST_SECONDS),
    "headers": field_headers,
    "agent": checked_agent,
    "uds": optional(checked_uds),
    "connect_timeout": seconds_between(0.001, MOST_SECONDS),
    "timeout": seconds_between(0.001, MOST_SECONDS),
    "grace": seconds_between(0.0, MOST_SECONDS),
    "expect_status": optional(checked_statuses),
    "expect_body": optional(checked_body),
    "processes": number_between(1, MOST_PROCESSES),
    "seed": optional(number_between(0, 2**32 - 1)),
    "insecure": checked_bool,
    "cafile": optional(checked_text),
    "pid": optional(number_between(1, 2**31 - 1)),
    "assertions": checked_assertions,
}
