"""What must hold, step by step: the nine promises of docs/architecture.md, as far as one thread can break them.

The oracle is the kernel, never the slots: an event is meant for the registration that the epoll set had under that
serial number when it was reported, whatever tag, descriptor or generation says.

    Deliveries      raw registrations, event by event: 1, 2, 5, 9
    Descriptors     whose file is behind which number: 6
    Slots           what lies in the table: 3, 8
    Conversation    a stream against what its peer did: 1, 2, 4, 5, 7
    Reports         exceptions: 9
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine import Broken

from epollkit import ERR, HUP, IN, OUT, PRI, RDHUP, _debug, _loopstate

SLOT_OWNS_FD, SLOT_UNLIMITED = 1, 64        # _slots.pxd
WORDS = {IN: "IN", OUT: "OUT", PRI: "PRI", ERR: "ERR", HUP: "HUP", RDHUP: "RDHUP"}


def require(holds: object, promise: int, what: str) -> None:
    if not holds:
        raise Broken(promise, what)


def words(mask: int) -> str:
    """A mask as people read it."""
    return "|".join(name for bit, name in WORDS.items() if mask & bit) or "0"


class Registration:
    """One `register` of a user, and what is known of it without asking the loop."""

    def __init__(self, name: str, fd: int, file: int, oneshot: bool = False) -> None:
        self.name, self.fd, self.file, self.oneshot = name, fd, file, oneshot
        self.token: Any = None
        self.serial = 0             # the kernel's number for it
        self.live = True            # the user has not ended it, no exception has, and its number names its file
        self.armed = True
        self.owed = False           # an event happened since it was last called
        self.replayed = False       # an exception cut its call short: it comes again without an event


class Deliveries:
    """Who is called for which event of a batch."""

    def __init__(self, kernel: Any, batches: Callable[[], int], room: int, story: list[str]) -> None:
        self.kernel, self.batches, self.room, self.story = kernel, batches, room, story
        self.number = batches()
        self.batch: list[tuple[int, int, int, int]] = []        # (tag, mask, serial of the registration, of the file)
        self.at = 0
        self.known: dict[int, Registration] = {}

    def name(self, serial: int) -> str:
        return self.known[serial].name if serial in self.known else "(the loop's own)"

    def take_over(self, serial: int, one: Registration) -> None:
        """From the next batch on, what the set knows under that number is another one's."""
        self.batch = [(tag, mask, 0 if owner == serial else owner, file) for tag, mask, owner, file in self.batch]
        self.known[serial] = one

    def fetched(self) -> None:
        """Look whether the loop has waited again."""
        if self.batches() == self.number:
            return
        require(self.at == len(self.batch), 9, "a batch was fetched before the last one was finished")
        self.number, self.batch, self.at = self.batches(), list(self.kernel.batch), 0
        self.story.append(f"batch [{', '.join(f'{self.name(event[2])} {words(event[1])}' for event in self.batch)}]")
        require(len(self.batch) <= self.room, 8, f"a batch of {len(self.batch)}, with room for {self.room}")

    def upcall(self, one: Registration, mask: int) -> None:
        """That one's handler is called."""
        self.fetched()
        require(one.live, 2, f"{one.name} is called, and is over")
        for at in range(self.at, len(self.batch)):
            if self.known.get(self.batch[at][2]) is one:
                self.pass_over(at)
                self.at = at + 1
                require(mask == self.batch[at][1], 1, f"{one.name} is told {words(mask)}")
                break
        else:
            meant = self.name(self.batch[self.at][2]) if self.at < len(self.batch) else "nobody"
            require(one.replayed, 1, f"the event of {meant} reaches {one.name}")
            one.replayed = False
        one.owed = False
        one.armed = not one.oneshot

    def pass_over(self, end: int) -> None:
        """Events of the batch for which nobody was called."""
        while self.at < end:
            one = self.known.get(self.batch[self.at][2])
            self.at += 1
            require(one is None or not one.live or one.replayed, 5, f"the event of {one and one.name} reaches nobody")

    def turned(self) -> None:
        """A turn has come to its end."""
        self.fetched()
        self.pass_over(len(self.batch))

    def settled(self) -> None:
        """Nothing is left to do."""
        for one in self.known.values():
            require(not (one.live and one.owed and one.armed), 5, f"{one.name} was never told of its last event")
            require(not (one.live and one.replayed), 5, f"{one.name} was cut short, and not called again")

    def key(self) -> object:
        return tuple(self.known[event[2]].fd if event[2] in self.known and self.known[event[2]].live else -1
                     for event in self.batch[self.at:])


