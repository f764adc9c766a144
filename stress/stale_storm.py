"""Stale storm: handlers close other connections in mid-batch, while newcomers take their slots and descriptors.

The crowd of `epollkit demo`, against epollkit alone: more than a thousand connections that churn, reset, half-close and
pipeline, and orders that make stale events for certain. What must hold: stale events are met, none is delivered; no
connection is killed that nobody asked to be; no answer crosses; every half-closed client is answered.
"""
from __future__ import annotations

import sys

from epollkit.demo.report import Column, failures, table
from epollkit.demo.runner import Runner
from epollkit.demo.view import View, console_for


def run(seconds: float, seed: int) -> list[str]:
    columns = {"epollkit": Column("epollkit")}
    with View(sys.stderr, columns, seconds) as view:
        Runner(columns, seconds, seed, view).play()
    console_for(sys.stdout).print(table(columns))
    return failures(columns["epollkit"])
