"""Worlds of connections that are made from here: the connector, and the pool."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checks import Conversation, require
from streams import ADDRESS, Spy, Streams, fd_of
from worlds import Option, World, named

import epollkit
from epollkit import HUP, OUT, _resolver

OTHER = ("127.0.0.2", 80)
NAME = ("both", 80)
TIMEOUT_SECONDS = 1
DELAY_SECONDS = 0.25        # until the next address is tried as well


class Dial:
    """One `connect`, from the user's side."""

    def __init__(self, name: str, addresses: int, due_ns: int) -> None:
        self.name, self.left, self.due_ns = name, addresses, due_ns     # left: addresses that were not refused
        self.connector: Any = None
        self.question = 0           # to the resolver, while it is open
        self.cancelled = self.over = False


class Dialled(Spy):
    """A stream that is to be connected: who its peer is, only its socket says, once it has one."""

    def __init__(self, world: Connects, dial: Dial) -> None:
        super().__init__(world, Conversation(dial.name))
        self.dial = dial

    def on_open(self) -> None:
        self.file = self.world.ours.file(self.fileno())
        self.world.opened(self)

    def on_close(self, error: BaseException | None) -> None:
        if self.dial.over or self.world.closing:
            super().on_close(error)
        else:
            self.world.failed(self, error)


class Connects(Streams):
    """Sockets that are under way until the world says what comes of them; names with two addresses; a deadline."""

    dials = 2
    verbs = frozenset({"send", "fin", "rst", "abort", "cancel", "name", "time"})

    def start(self) -> None:
        self.all: list[Dial] = []
        self.waiting: list[Dialled] = []
        self.questions: list[tuple[int, Dial]] = []
        self.dialling: Dial | None = None
        self.answered: dict[int, Conversation | None] = {}      # by the socket's file: refused, or whose peer's it is
        self.servers = {}
        for address in (ADDRESS, OTHER):
            self.servers[address] = fd = self.far.socket()
            self.far.bind(fd, address)
            self.far.listen(fd, 8)
            self.kernel.route(address, "later")
        before, _resolver.ask = _resolver.ask, self.asked
        self.exits.callback(setattr, _resolver, "ask", before)

    # -- what can happen -----------------------------------------------------------------------------------------------

    def outside(self) -> list[Option]:
        found: list[Option] = []
        for fd, file in self.under_way():
            found += [(f"the socket at fd {fd} is connected", lambda file=file: self.answer(file, True)),
                      (f"the socket at fd {fd} is refused", lambda file=file: self.answer(file, False)),
                      (f"the socket at fd {fd} says HUP, without ERR", lambda file=file: self.hang_up(file))]
        for number, dial in self.questions:
            found.append((f"{dial.name}'s name is found", lambda number=number, dial=dial: self.found(number, dial)))
        for talk in self.ends:
            found += self.peer_options(talk)
        if "time" in self.verbs and any(not dial.over for dial in self.all):
            found += [("a quarter of a second passes", lambda: self.kernel.advance(DELAY_SECONDS)),
                      ("a second passes", lambda: self.kernel.advance(TIMEOUT_SECONDS))]
        return found + self.options()

    def options(self, stream: Spy | None = None) -> list[Option]:
        found = super().options(stream)
        if len(self.all) < self.dials:
            found.append(("connects", lambda: self.dial(ADDRESS, 1)))
            if "name" in self.verbs:
                found.append(("connects to a name", lambda: self.dial(NAME, 2)))
        if "cancel" in self.verbs:
            found += [(f"cancels {dial.name}", lambda dial=dial: self.cancel(dial))
                      for dial in self.all if not (dial.over or dial.cancelled)]
        return found

    def under_way(self) -> list[tuple[int, int]]:
        """Sockets of ours of which nobody has said what becomes of them."""
        waiting = self.kernel.under_way()
        return [(fd, file) for fd in self.ours.fds() if (file := self.ours.file(fd)) in waiting]

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def dial(self, address: tuple[str, int], addresses: int) -> None:
        dial = Dial(named(len(self.all)), addresses, self.kernel.now_ns + TIMEOUT_SECONDS * 10 ** 9)
        self.all.append(dial)
        self.dialling = dial
        dial.connector = self.loop.connect(address, lambda: self.make(dial), timeout=TIMEOUT_SECONDS)
        self.dialling = None

    def make(self, dial: Dial) -> Dialled:
        self.waiting.append(Dialled(self, dial))
        return self.waiting[-1]

    def asked(self, loop: Any, number: int, host: str, port: int) -> None:
        assert self.dialling is not None
        self.questions.append((number, self.dialling))

    def found(self, number: int, dial: Dial) -> None:
        self.questions.remove((number, dial))
        self.loop._resolved(number, [ADDRESS, OTHER])

    def cancel(self, dial: Dial) -> None:
        dial.cancelled = dial.connector.state in ("resolving", "connecting")    # else it has failed, and is told soon
        dial.connector.cancel()

    def answer(self, file: int, accepts: bool) -> None:
        self.answered[file] = None
        self.kernel.answer(file, "accept" if accepts else "refuse")
        if not accepts:
            return
        for server in self.servers.values():
            try:
                fd = self.far.accept(server)
            except BlockingIOError:
                continue
            talk = Conversation(named(len(self.talks)))     # whose it is will be seen
            self.talks.append(talk)
            self.ends[talk] = fd
            self.answered[file] = talk

    def hang_up(self, file: int) -> None:
        """For a moment; what is reported then says nothing of what will come of it."""
        self.kernel.spurious(file, HUP | OUT)
        self.turn()

    # -- upcalls -------------------------------------------------------------------------------------------------------

    def opened(self, stream: Dialled) -> None:
        if self.closing:
            return
        dial = stream.dial
        talk = self.answered.get(stream.file)
        require(not dial.over, 2, f"{dial.name} has failed, and opens")
        require(not dial.cancelled, 2, f"{dial.name} was cancelled, and opens")
        require(talk is not None, 4, f"{dial.name} opens, and is not connected")
        assert talk is not None
        dial.over = True
        self.waiting.remove(stream)
        talk.name = dial.name
        stream.talk = talk
        self.streams[talk] = stream
        self.told(stream, "on_open")

    def failed(self, stream: Dialled, error: BaseException | None) -> None:
        dial = stream.dial
        late = self.kernel.now_ns >= dial.due_ns
        if error is None:
            require(dial.cancelled, 1, f"{dial.name} ends without an error, and nobody has cancelled it")
        else:
            require(not dial.cancelled, 2, f"{dial.name} was cancelled, and fails with {error!r}")
            require(late or not self.hope(dial), 1, f"{dial.name} fails too early: {error!r}")
        dial.over = True
        self.waiting.remove(stream)
        self.acts(f"{dial.name}.on_close({error!r})", f"{dial.name}.on_close", lambda: self.options(stream))

    def hope(self, dial: Dial) -> bool:
        """Whether an address is left that has not refused."""
        refused = sum(1 for attempt in dial.connector.attempts if attempt.error is not None)
        return bool(refused < dial.left)

    # -- what must hold ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        asked = self.calls_of("take_error")
        most = len(self.answered) + sum(1 for talk in self.talks if talk.rst)
        require(asked <= most, 4, f"SO_ERROR was read {asked} times, of {most} sockets that had something to say")

    def calls_of(self, name: str) -> int:
        from epollkit import _operations
        return _operations.calls()[name] - self.called_before[name]

    def make_loop(self) -> Any:
        from epollkit import _operations
        self.called_before = _operations.calls()
        return super().make_loop()

    def settled(self) -> None:
        for number, dial in list(self.questions):
            self.found(number, dial)
        self.progress()
        for _, file in self.under_way():
            self.answer(file, False)
        while self.progress():
            for _, file in self.under_way():
                self.answer(file, False)
        for dial in self.all:
            require(dial.over, 5, f"{dial.name} was answered, and told nothing")
        for talk in self.talks:
            if talk.opened:
                talk.settled()

    def own_key(self) -> object:
        dials = tuple((dial.name, dial.cancelled, dial.over, dial.connector.state if dial.connector else "",
                       len(dial.connector.attempts) if dial.connector else 0,
                       max(dial.due_ns - self.kernel.now_ns, 0) if not dial.over else 0) for dial in self.all)
        names = tuple(dial.name for _, dial in self.questions)
        waiting = tuple(stream.dial.name for stream in self.waiting)
        files = tuple((fd, self.ours.file(fd) in self.answered) for fd in self.ours.fds())
        return super().own_key(), dials, names, waiting, files


