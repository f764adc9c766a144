"""pytest with the sanitizers' libraries loaded first: `python sanitized.py <directory for reports> <pytest arguments>`.

The interpreter is an ordinary one, so what instrumented modules call has to be there before it. The address sanitizer
reports to files, so one from a child whose end nobody looks at counts too. The other can't: its setter of that path is
hidden by the first library's. It writes to standard error, which pytest must not keep from a process that dies.
"""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# They can't live with the address sanitizer: curl hangs in setlocale(), valgrind must come first itself; and
# redis-server and chromium, which have allocators of their own and fork, would at best be slow: their memory is not the
# matter here.
ORDINARY = ["curl", "valgrind", "redis-server", "chromium"]


def library(name: str) -> str:
    """Where this compiler's runtime library is."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def without_preload(directory: Path) -> None:
    """Scripts that start the ordinary programs as they are."""
    directory.mkdir(exist_ok=True)
    for name in ORDINARY:
        if (program := shutil.which(name)):
            script = directory / name
            script.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {shlex.quote(program)} "$@"\n')
            script.chmod(0o755)


def main() -> int:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("report.*"):
        old.unlink()
    environment = dict(os.environ)
    without_preload(directory / "bin")
    environment["PATH"] = f"{directory / 'bin'}:{os.environ['PATH']}"
    environment["LD_PRELOAD"] = " ".join(library(name) for name in ("libasan.so", "libubsan.so"))
    environment["ASAN_OPTIONS"] += f":log_path={directory}/report"
    pytest = Path(sys.executable).with_name("pytest")      # -m pytest would put the source tree before the wheel
    status = subprocess.run([pytest, "--capture=sys", *sys.argv[2:]], env=environment, check=False).returncode
    reports = sorted(directory.glob("report.*"))
    for report in reports:
        print(f"\n{report.name}\n{report.read_text(errors='replace')}", file=sys.stderr)
    return status or len(reports) > 0


if __name__ == "__main__":
    sys.exit(main())
