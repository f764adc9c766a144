"""Walks through the modes: adjacent pairs of fresh servers, in alternating order."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from . import callgrind, generators, idle, instructions, record, stale, syscalls
from .load import Load
from .measure import VERDICT_PAIRS, Pair, Round, read_account, read_machine
from .modes import (
    IDLE_CONNECTIONS,
    INSTRUCTION_MODES,
    INSTRUCTIONS,
    MEMORY,
    MEMORY_SERVERS,
    MODES,
    NEEDS_CC,
    NEEDS_NGINX,
    NEEDS_OPENSSL,
    SIEGE_RECORD,
    STALE_CHECK,
    SYSTEM_CALL_LOAD,
    SYSTEM_CALL_SERVERS,
    SYSTEM_CALLS,
    Comparison,
    Mode,
    Setup,
)
from .servers import BenchError, Server, Workshop, missing_servers
from .stream_servers import KINDS, missing_openssl

MEMORY_RUNS = 3             # fresh servers for a verdict; one for a look
INSTRUCTION_RUNS = 2        # the same
SYSTEM_CALL_SECONDS = 2.0   # at least: what connections cost once should not show

# For the estimate, in seconds, as seen on the machine where the targets were set.
ROUND_EXTRA = 0.5           # a server starts, wrk comes and goes
CROWD_EXTRA = 3.0           # the idle connections come and go
GENERATOR_EXTRA = 1.0       # a generator gets warm
INSTRUCTIONS_EACH = 7.0     # a server under a load, a short run and a long one; nginx and the floor are done in two
GENERATOR_INSTRUCTIONS_EACH = 25.0
STALE_CHECK_ALL = 90.0      # two builds
SIEGE_RECORD_ALL = 15.0
Tell = Callable[[str], object]


@dataclass
class Results:
    """All that a run has found so far."""

    left_out: dict[str, str] = field(default_factory=dict)      # what could not be measured, and why
    pairs: dict[tuple[str, str], list[Pair]] = field(default_factory=dict)      # by mode's name and comparison's label
    memory: list[idle.Memory] = field(default_factory=list)
    system_calls: list[syscalls.SystemCalls] = field(default_factory=list)
    instructions: list[instructions.Instructions] = field(default_factory=list)
    stale_check: stale.StaleCheck | None = None
    record: record.Record | None = None


def measure_round(setup: Setup, mode: Mode, workshop: Workshop, seconds: float) -> Round:
    """A fresh server under the mode's load, with its idle crowd beside."""
    server = mode.load.server(KINDS[mode.load.work][setup.server], workshop, deferred=mode.deferred)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(server)
        if setup.idle:
            stack.enter_context(idle.crowd(running.port, setup.idle, workshop.load_core))
        found = measure_load(running, mode.load, seconds, workshop)
    return replace(found, errors=found.errors + server.errors)


def measure_load(running: Server, load: Load, seconds: float, workshop: Workshop) -> Round:
    """What a running server and its machine use while it is asked."""
    cores = [core for core in (workshop.server_core, workshop.load_core) if core is not None]
    pids = running.pids()
    machine, account = read_machine(cores), read_account(pids)
    answered = load.run(running, seconds, workshop)
    used, after = read_account(pids).since(account), read_machine(cores)
    if not answered.requests:
        raise BenchError(f"{running.title} answered nothing, {answered.errors} errors")
    total = after.total_seconds - machine.total_seconds
    others = after.busy_seconds - machine.busy_seconds - used.cpu_ns / 1e9 - answered.cpu_seconds
    return Round(
        requests=answered.requests, errors=answered.errors, cpu_seconds=used.cpu_ns / 1e9,
        user_seconds=used.user_seconds, system_seconds=used.system_seconds,
        generator_cpu_seconds=answered.cpu_seconds, wall_seconds=answered.wall_seconds,
        steal_share=(after.steal_seconds - machine.steal_seconds) / total if total else 0.0,
        others_share=max(0.0, others / total) if total else 0.0)


def measure_pair(comparison: Comparison, mode: Mode, workshop: Workshop, seconds: float, *, swapped: bool) -> Pair:
    """Both setups, one after the other. Swapped: the second one goes first."""
    if swapped:
        second = measure_round(comparison.second, mode, workshop, seconds)
        return measure_round(comparison.first, mode, workshop, seconds), second
    first = measure_round(comparison.first, mode, workshop, seconds)
    return first, measure_round(comparison.second, mode, workshop, seconds)


def measure_mode(mode: Mode, workshop: Workshop, pairs: int, seconds: float, results: Results, tell: Tell) -> None:
    """All comparisons of a mode, one pair of each in turn, so that what changes in an hour meets all of them."""
    present = [comparison for comparison in mode.comparisons if not comparison.servers & set(results.left_out)]
    for number in range(pairs):
        tell(f"{mode.title}: pair {number + 1} of {pairs}")
        for comparison in present:
            pair = measure_pair(comparison, mode, workshop, seconds, swapped=number % 2 == 1)
            results.pairs.setdefault((mode.name, comparison.label), []).append(pair)


def runs_for(pairs: int, runs: int) -> int:
    """How often something is counted: as often as a verdict asks for, or once for a look."""
    return runs if pairs >= VERDICT_PAIRS else 1


