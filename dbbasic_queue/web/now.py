"""The screen Now: whether the queue does its work, and what it is doing."""

from __future__ import annotations

from dbbasic_queue.model.checks import ALL
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.monitoring.durations import duration, number_of, took
from dbbasic_queue.web import charts, layout
from dbbasic_queue.web.html import join, tag
from dbbasic_queue.web.visit import WORDS, badge, empty, section, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dbbasic_queue.store.progress import Progress
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.requests import Response
    from dbbasic_queue.web.shared import Reading, TypeNow
    from dbbasic_queue.web.visit import Visit

_SHOWN = 10
_REFRESH_SECONDS = 3
_VERDICTS = {
    "running": "Running",
    "idle": "Nothing to do",
    "stalled": "Stalled",
    "moved": "Moved",
}


def respond(visit: Visit) -> Response:
    """Return the screen."""
    reading = visit.shared.reading()
    return layout.screen(
        visit,
        "Now",
        "/",
        tag("h1", "Now", class_="visually-hidden"),
        _verdict(visit, reading),
        _counts(visit, reading),
        _charts(reading),
        _running(visit, reading),
        _errors(visit, reading),
        _types(visit, reading),
        _schedules(visit, reading),
        refresh=_REFRESH_SECONDS,
    )


def _verdict(visit: Visit, reading: Reading) -> Markup:
    status = reading.status
    verdict = status.verdict
    word = _VERDICTS[verdict.word]
    if verdict.word == "idle" and status.summary.due:
        word = "Waiting"
    kind = {"running": "busy", "idle": "good", "stalled": "bad", "moved": "warn"}[verdict.word]
    text = printable(verdict.text)
    return tag(
        "div",
        tag("p", tag("strong", word), class_="word", id="verdict-word"),
        tag("p", f"{text[:1].upper()}{text[1:]}.", class_="why"),
        _remedy(verdict.command),
        tag("p", _last(visit, reading), class_="last"),
        [tag("p", f"Warning: {warning}.", class_="problem") for warning in reading.warnings],
        _unreadable(reading),
        id="verdict",
        class_=f"verdict {kind}",
        data_live=True,
    )


def _remedy(command: str) -> Markup | None:
    return tag("p", "Run ", tag("code", command), class_="remedy") if command else None


def _unreadable(reading: Reading) -> Markup | None:
    if not (lines := reading.status.summary.unreadable):
        return None
    text = number_of(len(lines), "line of the file isn't a job", "lines of the file aren't jobs")
    return tag("p", f"{text}. Run ", tag("code", "dbbasic-queue unreadable"), class_="problem")


def _last(visit: Visit, reading: Reading) -> Content:
    if reading.last is None:
        return "No job has finished yet."
    last = reading.last
    word = WORDS.get(last.outcome, last.outcome)
    return join(
        "Last finished: ",
        unescape(last.type),
        " ",
        visit.job_link(last.id),
        f", {word}, ",
        visit.time(last.ended_at),
        ".",
    )


def _counts(visit: Visit, reading: Reading) -> Markup:
    summary = reading.status.summary
    counts = summary.counts
    later = counts["pending"] - summary.due
    tiles: list[tuple[str, int, str, str, str]] = [
        ("Due now", summary.due, "waiting for a worker", "pending", ""),
        ("Running", len(reading.status.running), "at this moment", "processing", ""),
        ("Done", reading.done, "in the last hour", "completed", ""),
        ("Failed", counts["failed"], _failed_text(reading), "failed", "bad"),
        ("Later", later, "not due yet, or paused", "pending", ""),
    ]
    return tag(
        "ul",
        [
            tag(
                "li",
                tag(
                    "a",
                    tag("span", name, class_="label"),
                    tag("span", f"{count:,}", class_=f"count {kind if count else ''}".strip()),
                    tag("span", text, class_="note"),
                    href=visit.address("/jobs", status=status),
                ),
            )
            for name, count, text, status, kind in tiles
        ],
        class_="tiles",
        id="counts",
        aria_label="How many jobs there are",
        data_live=True,
    )


def _failed_text(reading: Reading) -> str:
    attempts = number_of(reading.failed, "attempt", "attempts") if reading.failed else "none"
    return f"in all; {attempts} in the last hour"


def _running(visit: Visit, reading: Reading) -> Markup:
    jobs = list(reading.status.running_jobs())
    if not jobs:
        return section("Running", "running", empty("No job is running at this moment."))
    rows: list[list[Content]] = []
    for row, holder, since in jobs[:_SHOWN]:
        found = reading.status.progress.get(row.id)
        if holder is None:
            progress: Content = "its worker died: the next one takes over"
        else:
            progress = progress_of(found, visit.now) if found else ""
        rows.append(
            [
                visit.job_link(row.id),
                row.type,
                "-" if since is None else duration(max(visit.now - since, 0)),
                progress,
            ]
        )
    more = len(jobs) - _SHOWN
    return section(
        "Running",
        "running",
        table("Running jobs", ["Job", "Type", ("For", "number"), ("Progress", "grow")], rows),
        tag("p", tag("a", f"And {more:,} more", href=visit.address("/jobs", status="processing")))
        if more > 0
        else None,
    )


