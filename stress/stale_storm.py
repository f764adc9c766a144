"""Stale storm: handlers close other connections in mid-batch, while newcomers take their slots and descriptors.

The crowd of `epollkit demo`, against epollkit alone: more than a thousand connections that churn, reset, half-close and
pipeline, and orders that make stale events for certain. What must hold, for as long as --seconds says: stale events are
met, none is delivered; no connection is killed that nobody asked to be; no answer crosses; every half-closed client is
answered. It brings a server of its own, so --url is not for it, and the crowd asks so much that no probe is needed.
"""
from __future__ import annotations

import sys

from epollkit.demo.report import Column, failures, table
from epollkit.demo.runner import Runner
from epollkit.demo.view import View, console_for
from stress.options import Options


def run(options: Options) -> list[str]:
    columns = {"epollkit": Column("epollkit")}
    with View(sys.stderr, columns, options.seconds) as view:
        Runner(columns, options.seconds, options.seed, view).play()
    console_for(sys.stdout).print(table(columns))
    return failures(columns["epollkit"])
