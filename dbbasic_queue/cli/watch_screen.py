"""The screen of `dbbasic-queue watch`."""

from __future__ import annotations

import curses
import os
import time
from contextlib import suppress
from operator import itemgetter

from dbbasic_queue.cli.messages import as_called, reason
from dbbasic_queue.cli.terminal import (
    COLOURS_OF_256,
    STATUS_STYLES,
    Column,
    Terminal,
    table,
    wrapped,
)
from dbbasic_queue.errors import QueueError
from dbbasic_queue.model.escaping import printable, unescape
from dbbasic_queue.model.states import FAILED
from dbbasic_queue.monitoring import progress_bar
from dbbasic_queue.monitoring.durations import duration, relative
from dbbasic_queue.monitoring.verdict import holder_of, running_since

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dbbasic_queue.cli.watch import Feed
    from dbbasic_queue.model.rows import Row

_KEYS = "q quit  ? keys  Enter show  / filter  r requeue  s stop  p pause  "
_ALL_KEYS = """\
arrows, j, k  choose a job
Enter         show everything about it
r             requeue it, if it has failed or was cancelled
s             stop it; a pending job is cancelled
p             pause its type; press p again to end the pause
f             show only failed jobs
/             show only jobs that contain a text; Esc instead of Enter: no filter
a             show the running jobs, and those that ended last, again
q             quit
"""
_COLOURS = {"red": curses.COLOR_RED, "magenta": curses.COLOR_MAGENTA}
_ESCAPE = 27


class Line:
    """A line of the list: a job that can be chosen, in a style."""

    def __init__(self, job_id: str, job_type: str, cells: list[str], style: str | None) -> None:
        self.job_id = job_id
        self.job_type = job_type
        self.cells = cells
        self.style = style

    def has(self, text: str) -> bool:
        """Return whether a cell has this text in it, in upper or lower case."""
        return any(text in cell.lower() for cell in self.cells)


def show(feed: Feed, interval: float, count: int | None) -> None:
    """Show the screen until the person quits, or for `count` refreshes."""
    os.environ.setdefault("ESCDELAY", "25")
    curses.wrapper(lambda window: _Screen(window, feed).run(interval, count))


