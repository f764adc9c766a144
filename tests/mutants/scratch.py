"""Trees to break: copies of the source with a build in them, and what a test says in one.

The build is the debug build, for its counts and its replaced system calls, but without the assertions (a mutant is to
be caught by what anybody would see) and unoptimised (it is made a hundred times).
"""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILT = ("epollkit", "build")       # where a build writes
TEST_SECONDS = 60                   # a test that takes longer hangs; they take two or three
RUN_SECONDS = 120                   # for what does not even hear pytest's alarm
QUOTED_LINES = 12

OF_THE_BUILD = (
    ("epollkit/_sys.h", "#if EPOLLKIT_DEBUG\n/* An invariant.", "#if 0\n/* An invariant."),
    ("setup.py", '["-O0" if COVERAGE else "-O1", "-g"]', '["-O0", "-g0"]'),
)


class Broken(Exception):
    """Something is wrong that is not the mutant's doing: its text is not there, or it does not compile."""


def end_of(output: str) -> str:
    return "\n".join(output.rstrip().splitlines()[-QUOTED_LINES:])


def left_out(directory: str, names: list[str]) -> set[str]:
    """Whatever is no source: environments, caches, what was built in place."""
    top = Path(directory) == ROOT
    return {name for name in names if name == "__pycache__" or name.endswith((".so", ".egg-info"))
            or (top and (name in ("build", "dist") or (name.startswith(".") and name != ".ci")))
            or (directory.endswith("epollkit") and name.endswith(".c"))}


class Tree:
    def __init__(self, where: Path, compilers: int, whole: Tree | None = None) -> None:
        self.where = where
        self.compilers = compilers
        self.whole = whole
        if whole is not None:
            shutil.copytree(whole.where, where)     # with its times: nothing is built anew
            return
        shutil.copytree(ROOT, where, ignore=left_out)
        for file, old, new in OF_THE_BUILD:
            self.replace(file, old, new)
        self.build()

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.where / file
        text = path.read_text()
        if text.count(old) != 1:
            raise Broken(f"its text occurs {text.count(old)} times in {file}, not once")
        path.write_text(text.replace(old, new))

    def build(self) -> None:
        """Whatever is older than its sources."""
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", str(self.compilers)]
        done = subprocess.run(command, cwd=self.where, env={**os.environ, "EPOLLKIT_DEBUG": "1"},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise Broken(f"it does not compile:\n{end_of(done.stdout)}")

    def restore(self) -> None:
        """As the whole tree is, times included."""
        assert self.whole is not None
        for part in BUILT:
            for path in (self.whole.where / part).rglob("*"):
                copy = self.where / path.relative_to(self.whole.where)
                if not path.is_file() or path.suffix == ".pyc":
                    continue
                found, wanted = copy.stat(), path.stat()
                if (found.st_mtime_ns, found.st_size) != (wanted.st_mtime_ns, wanted.st_size):
                    shutil.copy2(path, copy)

    def run(self, *tests: str) -> tuple[str, str]:
        """How these tests end: "passed", "failed", "hung", or a signal's name; and what they print at the end."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o",
                   f"timeout={TEST_SECONDS}", *tests]
        environment = {**os.environ, "PYTHONPATH": str(self.where), "EPOLLKIT_REQUIRE_PEERS": "1"}
        environment.pop("EPOLLKIT_EXPECT_BUILD", None)
        process = subprocess.Popen(command, cwd=self.where, env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=RUN_SECONDS * len(tests))
        except subprocess.TimeoutExpired:
            return "hung", ""
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)      # also what a test has left behind
            except ProcessLookupError:
                pass
            process.wait()
        if process.returncode < 0:
            return signal.Signals(-process.returncode).name, end_of(output)
        if process.returncode > 1:
            raise Broken(f"pytest could not run {' '.join(tests)}:\n{end_of(output)}")
        if process.returncode == 1:
            return "hung" if "Failed: Timeout" in output else "failed", end_of(output)
        return "passed", end_of(output)
