"""`dbbasic-queue show`: all about one job, for a person, for a program, and as JSON."""

from __future__ import annotations

import json

from dbbasic_queue.cli.messages import program
from dbbasic_queue.cli.terminal import Column, Terminal, table, wrapped
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.jobdict import as_dict
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.model.records import encode_state
from dbbasic_queue.model.rows import HEADER
from dbbasic_queue.monitoring import progress_bar
from dbbasic_queue.monitoring.durations import instant, relative, took

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dbbasic_queue.operating.details import JobDetails

_OUTPUT_LINES = 20


def lines(details: JobDetails) -> Iterator[str]:
    """Yield the lines for a program: the first field names the line."""
    row = details.row
    state = encode_state(row.state).decode().split("\t")
    fields = (row.id, row.type, row.payload, *state)
    for name, text in zip(HEADER.decode().split(), fields, strict=True):
        when = f"\t{instant(int(text))}" if name.endswith("_at") else ""
        yield f"{name}\t{printable(text)}{when}"
    reason = details.why
    yield f"why\t{reason.word}\t{printable(reason.text)}\t{printable(reason.command) or '-'}"
    if details.progress is not None:
        found = progress_bar.fields(details.progress, details.now)
        yield "\t".join(("progress", *map(printable, found)))
    for attempt in details.attempts:
        seconds = "-" if attempt["seconds"] is None else f"{attempt['seconds']:.3f}"
        words = [str(attempt["attempt"]), printable(attempt["outcome"])]
        words += [instant(attempt["ended_at"]), seconds, printable(attempt["error"] or "")]
        yield "\t".join(("attempt", *words))
    for line in (details.traceback or "").splitlines():
        yield f"traceback\t{printable(line)}"


def as_json(details: JobDetails) -> dict[str, Any]:
    """Return all that as a JSON value. Instants are in Unix seconds."""
    reason = details.why
    job: dict[str, Any] = dict(as_dict(details.row) or {})
    return job | {
        "why": {"word": reason.word, "text": reason.text, "command": reason.command or None},
        "progress": details.progress and details.progress.as_dict(details.now),
        "history": details.attempts,
        "output": details.output,
    }


def screen(details: JobDetails, terminal: Terminal) -> Iterator[str]:
    """Yield the lines for a person."""
    row, state, now = details.row, details.row.state, details.now
    job_id, status = terminal.style(row.id, "bold"), terminal.status(state.status)
    yield f"{job_id}  {printable(row.type)}  {status}"
    yield from wrapped(terminal, printable(details.why.text))
    if details.why.command:
        yield f"  {terminal.style(printable(details.why.command), 'bold')}"
    yield ""
    yield f"enqueued  {relative(state.created_at, now)}  ({instant(state.created_at)})"
    yield f"due       {relative(state.run_at, now)}  ({instant(state.run_at)})"
    yield f"attempts  {state.attempts}"
    if state.error:
        first, *rest = wrapped(terminal, f"error     {printable(state.error)}", " " * 10)
        yield f"error     {terminal.style(first[len('error     ') :], 'red')}"
        for line in rest:
            yield terminal.style(line, "red")
    if details.progress is not None:
        found = details.progress
        text = f"progress  {printable(progress_bar.line(found, now))}"
        yield from wrapped(terminal, text, " " * 10)
    yield from _json_block(terminal, "payload", row.payload)
    if state.result:
        yield from _json_block(terminal, "result", state.result)
    yield from _attempts(details, terminal)
    if details.traceback:
        yield ""
        yield terminal.style("last traceback", "bold")
        for line in details.traceback.splitlines():
            yield f"  {printable(line)}"
    yield from _output(details, terminal)


def _json_block(terminal: Terminal, title: str, text: str) -> Iterator[str]:
    """Yield JSON over several lines, in which no character controls the terminal."""
    yield ""
    yield terminal.style(title, "bold")
    try:
        pretty = json.dumps(decode_json(text or "{}"), indent=2, ensure_ascii=False)
    except ValueError:
        pretty = text
    for line in pretty.split("\n"):
        yield f"  {printable(line)}"


def _attempts(details: JobDetails, terminal: Terminal) -> Iterator[str]:
    if not details.attempts:
        return
    yield ""
    yield terminal.style("attempts", "bold")

    columns = [
        Column("TRY", lambda a: str(a["attempt"]), right=True),
        Column("OUTCOME", lambda a: a["outcome"]),
        Column("ENDED", lambda a: relative(a["ended_at"], details.now, units=1)),
        Column("TOOK", lambda a: took(a["seconds"]), right=True),
        Column("WORKER", lambda a: a["worker"] or "", optional=True),
        Column("ERROR", lambda a: a["error"] or "", flexible=True),
    ]
    yield from table(terminal, columns, details.attempts, indent="  ")


def _output(details: JobDetails, terminal: Terminal) -> Iterator[str]:
    if not details.output:
        return
    from dbbasic_queue.cli.output import safe

    yield ""
    printed = safe(details.output).rstrip("\n").split("\n")
    if len(printed) > _OUTPUT_LINES:
        title = f"output: the last {_OUTPUT_LINES} lines ({program()} output {details.row.id})"
    else:
        title = "output"
    yield terminal.style(title, "bold")
    for line in printed[-_OUTPUT_LINES:]:
        yield f"  {line}"
