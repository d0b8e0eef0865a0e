"""Commands that run jobs, or wait for them: run, worker, wait."""

from __future__ import annotations

from dbbasic_queue.cli.arguments import AN_ID, Commands, natural, seconds
from dbbasic_queue.cli.messages import (
    DONE,
    INTERRUPTED,
    JOB_CANCELLED,
    JOB_FAILED,
    PROGRAM,
    TIMED_OUT,
    complain,
    tell,
    with_file,
)
from dbbasic_queue.cli.queues import existing_queue, named_queue
from dbbasic_queue.jobqueue import MAX_ATTEMPTS
from dbbasic_queue.model.checks import is_id
from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from dbbasic_queue.jobqueue import Queue

_EXIT_CODES = {"completed": DONE, "failed": JOB_FAILED, "cancelled": JOB_CANCELLED}
_POLL_SECONDS = 0.2


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    handlers = (
        "HANDLERS is a handlers.toml, or MODULE:NAME, a dict or a registry in a Python module that "
        "can be imported from the current directory."
    )
    run = commands.add(
        "run",
        run_run,
        "run the due jobs: one pass",
        more=f"{handlers} With a handlers.toml, jobs of other types are left alone. Prints errors "
        "on stderr: one line for each job that has failed for good.",
    )
    _add_handlers(run)
    run.add_argument(
        "--linger",
        type=seconds,
        metavar="DURATION",
        default=0,
        help="keep running for this time, such as 55s, and run jobs as they become due",
    )
    run.add_argument(
        "--strict", action="store_true", help="exit with 3 if a job has failed for good"
    )
    run.add_argument(
        "--job", metavar="ID", help="run only this job, now, in the foreground, to debug it"
    )
    run.add_argument(
        "--ping",
        metavar="URL",
        help="request this URL after each run, unless it failed, so that a monitor can alert you",
    )
    worker = commands.add(
        "worker",
        run_worker,
        "run jobs as they become due, until it is stopped",
        more=f"{handlers} SIGTERM lets the running jobs finish; SIGHUP does so, and starts again "
        "with the current code. Under systemd, it reports that it is ready, and alive.",
    )
    _add_handlers(worker)
    wait = commands.add(
        "wait",
        run_wait,
        "wait until a job is finished, and print its status",
        more="Exits with 0 if it is completed, 3 if it has failed, 4 if it was cancelled, and 5 "
        "after --timeout. Shows its progress on a terminal.",
    )
    wait.add_argument("id", metavar="ID", help=AN_ID)
    wait.add_argument(
        "--timeout", type=seconds, metavar="DURATION", help="how long to wait (default: forever)"
    )


def _add_handlers(parser: ArgumentParser) -> None:
    parser.add_argument("handlers", metavar="HANDLERS", help="a handlers.toml, or MODULE:NAME")
    parser.add_argument(
        "--workers", type=natural, metavar="N", default=1, help="how many at a time"
    )
    parser.add_argument(
        "--max-attempts",
        type=natural,
        metavar="N",
        default=MAX_ATTEMPTS,
        help=f"for types without a number of their own (default: {MAX_ATTEMPTS})",
    )
    parser.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave jobs alone that have no handler (default for a handlers.toml)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="report every attempt")


def _log(arguments: Namespace) -> None:
    import logging

    level = logging.INFO if arguments.verbose else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")


def run_run(arguments: Namespace) -> int:
    from dbbasic_queue.cli.loading import load_handlers

    _log(arguments)
    with named_queue(arguments) as queue:
        handlers, skip_unknown = load_handlers(arguments, queue)
        if arguments.job is not None:
            from dbbasic_queue.cli.foreground import run_job

            return run_job(queue, handlers, arguments)
        try:
            counts = queue.process_jobs(
                handlers,
                arguments.max_attempts,
                skip_unknown=skip_unknown,
                linger=arguments.linger,
                workers=arguments.workers,
                ping=arguments.ping,
            )
        except KeyboardInterrupt:
            return INTERRUPTED
        _print_outcome(queue, counts, arguments.file)
    return JOB_FAILED if arguments.strict and counts["failed"] else DONE


def _print_outcome(queue: Queue, counts: dict[str, int], file: str | None) -> None:
    """On a terminal, print what a pass has done, or why it had nothing to do."""
    from dbbasic_queue.cli.terminal import Terminal, wrapped

    if not (terminal := Terminal()).is_screen:
        return
    did = [f"{count:,} {name}" for name, count in counts.items() if count]
    if did:
        text = ", ".join(did)
        next_ = f"{PROGRAM} failed" if counts["failed"] else ""
    elif queue.store.exists():
        from dbbasic_queue.monitoring.status import Status

        verdict = Status(queue.store, queue.now()).verdict
        text, next_ = f"no job was run: {verdict.text}", verdict.command
    else:
        return  # a warning was logged
    print(*wrapped(terminal, text), sep="\n")
    if next_:
        print(f"  {with_file(next_, file)}")


def run_worker(arguments: Namespace) -> int:
    from dbbasic_queue.cli.loading import load_handlers
    from dbbasic_queue.cli.service import Service, start_again

    _log(arguments)
    with named_queue(arguments) as queue:
        handlers, skip_unknown = load_handlers(arguments, queue)
        service = Service(
            queue,
            handlers,
            arguments.max_attempts,
            skip_unknown=skip_unknown,
            workers=arguments.workers,
        )
        tell(f"running jobs of {printable(queue.path)} until Ctrl-C")
        try:
            is_to_reload = service.run()
        except KeyboardInterrupt:
            return INTERRUPTED
    if is_to_reload:
        start_again()
    return DONE


def run_wait(arguments: Namespace) -> int:
    import time

    from dbbasic_queue.cli.terminal import Line
    from dbbasic_queue.monitoring import progress_bar
    from dbbasic_queue.monitoring.selecting import find_id
    from dbbasic_queue.monitoring.why import why

    screen = Line()
    with existing_queue(arguments) as queue:
        job_id = find_id(queue.store, arguments.id)
        end = None if arguments.timeout is None else time.monotonic() + arguments.timeout
        try:
            while True:
                row = queue.store.find(job_id) if is_id(job_id) else None
                if row is None:
                    return complain(f"there is no job {job_id}")
                if row.state.status in _EXIT_CODES:
                    break
                if end is not None and time.monotonic() >= end:
                    break
                if screen.is_shown:
                    found = queue.store.progress([row]).get(job_id)
                    text = row.state.status
                    if found is not None:
                        left = found.seconds_left(queue.now())
                        text = progress_bar.bar(found.done, found.total, left)
                    screen.show(text)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            screen.end()
        if row.state.status not in _EXIT_CODES:
            reason = why(queue.store, row, queue.now())
            complain(f"{job_id} is still {row.state.status}: {reason.text}")
            return TIMED_OUT
        print(row.state.status)
        return _EXIT_CODES[row.state.status]
