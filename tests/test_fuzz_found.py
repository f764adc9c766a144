"""What the fuzzers (`tests/fuzz`) start with, what they have found, and a small corpus that reaches what they reached:
each is played, with all that is checked while fuzzing."""
from __future__ import annotations

from pathlib import Path

import fuzz_request
import fuzz_seeds
import fuzz_server
import pytest
import rfc9112

FOUND = Path(__file__).parent / "fuzz" / "found"


def found(target: str) -> list[Path]:
    return sorted((FOUND / target).glob("*"))


def test_heads_that_the_fuzzer_starts_with():
    for seed in fuzz_seeds.requests():
        fuzz_request.check(seed)


def test_scripts_that_the_fuzzer_starts_with():
    for seed in fuzz_seeds.scripts():
        fuzz_server.check(seed)


@pytest.mark.parametrize("path", found("request"), ids=lambda path: path.name)
def test_heads_that_were_found(path):
    fuzz_request.check(path.read_bytes())


@pytest.mark.parametrize("path", found("server"), ids=lambda path: path.name)
def test_scripts_that_were_found(path):
    fuzz_server.check(path.read_bytes())


def test_a_parser_that_reads_otherwise_is_noticed(monkeypatch):
    """Against a reference in which another byte is a token's, or one status another."""
    seed = b"\0\0GET / HTTP/1.1\r\nHost: a\r\nX@: y\r\n\r\n"
    fuzz_request.check(seed)
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(rfc9112, "TOKEN", fuzz_request.re.compile(rb"[A-Za-z@]*"))
        fuzz_request.check(seed)


def test_a_server_that_answers_otherwise_is_noticed(monkeypatch):
    seed = b"\0\0\1\1\1\1GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    fuzz_server.check(seed)
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(rfc9112, "read", lambda data, limits: None)
        fuzz_server.check(seed)