def progress_of(found: Progress, now: float) -> Markup:
    """Return how far a job is: a bar if its total is known, and words."""
    left = found.seconds_left(now)
    words = [unescape(found.note)] if found.note else []
    if left is not None and left >= 1:
        words.append(f"about {duration(left)} left")
    if found.total is None:
        words.insert(0, f"{found.done:,} done")
    bar = None
    if found.total is not None:
        words.insert(0, f"{min(found.done / found.total, 1):.0%}".replace("%", " %"))
        share = f"{min(found.done / found.total, 1):.3f}"
        bar = tag("progress", value=share, max=1, aria_label="Progress")
    return join(bar, " ", tag("span", ", ".join(words)))


def _errors(visit: Visit, reading: Reading) -> Markup:
    title, name = "Errors of the last day", "errors"
    failures = reading.status.failures
    if not failures:
        return section(title, name, empty("No attempt has failed in the last day. That is good."))
    rows: list[list[Content]] = []
    for found in failures[:_SHOWN]:
        error = unescape(found.error) or "(no message)"
        address = visit.address("/jobs", type=found.type, text=unescape(found.error)[:80])
        rows.append(
            [
                tag("a", error, href=address, class_="error"),
                found.type,
                f"{found.count:,}",
                visit.time(found.last_at),
            ]
        )
    more = len(failures) - _SHOWN
    return section(
        title,
        name,
        table(title, [("Error", "grow"), "Type", ("Times", "number"), "Last"], rows),
        tag("p", f"And {number_of(more, 'other error', 'other errors')}.") if more > 0 else None,
    )


def _types(visit: Visit, reading: Reading) -> Markup:
    types = reading.types
    everything = ALL in reading.status.summary.paused_types
    if not types and not everything:
        text = "No job has been added in the last hour, and none is waiting."
        return section("Types of jobs", "types", empty(text))
    heads: list[Content | tuple[Content, str]] = [
        "Type",
        ("Due", "number"),
        ("Oldest due", "number"),
        ("Running", "number"),
        ("Done", "number"),
        ("Failed", "number"),
        ("Waited", "number"),
        ("Ran for", "number"),
        "Starting",
    ]
    rows = [_type(visit, of_type, everything) for of_type in types]
    return section(
        "Types of jobs",
        "types",
        table("Types of jobs", heads, rows),
        tag(
            "p",
            "Done, failed, waited and ran for: attempts of the last hour. Half of the attempts "
            "took at most the first of two times, and 95 % at most the second.",
            class_="note",
        ),
        _everything(visit, everything),
    )


def _type(visit: Visit, of_type: TypeNow, everything: bool) -> list[Content]:
    return [
        tag("a", of_type.name, href=visit.address("/jobs", type=of_type.name)),
        f"{of_type.due:,}",
        "-" if of_type.waited is None else duration(of_type.waited),
        f"{of_type.running:,}",
        f"{of_type.done:,}",
        tag("span", f"{of_type.failed:,}", class_="bad" if of_type.failed else None),
        _both(of_type.waits),
        _both(of_type.took),
        _switch(visit, of_type, everything),
    ]


def _both(seconds: tuple[float, float] | None) -> str:
    return "-" if seconds is None else f"{took(seconds[0])}, {took(seconds[1])}"


def _switch(visit: Visit, of_type: TypeNow, everything: bool) -> Content:
    if everything:
        return badge("paused")
    fields = {"type": of_type.name}
    if of_type.paused:
        name = f"Resume {of_type.name}"
        form = visit.form("resume", "/types/resume", "Resume", fields, kind="small", name=name)
        return join(badge("paused"), " ", form)
    name = f"Pause {of_type.name}"
    form = visit.form("pause", "/types/pause", "Pause", fields, kind="small", name=name)
    return join(form or "yes")


def _everything(visit: Visit, everything: bool) -> Markup | None:
    if everything:
        return tag(
            "div",
            tag("p", "Everything is paused: no more jobs are started."),
            visit.form("resume", "/types/resume", "Resume everything"),
            class_="row problem",
        )
    form = visit.form("pause", "/types/pause", "Pause everything", kind="quiet")
    return tag("div", form, class_="row") if form else None


def _charts(reading: Reading) -> Markup:
    title, name = "The last hour and day", "charts"
    if not reading.day.ended.largest():
        return section(title, name, empty("No job has run in the last day."))
    return section(
        title,
        name,
        tag(
            "div",
            tag(
                "div",
                tag("h3", "Last hour"),
                charts.throughput(reading.hour),
                charts.waiting(reading.hour),
            ),
            tag(
                "div",
                tag("h3", "Last day"),
                charts.throughput(reading.day),
                charts.waiting(reading.day),
            ),
            class_="charts",
        ),
    )


def _schedules(visit: Visit, reading: Reading) -> Markup | None:
    schedules = sorted(reading.status.schedules, key=lambda found: found["next"])
    if not schedules:
        return None
    rows: list[list[Content]] = [
        [found["name"], found["type"], visit.time(found["next"])] for found in schedules[:_SHOWN]
    ]
    return section(
        "Next schedules",
        "schedules",
        table("Next schedules", ["Schedule", "Type", "Next"], rows),
        tag("p", tag("a", "All schedules", href=visit.address("/schedules"))),
    )
