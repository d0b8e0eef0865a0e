"""Editing a payload, or the whole queue, in the user's editor.

The queue is edited like a crontab: the editor gets a copy, which is checked when it exits. Only
what the person has changed is changed in the queue, job by job, if the job is still as it was in
the copy. So jobs that others have added or changed in the meantime stay as they are.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from contextlib import suppress

from dbbasic_queue.cli.messages import complain, print_done, program
from dbbasic_queue.cli.terminal import Terminal, ask, can_ask
from dbbasic_queue.errors import InvalidArgument, QueueError
from dbbasic_queue.model.checks import check_id, check_type
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.jsontext import decode_json, encode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER, Row, has_json, is_header, parse_row
from dbbasic_queue.model.states import PENDING, PROCESSING, STATUSES
from dbbasic_queue.monitoring.durations import number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from dbbasic_queue.jobqueue import Queue

_EDITORS = ("sensible-editor", "vi", "nano")
_SHOWN = 5


def json_value(arguments: Namespace) -> Any:
    """Return the value of PAYLOAD; end with wrong usage if it isn't JSON."""
    try:
        return decode_json(arguments.payload)
    except ValueError as error:
        return arguments.wrong_usage(
            f"invalid PAYLOAD: must be JSON: {error} (a string needs JSON quotes: '\"text\"')"
        )


def edit_text(text: str, suffix: str, original: str | None = None) -> str:
    """Return a text as the person has edited it in $VISUAL or $EDITOR.

    Raises InvalidArgument if there is no editor, or if it fails: then nothing is to be changed. If
    the person has written anything by then, it is kept: `original` (by default the text) is what
    it was before that.
    """
    from shutil import which

    names = [os.environ.get("VISUAL"), os.environ.get("EDITOR")]
    if can_ask():  # without a terminal, these would wait forever
        names += _EDITORS
    chosen = next((n for n in names if n and n.strip() and which(shlex.split(n)[0])), None)
    if chosen is None:
        raise InvalidArgument("there is no editor: set $EDITOR, such as EDITOR=nano")
    with tempfile.TemporaryDirectory(prefix="dbbasic-queue-") as directory:
        path = os.path.join(directory, f"edit{suffix}")
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        code = _run_editor([*shlex.split(chosen), path])
        try:
            with open(path, "rb") as file:
                found = file.read()
        except FileNotFoundError:
            raise InvalidArgument(f"{chosen} has removed its file: nothing was changed") from None
        if not code:
            with suppress(UnicodeDecodeError):
                return found.decode()
        why = f"{chosen} ended with exit code {code}" if code else "invalid text: must be UTF-8"
        before = text if original is None else original
        where = f"; your text is in {keep(found, suffix)}" if found != before.encode() else ""
        raise InvalidArgument(f"{why}: nothing was changed{where}")


def _run_editor(command: list[str]) -> int:
    """Run an editor, and return its exit code.

    Ctrl-C is the editor's: a terminal sends it to this process, too, which must not end the editor.
    """
    import signal

    # A function, not SIG_IGN, which the editor would inherit.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)
    }
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep(text: bytes, suffix: str) -> str:
    """Keep what a person has written in a file that only they can read; return its path."""
    fd, path = tempfile.mkstemp(suffix, "dbbasic-queue-edit-")
    with open(fd, "wb") as file:
        file.write(text)
    return path


def edit_payload(queue: Queue, row: Row) -> str:
    """Give a pending job the payload that the person writes; return "" or why that wasn't possible.

    What they have written is kept in a file then, also if InvalidArgument is raised because it
    can't be a payload.
    """
    old = json.dumps(decode_json(row.payload or "{}"), indent=2, ensure_ascii=False)
    text = edit_text(f"{old}\n", ".json")
    if text == f"{old}\n":
        print_done("unchanged", row.id)
        return ""
    try:
        value = decode_json(text)
        payload = encode_json({} if value is None else value, queue.max_payload)
    except ValueError as e:
        raise InvalidArgument(
            f"invalid payload: {e}: {row.id} was not changed; your text is in "
            f"{keep(text.encode(), '.json')}"
        ) from None
    if queue.store.edit(row.id, payload, row.payload):
        print_done("edited", row.id)
        return ""
    now = queue.store.find(row.id)
    if now is None:
        why = "it is gone"
    elif now.state.status == PENDING:
        why = "its payload has changed in the meantime"
    else:
        why = f"it is {now.state.status} now"
    return f"{row.id} was not edited: {why}; your text is in {keep(text.encode(), '.json')}"


def edit_queue(queue: Queue) -> int:
    """Let the person edit the queue; return the exit code.

    What they have written is kept in a file if it can't be used, or if the change fails.
    """
    before = {row.id: row for row in queue.store.rows()}
    text = original = HEADER.decode() + "".join(map(_line, before.values()))
    while True:
        text = edit_text(text, ".tsv", original)
        try:
            changes = Changes(before, text)
        except QueueError as e:
            complain(str(e))
            if _is_to_be_edited_again():
                continue
            return complain(f"nothing was changed; your text is in {keep(text.encode(), '.tsv')}")
        if not _is_wanted(changes):
            return complain(f"nothing was changed; your text is in {keep(text.encode(), '.tsv')}")
        try:
            return changes.make(queue)
        except BaseException:
            complain(f"not everything was changed; your text is in {keep(text.encode(), '.tsv')}")
            raise