def is_about_generators(mode: Mode) -> bool:
    """Whether generators are measured, not servers."""
    return isinstance(mode.load, generators.GeneratorLoad)


def estimate_seconds(names: Sequence[str], left_out: dict[str, str], pairs: int, seconds: float | None) -> float:
    """How long these modes take, about."""
    names = [name for name in names if name not in left_out]
    took = 0.0
    for mode in MODES:
        for comparison in mode.comparisons:
            if mode.name in names and not comparison.servers & set(left_out):
                for setup in (comparison.first, comparison.second):
                    took += pairs * ((seconds or mode.seconds) + ROUND_EXTRA + CROWD_EXTRA * bool(setup.idle)
                                     + GENERATOR_EXTRA * is_about_generators(mode))
    if MEMORY in names:
        measured = sum(len(set(servers) - set(left_out)) for servers in MEMORY_SERVERS.values())
        took += measured * runs_for(pairs, MEMORY_RUNS) * (ROUND_EXTRA + CROWD_EXTRA)
    if SYSTEM_CALLS in names:
        took += len(set(SYSTEM_CALL_SERVERS) - set(left_out)) * (max(seconds or 0, SYSTEM_CALL_SECONDS) + ROUND_EXTRA)
    if INSTRUCTIONS in names:
        for mode in MODES:
            if mode.name in INSTRUCTION_MODES:
                each = GENERATOR_INSTRUCTIONS_EACH if is_about_generators(mode) else INSTRUCTIONS_EACH
                took += len(set(mode.servers) - set(left_out)) * runs_for(pairs, INSTRUCTION_RUNS) * each
    took += SIEGE_RECORD_ALL if SIEGE_RECORD in names else 0.0
    return took + (STALE_CHECK_ALL if STALE_CHECK in names else 0.0)


def leave_out(names: Sequence[str], fd_limit: int) -> dict[str, str]:
    """Servers and modes that can't take part, and why."""
    found = missing_servers()
    if "epollkit" in found:
        raise BenchError(found["epollkit"])
    if fd_limit < IDLE_CONNECTIONS + idle.SPARE_FDS:
        reason = f"{fd_limit} descriptors are too few for {IDLE_CONNECTIONS:,} connections (ulimit -n)"
        found.update({name: reason for name in ("idle-beside", MEMORY) if name in names})
    if "floor" in found:
        found.update({name: found["floor"] for name in NEEDS_CC if {name, INSTRUCTIONS} & {*names}})
    if (reason := missing_openssl()):
        found.update({name: reason for name in NEEDS_OPENSSL if {name, INSTRUCTIONS} & {*names}})
    if "nginx" in found:
        found.update({name: found["nginx"] for name in NEEDS_NGINX if {name, INSTRUCTIONS} & {*names}})
    if {INSTRUCTIONS, *(mode.name for mode in MODES if is_about_generators(mode))} & {*names}:
        found.update({name: reason for name, kind in generators.GENERATORS.items() if (reason := kind.missing())})
    if SYSTEM_CALLS in names and (reason := syscalls.missing()):
        found[SYSTEM_CALLS] = reason
    if INSTRUCTIONS in names and (reason := callgrind.missing()):
        found[INSTRUCTIONS] = reason
    if STALE_CHECK in names and (reason := stale.missing()):
        found[STALE_CHECK] = reason
    if SIEGE_RECORD in names and (reason := stale.missing()):
        found[SIEGE_RECORD] = reason
    return found


def run(names: Sequence[str], workshop: Workshop, pairs: int, seconds: float | None, results: Results,
        tell: Tell) -> None:
    """Measure these modes, each for its own seconds unless some are given; what was found is in `results` even if this
    is interrupted.
    """
    names = [name for name in names if name not in results.left_out]
    for mode in MODES:
        if mode.name in names:
            measure_mode(mode, workshop, pairs, seconds or mode.seconds, results, tell)
    if MEMORY in names:
        for work, kinds in MEMORY_SERVERS.items():
            for server in present(kinds, results):
                tell(f"memory per idle connection, {work}: {server}")
                results.memory.append(idle.measure_memory(work, server, workshop, IDLE_CONNECTIONS,
                                                          runs_for(pairs, MEMORY_RUNS)))
    if SYSTEM_CALLS in names:
        for server in present(SYSTEM_CALL_SERVERS, results):
            tell(f"system calls: {server}")
            results.system_calls.append(syscalls.measure_system_calls(
                server, workshop, SYSTEM_CALL_LOAD, max(seconds or 0, SYSTEM_CALL_SECONDS)))
    if INSTRUCTIONS in names:
        for mode in (mode for mode in MODES if mode.name in INSTRUCTION_MODES and mode.name not in results.left_out):
            for server in present(mode.servers, results):
                tell(f"instructions per {mode.unit}, {mode.title}: {server}")
                results.instructions.append(instructions.measure_instructions(
                    server, mode, workshop, runs_for(pairs, INSTRUCTION_RUNS)))
    if STALE_CHECK in names:
        tell("the stale check: two builds, and their instructions per event")
        results.stale_check = stale.measure_stale_check(workshop)
    if SIEGE_RECORD in names:
        tell("a latency is recorded: instructions")
        results.record = record.measure_record(workshop)


def present(servers: Sequence[str], results: Results) -> list[str]:
    """Those that are not left out."""
    return [server for server in servers if server not in results.left_out]
