"""A client process of the demo: a hostile crowd on epollkit's own raw API, and a careful account of what became of it.

About five hundred connections stay; two dozen actions run at any time, each chosen by a seeded random: an exchange, a
pipeline, a newcomer that asks once and leaves, one that resets with its request in flight, one that half-closes. And
one burst at a time, which makes stale events for certain (see `Burst`).

A connection counts as killed wrongly when the server ends it although nobody asked for that: it was not banned, no
order that was carried out names it, this side had not said farewell. What can't be known is decided in the server's
favour: the victims of an order whose answer never came are not counted.
"""
from __future__ import annotations

import errno
import heapq
import os
import random
from collections.abc import Callable

from epollkit import IN, Loop
from epollkit.demo.application import BANNED_SOURCE
from epollkit.demo.children import Commands, Message, Reporter
from epollkit.demo.peer import Kind, Peer, Pool

HOST = "127.0.0.1"
SOURCES = [f"127.0.0.{number}" for number in range(2, 18)]     # more addresses, more ports, and admission by address
ACTIONS = 24                    # at any time, beside the burst
PIPELINE = (4, 16)              # requests at once
VICTIMS = (6, 10)               # of one burst
SPARE_NEWCOMERS = 4             # beyond one per victim: they fill holes below the victims' descriptors
BURST_PAUSE_SECONDS = (0.004, 0.020)
BURST_LIMIT_SECONDS = 2.0       # a burst whose answers do not come is given up
SURPLUS = 40                    # residents beyond the wanted number: newcomers of bursts leave from there on
DRAIN_SECONDS = 5.0             # for the last answers
REPORT_SECONDS = 0.25
WEIGHTS = {"exchange": 30, "pipeline": 12, "churn": 38, "reset": 10, "half_close": 10}


def main(config: Message) -> None:
    """Be a crowd. config: `seed`, `client` (this process's number), `connections` (that stay)."""
    with Loop() as loop:
        crowd = Crowd(loop, config["seed"], config["client"], config["connections"])
        loop.set_exception_handler(crowd.on_failure)
        reporter = crowd.reporter
        commands = Commands({"gather": crowd.gather, "begin": crowd.begin})
        loop.register(commands, IN, commands.read)
        reporter.report(hello=True)
        loop.run()
        if crowd.failure is not None:
            raise crowd.failure
        crowd.leave_all()
        reporter.report(final=True)


class Burst:
    """Order, newcomers and stirred victims as one batch of the server's.

    `holder` asks for /hold. When the server says that it holds, everything is sent back to back, in this order: the
    giver's order to close the victims, pairs of newcomers on this client's own port (one that is refused, one that is
    not), bytes, FIN or RST on each victim, and the holder's release. So the server's next batch has the order first,
    the listener second, the victims third: their events are stale, their descriptors and slots have new owners, and
    because of the refused ones each slot was reused twice, which brings back its generation's lowest bit.

    The port is this client's own: a level-triggered listener that was just reported stands first in the next batch.
    """

    def __init__(self, crowd: Crowd, holder: Peer, giver: Peer, victims: list[Peer]) -> None:
        self.crowd = crowd
        self.holder = holder
        self.giver = giver
        self.victims = victims
        self.fired = False

    def fire(self) -> None:
        """The server holds: send everything, back to back."""
        crowd, choose = self.crowd, self.crowd.random.choice
        self.fired = True
        crowd.counts["bursts"] += 1
        self.victims = [victim for victim in self.victims if victim.sock is not None]
        for victim in self.victims:
            victim.named = True
        self.giver.ask("/swap", more="&victims=" + ",".join(victim.nonce for victim in self.victims))
        for _ in range(len(self.victims) + SPARE_NEWCOMERS):
            crowd.open(Kind.BANNED, crowd.own_port)
            crowd.open(Kind.RESIDENT, crowd.own_port)
        for victim in self.victims:
            self.stir(victim, choose(("bytes", "fin", "reset", "reset")))
        self.holder.ask()

    def stir(self, victim: Peer, how: str) -> None:
        """Give the server an event of this victim."""
        if how == "bytes":
            victim.ask()
        elif how == "fin":
            victim.finish_asking()
        else:
            self.crowd.leave(victim, reset=True)

    def judge(self, closed: list[str]) -> None:
        """The order's answer: who was closed by order, and who was not and should be alive."""
        for victim in self.victims:
            victim.named = False
            victim.condemned = victim.nonce in closed
            if victim.ended and not victim.condemned:
                self.crowd.account(victim)

    @property
    def is_over(self) -> bool:
        """Whether both who asked have their answers, or have ended."""
        pair = (self.holder, self.giver)
        return self.fired and all(peer.sock is None or peer.answered >= peer.asked for peer in pair)


