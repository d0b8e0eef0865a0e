"""How long the pauses between passes usually are, and when one is too long.

A pause is the time from the end of a pass to the start of the next one. The longest of the last ten
counts, not the mean: with two programs in the crontab, every other pause is short. If fewer than
three passes have ended, an hour is assumed.
"""

from __future__ import annotations

from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbbasic_queue.store.pass_log import EndedPass

LEAST_SECONDS = 120.0
"""No pause is too long before the last pass ended this long ago."""
UNKNOWN_PAUSE_SECONDS = 3600.0
"""the pause between passes that is assumed if too few have ended so far"""
_PASSES = 10
_FEW = 3
"""Fewer passes than this don't show how long a pause is: they may be of two programs."""


def longest_pause(ended: Sequence[EndedPass]) -> float | None:
    """Return the longest pause between the last ten passes, in seconds; None for too few."""
    last = ended[-_PASSES:]
    if len(last) < _FEW:
        return None
    pauses = [after.ended_at - after.seconds - before.ended_at for before, after in pairwise(last)]
    return max(0.0, *pauses)


def patience(ended: Sequence[EndedPass]) -> float:
    """Return how many seconds after the last of these passes another one must have ended.

    That is twice the longest pause, and at least two minutes.
    """
    pause = longest_pause(ended) if ended else 0.0
    return max(2 * (UNKNOWN_PAUSE_SECONDS if pause is None else pause), LEAST_SECONDS)
