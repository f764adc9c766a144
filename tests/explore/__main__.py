"""python tests/explore: search the worlds, exhaustively or at random; needs the debug build."""
from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

try:
    from connects import CONNECT_WORLDS
    from engine import LONGEST_RUN, Failure, Found, explore, in_child, replay, wander
    from streams import STREAM_WORLDS, Admitted
    from worlds import RAW_WORLDS, TWIN_WORLDS, Reuses, World
except ImportError as error:
    print(f"python tests/explore needs the debug build of epollkit ({error})", file=sys.stderr)
    sys.exit(2)

WORLDS: dict[str, Callable[..., World]] = {**RAW_WORLDS, **STREAM_WORLDS, **CONNECT_WORLDS}
TABLE_ROOM = 1 << 25        # states; 256 MiB if all of it is used


def report(name: str, found: Found) -> None:
    rate = found.runs / found.seconds if found.seconds else 0
    print(f"{name:16} depth {found.depth}{' (everything)' if found.everything else ''}: {found.runs:,} runs, "
          f"{found.states:,} states, {found.seconds:.1f} s, {rate:,.0f} runs a second", flush=True)


def tell_failure(name: str, failure: Failure) -> None:
    print(f"{name}: {failure}\n  again: python tests/explore --world {name} "
          f"--replay {','.join(map(str, failure.answers))}", flush=True)


def search(name: str, make: Callable[..., World], arguments: argparse.Namespace, seconds: float) -> bool:
    """Whether nothing was found."""
    found = explore(make, arguments.depth, seconds=seconds, jobs=arguments.jobs, room=TABLE_ROOM)
    report(name, found)
    for answers in found.died:
        print(f"{name}: the process died; again: python tests/explore --world {name} "
              f"--replay {','.join(map(str, answers))}", flush=True)
    if found.failure is not None:
        tell_failure(name, found.failure)
    return found.failure is None and not found.died


def at_random(name: str, make: Callable[..., World], arguments: argparse.Namespace, seconds: float) -> bool:
    found = wander(make, arguments.seed, arguments.runs, arguments.steps, seconds=seconds)
    print(f"{name:16} seed {arguments.seed}: {found.runs:,} runs of {arguments.steps} steps, {found.seconds:.1f} s",
          flush=True)
    if found.failure is not None:
        tell_failure(name, found.failure)
    return found.failure is None


def controls() -> bool:
    """What must be found, is: the accidents of few bits, and those of the twin."""
    good = True
    for name, (make, depth, wanted) in {**bits_worlds(), **TWIN_WORLDS}.items():
        found = explore(make, depth)
        met = found.failure.promise if found.failure is not None else None
        print(f"{name}: {'nothing' if met is None else f'promise {met}'} within {depth} choices, "
              f"{found.runs:,} runs, {found.states:,} states")
        if found.failure is not None:
            print(found.failure)
        good &= met == wanted
    return good


def bits_worlds() -> dict[str, tuple[Callable[..., World], int, int | None]]:
    found: dict[str, tuple[Callable[..., World], int, int | None]] = {}
    for bits in (1, 2, 3):
        for uses, wanted in ((2 ** bits - 1, None), (2 ** bits, 1)):
            found[f"{bits} bits, {uses} reuses"] = functools.partial(Reuses, bits=bits, most=uses), uses + 4, wanted
    found["1 bit, streams and a listener"] = functools.partial(Admitted, bits=1), 11, 1
    return found


def answers(text: str) -> list[int]:
    return [int(answer) for answer in text.split(",") if answer]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/explore", description=__doc__)
    parser.add_argument("--world", choices=[*WORLDS, "all"], default="all")
    parser.add_argument("--depth", type=int, default=LONGEST_RUN, help="choices at most")
    parser.add_argument("--seconds", type=float, default=60, help="for all worlds together")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bits", type=int, default=32, help="instance_bits of the loop")
    parser.add_argument("--replay", type=answers, metavar="ANSWERS", help="one run again, and its story")
    parser.add_argument("--random", action="store_true", help="random runs, instead of all of them")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steps", type=int, default=100, help="choices in each random run")
    parser.add_argument("--runs", type=int, default=10 ** 9, help="random runs at most")
    parser.add_argument("--controls", action="store_true", help="does it find what is there to be found?")
    arguments = parser.parse_args()
    for name, most in (("depth", LONGEST_RUN), ("seconds", None), ("jobs", None), ("bits", 32), ("steps", None),
                       ("runs", None)):
        value = getattr(arguments, name)
        if not value > 0 or (most is not None and value > most):
            parser.error(f"--{name} is more than 0" + (f", and at most {most}" if most is not None else ""))
    if arguments.controls:
        return 0 if controls() else 1
    names = list(WORLDS) if arguments.world == "all" else [arguments.world]
    good = True
    for name in names:
        make = functools.partial(WORLDS[name], bits=arguments.bits)
        if arguments.replay is not None:
            failure = replay(make, arguments.replay)
            print(failure or "nothing is wrong with it")
            good &= failure is None
        elif arguments.random:
            good &= in_child(lambda make=make, name=name: sys.exit(
                not at_random(name, make, arguments, arguments.seconds / len(names)))) == 0
        else:
            good &= search(name, make, arguments, arguments.seconds / len(names))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
