"""What the engine is given: a request's bytes and where they go, worked out once, before the clock runs."""
from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple

from epollkit import _sockets
from epollkit.errors import Attempt, UsageError
from epollkit.siege.fields import Header, bytes_of, joined
from epollkit.siege.scenario import Scenario
from epollkit.siege.urls import Target

TRY_SECONDS = 3.0                                   # for an address that does not answer: there may be another
WITH_LENGTH = ("POST", "PUT", "PATCH")              # say Content-Length: 0, too (RFC 9110 8.6)
FORM = "application/x-www-form-urlencoded"          # what siege says of a body, if nobody says otherwise

Address = tuple[str, int] | tuple[str, int, int, int] | str
Place = tuple[str, int]                             # as a URL names it: host and port


class Prepared(NamedTuple):
    """One target, ready to be sent."""

    wire: bytes                     # the whole request
    address: Address
    ssl: ssl.SSLContext | None
    server_hostname: str | None
    head: bool                      # its answer has no body, whatever its head says


def wire(target: Target, scenario: Scenario) -> bytes:
    """The request as it is sent."""
    url = target.parsed
    ours: list[Header] = [("Host", url.host_field.decode()), ("User-Agent", scenario.agent)]
    if url.authorization:
        ours.append(("Authorization", url.authorization))
    if target.body:
        ours.append(("Content-Type", FORM))
    headers = joined(ours, scenario.headers, target.headers)
    if target.body or target.method in WITH_LENGTH:
        headers.append(("Content-Length", str(len(target.body))))
    if not scenario.keep_alive and scenario.close == "fin":     # else it is for us to leave, and not for the server
        headers.append(("Connection", "close"))
    headers.sort(key=lambda header: header[0].lower() != "host")       # first, whoever gave it (RFC 9110 7.2)
    head = b"".join(bytes_of(f"{name}: {value}\r\n") for name, value in headers)
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (target.method.encode(), url.target, head, target.body)


def tls_context(scenario: Scenario) -> ssl.SSLContext:
    """One for all connections. UsageError: the file of authorities is none."""
    try:
        context = ssl.create_default_context(cafile=scenario.cafile)
    except (OSError, ValueError) as error:      # ssl.SSLError is an OSError; ValueError: a zero byte
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cafile: {scenario.cafile!r} can't be used: {why}") from None
    if scenario.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def connects(family: int, address: object, source: str | None) -> OSError | None:
    """Whether somebody accepts there; else why not."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(TRY_SECONDS)
        try:
            if source is not None:
                sock.bind((source, 0))
            sock.connect(address)       # type: ignore[arg-type]
        except OSError as error:
            return error
    return None


def candidates(place: Place, sources: tuple[str, ...]) -> list[tuple[int, tuple[str, int]]]:
    """Families and addresses of a host, those that a source can reach. ConnectError: it has none."""
    try:
        found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise _sockets.connect_error(place, [Attempt(place, error, 0.0)], False) from None
    family = None if not sources else socket.AF_INET6 if ":" in sources[0] else socket.AF_INET
    usable = [(kind, address) for kind, _, _, _, address in found if family in (None, kind)]
    if not usable:
        apart = OSError(None, "no address of it can be reached from the given sources")
        raise _sockets.connect_error(place, [Attempt(place, apart, 0.0)], False)
    return usable       # type: ignore[return-value]


def find_address(place: Place, sources: tuple[str, ...]) -> Address:
    """The first address of a host that accepts a connection. ConnectError, with each one's reason, where none does."""
    attempts = []
    for family, address in candidates(place, sources):
        began = time.monotonic()
        error = connects(family, address, sources[0] if sources else None)
        if error is None:
            return address if len(address) == 4 and address[3] else address[:2]
        attempts.append(Attempt(address[:2], error, time.monotonic() - began))
    raise _sockets.connect_error(place, attempts, False)


def resolve(scenario: Scenario) -> dict[Place, Address]:
    """Where each host of the scenario is. One connection to each, which says nothing, shows that somebody is there."""
    if scenario.uds is not None:
        error = connects(socket.AF_UNIX, scenario.uds, None)
        if error is not None:
            raise _sockets.connect_error(scenario.uds, [Attempt(scenario.uds, error, 0.0)], False)
        return {}
    places = dict.fromkeys((target.parsed.host, target.parsed.port) for target in scenario.targets)
    return {place: find_address(place, scenario.sources) for place in places}


def requests(scenario: Scenario, addresses: Mapping[Place, Address]) -> list[Prepared]:
    """One for each target. UsageError: TLS can't be had as the scenario wants it."""
    context = tls_context(scenario) if any(target.parsed.scheme == "https" for target in scenario.targets) else None
    made = []
    for target in scenario.targets:
        url = target.parsed
        secure = url.scheme == "https"
        address = addresses[url.host, url.port] if scenario.uds is None else scenario.uds
        made.append(Prepared(wire(target, scenario), address, context if secure else None,
                             url.host.partition("%")[0] if secure else None, target.method == "HEAD"))
    return made


def prepare(scenario: Scenario) -> list[Prepared]:
    """Both: look up and try the hosts, then make the requests. ConnectError, UsageError."""
    return requests(scenario, resolve(scenario))
