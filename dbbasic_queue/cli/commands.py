"""The commands: they call the queue, and print lines for grep and awk.

Each takes the parsed arguments and returns an exit code: 0, or 1 after one line on stderr.
"""

from __future__ import annotations

import errno
import sys
import time

from dbbasic_queue.errors import JobNotFound, NotAQueue
from dbbasic_queue.jobqueue import Queue
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import escape, printable, unescape
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER, Row, has_json
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.queue import default_queue, open_default
from dbbasic_queue.store.location import path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.moving import Outcome

PROGRAM = "dbbasic-queue"
INTERRUPTED = 130
"""the exit code after Ctrl-C, as that of a shell"""


def complain(why: str) -> int:
    """Print on stderr why something was not done; return the exit code 1."""
    print(f"{PROGRAM}: {printable(why)}", file=sys.stderr)
    return 1


def existing_queue(arguments: Namespace, *, even_if_moved: bool = False) -> Queue:
    """Return the queue that --file names, or the default queue.

    Raises NotAQueue if it doesn't exist, so that a typo doesn't look like an empty queue. Calls of
    a queue that was moved raise QueueMoved, except with `even_if_moved`.
    """
    queue = named_queue(arguments, even_if_moved=even_if_moved)
    if not queue.store.exists():
        raise NotAQueue(
            errno.ENOENT,
            "there is no queue (name its file with --file or $DBBASIC_QUEUE_FILE, or its URL with "
            "$DBBASIC_QUEUE_URL; the first enqueue creates it)",
            queue.path,
        )
    return queue


def named_queue(arguments: Namespace, *, even_if_moved: bool = False) -> Queue:
    """Return the queue that --file names, or the default queue.

    Raises NotAQueue for a queue in memory, which would end with the command.
    """
    if arguments.file is None:
        queue = open_default(even_if_moved=True) if even_if_moved else default_queue()
        if not queue.store.is_shared:
            raise NotAQueue(
                f"invalid DBBASIC_QUEUE_URL {queue.path!r}: a command can't use a queue in the "
                "memory of another process (name a file with --file)"
            )
        return queue
    return Queue(path_of(arguments.file, "--file"), even_if_moved=even_if_moved)


def run_status(arguments: Namespace) -> int:
    from dbbasic_queue.monitoring import status

    with existing_queue(arguments, even_if_moved=True) as queue:
        for line in status.lines(queue.store, time.time()):
            print(line)
    return 0


def columns(row: Row) -> list[str]:
    """Return a job's nine columns as the file holds them."""
    state = encode_state(row.state).decode().split("\t")
    return [printable(text) for text in (row.id, row.type, row.payload, *state)]


