"""Commands that remove jobs: purge, clear."""

from __future__ import annotations

import os

from dbbasic_queue.cli.arguments import CHANGED_ID, Commands, add_caution, add_filters, seconds
from dbbasic_queue.cli.many import REMOVED, filter_or_ids, ids, is_wanted, most_first, print_counts
from dbbasic_queue.cli.messages import complain
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.states import FINISHED, PENDING
from dbbasic_queue.operating import changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.selecting import Filter


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    purge = commands.add("purge", run_purge, "remove old finished jobs from the queue")
    purge.add_argument(
        "--older-than",
        type=seconds,
        metavar="DURATION",
        required=True,
        help="only jobs that were due longer ago than this, such as 30d or 12h",
    )
    purge.add_argument(
        "--archive", metavar="FILE", help="append the jobs to this TSV file before removing them"
    )
    add_filters(purge, FINISHED)
    add_caution(purge)
    clear = commands.add(
        "clear",
        run_clear,
        "remove jobs from the queue, whatever their status; running ones stay",
    )
    clear.add_argument("ids", metavar="ID", nargs="*", help=CHANGED_ID)
    clear.add_argument(
        "--archive", metavar="FILE", help="append the jobs to this TSV file before removing them"
    )
    add_filters(clear, (PENDING, *FINISHED))
    clear.add_argument("--all", action="store_true", help="all jobs that aren't running")
    add_caution(clear)


def run_purge(arguments: Namespace) -> int:
    from dbbasic_queue.cli.selecting import filter_of

    with existing_queue(arguments) as queue:
        chosen = filter_of(arguments, FINISHED)
        before = queue.now() - arguments.older_than
        return _remove(
            arguments, queue, lambda row: states.is_old(row.state, before), chosen, "purged"
        )


def run_clear(arguments: Namespace) -> int:
    statuses = (PENDING, *FINISHED)
    chosen = filter_or_ids(arguments, statuses)
    with existing_queue(arguments) as queue:
        if chosen is not None:
            return _remove(arguments, queue, changes.can_be_removed, chosen, REMOVED)
        from dbbasic_queue.monitoring.selecting import Filter

        wanted, code = set(), 0
        for job_id in ids(arguments, queue):
            row = queue.store.find(job_id) if job_id is not None and is_id(job_id) else None
            if row is not None and row.state.status in statuses and changes.can_be_removed(row):
                wanted.add(row.id)
            elif job_id is None:
                code = 1
            else:
                why = "it is running" if row else "there is no such job"
                code = complain(f"{job_id} was not removed: {why}")
        if wanted:
            everything = Filter(statuses)
            done = _remove(
                arguments,
                queue,
                lambda r: r.id in wanted and changes.can_be_removed(r),
                everything,
                REMOVED,
            )
            code = done or code
        return code


def _remove(
    arguments: Namespace,
    queue: Queue,
    unwanted: Callable[[Row], bool],
    chosen: Filter,
    done: str,
) -> int:
    path = None
    if arguments.archive is not None:
        from dbbasic_queue.store.writing import archive

        path = archive.path_of(arguments.archive, queue.path)
        if not os.path.isdir(folder := os.path.dirname(path)):
            raise InvalidArgument(f"{folder}: there is no such directory (for the archive)")
        archive.check(path)
    rows = (row for row in chosen.rows(queue.store) if unwanted(row))
    if not is_wanted(arguments, rows, done):
        return 1
    removed = changes.remove(queue, chosen, unwanted, path)
    print_counts(done, most_first(removed))
    return 0
