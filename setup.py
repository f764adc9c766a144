"""Build of epollkit's extension modules. One switch: EPOLLKIT_DEBUG=1 builds with every check on."""
import os
import sys
import zlib
from glob import glob

if not sys.platform.startswith("linux"):
    sys.exit(f"epollkit needs Linux: it is built on epoll(7), which {sys.platform} does not have")

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("EPOLLKIT_DEBUG", "0") not in ("", "0")
FLAVOUR = "debug" if DEBUG else "release"
FLAGS = os.environ.get("CFLAGS", "")        # setuptools passes them on; objects of other flags are other objects
COVERAGE = "--coverage" in FLAGS            # gcov counts lines of Cython's C (tests/support/line_coverage.py)
BUILD = f"build/{FLAVOUR}" + (f"-{zlib.crc32(FLAGS.encode()):08x}" if FLAGS else "")

MODULES = ["_tokens", "_calls", "_tls", "_rate", "_core", "_schedule", "_room", "_raw", "_listener",
           "_buffered", "_connection", "_stream", "_connector",
           "_http1", "_http1_response", "_http1_python", "_httpconn", "_histogram", "_tally", "_siege"]
MODULES += ["_operations", "_debug", "_kernel", "_loopstate"] if DEBUG else []

# Compiler directives live here and nowhere else: one in a file's header would beat the debug build's.
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "freethreading_compatible": False,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": DEBUG,
    "cdivision": True,
    "overflowcheck": False,
}

COMPILE = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function",
           "-Wno-missing-field-initializers", "-Wno-cast-function-type", "-Wno-sign-compare"]
COMPILE += ["-O0" if COVERAGE else "-O1", "-g"] if DEBUG else ["-O3", "-g0"]

extensions = [
    Extension(
        f"epollkit.{name}",
        [f"epollkit/{name}.pyx"],
        depends=["epollkit/_sys.h", "epollkit/_operations.h", "epollkit/_http1_scan.h", *glob(f"epollkit/{name}*.h")],
        include_dirs=["epollkit"],
        define_macros=[("EPOLLKIT_DEBUG", "1" if DEBUG else "0")],
        extra_compile_args=COMPILE,
    )
    for name in MODULES
]

setup(
    ext_modules=cythonize(
        extensions,
        build_dir=f"{BUILD}/cython",     # no two builds share an object file
        compiler_directives=DIRECTIVES,
        emit_linenums=DEBUG and not COVERAGE,   # a broken invariant, and a debugger, name the line of the .pyx
    ),
    options={
        "build": {"build_base": BUILD},
        "build_ext": {"parallel": os.cpu_count() or 1},
    },
)
