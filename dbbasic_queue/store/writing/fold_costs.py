"""Whether a fold is cheap: what it may cost, and what the next one is expected to cost."""

from __future__ import annotations

CHEAP_IN_A_PASS_SECONDS = 0.005
"""A pass folds when it claims a single job, and while a job runs, if the fold takes less."""

CHEAP_OUTSIDE_SECONDS = 0.050
"""`cancel_job` and the like fold before they return if the fold takes less."""

SHARE_OF_TIME = 0.05
"""A pass folds at any claim if the fold takes a smaller share of the time since the last one."""

SECONDS_PER_BYTE = 4e-9
"""what copying takes; counted for the bytes that were added since the last fold"""

SECONDS_PER_CHANGE = 1e-6
"""what writing a changed row takes; not counted as a cost, because it has to be written once"""


class FoldCosts:
    """What the last fold cost, and so what the next one is expected to cost, in seconds.

    Only copying counts as a cost, because changed rows have to be written once, now or later.

    >>> costs = FoldCosts()
    >>> costs.remember(seconds=0.02, changes=10_000, size=1_000_000)
    >>> round(costs.expect(size=1_000_000), 3), round(costs.expect(size=2_000_000), 3)
    (0.01, 0.014)
    """

    def __init__(self) -> None:
        self._seconds = 0.001  # a guess, until this process has folded
        self._size = 0

    def remember(self, seconds: float, changes: int, size: int) -> None:
        """Record that a fold of `changes` changed rows into `size` bytes took `seconds`."""
        self._seconds = max(seconds - changes * SECONDS_PER_CHANGE, 0.0)
        self._size = size

    def expect(self, size: int) -> float:
        """Return how many seconds the copying is expected to take for a file of `size` bytes."""
        return self._seconds + max(size - self._size, 0) * SECONDS_PER_BYTE
