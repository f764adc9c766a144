"""What `tests/refleaks` must find, each in its way, and two tests in which there is nothing to find."""
from __future__ import annotations

import ctypes

import pytest

import epollkit

KEPT = []
increment = ctypes.pythonapi.Py_IncRef
decrement = ctypes.pythonapi.Py_DecRef
increment.argtypes = decrement.argtypes = [ctypes.py_object]


def test_leaks_an_object():
    """A reference that nobody has: what a forgotten Py_DECREF in C leaves."""
    increment(object())


def test_leaks_a_reference():
    """To something that is there anyway: no memory is lost."""
    increment(KEPT)


def test_lets_go_once_too_often():
    decrement(None)


def test_keeps_what_is_ours():
    """Reachable, so it is no leak of C's; it grows all the same."""
    KEPT.append(epollkit.RateLimit(1000))


def test_does_nothing_wrong():
    with epollkit.Loop() as loop:
        loop.call_soon(KEPT.count, 1)
        loop.turn(0)


@pytest.mark.parametrize("cache", [{}])
def test_a_cache_is_no_leak(cache):
    """It grows, and then no more."""
    cache[len(cache) % 4] = object()