def run_list(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        statuses = STATUSES if arguments.status is None else (arguments.status,)
        for row in queue.store.rows(statuses=statuses, job_type=arguments.type):
            if arguments.status in (None, row.state.status) and arguments.type in (None, row.type):
                print("\t".join(columns(row)))
    return 0


def run_show(arguments: Namespace) -> int:
    from dbbasic_queue.monitoring import status
    from dbbasic_queue.monitoring.progress_bar import fields

    with existing_queue(arguments) as queue:
        row = queue.store.find(arguments.id) if is_id(arguments.id) else None
        if row is None or not has_json(row):
            return complain(f"there is no job {arguments.id}")
        for name, text in zip(HEADER.decode().split(), columns(row), strict=True):
            when = f"\t{status.instant(int(text))}" if name.endswith("_at") else ""
            print(f"{name}\t{text}{when}")
        for progress in queue.store.progress([row]).values():
            print("progress", *map(printable, fields(progress, queue.now())), sep="\t")
        traceback = None
        for attempt in queue.history(row.id):
            outcome = printable(attempt["outcome"])
            words = [attempt["attempt"], outcome, status.instant(attempt["ended_at"])]
            seconds = "-" if attempt["seconds"] is None else f"{attempt['seconds']:.3f}"
            error = printable(attempt["error"] or "")
            print("attempt", *words, seconds, error, sep="\t")
            traceback = attempt["traceback"] or traceback
        for line in (traceback or "").splitlines():
            print(f"traceback\t{printable(line)}")
    return 0


def run_output(arguments: Namespace) -> int:
    from dbbasic_queue.cli.output import safe, why_not

    job_id, attempt = arguments.id, arguments.attempt
    with existing_queue(arguments) as queue:
        found = queue.store.output(job_id, attempt) if is_id(job_id) else None
        if found is None:
            return complain(why_not(queue, job_id, attempt))
        if found.left_out:
            complain(f"{found.left_out} bytes came before this, and are not kept")
        text = safe(unescape(found.text))
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def json_payload(arguments: Namespace) -> Any:
    """Return the value of PAYLOAD; end with wrong usage if it isn't JSON."""
    try:
        return decode_json(arguments.payload)
    except ValueError as error:
        return arguments.wrong_usage(
            f"invalid PAYLOAD: must be JSON: {error} (a string needs JSON quotes: '\"text\"')"
        )


def run_enqueue(arguments: Namespace) -> int:
    payload = None if arguments.payload is None else json_payload(arguments)
    if arguments.exist_ok and arguments.id is None:
        arguments.wrong_usage("--exist-ok needs --id")
    if arguments.unique and arguments.id is not None:
        arguments.wrong_usage("give --id or --unique, not both")
    with named_queue(arguments) as queue:
        job_id = queue.enqueue(
            arguments.type,
            payload,
            arguments.run_at,
            job_id=arguments.id,
            exist_ok=arguments.exist_ok,
            unique="pending" if arguments.unique else None,
        )
        print(job_id)
    return 0


def run_run(arguments: Namespace) -> int:
    import logging

    from dbbasic_queue.registry import Handlers

    level = logging.INFO if arguments.verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    with named_queue(arguments) as queue:
        handlers = Handlers.from_toml(arguments.path, queue=queue)
        try:
            # Other types may belong to another file, or to a worker in Python.
            queue.process_jobs(
                handlers,
                arguments.max_attempts,
                skip_unknown=True,
                linger=arguments.linger,
                workers=arguments.workers,
                ping=arguments.ping,
            )
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def run_cancel(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        return change_each(arguments.ids, queue, queue.cancel_job, "cancelled", "a pending job")


def run_stop(arguments: Namespace) -> int:
    code = 0
    with existing_queue(arguments) as queue:
        for job_id in arguments.ids:
            try:
                done = queue.stop_job(job_id)
            except JobNotFound:
                code = complain(f"{job_id} was not stopped: there is no such job")
                continue
            if done is None:
                code = complain(f"{job_id} was not stopped: it is finished")
            else:
                print(f"{done}\t{job_id}")
    return code


def run_requeue(arguments: Namespace) -> int:
    chosen = arguments.type is not None or arguments.error is not None
    if bool(arguments.ids) == arguments.failed or (chosen and not arguments.failed):
        arguments.wrong_usage("give IDs, or --failed with or without --type and --error")
    with existing_queue(arguments) as queue:
        if arguments.ids:
            of = "a failed or cancelled job"
            return change_each(arguments.ids, queue, queue.requeue, "requeued", of)
        print(f"requeued\t{queue.requeue_failed(arguments.type, error=arguments.error)}")
    return 0


def run_edit(arguments: Namespace) -> int:
    payload = json_payload(arguments)
    with existing_queue(arguments) as queue:

        def edit(job_id: str) -> bool:
            return queue.get_job(job_id) is not None and queue.edit_job(job_id, payload)

        return change_each([arguments.id], queue, edit, "edited", "a pending job")


def change_each(
    ids: list[str], queue: Queue, change: Callable[[str], bool], done: str, which: str
) -> int:
    """Change each job. Print the changed ones, and on stderr the others, each with the reason."""
    code = 0
    for job_id in ids:
        if change(job_id):
            print(f"{done}\t{job_id}")
            continue
        job = queue.get_job(job_id)
        why = f"it is {job['status']}" if job else "there is no such job"
        code = complain(f"{job_id} was not {done}: {why} (only {which} can be)")
    return code


def run_purge(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        count = queue.purge(
            arguments.older_than,
            arguments.status,
            archive=arguments.archive,
            dry_run=arguments.dry_run,
        )
        print(f"{'would purge' if arguments.dry_run else 'purged'}\t{count}")
    return 0


def run_unreadable(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        if arguments.remove:
            print(f"rejected\t{queue.remove_unreadable()}")
            return 0
        for found in queue.unreadable():
            print(found["line"], found["reason"], found["text"], sep="\t")
    return 0


def run_pause(arguments: Namespace) -> int:
    with existing_queue(arguments) as queue:
        queue.pause(arguments.type)
        print(f"paused\t{arguments.type or '*'}")
    return 0


def run_resume(arguments: Namespace) -> int:
    from dbbasic_queue.model.checks import ALL

    with existing_queue(arguments) as queue:
        queue.resume(arguments.type)
        if ALL in queue.paused():
            return complain(
                f"{arguments.type} stays paused, because all types are paused (resume without TYPE "
                "ends every pause)"
            )
        print(f"resumed\t{arguments.type or ALL}")
    return 0


def run_schedules(arguments: Namespace) -> int:
    from dbbasic_queue.monitoring.status import instant

    queue = named_queue(arguments)
    with queue if queue.store.has_schedules() else existing_queue(arguments) as queue:
        if arguments.remove is not None:
            if not queue.remove_schedule(arguments.remove):
                return complain(f"there is no schedule {arguments.remove}")
            print(f"removed\t{printable(arguments.remove)}")
            return 0
        for schedule in queue.schedules():
            last = "-" if schedule["last"] is None else instant(schedule["last"])
            names = [schedule["name"], schedule["program"], schedule["type"]]
            names += [schedule["expression"], schedule["timezone"] or "-"]
            print(*map(escape, names), last, instant(schedule["next"]), sep="\t")
    return 0


def run_metrics(arguments: Namespace) -> int:
    from dbbasic_queue.monitoring import prometheus

    with existing_queue(arguments) as queue:
        if arguments.path is None:
            print(prometheus.to_text(queue.metrics(arguments.window)), end="")
        else:
            queue.write_metrics(arguments.path, arguments.window)
    return 0


def run_move(arguments: Namespace) -> int:
    from dbbasic_queue.moving import move
    from dbbasic_queue.opening import open_queue

    is_shown = sys.stderr.isatty()

    def show(moved: int, left: int) -> None:
        if is_shown:
            print(f"\rmoved {moved}, left {left}  ", end="", file=sys.stderr, flush=True)

    with (
        existing_queue(arguments, even_if_moved=True) as source,
        open_queue(arguments.to, even_if_moved=True) as target,
    ):
        if not target.store.is_shared:
            arguments.wrong_usage("invalid --to: a queue in memory would end with this command")
        try:
            done = move(
                source.store,
                target.store,
                finished=arguments.finished,
                history=arguments.history,
                progress=show,
            )
        finally:
            if is_shown:
                print(file=sys.stderr)
        print(f"moved\t{done.moved}")
        for name, count in (
            ("schedules", done.schedules),
            ("finished", done.finished),
            ("history", done.history),
        ):
            if count:
                print(f"{name}\t{count}")
        for name, ids in (("conflict", done.conflicts), ("missing", done.missing)):
            for job_id in ids:
                print(f"{name}\t{printable(job_id)}")
        return why_incomplete(done, source.path, target.path)


def why_incomplete(done: Outcome, source: str, target: str) -> int:
    """Print on stderr what a move has left undone; return the exit code, 0 if nothing."""
    if done.running:
        complain(f"{done.running} jobs are still running in {source}: move again when they end")
    if done.left:
        complain(f"jobs are still added to {source}: find out by which program, and move again")
    if done.conflicts:
        complain(
            f"{len(done.conflicts)} jobs stay in {source}: other jobs in {target} have their ids "
            "(purge those, or cancel these, and move again)"
        )
    if done.missing:
        complain(
            f"{len(done.missing)} jobs were moved, but are not in {target} now: were they purged "
            f"there, or has the server lost them? (they are still in {source}, cancelled)"
        )
    return 0 if done.is_complete() else 1


def run_demo(arguments: Namespace) -> int:
    from dbbasic_queue.cli import demo

    return demo.run(arguments.dir)
