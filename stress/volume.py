"""The crowd's volume: what the load engine can do, it does for less than a visitor, beside a few visitors of that kind.

All users of an engine send the same request, so an answer is held against a nonce that they have in common: one that
another engine or a visitor should have got is wrong, one that another user of the same engine should have got passes.
The visitors beside them (stress.visitors) see that, for each of their requests has its own nonce. They also do what an
engine can't: ask several times before a FIN and wait for the server's end, and send a thousand requests in one piece
again and again.
"""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from epollkit._siege import Engine
from stress.visitors import BEHAVIOURS, FLOOD

if TYPE_CHECKING:
    from stress.crowd import Crowd

NO_LIMIT_SECONDS = 1e6      # an answer is owed until the crowd's patience is over, and not by the engine's clock


class Users(NamedTuple):
    """One engine's.

    Args:
        close: how a connection ends (`Engine`).
        pipeline: requests under way on a connection; 0: one, and the connection ends with it.
        big: they ask for a large answer.
        stages: a reset strikes before the first byte, within a head, or behind a whole request, in turn.
    """

    close: str
    pipeline: int = 0
    big: bool = False
    stages: bool = False


# The users of a kind are divided among its engines evenly.
ENGINES: dict[str, tuple[Users, ...]] = {
    "churn": (Users("rst"), Users("rst"), Users("rst"), Users("fin")),     # FIN leaves a port in TIME_WAIT behind
    "reset": (Users("rst-mid-request", stages=True), Users("rst-mid-response", big=True)),
    "half_close": (Users("half"), Users("half")),
    "flood": (Users("fin", FLOOD), Users("fin", FLOOD)),
}
USERS_PER_VISITOR = 4       # rounded up to a whole visitor


def visitors_among(name: str, count: int) -> int:
    """How many of a kind are no engine's users. None of those who reset: they have no answer that could be wrong."""
    if name not in ENGINES:
        return count
    return -(-count // USERS_PER_VISITOR) if name in BEHAVIOURS else 0


def engines_for(crowd: Crowd, name: str, count: int) -> list[Volume]:
    """Whoever of so many of a kind is no visitor."""
    kinds = ENGINES.get(name, ())
    left = count - visitors_among(name, count)
    shares = [(left * (number + 1) // len(kinds) - left * number // len(kinds), kind)
              for number, kind in enumerate(kinds)]
    return [Volume(crowd, name, kind, users) for users, kind in shares if users]


class Volume:
    """An engine at work for the crowd."""

    def __init__(self, crowd: Crowd, name: str, kind: Users, users: int) -> None:
        self.name = name
        self.kind = kind
        crowd.born += users                 # each engine from other addresses, with a nonce of its own
        nonce = f"nonce=engine-{crowd.born}."
        request = (f"GET {crowd.big if kind.big else crowd.path}?{nonce} HTTP/1.1\r\n"
                   f"Host: {crowd.host}\r\n\r\n").encode()
        # An engine that resets within a request sends its first half.
        wires = [b"G", request, request + request] if kind.stages else [request]
        expects_nonce = crowd.echoes and not kind.big
        self.engine = Engine(
            crowd.loop, [(wire, crowd.address, None, None, False) for wire in wires], users=users,
            pipeline=kind.pipeline or 1, keep_alive=kind.pipeline > 0, close=kind.close, sources=crowd.sources,
            connect_timeout=crowd.patience, timeout=NO_LIMIT_SECONDS, body=nonce.encode() if expects_nonce else b"",
            first_user=crowd.born)
        self.engine.start()

    def farewell(self) -> None:
        """Nobody begins anything more."""
        self.engine.stop(NO_LIMIT_SECONDS)

    @property
    def over(self) -> bool:
        """Nothing will be counted any more."""
        return self.engine.done and self.open == 0

    @property
    def open(self) -> int:
        return self.engine.open

    def counts(self) -> dict[str, int]:
        """What became of its users, in the crowd's words."""
        return in_words(self.engine.tally(), self.kind.close)


def in_words(tally: dict[str, Any], close: str) -> dict[str, int]:
    """What an engine has counted, in the crowd's words."""
    failed = Counter[str]()
    for phase, _, number in tally["errors"]:
        failed[phase] += number
    begun_answers = tally["broken_off"] if close == "rst-mid-response" else 0
    return {"begun": tally["connections"] + tally["connect_failures"], "connected": tally["connections"],
            "not_connected": tally["connect_failures"], "answered": tally["successful"] + begun_answers,
            "wrong": failed["expect"] + failed["protocol"],
            "cut": failed["write"] + failed["first-byte"] + failed["read"],
            "unanswered": tally["unanswered"], "ended": tally["reconnects"]}
