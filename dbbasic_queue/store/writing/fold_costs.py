"""What a fold may cost, in seconds, and how its cost is estimated."""

from __future__ import annotations

CHEAP_IN_A_PASS_SECONDS = 0.005
CHEAP_OUTSIDE_SECONDS = 0.050
SHARE_OF_TIME = 0.05
"""A fold that costs more is still cheap if it costs less than this share of the time since the
last one."""
SECONDS_PER_BYTE = 4e-9
SECONDS_PER_CHANGE = 1e-6
