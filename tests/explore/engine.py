"""Stateless search: a world is run again and again, each time with other answers to its questions.

A world asks `run.choose(n, key)` wherever more than one thing can happen. A run is the list of answers; it is all that
is needed to have the same again. The search goes depth first, with a bound on the number of answers that grows by one
(so what it finds first is as short as can be). `key()` says what the world's state is: a state that was met before,
with at least as many answers to go, is not looked into again.
"""
from __future__ import annotations

import hashlib
import marshal
import mmap
import multiprocessing
import os
import random
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LONGEST_RUN = 250           # answers: the depth that is left fits into a byte
TABLE_ROOM = 1 << 22        # states that a search remembers; the command line takes more
FULLEST = 0.8               # of the table; then a new state is not remembered
GOING_ON = 0.3              # how often a random run lets things go on, whatever else could happen
SHRINKING_RUNS = 5000       # at most, to make a failure shorter
SHARES_PER_JOB = 64         # pieces that a search is cut into for each of its processes
CONTEXT = multiprocessing.get_context("fork")


class Stop(BaseException):
    """Leaves the middle of a run, through every handler."""


class Cut(Stop):
    """The rest of this run has been looked into already."""


class Broken(Stop):
    """A promise was broken."""

    def __init__(self, promise: int, what: str) -> None:
        super().__init__(f"promise {promise}: {what}")
        self.promise = promise


class World(Protocol):
    """What is searched. `story` is what happened, line by line."""

    story: list[str]

    def play(self) -> None: ...
    def close(self) -> None: ...


class Seen:
    """Which states were met, and how many answers were left then: 56 bits of a hash and 8 of depth to the cell, in
    memory that forked processes share. Two that meet the same state in the same instant both look into it, and count
    it.
    """

    def __init__(self, room: int = TABLE_ROOM) -> None:
        self.room = room
        self.cells = memoryview(mmap.mmap(-1, 8 * room)).cast("Q")
        self.added = 0
        self.most = int(FULLEST * room)         # of this process

    def known(self, key: object, left: int) -> bool:
        """Whether this state was met with that many answers to go, or more; from now on it was."""
        digest = int.from_bytes(hashlib.blake2b(marshal.dumps(key, 2), digest_size=8).digest(), "little")
        name, place = digest >> 8, digest % self.room
        cells = self.cells
        while (cell := cells[place]) >> 8 != name:
            if cell == 0:
                if self.added < self.most:
                    cells[place] = name << 8 | left + 1
                    self.added += 1
                return False
            place = (place + 1) % self.room
        if cell & 255 > left:
            return True
        cells[place] = name << 8 | left + 1
        return False


class Run:
    """One way through a world: the answers in `prefix`, then the first of each, or random ones.

    `over` is set once `bound` answers were given: the world then comes to its end by itself, and every further question
    is answered with 0. What is 0 must be what goes on, and comes to an end.
    """

    def __init__(self, prefix: Sequence[int] = (), bound: int = LONGEST_RUN, seen: Seen | None = None,
                 chance: random.Random | None = None) -> None:
        self.prefix, self.bound, self.seen, self.chance = prefix, bound, seen, chance
        self.taken: list[tuple[int, int]] = []      # (answer, out of how many)
        self.over = False

    def choose(self, count: int, key: Callable[[], object]) -> int:
        """Which of `count` things happens."""
        at = len(self.taken)
        if count == 1 or self.over:
            return 0
        self.over = at >= self.bound
        if at >= len(self.prefix) and self.seen is not None and self.seen.known(key(), self.bound - at):
            raise Cut
        if self.over:
            return 0
        answer = 0
        if at < len(self.prefix):
            answer = self.prefix[at] % count
        elif self.chance is not None and self.chance.random() > GOING_ON:
            answer = self.chance.randrange(count)
        self.taken.append((answer, count))
        return answer

    @property
    def fresh(self) -> bool:
        """Whether this is beyond what an earlier run has done just so, and has checked."""
        return len(self.taken) >= len(self.prefix) or self.seen is None

    @property
    def answers(self) -> list[int]:
        return [answer for answer, _ in self.taken]


