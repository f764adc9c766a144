"""Build of a native handler, against the epollkit that is installed: its .pxd files, and its header."""
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

import epollkit

PACKAGE = Path(epollkit.__file__).parent

setup(
    name="native-echo",
    ext_modules=cythonize(
        [Extension("echo", ["echo.pyx"], include_dirs=[str(PACKAGE)])],     # for _sys.h
        include_path=[str(PACKAGE.parent)],                                 # for `cimport epollkit`
        language_level=3,
    ),
)
