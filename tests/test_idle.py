"""A full house: who is idle goes, the one that has been idle for longest first; who is busy stays."""
from __future__ import annotations

import http.client
import os
import random
import resource
import time

import pytest
from batches import Spy, in_child, settle
from wire import PATIENCE_SECONDS, Bench, Served, wait_for

import epollkit
from epollkit.http import Response

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOCK_MONOTONIC_COARSE = 6          # of <linux/time.h>
IDLE_KEPT, IDLE_ROOM = 256, 512     # of _idle.pxd


def next_tick() -> None:
    """Who was idle before this call was so earlier than who is after it, by the kernel's tick."""
    before = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
    while time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) == before:
        os.sched_yield()


class House(Bench):
    """A server that has places for so many connections."""

    def __init__(self, loop, answer=None, **options):
        super().__init__(loop)
        self.requests = []
        self.answer = answer or (lambda request: Response(b"hello"))
        self.door = self.serve(self.app, **options)
        self.guests = []        # clients, in the order in which they came

    def app(self, request):
        self.requests.append(request)
        return self.answer(request)

    def enter(self, data=b""):
        """One more client, who says something, and is not waited for."""
        client = self.connect(self.door)
        client.offer(data)
        self.guests.append(client)
        return client

    def ask(self, client):
        """A whole exchange; behind it the client is idle, and for a shorter time than all others."""
        client.send(REQUEST)
        assert client.receive_response().status == 200
        next_tick()

    def enter_and_ask(self):
        client = self.enter()
        self.ask(client)
        return client

    def gone(self):
        """Whose connections the server has ended, cleanly, as numbers of arrival."""
        self.quiet()
        for client in self.guests:
            client.read()
            assert client.error is None
        return [number for number, client in enumerate(self.guests) if client.ended]

    def someone_left(self):
        """Close the clients whose connections were ended; whether there were any."""
        for client in self.clients:
            client.read()
        ended = [client for client in self.clients if client.ended]
        for client in ended:
            client.close()
        return bool(ended)

    @property
    def evicted(self):
        return self.loop.stats().evicted


@pytest.fixture
def house(request):
    """`@pytest.mark.parametrize("house", [places], indirect=True)`: a loop with that many."""
    with epollkit.Loop(max_connections=request.param) as loop:
        with House(loop) as made:
            yield made
        stats = loop.stats()
        assert (stats.wrong_deliveries, stats.live, stats.timers) == (0, 0, 0)


def places(count):
    return pytest.mark.parametrize("house", [count], indirect=True)


def scans(house):
    from epollkit import _debug

    return _debug.room_scans(house.loop)


