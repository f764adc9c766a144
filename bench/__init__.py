"""The benchmark: epollkit, the C floor and its peers, measured side by side by one command.

    pip install -e .[bench]
    python -m bench --quick

`__main__` reads the options; `runner` walks through `modes`; `servers` and `load` start what is measured, and
`stream_servers` and `stream_load` what has no HTTP, and `generators` load generators and whom they ask; `measure` reads
the kernel's accounts and does the arithmetic; `instructions`, `stale` and `record` count by `callgrind`; `report` says
what came out.
"""