@dataclass
class Failure:
    """A run that broke something, and what happened in it."""

    what: str
    promise: int            # 0: not a promise, but an error in the world or the loop
    answers: list[int]
    story: list[str]

    def __str__(self) -> str:
        lines = [f"  {line}" for line in self.story]
        return "\n".join([self.what, *lines, f"  answers: {','.join(map(str, self.answers))}"])


Make = Callable[[Run], World]


def play(make: Make, run: Run) -> Failure | None:
    """One run, to its end."""
    world = make(run)
    try:
        world.play()
    except Cut:
        return None
    except Broken as broken:
        return Failure(str(broken), broken.promise, run.answers, world.story)
    except Exception:
        return Failure(traceback.format_exc(), 0, run.answers, world.story)
    finally:
        world.close()
    return None


@dataclass
class Found:
    """What came of a search."""

    runs: int = 0
    states: int = 0
    depth: int = 0                  # answers: every run of so many was made
    everything: bool = False        # no run was longer: there is nothing more to find
    failure: Failure | None = None
    seconds: float = 0.0
    died: list[list[int]] = field(default_factory=list)     # runs in which the process died


class Search:
    """Every run of at most `bound` answers that begins with one of these prefixes, depth first."""

    def __init__(self, make: Make, bound: int, seen: Seen, deadline: float) -> None:
        self.make, self.bound, self.seen, self.deadline = make, bound, seen, deadline
        self.runs = 0
        self.reached = False                # a run was cut off by the bound
        self.failure: Failure | None = None

    def one(self, prefix: Sequence[int]) -> list[tuple[int, ...]]:
        """One run; the prefixes of its alternatives, the longest last."""
        run = Run(prefix, self.bound, self.seen)
        self.failure = play(self.make, run)
        self.runs += 1
        self.reached |= run.over
        answers = run.answers
        return [(*answers[:at], other) for at in range(len(prefix), len(answers))
                for other in range(run.taken[at][1] - 1, 0, -1)]

    def finish(self, prefix: Sequence[int]) -> bool:
        """That run and all of its alternatives. False: a failure, or time is up."""
        stack = [tuple(prefix)]
        while stack:
            if time.monotonic() > self.deadline:
                return False
            stack += self.one(stack.pop())
            if self.failure is not None:
                return False
        return True

    def spread(self, count: int) -> list[tuple[int, ...]]:
        """Make the shortest runs first, until so many are left for others."""
        todo: list[tuple[int, ...]] = [()]
        while todo and len(todo) < count and self.failure is None and time.monotonic() <= self.deadline:
            todo.sort(key=len, reverse=True)
            todo += self.one(todo.pop())
        return todo


def explore(make: Make, depth: int, *, seconds: float = float("inf"), jobs: int = 0, room: int = TABLE_ROOM,
            first: int = 1) -> Found:
    """Every run of at most `depth` answers, or as far as the time goes. jobs: in so many processes; 0: in this one."""
    begun = time.monotonic()
    deadline = begun + seconds
    found = Found()
    seen = Seen(room)
    for bound in range(first, depth + 1):
        search = Search(make, bound, seen, deadline)
        done = share(search, jobs, found) if jobs else search.finish(())
        found.runs += search.runs
        found.failure = search.failure
        found.states = seen.added
        found.seconds = time.monotonic() - begun
        if done:
            found.depth = bound
            found.everything = not search.reached
        if not done or found.everything:
            break
    return found


def share(search: Search, jobs: int, found: Found) -> bool:
    """`search.finish(())` by several processes; also the first steps are not made in this one, which is to survive."""
    following = memoryview(mmap.mmap(-1, 8)).cast("Q")
    lock = CONTEXT.Lock()
    begun = Worker(search, lambda: search.spread(SHARES_PER_JOB * jobs)).end(search, found)
    todo = begun or []
    seen = search.seen

    def work() -> bool:
        """The next piece, until there is none, or somebody has found something."""
        seen.most = seen.added + (seen.most - seen.added) // jobs
        finished = True
        while finished:
            with lock:
                mine = following[0]
                following[0] += 1
            if mine >= len(todo):
                return True
            finished = search.finish(todo[mine])
        if search.failure is not None:
            following[0] = len(todo)
        return False

    if begun is None or search.failure is not None:
        return False
    workers = [Worker(search, work) for _ in range(jobs)]
    ends = [worker.end(search, found) for worker in workers]
    return all(ends)