class TestWhoGoes:
    @places(4)
    def test_the_one_that_has_been_idle_for_longest(self, house):
        """Not the first that came: the first that fell silent. One for each newcomer, and none before."""
        for _ in range(4):
            house.enter()
        for number in (2, 0, 3, 1):
            house.ask(house.guests[number])
        assert house.gone() == []
        for expected in ([2], [0, 2], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
            house.enter_and_ask()
            assert house.gone() == expected
        assert (house.evicted, house.loop.stats().live, house.door.pauses) == (5, 5, 0)

    @places(3)
    def test_who_asks_again_is_young_again(self, house):
        """Although it was noted as the next to go: what was noted is looked at again."""
        for _ in range(3):
            house.enter_and_ask()
        house.enter_and_ask()
        assert house.gone() == [0]
        house.ask(house.guests[1])
        for expected in ([0, 2], [0, 2, 3], [0, 1, 2, 3]):
            house.enter_and_ask()
            assert house.gone() == expected

    @places(3)
    def test_a_newcomer_has_the_place_in_the_same_turn(self, house):
        """Evicted, accepted and answered without a pause, and the newcomer never sees that the house was full."""
        for _ in range(3):
            house.enter_and_ask()
        newcomer = house.enter()
        wait_for(house.door.fileno(), 1)
        house.loop.turn(0)
        assert (house.evicted, house.loop.stats().accepted, house.door.pauses) == (1, 4, 0)
        house.ask(newcomer)

    @places(3)
    def test_several_newcomers_in_one_turn(self, house):
        for _ in range(3):
            house.enter_and_ask()
        for _ in range(2):
            house.enter()
        assert house.gone() == [0, 1]
        assert house.evicted == 2

    @pytest.mark.parametrize("busy", [b"", REQUEST[:20], REQUEST[:-2], b"\r\n",
                                      b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"])
    @places(3)
    def test_never_one_that_is_busy(self, house, busy):
        """It has not asked yet, or is in the middle of it, before the first request or behind one. The only one that is
        idle goes, though it was the last to be; then the newcomer waits."""
        house.enter(busy)
        house.enter_and_ask().send(busy or b"G")
        house.enter_and_ask()
        house.quiet()
        house.enter_and_ask()
        assert house.gone() == [2]
        house.guests[3].send(busy or b"G")
        house.quiet()
        house.enter(REQUEST)
        assert house.gone() == [2]
        assert (house.evicted, house.loop.stats().accepted) == (1, 4)
        assert house.door.pauses

    @places(1)
    def test_never_one_whose_answers_are_stuck(self, house):
        """Its peer does not read: what it gets then is a deadline, not an eviction."""
        house.answer = lambda request: Response(b"x" * 16_000_000)
        stuck = house.enter(REQUEST)
        house.quiet()
        house.enter(REQUEST)
        house.quiet()
        assert (house.evicted, house.loop.stats().accepted) == (0, 1)
        assert len(stuck.receive_response().body) == 16_000_000

    @places(1)
    def test_never_one_that_the_application_writes_to_unasked(self, house):
        """It said that it is idle, and then had something queued: what is queued is not thrown away."""
        first = house.enter_and_ask()
        house.requests[0].connection.write(b"x" * 16_000_000)
        house.quiet()
        house.enter()
        house.quiet()
        assert (house.evicted, house.loop.stats().accepted) == (0, 1)
        assert len(first.take(16_000_000)) == 16_000_000

    def test_no_stream_in_python(self, stage, log):
        """There is nothing that a `Stream` could say it with: at the limit accepting pauses."""
        with epollkit.Loop(max_connections=1) as loop:
            listener = stage.listen(loop, lambda: Spy(log, "stream"))
            stage.connect_many(listener, 2)
            settle(loop)
            assert (loop.stats().evicted, loop.stats().accepted, listener.pauses > 0) == (0, 1, True)


class TestWithinABatch:
    @places(2)
    def test_who_has_been_answered_in_the_same_batch_is_young(self, house):
        """[A's request, listener]: A was the oldest until then."""
        first, second = house.enter_and_ask(), house.enter_and_ask()
        first.send(REQUEST)
        wait_for(house.requests[0].connection.fileno(), 1)
        house.enter()
        wait_for(house.door.fileno(), 1)
        house.loop.turn(0)
        assert first.receive_response().status == 200
        assert second.eof()
        assert house.evicted == 1

    @places(2)
    def test_who_has_asked_is_not_cut_off(self, house):
        """[listener, A's request]: nobody has read it yet, but it has arrived. The next one goes instead."""
        first, second = house.enter_and_ask(), house.enter_and_ask()
        house.enter()
        wait_for(house.door.fileno(), 1)
        first.send(REQUEST)
        wait_for(house.requests[0].connection.fileno(), 1)
        house.loop.turn(0)
        assert first.receive_response().status == 200
        assert second.eof()
        assert house.evicted == 1

    @places(1)
    def test_its_own_event_behind_its_eviction_is_stale(self, house):
        """[listener, A hung up]: A goes, the newcomer has A's slot and fd, and A's event reaches nobody."""
        first = house.enter_and_ask()
        fd = house.requests[0].connection.fileno()
        newcomer = house.enter()
        wait_for(house.door.fileno(), 1)
        first.end()
        first.arrived()
        before = house.loop.stats()
        house.loop.turn(0)
        after = house.loop.stats()
        assert (after.evicted, after.accepted - before.accepted) == (1, 1)
        assert after.stale_recycled - before.stale_recycled == 1
        house.ask(newcomer)
        assert house.requests[1].connection.fileno() == fd


class TestNobodyIsIdle:
    @places(2)
    def test_accepting_comes_back_as_soon_as_somebody_is(self, house):
        """In the next turn; it need not wait for its timer. The newcomer's request is answered, and who made room was
        answered too."""
        first, second = house.enter(REQUEST[:20]), house.enter(REQUEST[:20])
        newcomer = house.enter(REQUEST)
        house.quiet()
        pauses, accepted = house.door.pauses, house.loop.stats().accepted
        assert (pauses > 0, accepted) == (True, 2)
        second.offer(REQUEST[20:])
        wait_for(house.loop.fileno(), 1)
        house.loop.turn(0)
        assert house.evicted == 0
        house.loop.turn(0)
        assert (house.evicted, house.loop.stats().accepted, house.door.pauses) == (1, 3, pauses)
        assert second.receive_response().status == 200
        assert second.eof()
        assert newcomer.receive_response().status == 200
        assert first.nothing_comes()

    @places(1)
    def test_also_if_the_one_that_was_idle_had_just_asked(self, house):
        """[listener, A's request]: nobody can go, accepting pauses; A is answered, idle, and goes."""
        first = house.enter_and_ask()
        newcomer = house.enter(REQUEST)
        wait_for(house.door.fileno(), 1)
        first.send(REQUEST)
        wait_for(house.requests[0].connection.fileno(), 1)
        house.loop.turn(0)
        assert (house.evicted, house.door.pauses) == (0, 1)
        house.loop.turn(0)
        assert (house.evicted, house.door.pauses) == (1, 1)
        assert first.receive_response().status == 200
        assert first.eof()
        assert newcomer.receive_response().status == 200

    @places(2)
    def test_it_does_not_spin_meanwhile(self, house):
        house.enter(REQUEST[:20]), house.enter(REQUEST[:20]), house.enter()
        house.quiet()
        before = house.loop.stats()
        for _ in range(20):
            house.loop.turn(0)
        assert house.loop.stats().batches - before.batches <= 3

    @places(2)
    def test_every_listener_that_waits_is_told(self, house):
        """The first takes the place; the other rests again, and has the next one."""
        first, second = house.enter(REQUEST[:20]), house.enter(REQUEST[:20])
        other = house.serve(house.app)
        waiting = [house.enter(), house.connect(other)]
        house.quiet()
        for client in (first, second):
            client.send(REQUEST[20:])
            assert client.receive_response().status == 200
        for client in waiting:
            client.send(REQUEST)
            assert client.receive_response().status == 200
        assert house.evicted == 2


class TestManyOfThem:
    @pytest.fixture(autouse=True)
    def descriptors(self):
        """Both ends of every connection."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 2000:
            pytest.skip("this user may not open 2000 descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    @pytest.mark.parametrize("order", ["mixed", "the last first"])
    @places(IDLE_ROOM + 58)
    def test_more_than_a_scan_notes(self, house, order):
        """570 of them, ten asking within each tick: all ten go before any of the next ten, wherever their slots are.
        Newcomers that never ask are not in the way."""
        count, at_once = house.loop.max_connections, 10
        for _ in range(count):
            house.enter()
        house.quiet()
        order = random.Random(7).sample(range(count), count) if order == "mixed" else list(reversed(range(count)))
        for start in range(0, count, at_once):
            for number in order[start:start + at_once]:
                house.guests[number].offer(REQUEST)
            for number in order[start:start + at_once]:
                assert house.guests[number].receive_response().status == 200
            next_tick()
        for start in range(0, count, at_once):
            for _ in range(at_once):
                house.enter()
            house.turn_until(lambda so_far=start: house.evicted == so_far + at_once)
            for number in order[start:start + at_once]:
                assert house.guests[number].eof(), f"guest {number} should have gone"
            for number in order[start + at_once:]:
                house.guests[number].read()
                assert not house.guests[number].ended, f"guest {number} went too early"
            for client in house.guests[-at_once:]:
                client.read()
                assert not client.ended
        assert house.door.pauses == 0
        if epollkit.build_info()["build"] == "debug":
            assert 2 <= scans(house) <= 3       # each notes 256 to 512

    @pytest.mark.debug_build
    @places(IDLE_ROOM + 10)
    def test_what_was_noted_and_is_no_longer_so(self, house):
        """Between two newcomers everybody asks again: nothing that was noted holds. A scan for each then, and not more:
        it is paid for by hundreds of requests."""
        for _ in range(house.loop.max_connections):
            house.enter(REQUEST)
        for rounds in range(1, 4):
            for client in list(house.clients):
                assert client.receive_response().status == 200
            house.enter(REQUEST)
            house.turn_until(lambda target=rounds: house.evicted == target)
            house.turn_until(house.someone_left)
            for client in house.clients[:-1]:
                client.offer(REQUEST)
            assert scans(house) <= rounds


@pytest.mark.debug_build
class TestTheWorkIsBounded:
    @places(40)
    def test_one_idle_at_a_time(self, house):
        """The house is full of peers that never finish; one at a time asks, is idle, goes, and the next one is let in.
        The table is searched once, not for each of them."""
        for _ in range(39):
            house.enter(REQUEST[:20])
        for _ in range(100):
            house.enter_and_ask()
        house.enter_and_ask()
        assert house.evicted == 100
        assert scans(house) <= 2

    @places(40)
    def test_nobody_is_idle_and_newcomers_do_not_cease(self, house):
        """By hand, by timer or by event: however often the listener looks, nobody is searched for again."""
        for _ in range(60):
            house.enter(REQUEST[:20])
        house.quiet()
        for _ in range(50):
            house.door.resume_now()
            house.loop.turn(0)
        assert house.door.pauses > 40
        assert scans(house) == 1

    @places(40)
    def test_everybody_asks_all_the_time(self, house):
        """A hundred newcomers and ten thousand requests: a scan for a few hundred of them at most."""
        for _ in range(40):
            house.enter()
        for _ in range(100):
            for client in house.clients:
                client.offer(REQUEST)
            for client in house.clients:
                assert client.receive_response().status == 200
            house.enter()
            house.turn_until(house.someone_left)
        assert house.evicted == 100
        assert scans(house) <= 100 * 40 // IDLE_KEPT + 1


class TestWhereElse:
    def test_unix(self, tmp_path):
        """How many wait is not known there. Nobody goes for a newcomer who is not there."""
        with epollkit.Loop(max_connections=3) as loop, House(loop, address=str(tmp_path / "socket")) as house:
            for _ in range(3):
                house.enter_and_ask()
            house.enter_and_ask()
            assert house.gone() == [0]
            first, second = house.enter(REQUEST), house.enter(REQUEST)
            assert house.gone() == [0, 1, 2]
            assert first.receive_response().status == second.receive_response().status == 200
            assert house.evicted == 3

    def test_descriptors_are_used_up(self):
        """As if max_connections were reached: the oldest goes. Once the limit is below what is open, nothing helps, and
        not everybody goes for nothing."""
        out = in_child("""
import os, resource, socket
import epollkit
from epollkit.http import Response, listen
REQUEST = b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
with epollkit.Loop() as loop:
    listener = listen(loop, ("127.0.0.1", 0), lambda request: Response(b"hello"))
    clients = []
    def ask(client):
        client.sendall(REQUEST)
        client.setblocking(False)
        while True:
            loop.turn(1)
            try:
                return client.recv(1000)[:15].decode()
            except BlockingIOError:
                pass
    for _ in range(3):
        clients.append(socket.create_connection(listener.address))
        ask(clients[-1])
    clients += [socket.create_connection(listener.address) for _ in range(2)]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        while True: os.dup(0)
    except OSError: pass
    print(ask(clients[3]), ask(clients[4]), [client.recv(1) for client in clients[:2]], loop.stats().evicted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
    clients.append(socket.create_connection(listener.address))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    for _ in range(5): loop.turn(0)
    print(loop.stats().evicted, listener.pauses)
""")
        assert out.splitlines() == ["HTTP/1.1 200 OK HTTP/1.1 200 OK [b'', b''] 2", "3 1"]

    def test_real_clients(self, tmp_path):
        """http.client, and six connections for three places: whoever is closed while it is idle connects again, and all
        are answered, round after round."""
        with Served("--port", "0", "--limit-connections", "3", directory=tmp_path) as served:
            host, port = served.url.removeprefix("http://").split(":")
            clients = [http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS) for _ in range(6)]
            closed = 0
            for _ in range(5):
                for client in clients:
                    for attempt in range(2):
                        try:
                            client.request("GET", "/")
                            response = client.getresponse()
                            assert (response.status, response.read() != b"") == (200, True)
                            break
                        except (http.client.RemoteDisconnected, ConnectionError):
                            assert attempt == 0
                            closed += 1
                            client.close()
            for client in clients:
                client.close()
            assert closed >= 24         # in every round but the first
            status, _, errors, _ = served.stop(15)
            assert (status, errors) == (0, "")
