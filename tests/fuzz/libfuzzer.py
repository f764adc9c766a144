"""libFuzzer, of clang's runtime, as a library that is loaded before the interpreter: `run(check, arguments)`.

What it is guided by are the counters of edges that clang puts into our C. A check that raises ends the process by
abort(), which libFuzzer takes for a crash of its target: it keeps the input in a file, and so it does with those that
the address sanitizer stops.
"""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

COMPILER = os.environ.get("CC", "clang")
TARGET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)


def runtime(name: str) -> Path:
    """A file of the compiler's runtime; on Debian they come with libclang-rt-<version>-dev."""
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit(f"{COMPILER} has no {name}; on Debian: apt-get install clang libclang-rt-14-dev")
    return path


def libraries(directory: Path) -> list[Path]:
    """What is to be loaded first: libFuzzer, which is linked here, and the address sanitizer."""
    directory.mkdir(parents=True, exist_ok=True)
    linked = directory / "libfuzzer.so"
    if not linked.exists():
        archive = runtime("libclang_rt.fuzzer_no_main-x86_64.a")
        subprocess.run([COMPILER, "-shared", "-o", linked, "-Wl,--whole-archive", archive, "-Wl,--no-whole-archive",
                        "-lstdc++", "-lm", "-lpthread", "-ldl"], check=True)
    return [linked, runtime("libclang_rt.asan-x86_64.so")]     # which has functions for coverage too, but empty ones


def run(check: Callable[[bytes], None], arguments: list[str]) -> None:
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

    words = [argument.encode() for argument in ["fuzz", *arguments]]
    count = ctypes.c_int(len(words))
    array = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    pointer = ctypes.cast(array, ctypes.POINTER(ctypes.c_char_p))
    library.LLVMFuzzerRunDriver(ctypes.byref(count), ctypes.byref(pointer), target)