def _is_wanted(changes: Changes) -> bool:
    """Ask before several jobs are removed: one wrong key in an editor deletes many lines."""
    count = len(changes.removed)
    try:
        return count < 2 or not can_ask() or ask(f"{count:,} jobs will be removed. Go on?")
    except KeyboardInterrupt:
        return False


def _is_to_be_edited_again() -> bool:
    try:
        return can_ask() and ask("Edit it again?")
    except KeyboardInterrupt:
        return False


def _line(row: Row) -> str:
    return f"{row.id}\t{row.type}\t{row.payload}\t{encode_state(row.state).decode()}\n"


class Changes:
    """What a person has changed in a queue's text.

    `added`     new jobs
    `removed`   jobs whose lines are gone
    `states`    jobs with another status, time, number of attempts, error or result
    `payloads`  jobs with another payload
    """

    def __init__(self, before: dict[str, Row], text: str) -> None:
        """Compare. Raises QueueError if the text isn't a queue's, or changes a running job."""
        self.added: list[Row] = []
        self.states: list[tuple[Row, Row]] = []
        self.payloads: list[tuple[Row, Row]] = []
        after = _parse(text)
        self.removed = [row for key, row in before.items() if key not in after]
        for row in after.values():
            old = before.get(row.id)
            if old is None:
                check_id(row.id)
                check_type(row.type)
                self.added.append(row)
                continue
            if row.type != old.type:
                raise InvalidArgument(
                    f"invalid type of {row.id}: a job's type can't be changed (remove the line, "
                    "and add one with another id)"
                )
            if encode_state(row.state) != encode_state(old.state):
                self.states.append((old, row))
            if row.payload != old.payload:
                self.payloads.append((old, row))
        for row in [*self.removed, *(old for old, _ in self.states)]:
            if row.state.status == PROCESSING:
                raise InvalidArgument(
                    f"invalid change of {row.id}: it is running ({program()} stop {row.id})"
                )
        for row in [*self.added, *(new for _, new in self.states)]:
            if row.state.status == PROCESSING:
                raise InvalidArgument(
                    f"invalid status of {row.id}: only a pass can make it processing"
                )

    def make(self, queue: Queue) -> int:
        """Make the changes, and print how many were made; return the exit code."""
        store, code = queue.store, 0
        there = store.add_missing(self.added) if self.added else []
        changed: set[str] = set()
        left: list[str] = []
        for old, new in self.payloads:
            if store.edit(new.id, new.payload, old.payload):
                changed.add(new.id)
            elif (present := store.find(old.id)) is not None and present.payload != old.payload:
                left.append(old.id)
            else:
                code = complain(
                    f"{new.id}: its payload was not changed: only a pending job's can be"
                )
        found = (
            store.exchange([(old, new.state) for old, new in self.states]) if self.states else []
        )
        lines = {row.id: _line(row) for row in self.removed}
        removed = store.remove(lambda row: lines.get(row.id) == _line(row)) if lines else 0
        left += [old.id for (old, _), made in zip(self.states, found, strict=True) if made is None]
        for what, ids in (
            ("was not added: another job has this id", there),
            ("was not changed: it has changed in the meantime", left),
        ):
            for job_id in ids[:_SHOWN]:
                code = complain(f"{job_id} {what}")
        if removed < len(lines):
            left_over = number_of(len(lines) - removed, "job was", "jobs were")
            code = complain(f"{left_over} not removed, but changed by others in the meantime")
        changed |= {row.id for row in found if row is not None}
        if not code and not (self.added or changed or lines) and Terminal().is_screen:
            print("nothing was changed")
            return code
        for name, count in (
            ("added", len(self.added) - len(there)),
            ("changed", len(changed)),
            ("removed", removed),
        ):
            print_done(name, count)
        return code


def _parse(text: str) -> dict[str, Row]:
    """Return id -> job. Raises InvalidArgument for the first line that isn't a job."""
    first, _, rest = text.partition("\n")
    if not is_header(first.encode()):
        raise InvalidArgument("invalid line 1: must be the header, as it was")
    found: dict[str, Row] = {}
    for number, line in enumerate(rest.split("\n"), 2):
        if not line.strip():
            continue
        row = parse_row(line.encode())
        shown = f"'{printable(line[:60])}'"
        if row is None or line.count("\t") < 8:
            raise InvalidArgument(
                f"invalid line {number}: {shown}: must have nine columns, separated by tabs, "
                f"with a status from {', '.join(STATUSES)}"
            )
        if not has_json(row):
            raise InvalidArgument(f"invalid line {number}: its payload must be JSON: {shown}")
        if row.id in found:
            raise InvalidArgument(f"invalid line {number}: the id {row.id} occurs twice")
        found[row.id] = row
    return found
