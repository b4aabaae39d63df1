"""A rise that no calendar knows, told from noise within a few samples: how fast it goes on now.

Two tests, either is enough. The newest STEEP samples lie on a rising line beyond doubt (Student's t of the slope); or
the newest RISING ones rose one after the other, by more than the noise of the samples before them explains. The finding
lasts as long as the newest samples keep rising: what it asked for is then kept by the patience of scaling in.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from springtide.model import TrafficSample

STEEP = 5
"""Samples of the first test."""

RISING = 3
"""Samples of the second test."""

_T = 3.18  # Student's t for STEEP - 2 degrees of freedom: 97.5 % sure
_SIGMAS = 4.0  # of the second test; noise passes it in fewer than one in ten thousand cases
_BEFORE_MIN = 6  # samples that tell how large the noise is
_BEFORE_MAX = 12
_MEDIAN_OF_DIFFERENCES = 0.954  # of two normal figures, in standard deviations: sqrt(2) * 0.6745


def surge_per_s(traffic: Sequence[TrafficSample]) -> float:
    """The growth beyond doubt, requests/s per second; 0 when there is none. `traffic` is oldest first."""
    return max(_steep_per_s(traffic[-STEEP:]), _rising_per_s(traffic))


def _steep_per_s(newest: Sequence[TrafficSample]) -> float:
    if len(newest) < STEEP:
        return 0.0
    begins = newest[0].at_ms
    xs = [(sample.at_ms - begins) / 1000 for sample in newest]
    mean_x = sum(xs) / STEEP
    mean_y = sum(sample.requests_per_s for sample in newest) / STEEP
    spread = sum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        return 0.0
    pairs = [(x - mean_x, sample.requests_per_s - mean_y) for x, sample in zip(xs, newest, strict=True)]
    slope = sum(x * y for x, y in pairs) / spread
    if slope <= 0:
        return 0.0
    residual = sum((y - slope * x) ** 2 for x, y in pairs)
    return max(0.0, slope - _T * math.sqrt(residual / (STEEP - 2) / spread))


def _rising_per_s(traffic: Sequence[TrafficSample]) -> float:
    newest, before = traffic[-RISING:], traffic[-RISING - _BEFORE_MAX : 1 - RISING]
    if len(before) <= _BEFORE_MIN:
        return 0.0
    rates = [sample.requests_per_s for sample in newest]
    seconds = (newest[-1].at_ms - newest[0].at_ms) / 1000
    rose = rates[-1] - rates[0]
    if seconds <= 0 or any(after <= earlier for earlier, after in pairwise(rates)):
        return 0.0
    steps = [abs(b.requests_per_s - a.requests_per_s) for a, b in pairwise(before)]
    # Counts differ by their root at least, however calm the samples before happened to be.
    counted = math.sqrt(rates[-1] * (RISING - 1) / seconds)
    noise = max(sorted(steps)[len(steps) // 2] / _MEDIAN_OF_DIFFERENCES, counted)
    return rose / seconds if rose > _SIGMAS * math.sqrt(2) * noise else 0.0
