"""Commands that change jobs: cancel, stop, requeue, run-now, edit, pause, resume.

A command changes the jobs that are named by id or chosen by filters, and leaves alone those whose
status doesn't allow the change. Filters choose jobs as they are when the command reaches them: a
job that changes in the meantime is not changed again.
"""

from __future__ import annotations

from dbbasic_queue.cli.arguments import (
    CHANGED_ID,
    Commands,
    add_many,
)
from dbbasic_queue.cli.many import (
    count_one,
    filter_or_ids,
    ids,
    is_wanted,
    most_first,
    print_counts,
)
from dbbasic_queue.cli.messages import PROGRAM, complain, print_done, program, tell, with_file
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.errors import JobNotFound, QueueError
from dbbasic_queue.model.checks import ALL, check_type, is_id
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.rows import has_json
from dbbasic_queue.model.states import CANCELLED, PENDING, PROCESSING, move_address
from dbbasic_queue.monitoring.verdict import command
from dbbasic_queue.operating import changes
from dbbasic_queue.operating.changes import CANCEL, REQUEUE, RUN_NOW, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.monitoring.selecting import Filter


_SHOWN_EACH = 500
"""Progress is shown each time this many jobs more were changed."""


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    for name, verb, text in (
        ("cancel", CANCEL, "cancel pending jobs"),
        ("run-now", RUN_NOW, "make pending jobs due now: the next pass runs them"),
    ):
        parser = commands.add(name, _changer(verb), text)
        add_many(parser, verb.statuses)
    requeue = commands.add(
        "requeue",
        _changer(REQUEUE),
        "make failed or cancelled jobs pending again, with no attempts used",
        more="A failed job is due now; a cancelled one keeps the time at which it was due.",
    )
    add_many(requeue, REQUEUE.statuses)
    requeue.add_argument("--failed", action="store_true", help="all failed jobs")
    stop = commands.add(
        "stop",
        run_stop,
        "cancel pending jobs, and stop running ones",
        more="A job in a process of its own is killed. Any other running job is asked to stop: "
        "then the command prints requested instead of stopped.",
    )
    add_many(stop, (PENDING, PROCESSING))
    edit = commands.add(
        "edit",
        run_edit,
        "edit the payload of a pending job or, without ID, the whole queue in $EDITOR",
        more="The queue is checked before anything is changed, and jobs that were added in the "
        "meantime are kept.",
    )
    edit.add_argument("id", metavar="ID", nargs="?", help=CHANGED_ID)
    edit.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", help="JSON (default: edit it in $EDITOR)"
    )
    pause = commands.add("pause", run_pause, "stop starting jobs of TYPE, or of all types")
    pause.add_argument("type", metavar="TYPE", nargs="?", help="(default: all types)")
    pause.add_argument(
        "-y", "--yes", action="store_true", help="don't ask if no job and no handler has the type"
    )
    resume = commands.add("resume", run_resume, "end the pause of TYPE, or every pause")
    resume.add_argument("type", metavar="TYPE", nargs="?", help="(default: every pause)")


# -- by id or by filters -----------------------------------------------------------------------


def _changer(verb: Verb) -> Callable[[Namespace], int]:
    def run(arguments: Namespace) -> int:
        chosen = filter_or_ids(arguments, verb.statuses)
        with existing_queue(arguments) as queue:
            if chosen is None:
                return _change_ids(arguments, queue, verb)
            return _change_chosen(arguments, queue, chosen, verb)

    return run


def _change_ids(arguments: Namespace, queue: Queue, verb: Verb) -> int:
    """Change each job. Print the changed ones, and on stderr the others, each with the reason."""
    code = 0
    for job_id in ids(arguments, queue):
        if job_id is None:
            code = 1
        elif arguments.dry_run:
            code = _would_change(arguments, queue, job_id, verb) or code
        elif verb.one(queue, job_id):
            print_done(verb.done, job_id)
        else:
            code = _why_not_changed(arguments, queue, job_id, verb)
    return code


def _would_change(arguments: Namespace, queue: Queue, job_id: str, verb: Verb) -> int:
    job = queue.get_job(job_id)
    if job is None or job["status"] not in verb.statuses:
        return _why_not_changed(arguments, queue, job_id, verb)
    print_done(f"would be {verb.done}", job_id)
    return 0


def _why_not_changed(arguments: Namespace, queue: Queue, job_id: str, verb: Verb) -> int:
    job = queue.get_job(job_id)
    if job is None:
        return _no_such_job(queue, job_id, verb.done)
    next_step = ""
    if job["status"] == CANCELLED and (address := move_address(job["error"] or "")):
        move = with_file(command("move", "--to", unescape(address)), arguments.file)
        return complain(
            f"{job_id} was not {verb.done}: it is being moved to {unescape(address)} (to finish "
            f"that: {move})"
        )
    if verb is CANCEL and job["status"] == PROCESSING:
        next_step = f"; to stop it: {with_file(f'{PROGRAM} stop {job_id}', arguments.file)}"
    elif verb in (RUN_NOW, _EDIT) and job["status"] in REQUEUE.statuses:
        next_step = f"; first: {with_file(f'{PROGRAM} requeue {job_id}', arguments.file)}"
    return complain(
        f"{job_id} was not {verb.done}: it is {job['status']} (only {verb.which} can be{next_step})"
    )


def _no_such_job(queue: Queue, job_id: str, done: str) -> int:
    hint = ""
    if job_id and _is_known(queue, job_id):
        hint = f" ({job_id} is a job type: for all jobs of it, write --type {job_id})"
    return complain(f"{job_id or repr(job_id)} was not {done}: there is no such job{hint}")