class Request:
    """One `acquire`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.request: Any = None
        self.told = self.cancelled = self.inside = False
        self.stream: Pooled | None = None       # while it has it


class Pooled(Spy):
    def __init__(self, world: Pools, talk: Conversation) -> None:
        super().__init__(world, talk)
        self.lent = 0
        self.user: Request | None = None

    def on_open(self) -> None:
        self.file = self.world.ours.file(self.fileno())
        self.world.opened(self)

    def on_close(self, error: BaseException | None) -> None:
        self.world.left(self, error)


class Pools(Streams):
    """Requests, connections that are given back, and peers that speak or leave while nobody has theirs."""

    most_open = 2
    requests = 3
    verbs = frozenset({"send", "fin", "rst", "abort", "cancel"})

    def start(self) -> None:
        self.server = self.far.socket()
        self.far.bind(self.server, ADDRESS)
        self.far.listen(self.server, 8)
        self.all: list[Request] = []
        self.pool = epollkit.Pool(self.loop, self.make, max_open=self.most_open, max_waiting=1)
        self.made: list[Pooled] = []
        self.accepted_by: dict[int | None, int] = {}        # our socket's file -> the server's descriptor

    def outside(self) -> list[Option]:
        found: list[Option] = []
        for talk in self.ends:
            found += self.peer_options(talk)
        return found + self.options()

    def options(self, stream: Spy | None = None) -> list[Option]:
        found = super().options(stream)
        if len(self.all) < self.requests:
            found.append(("acquires", self.acquire))
        for one in self.all:
            if one.stream is not None and not one.stream.is_closing:
                found.append((f"{one.name} gives {one.stream.talk.name} back", lambda one=one: self.release(one)))
            if "cancel" in self.verbs and not (one.told or one.cancelled):
                found.append((f"cancels {one.name}", lambda one=one: self.cancel(one)))
        return found

    def open_streams(self) -> list[Spy]:
        return [one.stream for one in self.all if one.stream is not None and not one.stream.is_closing]

    def make(self) -> Pooled:
        talk = Conversation(named(len(self.made)))
        self.made.append(Pooled(self, talk))
        return self.made[-1]

    def opened(self, stream: Pooled) -> None:
        if self.closing:
            return
        stream.talk.opened = True
        self.talks.append(stream.talk)
        self.streams[stream.talk] = stream
        self.accept_all()
        self.ends[stream.talk] = self.accepted_by.pop(stream.file)

    def accept_all(self) -> None:
        while True:
            try:
                fd = self.far.accept(self.server)
            except BlockingIOError:
                return
            self.accepted_by[self.far.peer(fd)] = fd        # of those that were given up meanwhile: None

    def acquire(self) -> None:
        one = Request(f"request {len(self.all) + 1}")
        self.all.append(one)
        one.inside = True
        one.request = self.pool.acquire(ADDRESS, lambda stream, error: self.receive(one, stream, error))
        one.inside = False

    def receive(self, one: Request, stream: Pooled | None, error: BaseException | None) -> None:
        if self.closing:
            return
        self.story.append(f"{one.name} receives {stream.talk.name if stream is not None else repr(error)}")
        require(not one.inside, 2, f"{one.name} is answered from inside acquire()")
        require(not one.told, 2, f"{one.name} is answered twice")
        require(not one.cancelled, 2, f"{one.name} was cancelled, and is answered")
        one.told = True
        if stream is not None:
            talk = stream.talk
            require(stream.user is None, 7, f"{talk.name} is {stream.user and stream.user.name}'s, and {one.name}'s")
            require(not stream.is_closing, 2, f"{one.name} gets {talk.name}, which is over")
            if stream.lent:
                require(not (talk.fin or talk.rst), 1, f"{one.name} gets {talk.name}, whose peer has left")
                require(talk.sent == talk.received, 7, f"{one.name} gets {talk.name}, with a stranger's bytes")
            stream.lent += 1
            stream.user, one.stream = one, stream
        self.acts(one.name, one.name, lambda: self.options(stream))

    def told(self, stream: Spy, upcall: str, value: Any = None) -> None:
        assert isinstance(stream, Pooled)
        require(stream.user is not None or self.closing, 2, f"{stream.talk.name}.{upcall}, and nobody has it")
        super().told(stream, upcall, value)

    def left(self, stream: Pooled, error: BaseException | None) -> None:
        if self.closing:
            return
        talk = stream.talk
        if not talk.opened:
            return
        if stream.user is None:
            talk.closing = True         # the pool's decision
        self.story.append(f"{talk.name}.on_close({error!r})")
        talk.told("on_close", error)
        self.streams.pop(talk)
        if stream.user is not None:
            stream.user.stream = None

    def release(self, one: Request) -> None:
        stream = one.stream
        assert stream is not None
        one.stream = stream.user = None
        self.pool.release(stream)

    def cancel(self, one: Request) -> None:
        one.cancelled = True
        one.request.cancel()

    def check(self) -> None:
        super().check()
        stats = self.pool.stats()
        require(stats.open <= self.most_open, 8, f"{stats.open} are open, of {self.most_open}")
        having = sum(1 for one in self.all if one.stream is not None and not one.stream.is_closing)
        require(stats.idle + having <= stats.open, 3, f"{stats.idle} idle and {having} in use of {stats.open} open")

    def settled(self) -> None:
        stats = self.pool.stats()
        for one in self.all:
            waits = not (one.told or one.cancelled)
            require(not waits or (stats.idle == 0 and stats.open == self.most_open), 5,
                    f"{one.name} waits, and there is a connection for it, or a place")
        self.kernel.advance(10)
        while self.progress():
            pass
        for one in self.all:
            require(one.told or one.cancelled, 8, f"{one.name} has waited for longer than it may")

    def own_key(self) -> object:
        requests = tuple((one.name, one.told, one.cancelled, one.request.state if one.request else "",
                          one.stream.talk.name if one.stream else "") for one in self.all)
        made = tuple((stream.talk.name, stream.lent > 0, fd_of(stream)) for stream in self.made
                     if not stream.talk.closed)
        return super().own_key(), requests, made, self.pool.stats()[:4], len(self.pool._requests)


class OneAddress(Connects):
    verbs = frozenset({"send", "fin", "rst", "abort", "cancel"})


CONNECT_WORLDS: dict[str, Callable[..., World]] = {"connects": OneAddress, "connects-names": Connects, "pool": Pools}
