"""The command that adds jobs: enqueue."""

from __future__ import annotations

import os
import stat
import sys

from dbbasic_queue.cli.arguments import Commands, coming_instant, seconds
from dbbasic_queue.cli.queues import named_queue
from dbbasic_queue.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, TextIO

    from dbbasic_queue.jobqueue import Queue

_BATCH = 1000


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    enqueue = commands.add(
        "enqueue",
        run_enqueue,
        "add a job, and print its id",
        more="PAYLOAD is JSON; @FILE reads it from a file, and - from stdin. With --lines, each "
        "line there is the payload of one job.",
    )
    enqueue.add_argument("type", metavar="TYPE", help="the job type")
    enqueue.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", help="JSON, @FILE, or - (default: {})"
    )
    when = enqueue.add_mutually_exclusive_group()
    when.add_argument(
        "--at",
        type=coming_instant,
        metavar="INSTANT",
        help="when it is due: @UNIX, or an ISO date such as 2027-01-15T08:00",
    )
    when.add_argument(
        "--in", dest="wait", type=seconds, metavar="DURATION", help="how long from now it is due"
    )
    enqueue.add_argument("--id", help="an id of your own: only one job can have it")
    enqueue.add_argument(
        "--exist-ok", action="store_true", help="with --id: add nothing if a job has this id"
    )
    enqueue.add_argument(
        "--unique",
        action="store_true",
        help="if a pending job has this type and payload, add nothing, and print its id",
    )
    enqueue.add_argument(
        "--lines", action="store_true", help="one job for each line of JSON in @FILE or -"
    )


def run_enqueue(arguments: Namespace) -> int:
    if arguments.exist_ok and arguments.id is None:
        arguments.wrong_usage("--exist-ok needs --id")
    if arguments.unique and arguments.id is not None:
        arguments.wrong_usage("give --id or --unique, not both")
    from_file = arguments.payload == "-" or (arguments.payload or "")[:1] == "@"
    if arguments.lines and (not from_file or arguments.id is not None or arguments.unique):
        arguments.wrong_usage("--lines needs @FILE or -, and no --id or --unique")
    with named_queue(arguments) as queue:
        run_at = arguments.at
        if arguments.wait is not None:
            run_at = queue.now() + arguments.wait
        if arguments.lines:
            return _enqueue_lines(arguments, queue, run_at)
        job_id = queue.enqueue(
            arguments.type,
            _payload(arguments) if arguments.payload is not None else None,
            run_at,
            job_id=arguments.id,
            exist_ok=arguments.exist_ok,
            unique="pending" if arguments.unique else None,
        )
        print(job_id)
    return 0


def _payload(arguments: Namespace) -> Any:
    from dbbasic_queue.cli.editing import json_value

    if arguments.payload == "-" or arguments.payload[:1] == "@":
        arguments.payload = read(arguments.payload.removeprefix("@"))
    return json_value(arguments)


def read(path: str) -> str:
    """Return the text of a file, or of stdin for "-"."""
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode()
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as e:
        raise InvalidArgument(f"invalid text in {path}: must be UTF-8: {e}") from None


def _enqueue_lines(arguments: Namespace, queue: Queue, run_at: float | None) -> int:
    """Add one job for each line. All are checked before the first one is added."""
    from dbbasic_queue.cli.terminal import Counter, Terminal
    from dbbasic_queue.model.checks import check_type
    from dbbasic_queue.model.jsontext import decode_json, encode_json
    from dbbasic_queue.monitoring.durations import number_of
    from dbbasic_queue.store.batches import batches

    check_type(arguments.type)
    path = arguments.payload.removeprefix("@")
    payloads = []
    for number, line in enumerate(read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = decode_json(line)
            encode_json(value, queue.max_payload)
        except ValueError as e:
            raise InvalidArgument(
                f"invalid line {number} of {path}: must be JSON: {e} (no job was added)"
            ) from None
        payloads.append(value)
    is_screen = Terminal().is_screen
    # In a pipe, ids and progress would be mixed up on the terminal of `... | cat`.
    is_wanted = is_screen or not _is_pipe(sys.stdout)
    counter, added = Counter("added", len(payloads), is_wanted=is_wanted), 0
    try:
        for batch in batches(iter(payloads), _BATCH):
            ids = queue.enqueue_many(arguments.type, batch, run_at)
            added += len(ids)
            counter.show(added)
            if not is_screen:
                print("\n".join(ids))
    finally:
        counter.end()
        if is_screen:
            print(f"{number_of(added, 'job was', 'jobs were')} added")
    return 0


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False