def _change_chosen(arguments: Namespace, queue: Queue, chosen: Filter, verb: Verb) -> int:
    if not is_wanted(arguments, chosen.rows(queue.store), verb.done):
        return 1
    _report(verb.done, verb.many(queue, chosen.rows(queue.store)), arguments)
    return 0


def _report(done: str, rows: Iterable[Row], arguments: Namespace) -> None:
    """Print how many jobs were changed, of which types; and on a terminal how far it is."""
    from dbbasic_queue.cli.terminal import Counter

    counter = Counter(done)
    types: dict[str, int] = {}
    count = 0
    try:
        for row in rows:
            count_one(types, row.type)
            count += 1
            if count % _SHOWN_EACH == 0:
                counter.show(count)
    except BaseException:
        counter.end()
        if count:  # the error, which is printed next, has ended the rest
            print_counts(done, most_first(types))
        raise
    counter.end()
    print_counts(done, most_first(types))


def run_stop(arguments: Namespace) -> int:
    chosen = filter_or_ids(arguments, (PENDING, PROCESSING))
    with existing_queue(arguments) as queue:
        if chosen is not None:
            return _stop_chosen(arguments, queue, chosen)
        code = 0
        for job_id in ids(arguments, queue):
            code = (1 if job_id is None else _stop(arguments, queue, job_id)) or code
    return code


def _stop_chosen(arguments: Namespace, queue: Queue, chosen: Filter) -> int:
    """Cancel the pending jobs, and stop the running ones. Print how many had each outcome."""
    if not is_wanted(arguments, chosen.rows(queue.store), "stopped"):
        return 1
    types: dict[str, dict[str, int]] = {}
    for done, row in changes.stop(queue, chosen):
        count_one(types.setdefault(done, {}), row.type)
    for outcome, found in (types or {"stopped": {}}).items():
        print_counts(outcome, most_first(found))
    return 0


def _stop(arguments: Namespace, queue: Queue, job_id: str) -> int:
    if arguments.dry_run:
        job = queue.get_job(job_id)
        status = job["status"] if job else "unknown"
        if status in (PENDING, PROCESSING):
            print_done("would be stopped", job_id)
            return 0
        return complain(f"{job_id} would not be stopped: it is {status}")
    try:
        done = queue.stop_job(job_id)
    except JobNotFound:
        return _no_such_job(queue, job_id, "stopped")
    if done is None:
        return complain(f"{job_id} was not stopped: it is finished")
    print_done(done, job_id)
    if done == "requested":
        show = printable(with_file(f"{PROGRAM} show {job_id}", arguments.file))
        tell(
            f"{program()}: {job_id} runs inside its pass, so it was only asked to stop; if it goes "
            f"on: {show}"
        )
    return 0


# -- payloads, pauses --------------------------------------------------------------------------


def run_edit(arguments: Namespace) -> int:
    from dbbasic_queue.cli import editing
    from dbbasic_queue.monitoring.selecting import LEAST_PREFIX, find_id

    with existing_queue(arguments) as queue:
        if arguments.id is None:
            return editing.edit_queue(queue)
        job_id = find_id(queue.store, arguments.id, LEAST_PREFIX)
        row = queue.store.find(job_id) if is_id(job_id) else None
        if row is None or not has_json(row) or row.state.status != PENDING:
            return _why_not_changed(arguments, queue, job_id, _EDIT)
        if arguments.payload is not None:
            if not queue.edit_job(job_id, editing.json_value(arguments)):
                return _why_not_changed(arguments, queue, job_id, _EDIT)
            print_done("edited", job_id)
        elif why := editing.edit_payload(queue, row):
            return complain(why)
    return 0


_EDIT = Verb("edited", "a pending job", (PENDING,), lambda *_: False, lambda *_: None)


def run_pause(arguments: Namespace) -> int:
    from dbbasic_queue.cli.terminal import ask, can_ask

    with existing_queue(arguments) as queue:
        job_type = arguments.type
        if job_type is not None:
            check_type(job_type)
        if job_type is not None and not arguments.yes and not _is_known(queue, job_type):
            if can_ask():
                if not ask(f"No job and no handler has the type {printable(job_type)}. Pause it?"):
                    return complain("nothing was changed")
            else:
                complain(f"warning: no job and no handler has the type {job_type}")
        queue.pause(job_type)
        print_done("paused", job_type or _every())
    return 0


def _is_known(queue: Queue, job_type: str) -> bool:
    """Return whether a job has this type, or a handler of the latest passes."""
    from dbbasic_queue.store.pass_log import parse_types

    if any(row.type == job_type for row in queue.store.rows(job_type=job_type)):
        return True
    try:
        live, _ = queue.store.running()
        known = [found.types for found in live] + [found.types for found in queue.store.passes()]
    except QueueError:
        return True
    return any(job_type in parse_types(types) for types in known)


def run_resume(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        was_paused = queue.resume(arguments.type)
        if ALL in queue.paused():
            return complain(
                f"{arguments.type} stays paused, because all types are paused (resume without TYPE "
                "ends every pause)"
            )
        if not was_paused:
            what = "no type was" if arguments.type is None else f"{arguments.type} was not"
            complain(f"warning: {what} paused")
            return 0
        print_done("resumed", arguments.type or _every())
    return 0


def _every() -> str:
    """Return the name for all types: on a terminal, words."""
    from dbbasic_queue.cli.terminal import Terminal

    return "all types" if Terminal().is_screen else ALL
