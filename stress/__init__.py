"""Scenarios that run a server and a hostile crowd against each other, and check the promise.

One module each, with `run(seconds, seed) -> list of failures`; its docstring says what it does to the server and what
must hold. `python -m stress` runs all of them, `python -m stress NAME` one.
"""

SCENARIOS = ("stale_storm",)
