"""The command `epollkit`: one module per subcommand, each with `add(subparsers)` and `run(options) -> exit status`."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import epollkit
from epollkit.cli import demo, serve, siege


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="epollkit", description="Edge-triggered epoll servers that drop stale events.")
    made.add_argument("--version", action="version",
                      version=f"epollkit {epollkit.__version__} ({epollkit.build_info()['build']} build)")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve.add(commands)
    siege.add(commands)
    demo.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 it could not run or failed, 2 wrong usage, 130 Ctrl-C before there was anything to end."""
    command = "epollkit"
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:      # closed by whoever started us: there is nobody to tell
            setattr(sys, name, open(os.devnull, "w"))    # noqa: SIM115
    try:
        options = parser().parse_args(arguments)
        command = f"epollkit {options.command}"
        return int(options.run(options))
    except (epollkit.EpollkitError, OSError) as error:
        # OSError's own str() starts with [Errno N]; the sentence is its strerror
        print(f"{command}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
