"""Answers out of bytes: as much of HTTP/1.1 as the answers of arbitrary servers need."""
from __future__ import annotations

from typing import NamedTuple

LONGEST_HEAD_BYTES = 65536


class Answer(NamedTuple):
    """A final answer. Interim ones (1xx) are skipped."""

    status: int
    body: bytes


class Answers:
    """Takes bytes as they come, gives answers as they are whole. ValueError: this is no HTTP."""

    def __init__(self) -> None:
        self.data = b""             # of answers that are not whole

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are whole now."""
        self.data += data
        found = []
        start = 0
        while (parsed := self.parse(start)) is not None:
            answer, start = parsed
            if answer.status >= 200:
                found.append(answer)
        self.data = self.data[start:]
        return found

    def end(self) -> Answer | None:
        """The peer's end: the answer that only this could end, if there is one."""
        head_end = self.data.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        status, fields = parse_head(self.data[:head_end])
        if b"content-length" in fields or b"transfer-encoding" in fields:
            return None
        answer, self.data = Answer(status, self.data[head_end + 4:]), b""
        return answer

    def parse(self, start: int) -> tuple[Answer, int] | None:
        """The answer at `start` and where the next one begins; None: it is not whole."""
        head_end = self.data.find(b"\r\n\r\n", start)
        if head_end < 0:
            if len(self.data) - start > LONGEST_HEAD_BYTES:
                raise ValueError("a head without end")
            return None
        status, fields = parse_head(self.data[start:head_end])
        after = head_end + 4
        if status < 200 or status in (204, 304):
            return Answer(status, b""), after
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            return self.parse_chunks(status, after)
        if b"content-length" not in fields:
            return None                     # until the end
        end = after + int(fields[b"content-length"])
        return (Answer(status, self.data[after:end]), end) if end <= len(self.data) else None

    def parse_chunks(self, status: int, at: int) -> tuple[Answer, int] | None:
        pieces: list[bytes] = []
        while (line_end := self.data.find(b"\r\n", at)) >= 0:
            size = int(self.data[at:line_end].split(b";")[0], 16)
            at = line_end + 2
            if size == 0:
                end = self.data.find(b"\r\n", at)       # no server sends us trailers: nobody asked for them
                return (Answer(status, b"".join(pieces)), end + 2) if end >= 0 else None
            if at + size + 2 > len(self.data):
                return None
            pieces.append(self.data[at:at + size])
            at += size + 2
        return None


def parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Status and fields."""
    first, *lines = head.split(b"\r\n")
    if not first.startswith(b"HTTP/1."):
        raise ValueError(f"this is no answer: {first[:80]!r}")
    fields = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    return int(first.split(b" ", 2)[1]), fields