class Crowd:
    """Everything that one client process does."""

    def __init__(self, loop: Loop, seed: int, client: int, connections: int) -> None:
        self.loop = loop
        self.random = random.Random(seed * 1000 + client)
        self.client = client
        self.wanted = connections
        self.port = self.own_port = 0
        self.peers: set[Peer] = set()       # everybody who is connected, or about to be
        self.idle = Pool()                  # residents that nobody waits for
        self.residents = 0
        self.running = 0                    # actions
        self.born = 0
        self.burst: Burst | None = None
        self.is_full = self.ending = False
        self.failure: BaseException | None = None
        self.counts = {"opened": 0, "answers": 0, "bursts": 0, "killed": 0, "crossed": 0, "half_closed": 0,
                       "half_closed_unanswered": 0, "unanswered": 0, "not_opened": 0}
        self.reporter = Reporter(lambda: self.counts)
        self.actions: dict[str, Callable[[], Peer | None]] = {
            "exchange": lambda: self.exchange(1),
            "pipeline": lambda: self.exchange(self.random.randint(*PIPELINE)),
            "churn": lambda: self.open(Kind.CHURN, self.port),
            "reset": lambda: self.open(Kind.RESET, self.port, self.random.choice((1, 1, 4))),
            "half_close": lambda: self.open(Kind.HALF_CLOSE, self.port, self.random.randint(1, 4)),
        }

    # -- commands ------------------------------------------------------------------------------------------------------

    def gather(self, message: Message) -> None:
        """Connect those who stay; `full` is reported once all of them are there."""
        self.port, self.own_port = message["ports"][0], message["ports"][1 + self.client]
        self.top_up()
        self.tick()

    def begin(self, message: Message) -> None:
        """Run for so many seconds, then bring everything to an end."""
        self.loop.call_later(message["seconds"], self.finish)
        self.refill()
        self.start_burst()

    def tick(self) -> None:
        if not self.ending:
            self.top_up()
            self.refill()
            self.reporter.report()
        self.loop.call_later(REPORT_SECONDS, self.tick)

    def finish(self) -> None:
        """No new action; wait for what is under way."""
        self.ending = True
        self.reporter.report(ending=True)
        self.drain(self.loop.time() + DRAIN_SECONDS)

    def drain(self, deadline: float) -> None:
        """Stop once nobody is owed anything, or the deadline has passed."""
        waiting = [peer for peer in self.peers if self.is_owed(peer)]
        if waiting and self.loop.time() < deadline:
            self.loop.call_later(0.01, self.drain, deadline)
            return
        self.counts["unanswered"] = sum(
            peer.asked - peer.answered if peer.connected else peer.first for peer in waiting)
        self.loop.stop()

    def is_owed(self, peer: Peer) -> bool:
        """Whether the server has something left to do for this connection."""
        if peer.condemned or peer.named or peer.kind in (Kind.BANNED, Kind.RESET):
            return False
        return not peer.connected or peer.answered < peer.asked

    def leave_all(self) -> None:
        for peer in list(self.peers):
            peer.leave(reset=True)

    def on_failure(self, error: BaseException, source: object) -> None:
        """The crowd itself is broken: say so, rather than blame the server."""
        self.failure = self.failure or error
        self.loop.stop()

    # -- actions -------------------------------------------------------------------------------------------------------

    def refill(self) -> None:
        """Have as many actions running as there should be."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while self.is_full and not self.ending and self.running < ACTIONS:
            peer = self.actions[self.random.choices(names, weights)[0]]()
            if peer is None:
                return          # nobody is idle, or no port is free: the next tick tries again
            peer.active = True
            self.running += 1

    def acted(self, peer: Peer) -> None:
        """The action that waited for this connection is over."""
        if peer.active:
            peer.active = False
            self.running -= 1
            self.refill()

    def top_up(self) -> None:
        """Open new residents in the place of those who died."""
        while self.residents < self.wanted and self.open(Kind.RESIDENT, self.port) is not None:
            pass

    def open(self, kind: Kind, port: int, first: int = 1) -> Peer | None:
        """A new connection; None when there is no port left at the moment, or the server is gone."""
        self.born += 1
        peer = Peer(self, kind, f"{self.client}-{self.born}", 0 if kind is Kind.BANNED else first)
        source = BANNED_SOURCE if kind is Kind.BANNED else self.random.choice(SOURCES)
        result = peer.open(source, (HOST, port))
        if result in (errno.EADDRNOTAVAIL, errno.ECONNREFUSED):
            self.counts["not_opened"] += 1
            return None         # the next tick tries again; a server that is gone is the runner's to report
        if result:
            raise OSError(result, f"connecting to the server: {os.strerror(result)}")
        self.counts["opened"] += 1
        self.residents += kind is Kind.RESIDENT
        self.peers.add(peer)
        return peer

    def exchange(self, count: int) -> Peer | None:
        """So many requests at once on an idle connection; None when nobody is idle."""
        if not self.idle:
            return None
        peer = self.idle.take_random(self.random)
        peer.ask(count=count)
        return peer

    def start_burst(self) -> None:
        """Choose who takes part, and ask the server to hold."""
        if self.ending:
            return
        count = self.random.randint(*VICTIMS)
        if len(self.idle) < 2 * count:
            self.loop.call_later(BURST_PAUSE_SECONDS[1], self.start_burst)
            return
        victims = heapq.nsmallest(count, self.idle.members, key=lambda peer: peer.server_fd)
        for victim in victims:
            self.idle.discard(victim)
        holder, giver = self.idle.take_random(self.random), self.idle.take_random(self.random)
        self.burst = burst = Burst(self, holder, giver, victims)
        holder.ask("/hold")
        self.loop.call_later(BURST_LIMIT_SECONDS, self.end_burst, burst)

    def end_burst(self, burst: Burst) -> None:
        """It is over, or took too long. Who lives is a resident again."""
        if self.burst is not burst:
            return
        self.burst = None
        for peer in (burst.holder, burst.giver, *burst.victims):
            if peer.named:
                self.leave(peer, reset=True)    # nobody knows whether it was closed by order: no longer a witness
            elif not (peer.condemned or peer.farewell):
                self.settle(peer)
        self.loop.call_later(self.random.uniform(*BURST_PAUSE_SECONDS), self.start_burst)

    # -- what connections tell -----------------------------------------------------------------------------------------

    def on_connected(self, peer: Peer) -> None:
        """Send its first requests, and do what its kind does next."""
        if peer.first:
            peer.ask(count=peer.first)
        if peer.kind is Kind.RESET:
            self.leave(peer, reset=True)
        elif peer.kind is Kind.HALF_CLOSE:
            self.counts["half_closed"] += 1
            peer.finish_asking()

    def on_holding(self, peer: Peer) -> None:
        """The interim answer to /hold."""
        if self.burst is not None and self.burst.holder is peer and not self.burst.fired and not self.ending:
            self.burst.fire()

    def on_answer(self, peer: Peer, status: bytes, body: bytes) -> None:
        """One answer: is it the one that this connection waits for?"""
        words = body.decode("ascii", "replace").split(" ")
        self.counts["answers"] += 1
        if status != b"200" or words[0] != f"{peer.nonce}.{peer.answered}" or peer.answered >= peer.asked:
            self.counts["crossed"] += 1
        else:
            peer.server_fd = int(words[1])
        peer.answered += 1
        burst = self.burst
        if burst is not None and peer in (burst.holder, burst.giver):
            if peer is burst.giver and len(words) > 2:
                burst.judge(words[2].split(","))
            if burst.is_over:
                self.end_burst(burst)
        elif peer.answered == peer.asked:
            self.settle(peer)

    def settle(self, peer: Peer) -> None:
        """It has all its answers: what now?"""
        if peer.sock is None or peer.answered < peer.asked:
            return
        if peer.kind is Kind.RESIDENT and self.residents <= self.wanted + SURPLUS:
            if not self.is_full and len(self.idle) + 1 >= self.wanted:
                self.is_full = True
                self.reporter.report(full=True)
            self.idle.add(peer)
            self.acted(peer)
        elif peer.kind is not Kind.HALF_CLOSE:
            self.leave(peer, reset=self.random.random() < 0.75)     # a FIN leaves TIME_WAIT behind, and a port in it

    def leave(self, peer: Peer, reset: bool) -> None:
        """This side ends it."""
        peer.leave(reset)
        self.forget(peer)

    def forget(self, peer: Peer) -> None:
        """It has ended, whoever ended it."""
        if peer in self.peers:
            self.peers.remove(peer)
            self.idle.discard(peer)
            self.residents -= peer.kind is Kind.RESIDENT
            self.acted(peer)

    def on_end(self, peer: Peer) -> None:
        """The server ended it. A victim's case is decided when the order's answer comes."""
        self.forget(peer)
        if not peer.named:
            self.account(peer)
        burst = self.burst
        if burst is not None and peer in (burst.holder, burst.giver):
            self.end_burst(burst)

    def account(self, peer: Peer) -> None:
        """Was there a reason to end it?"""
        if peer.kind is Kind.HALF_CLOSE:
            self.counts["half_closed_unanswered"] += peer.answered < peer.asked
        elif not (peer.kind is Kind.BANNED or peer.condemned or peer.farewell):
            self.counts["killed"] += 1
