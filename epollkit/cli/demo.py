"""`epollkit demo`."""
from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser("demo", help="a server under a hostile crowd")
    parser.set_defaults(run=lambda options: 1)
