"""Does this grow? Least squares over samples, with a confidence interval.

A server's memory under a crowd goes up and down with the crowd, and neighbouring samples resemble each other, so a
line through all samples would be much too sure of itself. So the time after the warm-up is cut into blocks, and of each
the lowest sample counts: what remains when the crowd asks for least. A leak lifts that too; noise does not.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

WARM_UP = 0.2               # of the samples: caches fill, pools grow to the size that they need
FEWEST_BLOCKS = 6
CONFIDENCE = 0.99
Z = 2.326                   # of which a normal variable is below, with that probability


class Slope(NamedTuple):
    """Units per second."""

    rate: float             # best estimate
    low: float              # the true one is above it with 99 % confidence, if the blocks are independent
    high: float             # and below this
    span_seconds: float

    def grows(self, allowed_rate: float, noise: float) -> bool:
        """Surely by more than so many units a second, and by more than `noise` units in all."""
        return self.low > allowed_rate and self.low * self.span_seconds > noise


def slope(samples: Sequence[tuple[float, float]], block_seconds: float) -> Slope | None:
    """Of (seconds, value), in order. None: too short to say anything.

    Args:
        block_seconds: one cycle of whatever makes the value go up and down.
    """
    kept = samples[int(len(samples) * WARM_UP):]
    blocks: dict[int, tuple[float, float]] = {}
    for seconds, value in kept:
        number = int((seconds - kept[0][0]) / block_seconds)
        lowest = blocks.get(number)
        if lowest is None or value < lowest[1]:
            blocks[number] = seconds, value
    if len(blocks) < FEWEST_BLOCKS:
        return None
    points = list(blocks.values())
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    square = sum((x - mean_x) ** 2 for x, _ in points)
    rate = sum((x - mean_x) * (y - mean_y) for x, y in points) / square
    rest = sum((y - mean_y - rate * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(rest / (len(points) - 2) / square)
    reach = quantile(len(points) - 2) * error
    return Slope(rate, rate - reach, rate + reach, kept[-1][0] - kept[0][0])


def quantile(freedom: int) -> float:
    """Student's t for CONFIDENCE, from the normal one (Cornish and Fisher); 2 % too small at 4 degrees of freedom."""
    return (Z + (Z ** 3 + Z) / (4 * freedom) + (5 * Z ** 5 + 16 * Z ** 3 + 3 * Z) / (96 * freedom ** 2)
            + (3 * Z ** 7 + 19 * Z ** 5 + 17 * Z ** 3 - 15 * Z) / (384 * freedom ** 3))
