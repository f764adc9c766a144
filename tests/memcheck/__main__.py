"""memcheck over the leaves, the codec and native handlers: `python tests/memcheck <directory to work in>`.

The harness is built against the installed package, as a native handler is. Objects come from malloc, so each is a block
that memcheck knows. What it reports of CPython alone is in `cpython.supp`; anything else fails. And it must report each
of `CONTROLS`, in which the leaves are used wrongly: otherwise silence would mean nothing.
"""
from __future__ import annotations

import argparse
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
NATIVE = TESTS.parent / "examples" / "native" / "echo.pyx"
STATUS = 86                 # valgrind's, when it has something to report
MARK = "memcheck.mark"      # in a directory that may be removed
MOST_HEAD_BYTES = 20000     # longer ones say nothing new, slowly

CONTROLS = {
    "uninitialised": "uninitialised value",
    "overrun": "Invalid read of size 1",
    "freed": "Invalid read of size 8",
    "leak": "definitely lost",
}

SETUP = """
from pathlib import Path
from Cython.Build import cythonize
from setuptools import Extension, setup
import epollkit
package = Path(epollkit.__file__).parent
debug = epollkit.build_info()["build"] == "debug"
setup(name="memcheck", ext_modules=cythonize(
    [Extension(name, [name + ".pyx"], include_dirs=[str(package)],
               define_macros=[("EPOLLKIT_DEBUG", str(int(debug)))],
               extra_compile_args=["-O1", "-g", "-fno-builtin", "-Wno-use-after-free", "-Wno-unused-function",
                                   "-Wno-sign-compare"])
     for name in ("harness", "echo")],
    include_path=[str(package.parent)], language_level=3))
"""


def build(directory: Path) -> None:
    for source in (HERE / "harness.pyx", NATIVE):
        shutil.copy(source, directory)
    (directory / "setup.py").write_text(SETUP)
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=directory, check=True)


def corpus() -> list[bytes]:
    """The heads that the codec's own tests have."""
    sys.path[:0] = [str(TESTS), str(TESTS / "support")]
    import test_http1_head as tests

    heads = {data for data, _ in tests.ACCEPTED.values()} | {data for _, data, _ in tests.REFUSED.values()}
    return sorted(data for data in heads if len(data) <= MOST_HEAD_BYTES)


def memcheck(valgrind: str, directory: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [valgrind, "-q", f"--error-exitcode={STATUS}", "--leak-check=full", "--errors-for-leak-kinds=definite",
         "--show-leak-kinds=definite", "--num-callers=20", "--gen-suppressions=all", "--read-var-info=no",
         f"--suppressions={HERE / 'cpython.supp'}",
         sys.executable, str(HERE / "inside.py"), str(directory), str(directory / "corpus"), *arguments],
        env={**os.environ, "PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"}, stderr=subprocess.PIPE, text=True,
        check=False)
    return done.returncode, done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/memcheck", description="memcheck, and what it must see.")
    parser.add_argument("directory", type=Path, help="to work in: it is made, and what an earlier run left there goes")
    directory: Path = parser.parse_args().directory
    if directory.exists() and not (directory / MARK).is_file():
        parser.error(f"{directory} is there, and not from here; it would be removed")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed; on Debian: apt-get install valgrind libc6-dbg", file=sys.stderr)
        return 2
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / MARK).touch()
    build(directory)
    (directory / "corpus").write_bytes(pickle.dumps(corpus()))
    for control, words in CONTROLS.items():
        status, report = memcheck(valgrind, directory, control)
        if status != STATUS or words not in report or "harness" not in report:
            print(f"memcheck did not see {control!r}, so it would not see others:\n{report}", file=sys.stderr)
            return 1
        print(f"control: {control}: seen", flush=True)
    status, report = memcheck(valgrind, directory)
    print(report, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