class Descriptors:
    """Whose file is behind which number."""

    def __init__(self, process: Any, epoll_fd: int) -> None:
        self.process, self.epoll_fd = process, epoll_fd
        self.files: dict[int, int] = {}         # the user's: number -> serial of the file

    def opened(self, fd: int) -> int:
        self.files[fd] = self.process.file(fd)
        return self.files[fd]

    def close(self, fd: int, file: int) -> None:
        """What a user does with its own descriptor, or with one that it takes for that."""
        self.process.close(fd)
        if self.files[fd] == file:
            del self.files[fd]

    def check(self, owned: list[int]) -> None:
        """owned: what live slots own, the loop's own eventfd among them."""
        numbers = self.process.fds()
        for fd, file in self.files.items():
            require(fd in numbers and self.process.file(fd) == file, 6, f"fd {fd} was closed by somebody else")
        expected = sorted([*self.files, *owned, *([self.epoll_fd] if self.epoll_fd >= 0 else [])])
        require(sorted(numbers) == expected, 6, f"open are {sorted(numbers)}, owned are {expected}")


class Slots:
    """What lies in the loop's table: a slot is live or free, never both, and its generation never goes back."""

    def __init__(self, loop: Any, limit: int) -> None:
        self.loop, self.limit = loop, limit
        self.generations: dict[int, int] = {}       # of the last token of each slot

    def named(self, token: Any) -> None:
        """Somebody has got this token. Told at every step, also where an earlier run has checked all else."""
        require(token.generation > self.generations.get(token.index, -1), 3,
                f"the generation of slot {token.index} went back")
        self.generations[token.index] = token.generation

    def table(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            while True:
                found.append(_debug.slot_fields(self.loop, len(found)))
        except IndexError:
            return found

    def check(self, live: dict[int, tuple[int, int]]) -> list[int]:
        """live: slot -> (generation, fd) of registrations that must be there. Returns the descriptors that slots own.
        """
        table = self.table()
        limited = sum(1 for slot in table if slot["live"] and not slot["flags"] & SLOT_UNLIMITED)
        require(limited <= self.limit, 8, f"{limited} of {self.limit} slots are taken")
        for index, (generation, fd) in live.items():
            slot = table[index]
            require(slot["live"] and (slot["generation"], slot["fd"]) == (generation, fd), 3,
                    f"slot {index} is not what was registered there")
        for slot in table:
            index, generation = slot["index"], slot["generation"]
            least = self.generations.get(index, -1) + (not slot["live"])
            require(generation >= least, 3, f"the generation of slot {index} went back")
            clean = slot["fd"] == -1 and not (slot["flags"] or slot["pending"] or slot["due_ns"] or slot["events"])
            require(slot["live"] or clean, 3, f"slot {index} is free, and was not emptied")
        free = _loopstate.free_slots(self.loop)
        require(sorted(free) == sorted(slot["index"] for slot in table if not slot["live"]), 3,
                f"the free list is {free}")
        require(len(_debug.queued_deadlines(self.loop)) <= len(table), 8, "more deadlines than slots")
        return [slot["fd"] for slot in table if slot["live"] and slot["flags"] & SLOT_OWNS_FD]


class Reports:
    """Each exception of a handler is reported once."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.told: list[BaseException] = []

    def report(self, error: BaseException, source: object) -> None:
        self.told.append(error)

    def turned(self) -> None:
        for error in self.raised:
            require(self.told.count(error) == 1, 9, f"{error!r} was reported {self.told.count(error)} times")
        for error in self.told:
            require(error in self.raised, 9, f"nobody raised {error!r}")
        self.raised.clear()
        self.told.clear()


class Conversation:
    """A stream, and what its peer did. The peer's bytes are its small letter, the stream's its large one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.small, self.large = name[:1].lower().encode(), name[:1].upper().encode()
        # what the peer did
        self.sent = self.heard = 0                      # bytes that it sent, that it received
        self.fin = self.rst = self.left = False         # ended its side; reset; closed its socket
        # what the user did
        self.written = 0
        self.paused = self.shut = self.closing = self.aborted = self.raised = False
        # what the stream was told
        self.opened = self.ended = self.broken = self.closed = False
        self.received = 0

    @property
    def over(self) -> bool:
        """Nothing may be told any more but on_close."""
        return self.aborted or self.raised

    @property
    def wanted(self) -> bool:
        """This side has brought the end about."""
        return self.closing or self.over or (self.ended and self.shut)

    def told(self, upcall: str, value: Any) -> None:
        """The stream's upcall, before its handler runs."""
        name = self.name
        require(not self.closed, 2, f"{name}.{upcall} after {name}.on_close")
        require(upcall in ("on_open", "on_close") or self.opened, 2, f"{name}.{upcall} before {name}.on_open")
        require(upcall == "on_close" or not self.over, 2, f"{name}.{upcall} after its end")
        getattr(self, upcall)(value)

    def on_open(self, value: Any) -> None:
        require(not self.opened, 2, f"{self.name} opens a second time")
        self.opened = True

    def on_data(self, data: bytes) -> None:
        name = self.name
        require(not self.closing, 2, f"{name} is closing, and gets data")
        found_out = self.written and (self.rst or self.left)        # by a write that found the peer gone
        require(not self.paused or found_out, 2, f"{name} is paused, and gets data")
        require(not self.ended, 4, f"{name} gets data after its end")
        require(data == self.small * len(data), 7, f"{name} gets {data!r}")
        self.received += len(data)
        require(self.received <= self.sent, 7, f"{name} gets more than its peer has sent")

    def on_eof(self, value: Any) -> None:
        name = self.name
        require(self.fin, 4 if self.rst else 1, f"{name} is told of a clean end, and there was none")
        require(not self.ended, 2, f"{name} ends a second time")
        require(self.received == self.sent, 5, f"{name} ends, with {self.sent - self.received} bytes unread")
        self.ended = True

    def on_error(self, error: BaseException) -> None:
        require(self.rst or self.left, 1, f"{self.name} is told {error!r}, and nothing is wrong")
        require(not self.broken, 4, f"{self.name} breaks a second time")
        self.broken = True

    def on_close(self, reason: BaseException | None) -> None:
        name = self.name
        require(self.wanted or self.rst or self.left, 1, f"{name} is closed ({reason!r}), and nobody has done it")
        if not self.wanted:
            require(reason is not None or (self.ended and not self.rst), 4, f"{name} was reset, and ends cleanly")
            require(self.received == self.sent or not self.opened, 5, f"{name} was not given all that there was")
        self.closed = True

    def settled(self) -> None:
        """Everything has been told that can be."""
        name = self.name
        if self.closed or not self.opened:
            return
        require(not self.over, 2, f"{name} is over, and its on_close was not called")
        if self.paused or self.closing:
            return
        require(self.received == self.sent, 5, f"{name} rests, and {self.sent - self.received} bytes wait for it")
        require(self.ended or not self.fin, 5, f"{name} was not told of its peer's end")
        require(not self.rst, 5, f"{name} was not told of its peer's reset")

    def key(self) -> tuple[object, ...]:
        return (self.sent - self.received, self.written - self.heard, self.fin, self.rst, self.left, self.paused,
                self.shut, self.closing, self.aborted, self.raised, self.opened, self.ended, self.broken, self.closed)
