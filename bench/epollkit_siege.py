"""What is counted under callgrind: the load engine, as a worker process of `epollkit siege` runs it, but in the only
process there is. The command itself starts a worker, and kills it once that has said everything, before valgrind has.

    python bench/epollkit_siege.py URL CONNECTIONS PIPELINE keep|close REQUESTS

Prints what the command prints with -j. Its four intervals a second are not taken: valgrind slows the program down, and
not the clock, so each request would have thirty times its share of them. Run as a file, not as a module, so that the
installed epollkit is imported.
"""
import json
import sys

from epollkit.siege import Scenario, run, worker

NEVER_SECONDS = 1e6


def main(url: str, connections: str, pipeline: str, ends: str, requests: str) -> None:
    """Ask."""
    worker.INTERVAL_SECONDS = NEVER_SECONDS
    report = run(Scenario(url, users=int(connections), pipeline=int(pipeline), keep_alive=ends == "keep",
                          number=int(requests)))
    print(json.dumps(report.as_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