class Worker:
    """A process that does a part of a search."""

    def __init__(self, search: Search, part: Callable[[], Any]) -> None:
        self.trace = memoryview(mmap.mmap(-1, LONGEST_RUN + 1))
        self.results, sending = CONTEXT.Pipe(False)
        self.process = CONTEXT.Process(target=self.run, args=(search, part, sending))
        self.process.start()
        sending.close()

    def run(self, search: Search, part: Callable[[], Any], sending: Any) -> None:
        runs, added, make = search.runs, search.seen.added, search.make
        search.make = lambda run: make(Noted(run, self.trace))
        search.reached = False
        search.failure = None
        result = part()
        sending.send((result, search.runs - runs, search.reached, search.failure, search.seen.added - added))

    def end(self, search: Search, found: Found) -> Any:
        """What came of it; None if it died."""
        try:
            result, runs, reached, failure, added = self.results.recv()
        except EOFError:
            found.died.append(list(self.trace[1:1 + self.trace[0]]))
            result, runs, reached, failure, added = None, 0, False, None, 0
        self.process.join()
        self.results.close()
        search.runs += runs
        search.reached |= reached
        search.failure = shorter(search.failure, failure)
        search.seen.added += added
        return result


def shorter(one: Failure | None, other: Failure | None) -> Failure | None:
    both = [failure for failure in (one, other) if failure is not None]
    return min(both, key=lambda failure: (len(failure.answers), failure.answers)) if both else None


class Noted(Run):
    """A run whose answers another process can read after this one has died in it."""

    def __init__(self, run: Run, trace: memoryview) -> None:
        self.__dict__ = run.__dict__
        self.trace = trace
        trace[0] = 0

    def choose(self, count: int, key: Callable[[], object]) -> int:
        answer = super().choose(count, key)
        made = len(self.taken)
        self.trace[0] = made
        if made:
            self.trace[made] = self.taken[-1][0]
        return answer


# -- a single run ------------------------------------------------------------------------------------------------------

def replay(make: Make, answers: Sequence[int]) -> Failure | None:
    """The run with these answers, and then the first of everything."""
    return play(make, Run(answers, len(answers)))


def shrink(make: Make, failure: Failure) -> Failure:
    """A shorter run that breaks the same: without some of its answers, or with smaller ones."""
    best, size, left = failure, max(1, len(failure.answers) // 2), SHRINKING_RUNS
    while size and left:
        at, better = 0, False
        while at < len(best.answers) and left:
            for shorter_one in candidates(best.answers, at, size):
                left -= 1
                found = replay(make, shorter_one)
                if found is not None and found.promise == failure.promise and weight(found) < weight(best):
                    best, better = found, True
                    break
                if not left:
                    break
            else:
                at += 1
        size = size if better else size // 2
    return best


def weight(failure: Failure) -> tuple[int, int, list[int]]:
    return len(failure.answers), sum(1 for answer in failure.answers if answer), failure.answers


def candidates(answers: list[int], at: int, size: int) -> Iterable[list[int]]:
    yield answers[:at] + answers[at + size:]
    yield answers[:at] + [0] * size + answers[at + size:]
    if size == 1:
        for smaller in range(1, answers[at]):
            yield [*answers[:at], smaller, *answers[at + 1:]]


def wander(make: Make, seed: int, runs: int, steps: int, *, seconds: float = float("inf")) -> Found:
    """Random runs of so many answers each. The same seed makes the same runs; the first failure is shrunk."""
    found = Found(depth=steps)
    begun = time.monotonic()
    for number in range(runs):
        if time.monotonic() - begun > seconds:
            break
        failure = play(make, Run((), steps, None, random.Random(f"{seed}.{number}")))
        found.runs += 1
        if failure is not None:
            found.failure = shrink(make, failure)
            break
    found.seconds = time.monotonic() - begun
    return found


def in_child(function: Callable[[], object]) -> int:
    """What becomes of a process that runs this: its exit status, or the negative number of the signal that ended it."""
    child = CONTEXT.Process(target=function)
    child.start()
    child.join()
    return child.exitcode if child.exitcode is not None else os.EX_SOFTWARE
