"""The siege crash: an epoll thread, worker threads, EPOLLONESHOT, and shutdown() from elsewhere.

Under more than a thousand connections a second that ask, leave, reset or stay until they are ended, for --seconds in
all, two servers in turn (stress.races): one that knows connections by descriptor in all of its threads, as such servers
are usually written, and one on epollkit's raw API, where workers post what they want with a token. What must hold: the
naive one has accidents (double closes, events on descriptors that have a new owner), or nothing was tested; ours has
refused tokens, and no accident. It brings its own servers, so --url is not for it, and it has no probe: whoever asks
may be ended by the reaper.
"""
from __future__ import annotations

import sys
import time

from rich import box
from rich.table import Table

from epollkit.demo.view import console_for
from stress.children import Child
from stress.options import Options
from stress.play import scaled
from stress.races import ACCIDENTS
from stress.target import BIG_BYTES

CROWD = {"churn": 16, "reset": 16, "sleeper": 32}
LEAST_RATE = 1000.0         # connections a second
SERVERS = {"naive": "by descriptor", "tokens": "epollkit, by token"}


def run(options: Options) -> list[str]:
    counts = {kind: one_round(options, kind) for kind in SERVERS}
    seconds = options.seconds / len(SERVERS)
    console_for(sys.stdout).print(table(counts, seconds))
    return nothing_tested(counts, seconds) + accidents(counts["tokens"])


def one_round(options: Options, kind: str) -> dict[str, int]:
    """One of the servers under the crowd. Returns what its witness saw."""
    with Child("stress.races", {"kind": kind}) as server:
        port = server.wait_for("port")
        with Child("stress.crowd", {
                "address": ("127.0.0.1", port), "host": f"127.0.0.1:{port}", "path": "/", "big": "/", "big_bytes":
                BIG_BYTES, "echoes": True, "deadline": None, "patience": 0.1, "seed": options.seed}) as crowd:
            crowd.wait_for("ready")
            crowd.send(command="want", crowd=scaled(CROWD, options.connections))
            over = time.monotonic() + options.seconds / len(SERVERS)
            while (left := over - time.monotonic()) > 0:
                crowd.read(min(left, 0.1))
            crowd.send(command="end")
            crowd.read_to_end()
        server.send(command="end")
        server.read_to_end()
        wrong = sum(one["wrong"] for one in crowd.last["counts"].values())
        return {**server.last["counts"], "wrong answers": wrong}


def nothing_tested(counts: dict[str, dict[str, int]], seconds: float) -> list[str]:
    failed = []
    for kind, name in SERVERS.items():
        if counts[kind]["accepted"] < LEAST_RATE * seconds:
            failed.append(f"the server {name} met only {counts[kind]['accepted'] / seconds:,.0f} connections a second, "
                          f"not {LEAST_RATE:,.0f}")
    if not accidents(counts["naive"]):
        failed.append("the naive server had no accident, so nothing was tested")
    if not counts["tokens"]["refused"]:
        failed.append("no token was refused, so nothing was tested")
    return failed


def accidents(counts: dict[str, int]) -> list[str]:
    """What a server must not have."""
    return [f"{what}: {counts[what]:,}" for what in (*ACCIDENTS, "wrong answers") if counts[what]]


def table(counts: dict[str, dict[str, int]], seconds: float) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="siege_crash", title_justify="left")
    made.add_column("")
    for name in SERVERS.values():
        made.add_column(name, justify="right")
    made.add_row("connections a second", *(f"{counts[kind]['accepted'] / seconds:,.0f}" for kind in SERVERS))
    for what in ("accepted", "answers", "reaped", "refused"):
        made.add_row("tokens refused" if what == "refused" else what, *(f"{counts[kind][what]:,}" for kind in SERVERS))
    for what in (*ACCIDENTS, "wrong answers"):
        made.add_row(what, *(f"{counts[kind][what]:,}" for kind in SERVERS))
    return made
