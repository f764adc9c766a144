"""What the command line says, for every scenario the same."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to run a scenario.

    Args:
        seconds: for how long.
        seed: of the crowd's choices.
        url: an HTTP server to hurt; None: ours, started for the purpose.
        pid: that server's process; None: whoever listens there.
        timeout: that server's deadlines in seconds: those who are slow on purpose must be ended by it. None: nobody
            knows, so it is not judged. Ours has deadlines that fit the seconds.
        connections: of the crowd, instead of the scenario's own number.
        probe_limit: the probe's p99 in seconds, instead of the scenario's own limit.
        patience: seconds beyond a deadline, for answers that are owed when the time is over, and for the way back to
            the baseline.
    """

    seconds: float = 10.0
    seed: int = 0
    url: str | None = None
    pid: int | None = None
    timeout: float | None = None
    connections: int | None = None
    probe_limit: float | None = None
    patience: float = 10.0

    @property
    def deadline(self) -> float | None:
        """After how many seconds the server ends those who are slow on purpose."""
        return self.timeout if self.url else max(0.3, min(2.0, self.seconds / 4))
