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


class PoolStats(NamedTuple):
    """What a pool counts: `open`, `idle`, `out` and `waiting` are of now, the rest since it was made."""

    open: int                   # connections, those under way and those on their way to the end included
    idle: int                   # of those, the ones that nobody has
    out: int                    # of those, the ones that somebody has
    waiting: int                # requests that wait for a place
    hits: int                   # requests that found an idle connection
    misses: int                 # those that did not
    connects: int               # begun
    connect_errors: int         # of those: failed, or ended before anybody had them
    kept: int                   # given back and kept
    dropped: int                # given back and closed: with something unread or unsent, half closed, broken
    expired: int                # idle for longer than idle_timeout
    evicted: int                # closed to make room: for another address, or because of max_idle
    ended_while_idle: int       # by the peer
    spoke_while_idle: int       # the peer sent something that nobody had asked for
    dead_at_checkout: int       # either of these, noticed only when the connection was wanted
    refused_full: int           # requests that failed at once: max_waiting others waited
    wait_timeouts: int          # requests that got no place in time
    cancelled: int              # requests
