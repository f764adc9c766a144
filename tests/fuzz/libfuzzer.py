"""libFuzzer, of clang's runtime, as a library that is loaded before the interpreter: `run(check, arguments)`.

What it is guided by are the counters of edges that clang puts into our C. A check that raises ends the process by
abort(), which libFuzzer takes for a crash of its target: it keeps the input in a file, and so it does with those that
the address sanitizer stops.
"""
from __future__ import annotations

import ctypes
import os
import platform
import random
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

COMPILER = os.environ.get("CC", "clang")
MUTATOR = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint)
TARGET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)


def runtime(name: str) -> Path:
    """A file of the compiler's runtime; on Debian they come with libclang-rt-<version>-dev."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{COMPILER} has no {name}; on Debian: apt-get install clang libclang-rt-<version>-dev")
    return path


def libraries(directory: Path) -> list[Path]:
    """What is to be loaded first: libFuzzer, which is linked here, and the address sanitizer."""
    directory.mkdir(parents=True, exist_ok=True)
    linked, source = directory / "libfuzzer.so", Path(__file__).with_name("mutator.c")
    if not linked.exists() or linked.stat().st_mtime < source.stat().st_mtime:
        archive = runtime(f"libclang_rt.fuzzer_no_main-{platform.machine()}.a")
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", linked, source, "-Wl,--whole-archive", archive,
                        "-Wl,--no-whole-archive", "-lstdc++", "-lm", "-lpthread", "-ldl"], check=True)
    return [linked, runtime(f"libclang_rt.asan-{platform.machine()}.so")]     # its own hooks for coverage are empty


def run(check: Callable[[bytes], None], mutate: Callable[[bytes, random.Random], bytes], arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    library = ctypes.PyDLL(None)            # keeps the interpreter's lock: the check is called in this very thread

    @TARGET
    def target(data: ctypes.POINTER(ctypes.c_char), size: int) -> int:    # type: ignore[valid-type]
        try:
            check(ctypes.string_at(data, size))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()
        return 0

    @MUTATOR
    def mutated(data: int, size: int, most: int, seed: int) -> int:
        made = mutate(ctypes.string_at(data, size), random.Random(seed))[:most]
        ctypes.memmove(data, made, len(made))
        return len(made)

    ctypes.c_void_p.in_dll(library, "ek_mutate").value = ctypes.cast(mutated, ctypes.c_void_p).value
    again = [sys.executable, *sys.argv[:sys.argv.index("--") + 1]]      # for a merge libFuzzer starts itself
    words = [argument.encode() for argument in [shlex.join(again), *arguments]]
    count = ctypes.c_int(len(words))
    array = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    pointer = ctypes.cast(array, ctypes.POINTER(ctypes.c_char_p))
    library.LLVMFuzzerRunDriver(ctypes.byref(count), ctypes.byref(pointer), target)