class _Screen:
    def __init__(self, window: curses.window, feed: Feed) -> None:
        self._window = window
        self._feed = feed
        self._terminal = Terminal()
        self._terminal.colours = False  # curses has styles of its own
        self._styles: dict[str, int] = {"bold": curses.A_BOLD, "dim": curses.A_DIM}
        self._only_failed = False
        self._filter = ""
        self._chosen = ""
        """the id of the chosen job"""
        self._message = ""
        self._error = ""
        """why the last refresh failed"""
        self._first = 0
        """the number of the line at the top of the list"""
        self._shown: list[Line] = []
        self._set_up()

    def _set_up(self) -> None:
        with suppress(curses.error):  # not every terminal can hide its cursor
            curses.curs_set(0)
        if not curses.has_colors() or os.environ.get("NO_COLOR"):
            return
        curses.use_default_colors()
        for number, (name, colour) in enumerate(_COLOURS.items(), 1):
            has_256 = curses.COLORS >= 256
            curses.init_pair(number, COLOURS_OF_256[name] if has_256 else colour, -1)
            self._styles[name] = curses.color_pair(number) | curses.A_BOLD

    def run(self, interval: float, count: int | None) -> None:
        """Draw and handle keys until `q`."""
        next_at = time.monotonic() + interval
        self._draw()
        while True:
            self._window.timeout(max(int((next_at - time.monotonic()) * 1000), 0))
            key = self._window.getch()
            if key == -1:
                if count is not None:
                    count -= 1
                    if count <= 0:
                        return
                self._refresh()
                next_at = time.monotonic() + interval
            elif not self._handle(key):
                return
            self._draw()

    def _refresh(self) -> None:
        self._error = ""
        try:
            self._feed.refresh()
        except (QueueError, OSError) as e:
            self._error = _short(e)

    # -- keys --

    def _handle(self, key: int) -> bool:
        """Handle a key; return False if the person quits."""
        character = chr(key) if 0 <= key < 256 else ""
        if character == "q":
            return False
        self._message = ""
        if key in (curses.KEY_DOWN, curses.KEY_UP) or character in ("j", "k"):
            self._choose(1 if key == curses.KEY_DOWN or character == "j" else -1)
        elif character in ("f", "a"):
            self._only_failed, self._first = character == "f", 0
            if character == "f":
                self._feed.wants_failed = True
                self._feed.read_status_soon()
            if character == "a":
                self._filter = ""
        elif character == "/":
            self._filter = self._read_line("filter: ").lower()
        elif key in (curses.KEY_ENTER, 10, 13):
            self._show_job()
        elif character == "?":
            self._show_text(_ALL_KEYS.splitlines)
        elif character in ("r", "s", "p"):
            self._change(character)
        return True

    def _choose(self, step: int) -> None:
        ids = [line.job_id for line in self._shown]
        if not ids:
            return
        at = ids.index(self._chosen) if self._chosen in ids else (-1 if step > 0 else 0)
        self._chosen = ids[min(max(at + step, 0), len(ids) - 1)]

    def _read_line(self, prompt: str) -> str:
        """Let the person write a line at the bottom."""
        text = ""
        while True:
            self._put(self._height() - 1, f"{prompt}{text}_", curses.A_BOLD)
            self._window.timeout(-1)
            key = self._window.getch()
            if key in (curses.KEY_ENTER, 10, 13):
                return text
            if key == _ESCAPE:
                return ""
            if key in (curses.KEY_BACKSPACE, 8, 127):
                text = text[:-1]
            elif 32 <= key < 127:
                text += chr(key)

    def _change(self, key: str) -> None:
        line = next((line for line in self._shown if line.job_id == self._chosen), None)
        if line is None:
            self._message = "choose a job first, with the arrow keys"
            return
        queue = self._feed.queue
        try:
            if key == "r":
                done = queue.requeue(line.job_id)
                self._message = f"{line.job_id} " + (
                    "was requeued" if done else "is neither failed nor cancelled"
                )
            elif key == "s":
                done_as = queue.stop_job(line.job_id)
                self._message = f"{line.job_id}: {done_as or 'it is finished'}"
            elif line.job_type in queue.paused():
                queue.resume(line.job_type)
                self._message = f"jobs of type {line.job_type} run again"
            else:
                queue.pause(line.job_type)
                self._message = f"jobs of type {line.job_type} are paused"
            self._feed.read_status_soon()
            self._feed.refresh()
        except (QueueError, OSError) as e:
            self._message = _short(e)

    def _show_job(self) -> None:
        """Show all about the chosen job, until a key is pressed."""
        from dbbasic_queue.cli.job_screen import screen
        from dbbasic_queue.operating.details import JobDetails

        queue = self._feed.queue
        row = queue.store.find(self._chosen) if self._chosen else None
        if row is None:
            self._message = "choose a job first, with the arrow keys"
            return
        details = JobDetails(queue, row)
        self._show_text(lambda: list(screen(details, self._terminal)))

    def _show_text(self, lines_of: Callable[[], list[str]]) -> None:
        """Show the lines that a function returns for the terminal's size, until a key is pressed.

        The arrow keys, and `j` and `k`, scroll them.
        """
        lines = lines_of()
        first = 0
        self._window.timeout(-1)
        while True:
            height = self._height()
            first = min(first, max(len(lines) - height + 1, 0))
            self._window.erase()
            for number, line in enumerate(lines[first : first + height - 1]):
                self._put(number, line)
            self._put(height - 1, "arrows scroll, any other key returns", curses.A_DIM)
            self._window.refresh()
            key = self._window.getch()
            if key in (curses.KEY_DOWN, ord("j")):
                first += 1
            elif key in (curses.KEY_UP, ord("k")):
                first = max(first - 1, 0)
            elif key == curses.KEY_RESIZE:
                self._measure()
                lines = lines_of()
            else:
                return

    # -- drawing --

    def _height(self) -> int:
        return max(self._window.getmaxyx()[0], 4)

    def _measure(self) -> None:
        """Note the terminal's width."""
        self._terminal.width = max(self._window.getmaxyx()[1] - 1, 20)

    def _put(self, number: int, text: str, style: int = 0) -> None:
        """Write a line of the screen, cut to its width."""
        height, width = self._window.getmaxyx()
        if number >= height:
            return
        try:
            self._window.move(number, 0)
            self._window.clrtoeol()
            self._window.addstr(number, 0, self._terminal.fit(printable(text), width - 1), style)
        except curses.error:
            return  # the window has just become smaller

    def _draw(self) -> None:
        self._measure()
        height = self._height()
        self._window.erase()
        head = list(self._head())
        for number, (text, style) in enumerate(head):
            self._put(number, text, style)
        lines = self._failed_lines() if self._only_failed else [*self._running(), *self._latest()]
        self._shown = [line for line in lines if not self._filter or line.has(self._filter)]
        self._draw_list(len(head), max(height - len(head) - 2, 1))
        message = self._message or self._error or self._feed.error
        keys = _KEYS + ("a all" if self._restriction() else "f failed")
        self._put(height - 1, message or keys, 0 if message else curses.A_DIM)
        self._window.refresh()

    def _head(self) -> Iterable[tuple[str, int]]:
        """Yield the lines at the top, and their styles."""
        summary, verdict = self._feed.status.summary, self._feed.verdict
        style = self._styles.get(STATUS_STYLES.get(verdict.word, ""), 0) | curses.A_BOLD
        command = f"  ({as_called(verdict.command)})" if verdict.command else ""
        text = printable(f"{verdict.word}: {verdict.text}{command}")
        yield from ((line, style) for line in wrapped(self._terminal, text, "  "))
        counts = [f"{name}\xa0{n:,}" for name, n in summary.counts.items()]
        text = "  ".join([*counts, f"due\xa0{summary.due:,}"])
        yield from ((line.replace("\xa0", " "), 0) for line in wrapped(self._terminal, text))
        paused = " ".join(sorted(summary.paused_types)).replace("*", "everything")
        more = f"  paused: {paused}" if paused else ""
        yield f"last minute: {self._feed.last_minute()}{more}", 0
        restriction = self._restriction()
        yield (f"only {restriction}" if restriction else ""), curses.A_BOLD

    def _restriction(self) -> str:
        """Return which jobs are shown, such as "failed jobs"; "" if all are."""
        jobs = "failed jobs" if self._only_failed else "jobs" if self._filter else ""
        return f"{jobs} that contain '{self._filter}'" if self._filter else jobs

    def _draw_list(self, top: int, height: int) -> None:
        """Draw the titles of the list in the line `top`, and `height` lines of it below that."""
        titles = ["ID", "TYPE", "WHAT", "WHEN", "PROGRESS OR ERROR"]
        columns = [
            Column(title, itemgetter(place), flexible=place == len(titles) - 1)
            for place, title in enumerate(titles)
        ]
        ids = [line.job_id for line in self._shown]
        chosen = ids.index(self._chosen) if self._chosen in ids else 0
        self._first = min(max(self._first, chosen - height + 1), chosen)
        shown = self._shown[self._first : self._first + height]
        text = list(table(self._terminal, columns, [line.cells for line in shown]))
        if not text:
            self._put(top, self._why_nothing(), curses.A_DIM)
            return
        self._put(top, text[0], curses.A_DIM)
        for number, (line, drawn) in enumerate(zip(shown, text[1:], strict=True)):
            style = self._styles.get(line.style or "", 0)
            if line.job_id == self._chosen:
                style |= curses.A_REVERSE
            self._put(top + 1 + number, drawn, style)

    def _why_nothing(self) -> str:
        """Return why the list is empty."""
        if self._only_failed and self._feed.failed is None:
            return "reading the failed jobs"
        if restriction := self._restriction():
            return f"there are no {restriction}"
        return "no job is running, and none has ended yet"

    def _running(self) -> Iterable[Line]:
        now = self._feed.now
        for row in self._feed.running:
            holder = holder_of(row, self._feed.live)
            what = "lost" if holder is None else "running"
            since = running_since(holder)
            when = "-" if since is None else duration(now - since)
            text = ""
            if (found := self._feed.progress.get(row.id)) is not None:
                text = progress_bar.line(found, now, width=self._terminal.bar_width)
            yield Line(row.id, row.type, [row.id, row.type, what, when, text], "bold")

    def _latest(self) -> Iterable[Line]:
        now = self._feed.now
        running = {row.id for row in self._feed.running}
        seen: set[str] = set()
        for attempt in reversed(self._feed.latest):
            if attempt.id in seen or attempt.id in running:
                continue
            seen.add(attempt.id)
            job_type = unescape(attempt.type)
            when = relative(attempt.ended_at, now, units=1)
            cells = [attempt.id, job_type, attempt.outcome, when, attempt.error]
            yield Line(attempt.id, job_type, cells, STATUS_STYLES.get(attempt.outcome))

    def _failed_lines(self) -> list[Line]:
        def when(row: Row) -> str:
            return relative(row.state.run_at, self._feed.now, units=1)

        return [
            Line(
                row.id,
                row.type,
                [
                    row.id,
                    row.type,
                    FAILED,
                    when(row),
                    row.state.error,
                ],
                "red",
            )
            for row in self._feed.failed or ()
        ]


def _short(error: Exception) -> str:
    """Return what an error says, without the file's long name: it must fit one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason(error)
