"""What a loop counts."""
from typing import NamedTuple


class LoopStats(NamedTuple):
    """Counters since the loop was made; `live` and `timers` are of now."""

    batches: int                # waits that returned events
    events: int                 # events in them, stale ones and the loop's own wake-ups included
    upcalls: int                # calls made for them, for timers, deadlines and posted calls
    stale_closed: int           # dropped: the registration was released earlier in the same batch
    stale_recycled: int         # dropped: the same, and somebody else has its slot already
    stale_orphan: int           # dropped: released in an earlier batch; a dup, fork or passed fd keeps the file open
    wrong_deliveries: int       # upcalls to a registration younger than the event: 0 unless instance_bits was lowered
    wrong_kills: int            # of those, how many ended it
    accepted: int               # connections taken from listeners
    closed: int                 # registrations released, for whatever reason
    lost: int                   # of those, because the fd was closed behind the loop's back
    rebuilds: int               # of the epoll set, because it kept reporting orphans
    live: int                   # registrations now, without the loop's own wake-ups
    timers: int                 # calls that wait for their time
    retired: int                # slots whose 32-bit generation ran out, never to be used again
    evicted: int                # of those closed: idle connections, to let others in
