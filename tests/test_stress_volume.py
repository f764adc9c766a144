"""The load engine in the crowd of stress/: what its users do, and what is told of them, in the crowd's words."""
from __future__ import annotations

import importlib
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from siege_servers import Site, answer, arrive, says
from wire import Bench

import epollkit

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("stress_package")


def module(name: str) -> Any:
    return importlib.import_module(f"stress.{name}")


def begin(bench, address, name, *, users=4, close=None, **settings):
    """The engines of that kind, or that one of them; so many users each."""
    crowd = SimpleNamespace(**{"loop": bench.loop, "address": address, "host": "a", "path": "/", "big": "/big",
                               "echoes": True, "sources": [], "patience": 60.0, "born": 0, **settings})
    volume = module("volume")
    return [volume.Volume(crowd, name, kind, users) for kind in volume.ENGINES[name]
            if close in (None, kind.close)]


def ended(bench, volumes):
    """Their counts once they are over, but for those that are 0."""
    for volume in volumes:
        volume.farewell()
    bench.turn_until(lambda: all(volume.over for volume in volumes))
    total = Counter()
    for volume in volumes:
        total.update(volume.counts())
    return +total


def echo(visitor, request):
    visitor.write(answer(request.target.encode()))


@pytest.mark.parametrize("name", ["churn", "half_close", "flood"])
def test_every_request_and_every_answer_is_counted(bench, name):
    site = Site(bench, echo)
    volumes = begin(bench, site.address, name)
    bench.turn_until(lambda: len(site.requests) >= 10_000 or (name != "flood" and len(site.requests) >= 100))
    counts = ended(bench, volumes)
    bench.quiet()
    assert counts == {"begun": len(site.visitors), "connected": len(site.visitors), "answered": len(site.requests)}
    assert len(set(site.targets)) == len(volumes)
    if name != "flood":
        assert all(len(visitor.targets) == 1 for visitor in site.visitors)


def test_an_answer_that_another_engine_should_have_got_is_wrong(bench):
    site = Site(bench, lambda visitor, request: visitor.write(answer(site.requests[-2:][0].target.encode())))
    volumes = begin(bench, site.address, "churn")
    bench.turn_until(lambda: len(site.requests) >= 100)
    crossed = sum(one != other for one, other in zip(site.targets, site.targets[1:], strict=False))
    counts = ended(bench, volumes)
    assert counts["wrong"] >= crossed > 0
    assert counts["wrong"] + counts["answered"] == counts["begun"]


def test_a_server_that_does_not_say_what_it_was_asked_is_believed(bench):
    site = Site(bench, says(answer(b"ok")))
    volumes = begin(bench, site.address, "churn", echoes=False)
    bench.turn_until(lambda: len(site.requests) >= 100)
    assert set(ended(bench, volumes)) == {"begun", "connected", "answered"}


@pytest.mark.parametrize(("respond", "what"), [
    (says(answer(b"no", 500)), "wrong"), (says(b"SSH-2.0-OpenSSH\r\n\r\n"), "wrong"),
    (lambda visitor, request: visitor.close(), "cut"), (lambda visitor, request: visitor.abort(), "cut")])
def test_what_is_no_answer(bench, respond, what):
    site = Site(bench, respond)
    volumes = begin(bench, site.address, "churn", users=1)
    bench.turn_until(lambda: len(site.requests) >= 4)
    counts = ended(bench, volumes)
    assert counts == {"begun": len(site.visitors), "connected": len(site.visitors), what: len(site.requests)}


def test_an_answer_that_is_still_owed_when_patience_is_over(bench):
    site = Site(bench, says())
    volumes = begin(bench, site.address, "churn")
    bench.turn_until(lambda: len(site.requests) == 16)
    for volume in volumes:
        volume.farewell()
    bench.quiet()
    assert not any(volume.over for volume in volumes)
    for volume in volumes:
        volume.engine.give_up()
    assert ended(bench, volumes) == {"begun": 16, "connected": 16, "unanswered": 16}


