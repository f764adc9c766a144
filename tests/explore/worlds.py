"""Worlds of raw registrations: the loop's own code, on the fake kernel, with every choice open.

Outside of a turn anybody may do anything, and in each handler again: 0 is always "nothing more", outside "a turn". So a
run that asks nothing any more goes on by turns until nothing is left to do.
"""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from checks import Deliveries, Descriptors, Registration, Reports, Slots, require, words
from engine import Run, Stop
from twin import TwinLoop

import epollkit
from epollkit import IN, ONESHOT, StaleToken, UsageError, _kernel, _loopstate

Option = tuple[str, Callable[[], object] | None]
LOGGER = logging.getLogger("epollkit")
SETTLE_TURNS = 60
READABLE = (1).to_bytes(8, "little")        # what is written into an eventfd


class Interrupt(BaseException):
    """Ctrl-C in a handler."""


def named(number: int) -> str:
    """A, B, C ... A1, B1 ..."""
    return chr(ord("A") + number % 26) + str(number // 26 or "")


class World:
    """The kernel, the loop, the story, and how a question is asked."""

    slots = 3               # max_connections
    room = 3                # events per batch

    def __init__(self, run: Run, bits: int = 32) -> None:
        self.run, self.bits = run, bits
        self.story: list[str] = []
        self.closing = False                    # the run is over: handlers do nothing any more
        self.inside: object = None              # whose handler runs
        self.exits = contextlib.ExitStack()
        self.exits.callback(setattr, LOGGER, "disabled", LOGGER.disabled)
        LOGGER.disabled = True                  # listeners that pause, and whose peers vanish: nobody wants to know
        self.kernel: Any = self.exits.enter_context(_kernel.booted())
        self.ours = self.kernel.ours
        self.reports = Reports()
        self.loop = self.make_loop()
        self.descriptors = Descriptors(self.ours, self.loop_fd())

    def make_loop(self) -> Any:
        loop = epollkit.Loop(self.slots, self.bits, self.room)
        loop.set_exception_handler(self.reports.report)
        self.table: Slots | None = Slots(loop, self.slots)
        return loop

    def confused(self, fd: int) -> bool:
        """Whether the set knows the file behind this number, but from an earlier time: its descriptor was closed
        untold, a copy lives on, its owner has ended, and the number has come back to it, untold, from its next owner.
        Nobody can tell that from the set."""
        return self.kernel.registration(self.loop_fd(), fd) is not None

    def loop_fd(self) -> int:
        return int(self.loop.fileno())

    # -- questions -----------------------------------------------------------------------------------------------------

    def pick(self, where: str, options: list[Option]) -> int:
        """One of these happens. What was chosen; 0 for nothing."""
        if self.closing:
            return 0
        answer = self.run.choose(len(options), self.key)
        label, function = options[answer]
        if label:
            self.story.append(f"{where}: {label}" if where else label)
        if function is not None:
            function()
        return answer

    def acts(self, who: str, inside: object, options: Callable[[], list[Option]]) -> None:
        """A handler does what it likes, one thing after the other."""
        before, self.inside = self.inside, inside
        while self.pick(who, [("", None), *options()]):
            if self.run.fresh:
                self.check()
        self.inside = before

    def key(self) -> object:
        """Everything that what follows may depend on."""
        return (self.kernel.state(self.loop), _loopstate.loop_state(self.loop), self.own_key())

    def batches(self) -> int:
        """Waits that returned something."""
        return self.loop.stats().batches

    # -- a run ---------------------------------------------------------------------------------------------------------

    def play(self) -> None:
        self.start()
        while not self.run.over and (happens := self.outside()):
            self.pick("", [("", self.turn), *happens])
            if self.run.fresh:
                self.check()
        self.settle()
        self.finish()

    def turn(self) -> bool:
        """Whether it came to its end."""
        waits = self.kernel.waits
        try:
            self.loop.turn(0)
        except Interrupt:
            self.story.append("the turn is cut short")
            return False
        require(self.kernel.waits <= waits + 1, 9, "a turn has waited twice")
        self.turned()
        self.reports.turned()
        return True

    def settle(self) -> None:
        for _ in range(SETTLE_TURNS):
            if not self.progress():
                break
        else:
            require(False, 8, "the loop does not come to rest")
        self.settled()

    def progress(self) -> bool:
        """A turn; whether anything has happened in it, or it was not a whole one."""
        before, waits = (self.batches(), self.upcalls()), self.kernel.waits
        whole = self.turn() and self.kernel.waits > waits
        self.check()
        return not whole or (self.batches(), self.upcalls()) != before

    def upcalls(self) -> int:
        return self.loop.stats().upcalls if self.table else 0

    def finish(self) -> None:
        """The loop is closed; what is left is the user's."""
        self.closing = True
        self.loop.close()
        self.descriptors.epoll_fd = -1
        self.descriptors.check([])

    def close(self) -> None:
        """After a run, whatever came of it."""
        self.closing = True
        with self.exits:
            with contextlib.suppress(Stop, Interrupt):
                self.loop.close()
            self.ours.exit()

    # -- what a world adds ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        pass

    def outside(self) -> list[Option]:
        raise NotImplementedError

    def own_key(self) -> object:
        raise NotImplementedError

    def turned(self) -> None:
        pass

    def check(self) -> None:
        pass

    def settled(self) -> None:
        pass


class Raw(World):
    """register, modify, unregister; descriptors that are opened and closed, told and untold; timers; exceptions.

    verbs: what may happen. "end": unregister and close the descriptor. "replace": unregister, and register the same
    again. "open": the next descriptor, registered. "leave": unregister only, "enter": register what is open.
    "steal": close a descriptor and tell nobody. "copy": dup. "stale": use the name of what has ended. "once": ONESHOT
    and its re-arming. "read": what made it readable is gone. "call": a timer. "raise", "interrupt": in a handler.
    """

    fds = 3
    begin = 2               # registrations at the beginning
    verbs = frozenset({"end", "replace", "open", "leave", "enter", "steal", "copy", "stale", "once", "read", "call",
                       "raise", "interrupt"})

    def __init__(self, run: Run, bits: int = 32, verbs: frozenset[str] | None = None) -> None:
        super().__init__(run, bits)
        if verbs is not None:
            self.verbs = verbs
        self.deliveries = Deliveries(self.kernel, self.batches, self.room, self.story)
        self.claims: dict[int, Registration] = {}       # number -> who is registered under it, and live
        self.ended: dict[int, Registration] = {}        # number -> the last who was, and is not any more
        self.made = 0
        self.readable: set[int] = set()     # files
        self.timer: Any = None              # at most one
        self.due_ns = 0

    def start(self) -> None:
        for _ in range(self.begin):
            self.open()

    # -- what can happen -----------------------------------------------------------------------------------------------

    @property
    def live(self) -> list[Registration]:
        return [self.claims[fd] for fd in sorted(self.claims)]

    def over(self, one: Registration) -> None:
        """It has ended."""
        if one.live:
            one.live = one.owed = False
            del self.claims[one.fd]
            self.ended[one.fd] = one

    def outside(self) -> list[Option]:
        files = self.descriptors.files
        firsts = {file: fd for fd, file in sorted(files.items(), reverse=True)}
        found: list[Option] = [(f"fd {fd} becomes readable", lambda fd=fd: self.fire(fd))
                               for fd in sorted(firsts.values())]
        if self.timer is not None:
            found.append(("a second passes", self.pass_second))
        return found + self.options()

    def options(self, one: Registration | None = None) -> list[Option]:
        """For everybody, or within one's handler."""
        found: list[Option] = []
        for other in self.live:
            for verb, function in (("end", self.end), ("replace", self.replace), ("leave", self.leave),
                                   ("once", self.arm)):
                if verb in self.verbs:
                    found.append((f"{VERBS[verb]} {other.name}", lambda f=function, other=other: f(other)))
        if "stale" in self.verbs:
            for verb, function in (("end", self.end), ("leave", self.leave)):
                if verb in self.verbs:
                    found += [(f"{VERBS[verb]} {other.name} once more", lambda f=function, other=other: f(other))
                              for other in self.stale()]
        found += self.file_options()
        if "call" in self.verbs:
            found.append(("sets a timer", self.set_timer) if self.timer is None else ("cancels the timer", self.cancel))
        if one is not None:
            found += self.handler_options(one)
        return found

    def file_options(self) -> list[Option]:
        found: list[Option] = []
        files = self.descriptors.files
        if "open" in self.verbs and len(files) < self.fds:
            found.append(("opens another", self.open))
        for fd in sorted(files):
            if "enter" in self.verbs and self.claimant(fd) is None:
                found.append((f"registers fd {fd}", lambda fd=fd: self.enter(fd)))
            if "steal" in self.verbs:
                found.append((f"closes fd {fd}, and tells nobody", lambda fd=fd: self.steal(fd)))
            if "copy" in self.verbs and len(files) <= self.fds:
                found.append((f"copies fd {fd}", lambda fd=fd: self.descriptors.opened(self.ours.dup(fd))))
        return found

    def handler_options(self, one: Registration) -> list[Option]:
        found: list[Option] = []
        if "read" in self.verbs and one.file in self.readable and self.descriptors.files.get(one.fd) == one.file:
            found.append(("reads", lambda: self.read(one)))
        if "raise" in self.verbs:
            found.append(("raises", lambda: self.fail(one)))
        if "interrupt" in self.verbs:
            found.append(("Ctrl-C", lambda: self.interrupt(one)))
        return found

    def stale(self) -> list[Registration]:
        """The last that has ended, of each number."""
        return [self.ended[fd] for fd in sorted(self.ended)]

    def claimant(self, fd: int) -> Registration | None:
        """The live registration of this number, if the file behind it still is the one that was registered."""
        one = self.claims.get(fd)
        return one if one is not None and self.kernel.registration(self.loop_fd(), fd) == one.serial else None

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        fd = self.ours.eventfd()
        self.descriptors.opened(fd)
        self.enter(fd)

    def enter(self, fd: int, oneshot: bool = False) -> None:
        claimed = self.claimant(fd)
        try:
            token = self.register(fd, IN | (ONESHOT if oneshot else 0))
        except epollkit.LimitReached:
            require(len(self.claims) == self.slots, 8, "refused, and there is room")
            return
        except UsageError:
            require(claimed is not None or self.confused(fd), 3, f"fd {fd} is refused, and nobody has it")
            return
        require(claimed is None, 3, f"fd {fd} is registered twice")
        if fd in self.claims:               # closed behind the loop's back: noticed now
            self.over(self.claims[fd])
        one = self.newest
        one.token = token
        if self.table is not None:
            self.table.named(token)
        one.serial = self.kernel.registration(self.loop_fd(), fd)
        one.owed = one.file in self.readable
        self.deliveries.known[one.serial] = one
        self.claims[fd] = one
        require(len(self.claims) <= self.slots, 8, f"{len(self.claims)} are registered")
        self.story.append(f"  {one.name} is fd {fd}" + (f", slot {token.index}" if self.table else ""))

    def register(self, fd: int, mask: int) -> Any:
        one = self.newest = Registration(named(self.made), fd, self.descriptors.files[fd], bool(mask & ONESHOT))
        self.made += 1
        return self.loop.register(fd, mask, lambda token, events: self.called(one, events))

    def leave(self, one: Registration) -> bool:
        """Whether the loop has taken this for the name of somebody."""
        try:
            self.loop.unregister(one.token)
        except StaleToken:
            require(not one.live, 3, f"{one.name} is taken for gone")
            return False
        except (KeyError, OSError):
            return False                    # the twin's way to say so
        require(one.live or not self.table, 3, f"{one.name} is gone, and was found")
        self.over(one)
        return True

    def end(self, one: Registration) -> None:
        if self.leave(one) and one.fd in self.ours.fds() and (one.file == self.ours.file(one.fd) or not self.table):
            self.close_fd(one.fd, one.file)

    def replace(self, one: Registration) -> None:
        if self.leave(one) and one.fd in self.descriptors.files:
            self.enter(one.fd, one.oneshot)

    def arm(self, one: Registration) -> None:
        """As a one-shot, from now on."""
        mine = self.claimant(one.fd) is one
        try:
            self.loop.modify(one.token, IN | ONESHOT)
        except StaleToken:
            require(not mine, 3, f"{one.name} is taken for gone")
            self.over(one)
            return
        require(mine or self.confused(one.fd), 3, f"{one.name} is gone, and was changed")
        if not mine:
            one.file, one.serial = self.descriptors.files[one.fd], self.kernel.registration(self.loop_fd(), one.fd)
            self.deliveries.take_over(one.serial, one)
        one.oneshot = one.armed = True
        one.owed = one.file in self.readable

    def steal(self, fd: int) -> None:
        self.close_fd(fd, self.descriptors.files[fd])

    def close_fd(self, fd: int, file: int) -> None:
        """By whoever takes that file for its own."""
        self.descriptors.close(fd, file)
        if file not in self.descriptors.files.values():
            for one in self.live:
                one.owed &= one.file != file        # the file is gone, and what it had to say

    def fire(self, fd: int) -> None:
        self.ours.write(fd, READABLE)
        file = self.descriptors.files[fd]
        self.readable.add(file)
        for one in self.live:
            one.owed |= one.file == file and one.armed

    def read(self, one: Registration) -> None:
        self.ours.read(one.fd, 8)
        self.readable.discard(one.file)
        for other in self.live:
            if other.file == one.file:
                other.owed = False

    def fail(self, one: Registration) -> None:
        error = RuntimeError(f"of {one.name}")
        self.over(one)
        self.reports.raised.append(error)
        raise error

    def interrupt(self, one: Registration) -> None:
        one.replayed = one.live
        raise Interrupt

    # -- upcalls -------------------------------------------------------------------------------------------------------

    def called(self, one: Registration, events: int) -> None:
        if self.closing:
            return
        self.deliveries.upcall(one, events)
        self.story.append(f"{one.name} is called: {words(events)}")
        self.acts(f"{one.name}'s handler", one, lambda: self.options(one))

    def set_timer(self) -> None:
        self.timer = self.loop.call_later(1, self.rang)
        self.due_ns = self.kernel.now_ns + 1_000_000_000

    def cancel(self) -> None:
        self.timer.cancel()
        self.timer = None

    def pass_second(self) -> None:
        self.kernel.advance(1)

    def rang(self) -> None:
        if self.closing:
            return
        require(self.timer is not None, 2, "a timer was called that was cancelled, or was called before")
        require(self.kernel.now_ns >= self.due_ns, 1, "a timer was called too early")
        self.timer = None
        self.story.append("the timer is called")
        self.acts("the timer", "timer", self.options)

    # -- what must hold ------------------------------------------------------------------------------------------------

    def turned(self) -> None:
        self.deliveries.turned()

    def check(self) -> None:
        if self.table is None:
            self.descriptors.check([])
        else:
            live = self.live
            self.descriptors.check(self.table.check({one.token.index: (one.token.generation, one.fd) for one in live}))
            require(self.loop.stats().live == len(live), 3, f"{self.loop.stats().live} are live, not {len(live)}")

    def settled(self) -> None:
        self.deliveries.settled()
        if self.timer is not None:
            self.pass_second()
            self.turn()
            require(self.timer is None, 5, "a timer was not called")

    def own_key(self) -> object:
        inside = self.inside.fd if isinstance(self.inside, Registration) and self.inside.live else \
            -1 if self.inside is None else -2
        files = self.descriptors.files
        names = tuple((one.fd, one.owed, one.armed, one.oneshot, one.replayed, files.get(one.fd) == one.file)
                      for one in self.live)
        stale = tuple(one.fd for one in self.stale()) if "stale" in self.verbs else ()
        timer = self.due_ns - self.kernel.now_ns if self.timer is not None else None
        return names, stale, inside, self.deliveries.key(), tuple(files), timer, \
            len(self.reports.raised)


VERBS = {"end": "ends", "replace": "registers anew", "leave": "unregisters", "once": "makes a one-shot of"}


class Slotted(Raw):
    """Only what comes and goes: the accidents of a slot."""

    verbs = frozenset({"end", "open", "replace"})


class Narrow(Slotted):
    """More events than a batch holds."""

    room = 1


class Files(Raw):
    """What happens to descriptors behind the loop's back."""

    verbs = frozenset({"leave", "enter", "steal", "copy", "open"})


class Called(Raw):
    """One-shots, timers, exceptions."""

    verbs = frozenset({"end", "once", "read", "call", "raise", "interrupt"})


class Reuses(Raw):
    """Two registrations, and handlers that reuse the other one's slot, so many times in all."""

    def __init__(self, run: Run, bits: int = 32, most: int = 1) -> None:
        super().__init__(run, bits)
        self.left = most

    def options(self, one: Registration | None = None) -> list[Option]:
        return [(f"registers anew {other.name}", lambda other=other: self.replace(other))
                for other in self.live if self.left and one is not None and other.fd != one.fd]

    def outside(self) -> list[Option]:
        files = self.descriptors.files
        return [(f"fd {fd} becomes readable", lambda fd=fd: self.fire(fd))
                for fd in sorted(files) if files[fd] not in self.readable]

    def replace(self, one: Registration) -> None:
        self.left -= 1
        super().replace(one)

    def own_key(self) -> object:
        return super().own_key(), self.left


class Twin(Raw):
    """The same on the loop that goes by numbers."""

    verbs = frozenset({"end", "open"})

    def make_loop(self) -> Any:
        self.table = None
        return TwinLoop(self.ours, self.room)

    def loop_fd(self) -> int:
        return self.loop.epoll_fd

    def batches(self) -> int:
        return int(self.loop.batches)

    def key(self) -> object:
        return self.kernel.state(), tuple(self.loop.handlers), self.own_key()


class TwinClose(Twin):
    verbs = frozenset({"end", "open", "stale"})


class TwinLost(Twin):
    verbs = frozenset({"leave", "enter", "stale"})


RAW_WORLDS: dict[str, Callable[..., World]] = {
    "raw": Raw, "raw-slots": Slotted, "raw-narrow": Narrow, "raw-files": Files, "raw-calls": Called,
}
# name -> world, choices that suffice, and the promise that is broken then
TWIN_WORLDS: dict[str, tuple[Callable[..., World], int, int | None]] = {
    "the twin, a stale delivery": (Twin, 6, 1),
    "the twin, a double close": (TwinClose, 6, 6),
    "the twin, a lost event": (TwinLost, 6, 5),
}
