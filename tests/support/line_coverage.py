"""Line coverage of the Cython sources: `python line_coverage.py <build directory> [least percentage]`, after a run of a
build with gcc's --coverage.

gcov counts lines of the C that Cython wrote, in which a comment before each statement names the line it stands for. A
line is covered if, in any module that has it (functions of a .pxd are compiled into several), the first counted line
behind its comment was reached. (`emit_linenums` would have gcov count our lines itself, wrongly: what Cython adds at
the end of a function gets the numbers of the lines that follow.)
"""
from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = re.compile(r'\s*/\* "(?:epollkit/)?(\w+\.p(?:yx|xd))":(\d+)$')
# What tests look at the loop with, and run it on: listed, and no part of the total.
TOOLS = re.compile(r"epollkit/_(debug|kernel|loopstate)")
# What belongs to no line any more: the end of a function, what it is followed by.
END = re.compile(r'\s*/\* (?:function exit code|"\(tree fragment\)":\d+)|/\*|static |#|\}')

Counts = dict[str, dict[int, int]]      # how often the lines of a source were reached


def counted(data: Path) -> dict[str, dict[int, int]]:
    """What gcov says of one object: file, line, count. Lines of functions that are there twice are added up."""
    told = subprocess.run(["gcov", "--json-format", "--stdout", str(data)], cwd=ROOT, capture_output=True, check=True)
    found: Counts = defaultdict(lambda: defaultdict(int))
    for file in json.loads(told.stdout)["files"]:
        for line in file["lines"]:
            found[file["file"]][line["line_number"]] += line["count"]
    return found


def translate(text: str, lines: dict[int, int], sources: Counts) -> None:
    """Adds the counts of a C file's lines to those of the sources' lines."""
    waiting: tuple[str, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if mark := MARK.match(line):
            waiting = f"epollkit/{mark[1]}", int(mark[2])
        elif END.match(line):
            waiting = None
        elif waiting and number in lines:
            source, at = waiting
            sources[source][at] = sources[source].get(at, 0) + lines[number]
            waiting = None


def add_unused(sources: Counts) -> None:
    """A function of a .pxd that nobody calls is compiled into nothing: its first line stands for it."""
    for path in sorted((ROOT / "epollkit").glob("*.pxd")):
        lines = path.read_text().splitlines()
        name = str(path.relative_to(ROOT))
        starts = [number for number, line in enumerate(lines, 1) if re.match(r"\s*cdef inline ", line)]
        for start, end in itertools.pairwise([*starts, len(lines) + 1]):
            if not any(start < at < end for at in sources.get(name, {})):
                sources[name][start] = 0


def ranges(numbers: list[int]) -> str:
    """"3-5, 9": neighbours together."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def main() -> int:
    sources: Counts = defaultdict(dict)
    for data in sorted(Path(sys.argv[1]).rglob("*.gcda")):
        for name, lines in counted(data).items():
            if name.endswith(".c"):
                translate((ROOT / name).read_text(), lines, sources)
            elif re.search(r"/epollkit/_\w+\.h$", "/" + name):
                header = sources["epollkit/" + Path(name).name]
                for at, count in lines.items():
                    header[at] = header.get(at, 0) + count
    add_unused(sources)
    total = reached = 0
    for name in sorted(sources):
        missed = sorted(at for at, count in sources[name].items() if count == 0)
        lines_here = len(sources[name])
        if not TOOLS.match(name):
            total, reached = total + lines_here, reached + lines_here - len(missed)
        print(f"{name:28} {lines_here:5} {100 * (1 - len(missed) / lines_here):6.1f}%  {ranges(missed)}")
    percentage = 100 * reached / total if total else 0.0
    print(f"{'total':28} {total:5} {percentage:6.1f}%")
    least = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    if percentage < least:
        print(f"that is below {least:.1f}%", file=sys.stderr)
    return int(percentage < least)


if __name__ == "__main__":
    sys.exit(main())
