"""Scenarios that run a server and a hostile crowd against each other, and check what must hold.

One module each, with `run(options) -> list of failures`; its docstring says what it does to the server, what must hold,
and for how long. `python -m stress` runs all of them, `python -m stress NAME` one. docs/stress.md is the user's page.

    options.py    what the command line says
    play.py       plays a scenario: server, crowd, probe, the wait for the baseline, the verdict
    server.py     the server under test: `epollkit serve` in a process of its own, or whatever --url names
    target.py     the application that ours serves
    watch.py      descriptors, memory, threads, CPU of a server; is it back where it was?
    probe.py      a well-behaved client that asks all the time
    crowd.py      the crowd's process
    visitors.py   one class per behaviour of its members
    answers.py    answers out of bytes
    children.py   processes, and the lines of JSON between them
    slope.py      does this grow?
    faulty.py     a faulty network: a proxy that stalls, cuts, resets, trickles, delays and half-closes
    races.py      the two servers of the scenario siege_crash
    table.py      the table at the end
"""

SCENARIOS = ("churn", "rst_storm", "half_close", "abandon", "slowloris", "slow_body", "slow_reader", "pipeline_flood",
             "fd_exhaustion", "idle_crowd", "faulty_network", "stale_storm", "siege_crash", "soak")
