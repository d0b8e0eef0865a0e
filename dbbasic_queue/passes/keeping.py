"""Removes finished jobs that are older than their registry keeps them, now and then.

A pass does this after its jobs have run and its slot is released, at most once an hour for all
passes of the queue. A pass that lingers forever does it while no job is due or running.
"""

from __future__ import annotations

import time

from dbbasic_queue.model.states import FINISHED, is_old
from dbbasic_queue.passes import log_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.passes.policies import Policies
    from dbbasic_queue.store.protocol import Store

PAUSE_SECONDS = 3600.0
"""how long after a removal the next one comes, in whichever pass"""
_LOOK_SECONDS = 60.0
"""how often a pass that lingers forever checks whether it is time"""
_SHARE_OF_TIME = 1 / 20_000
"""how much of its time such a pass spends on this: a removal of a second comes every 5.6 hours"""


def remove_old(store: Store, policies: Policies, now: float) -> None:
    """Remove the finished jobs of the pass's types that are too old, if it is time for that.

    `now` is in Unix seconds. If the system refuses, that is logged, and a later pass does it.
    """
    seconds = policies.keep
    if seconds is None:
        return

    def is_unwanted(row: Row) -> bool:
        return is_old(row.state, now - seconds) and policies.handler(row.type) is not None

    try:
        if not store.take_turn_to_purge(policies.names(), now, PAUSE_SECONDS):
            return
        count = store.remove(is_unwanted, statuses=FINISHED)
    except OSError as e:
        if log := log_lines.logger():
            log_lines.not_removed(log, e)
        return
    if count and (log := log_lines.logger()):
        log_lines.removed_old(log, count, seconds)


def remove_old_at_rest(store: Store, policies: Policies, now: float) -> float:
    """Do the same in a pass that lingers forever; return when to call this again.

    That is an instant on the monotonic clock.
    """
    started = time.monotonic()
    remove_old(store, policies, now)
    ended = time.monotonic()
    return ended + max((ended - started) / _SHARE_OF_TIME, _LOOK_SECONDS)
