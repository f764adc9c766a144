"""Fuzz: `python tests/fuzz [--seconds N] request|server`; arguments behind `--` are libFuzzer's.

Needs clang, its runtime, and a build that they guide (`tox -e fuzz` makes it). What it finds, the corpus and the log
are in build/fuzz/<target>/; the first finding ends it. `--keep` brings a small corpus that reaches the same edges to
tests/fuzz/found/<target>/, whose files `tests/test_fuzz_found.py` plays each time.
"""
from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fuzz_seeds
import libfuzzer

HERE = Path(__file__).resolve().parent
WORK = HERE.parent.parent / "build" / "fuzz"
SEEDS = {"request": fuzz_seeds.requests, "server": fuzz_seeds.scripts}
MOST_BYTES = {"request": 1000, "server": 3000}
MOST_KEPT = 100
MOST_KEPT_BYTES = 1000


def environment() -> dict[str, str]:
    return {**os.environ, "LD_PRELOAD": " ".join(str(path) for path in libfuzzer.libraries(WORK)),
            "PYTHONMALLOC": "malloc",       # every object a block that the sanitizer knows
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:verify_asan_link_order=0"}


def play_one(target: str, arguments: list[str]) -> None:
    """In the process that has libFuzzer loaded."""
    module = __import__(f"fuzz_{target}")
    libfuzzer.run(module.check, fuzz_seeds.mutate, arguments)


def start(target: str, arguments: list[str], log: Path) -> tuple[int, str]:
    """Exit status and what it said."""
    with log.open("w") as file:
        status = subprocess.run([sys.executable, __file__, "--inside", target, "--", *arguments], env=environment(),
                                stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    return status, log.read_text(errors="replace")


def write_seeds(target: str, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS[target]()):
        (corpus / f"seed-{i:04}").write_bytes(seed)
    for path in (HERE / "found" / target).glob("*"):
        (corpus / path.name).write_bytes(path.read_bytes())
    (WORK / "words").write_text(fuzz_seeds.dictionary())


def figures(said: str) -> str:
    """What libFuzzer says at its end, in one line."""
    stats = dict(re.findall(r"stat::(\w+):\s*(\d+)", said))
    edges = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\w+)", said)
    all_edges = sum(int(count) for count in re.findall(r"\((\d+) inline 8-bit counters\)", said)[:1])
    reached, features, files, size = edges[-1] if edges else ("?", "?", "?", "?")
    return (f"{stats.get('number_of_executed_units', '?')} executions, {stats.get('average_exec_per_sec', '?')} per "
            f"second; {reached} of {all_edges} edges, {features} features; corpus {files} files, {size}; "
            f"{stats.get('peak_rss_mb', '?')} MiB")


def fuzz(target: str, seconds: int, further: list[str]) -> int:
    directory = WORK / target
    corpus = directory / "corpus"
    write_seeds(target, corpus)
    started = time.monotonic()
    status, said = start(target, [
        str(corpus), f"-max_total_time={seconds}", f"-max_len={MOST_BYTES[target]}", f"-artifact_prefix={directory}/",
        "-print_final_stats=1", "-timeout=60", "-rss_limit_mb=6000", f"-dict={WORK / 'words'}", "-reload=0",
        "-close_fd_mask=0", *further], directory / "log")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{target}: {figures(said)}; {time.monotonic() - started:.0f} s, of which it had the processor for "
          f"{used.ru_utime + used.ru_stime:.0f}")
    if status:
        told = [line for line in said.splitlines() if not re.match(r"#\d+\s+\w+\s+cov:|    #\d+ 0x", line)]
        print(*[line[:2000] for line in told[-60:]], sep="\n", file=sys.stderr)
        print(f"found something: status {status}, the input is in {directory}", file=sys.stderr)
    return int(status != 0)


def additions(control: Path) -> dict[str, int]:
    """How many edges each file reaches that no smaller one does, from what a merge writes down: two counts, the names,
    then a line for each."""
    lines = control.read_text().splitlines()
    names = lines[2:2 + int(lines[0])]
    return {names[int(line.split()[1])]: len(line.split()) - 2 for line in lines if line.startswith("COV ")}


def keep(target: str) -> int:
    """A few small files that together reach nearly as much as the whole corpus."""
    merged, control = WORK / target / "merged", WORK / target / "control"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    control.unlink(missing_ok=True)
    status, _ = start(target, ["-merge=1", "-use_counters=0", f"-max_len={MOST_KEPT_BYTES}",
                               f"-merge_control_file={control}", str(merged), str(WORK / target / "corpus")],
                      WORK / target / "merge.log")
    found = HERE / "found" / target
    found.mkdir(parents=True, exist_ok=True)
    for old in found.glob("corpus-*"):
        old.unlink()
    files = additions(control)
    chosen = sorted(files, key=lambda name: (-files[name], name))[:MOST_KEPT]
    for name in chosen:
        (found / f"corpus-{Path(name).name.removeprefix('corpus-')[:12]}").write_bytes(Path(name).read_bytes())
    print(f"{target}: {len(chosen)} files are kept, which reach {sum(files[name] for name in chosen)} of the "
          f"{sum(files.values())} edges that the corpus of {len(files)} reaches")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz",
                                     description="Fuzz the parser of request heads, or a whole server.")
    parser.add_argument("target", choices=sorted(SEEDS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="do not fuzz: minimise the corpus into tests/fuzz/found")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("further", nargs="*", help="libFuzzer's own arguments")
    options = parser.parse_args()
    if options.inside:
        play_one(options.target, options.further)
    return keep(options.target) if options.keep else fuzz(options.target, options.seconds, options.further)


if __name__ == "__main__":
    sys.exit(main())
