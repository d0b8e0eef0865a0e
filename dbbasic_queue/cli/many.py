"""What commands that change many jobs share: which jobs, the question first, the counts."""

from __future__ import annotations

from dbbasic_queue.cli.messages import complain
from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import FAILED, PENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.selecting import Filter

REMOVED = "removed"
"""what happens to jobs that may be pending: they are never run then"""


def filter_or_ids(arguments: Namespace, statuses: tuple[str, ...]) -> Filter | None:
    """Return the jobs that the filters choose; None if ids were given.

    Ends with wrong usage if neither is given, or both.
    """
    from dbbasic_queue.cli.selecting import filter_of, has_options

    if getattr(arguments, "failed", False):
        if arguments.status:
            arguments.wrong_usage("give --failed or --status, not both")
        arguments.status = [FAILED]
    has_filter = has_options(arguments)
    if arguments.ids and (arguments.all or has_filter):
        arguments.wrong_usage("give IDs or options that choose jobs, not both")
    if not (arguments.ids or has_filter or arguments.all):
        arguments.wrong_usage("give IDs, or options that choose jobs, such as --type, or --all")
    return None if arguments.ids else filter_of(arguments, statuses)


def ids(arguments: Namespace, queue: Queue) -> Iterator[str | None]:
    """Yield the id that each argument means; None, after an error was printed, if it means none."""
    from dbbasic_queue.monitoring.selecting import LEAST_PREFIX, find_id

    for text in arguments.ids:
        try:
            yield find_id(queue.store, text, LEAST_PREFIX)
        except InvalidArgument as e:
            complain(str(e))
            yield None


def is_wanted(arguments: Namespace, rows: Iterable[Row], done: str) -> bool:
    """Return whether to change the chosen jobs. Reports a --dry-run, and a no."""
    from dbbasic_queue.cli.selecting import count_types
    from dbbasic_queue.cli.terminal import ask, can_ask

    if not arguments.dry_run and (arguments.yes or not can_ask()):
        return True
    pending = 0

    def counted() -> Iterator[Row]:
        nonlocal pending
        for row in rows:
            pending += row.state.status == PENDING
            yield row

    types = count_types(counted())
    if arguments.dry_run:
        print_counts(f"would be {done}", types)
        raise SystemExit(0)
    count = sum(types.values())
    if not count:
        return True
    if pending and done == REMOVED:
        which = ("all " if count > 1 else "") if pending == count else f"{pending:,} of them "
        never = f", {which}still pending,"
    else:
        never = ""
    if ask(f"{_sentence(types)}{never} will be {done}. Go on?"):
        return True
    complain("nothing was changed")
    return False


def print_counts(done: str, types: dict[str, int]) -> None:
    """Print how many jobs of which types were changed. `done` is what happened to them."""
    from dbbasic_queue.cli.terminal import Terminal

    if Terminal().is_screen:
        was = "was " if sum(types.values()) == 1 else "were "
        print(f"{_sentence(types)} {'' if done.startswith('would') else was}{done}")
        return
    names = " ".join(f"{printable(name)}={count}" for name, count in types.items())
    print(f"{done}\t{sum(types.values())}\t{names or '-'}")


def most_first(types: dict[str, int]) -> dict[str, int]:
    """Return the counts, the largest first."""
    return dict(sorted(types.items(), key=lambda of: -of[1]))


def count_one(types: dict[str, int], job_type: str) -> None:
    """Add a job of this type to the counts."""
    types[job_type] = types.get(job_type, 0) + 1


def _sentence(types: dict[str, int]) -> str:
    count = sum(types.values())
    each = ", ".join(f"{count:,} {printable(name)}" for name, count in list(types.items())[:5])
    more = ", ..." if len(types) > 5 else ""
    return f"{count:,} {'job' if count == 1 else 'jobs'}" + (f" ({each}{more})" if each else "")