def test_nobody_is_there(bench):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    volumes = begin(bench, address, "churn")
    bench.turn_until(lambda: all(volume.counts()["not_connected"] >= 4 for volume in volumes))
    counts = ended(bench, volumes)
    assert counts["not_connected"] == counts["begun"]
    assert set(counts) == {"not_connected", "begun"}


def test_resets_strike_before_within_and_behind_a_request(bench, stage):
    """The bytes that came before a reset can be read."""
    listening = stage.listening()
    seen = set()
    [volume] = begin(bench, listening.getsockname(), "reset", close="rst-mid-request")
    while len(seen) < 3:
        peer = arrive(bench, listening)
        peer.until(lambda peer=peer: peer.over)
        assert isinstance(peer.error, ConnectionResetError)
        seen.add(bytes(peer.received))
    counts = ended(bench, [volume])
    nothing, part, whole = sorted(seen, key=len)
    assert nothing == b""
    assert whole.startswith(b"GET /?nonce=engine-4. HTTP/1.1\r\n")
    assert whole.endswith(b"\r\n\r\n")
    assert part == whole[:len(whole) // 2]
    assert set(counts) == {"begun", "connected"}


def test_resets_strike_within_an_answer(bench):
    site = Site(bench, says(answer(bytes(1 << 20))))
    [volume] = begin(bench, site.address, "reset", close="rst-mid-response")
    bench.turn_until(lambda: len(site.requests) >= 20)
    counts = ended(bench, [volume])
    assert counts["answered"] == counts["connected"] == counts["begun"] >= 20
    assert set(site.targets) == {"/big?nonce=engine-4."}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("name", ["churn", "reset", "half_close", "flood", "abandon"])
def test_nobody_is_lost_between_visitors_and_engines(monkeypatch, name, count):
    volume = module("volume")
    monkeypatch.setattr(volume, "Volume", lambda crowd, name, kind, users: users)
    visitors, users = volume.visitors_among(name, count), volume.engines_for(None, name, count)
    assert visitors + sum(users) == count
    assert all(users)
    assert (visitors == 0) == (name == "reset")
    if count >= 8 and name != "abandon":
        assert len(users) == len(volume.ENGINES[name])


@pytest.fixture
def reports(monkeypatch):
    """What a crowd says of itself."""
    made = []
    monkeypatch.setattr(module("crowd"), "send", made.append)
    return made


def gather(loop, site, **settings):
    """A crowd on this loop."""
    return module("crowd").Crowd(loop, {
        "address": site.address, "host": "a", "path": "/", "big": "/big", "big_bytes": 1, "echoes": True,
        "deadline": None, "patience": 60.0, "seed": 7, **settings})


def test_what_is_owed_at_the_end_is_waited_for_until_patience_is_over(reports):
    with epollkit.Loop() as loop, Bench(loop) as bench:
        site = Site(bench, says())
        crowd = gather(loop, site, patience=0.01)
        crowd.want({"churn": 8})
        bench.turn_until(lambda: len(site.requests) == 8)
        crowd.end()
        loop.run()
        crowd.report(final=True)
    assert +reports[-1]["counts"]["churn"] == {"begun": 8, "connected": 8, "unanswered": 8}


def test_turns_come_and_go_and_every_answer_counts_once(reports):
    """Engines of a turn that is over are added to the account, and asked no more."""
    with epollkit.Loop() as loop, Bench(loop) as bench:
        site = Site(bench, echo)
        crowd = gather(loop, site)
        for turn in ({"churn": 8, "half_close": 4}, {"churn": 8}):
            crowd.want(turn)
            more = len(site.requests) + 100
            bench.turn_until(lambda more=more: len(site.requests) >= more)
            crowd.report()
        crowd.want({})
        bench.turn_until(lambda: all(volume.over for volume in crowd.volumes))
        crowd.report()
        assert crowd.volumes == []
        crowd.want({"churn": 4})
        crowd.end()
        loop.run()
        crowd.report(final=True)
    totals = [sum(counts["answered"] for counts in report["counts"].values()) for report in reports]
    assert totals == sorted(totals)
    assert totals[-1] == len(site.requests)
    assert reports[-1]["open"] == 0
    assert all(set(+counts) <= {"begun", "connected", "answered", "ended"} for counts in reports[-1]["counts"].values())
