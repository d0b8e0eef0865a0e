"""Finds the lines of crontabs, and the systemd units, that start a worker for a queue.

Only what this user may read is found. A line counts if it names the queue, or if it runs a program
in the directory of its app: that whose `data/queue.tsv` the queue is.
"""

from __future__ import annotations

import glob
import os
import pwd
import re
import shlex
from contextlib import suppress
from pathlib import Path

from dbbasic_queue.cli.crontab import read_crontab
from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SYSTEM = ("/etc/crontab", "/etc/cron.d/*")
_SCRIPTS = ("/etc/cron.hourly/*", "/etc/cron.daily/*")
_SPOOLS = ("/var/spool/cron/crontabs/*", "/var/spool/cron/*", "/etc/crontabs/*")
_UNITS = (
    "/etc/systemd/system/*.service",
    "/etc/systemd/user/*.service",
    "~/.config/systemd/user/*.service",
)
_SETTING = re.compile(r"""\s*["']?([A-Za-z_]\w*)["']?\s*=\s*(.*)""")
_LINE = re.compile(r"\s*-?(?:@\w+|(?:\S+\s+){4}\S+)\s+(.*)")
_PERCENT = re.compile(r"(?<!\\)%")
_VERBS = ("run", "worker")
_PROGRAM = re.compile(r"\.(py|sh|php|pl|rb)$|worker|queue|handlers", re.IGNORECASE)
_OPERATORS = ";&|<>()"
_LONGEST = 500
_CRON_PATH = "/usr/bin:/bin"


class Line:
    """A line of a crontab, or the command of a unit or script.

    `place`      where it was found
    `text`       the line itself, for people
    `words`      of its command; [] if a quote isn't closed
    `directory`  where the command runs; "" if that isn't known
    `settings`   the environment variables that it gets
    `user`       who runs it; "" for this user
    `is_cut`     whether cron cuts it at a `%`
    """

    def __init__(
        self,
        place: str,
        command: str,
        *,
        user: str = "",
        directory: str = "",
        settings: dict[str, str] | None = None,
        is_crontab: bool = True,
    ) -> None:
        self.place = place
        self.text = printable(" ".join(command.split()))[:_LONGEST]
        self.user = user
        self.settings = {"PATH": _CRON_PATH} | (settings or {})
        self.is_crontab = is_crontab
        self.is_cut = False
        if is_crontab:
            parts = _PERCENT.split(command, maxsplit=1)
            self.is_cut = len(parts) > 1
            command = parts[0].replace("\\%", "%")
        self.command = command
        self.words = _words(command)
        self.directory = directory or ("" if user or not is_crontab else os.path.expanduser("~"))
        self._follow()

    def _follow(self) -> None:
        """Follow the `cd` commands, and read the settings before the program."""
        after_cd, at_start = False, True
        for word in self.words:
            if after_cd and word not in ("--", "-P", "-L"):
                self.directory, after_cd = self.resolve(word), False
            elif at_start and word == "cd":
                after_cd = True
            elif at_start and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)):
                self.settings[found[1]] = found[2]
                continue
            at_start = all(c in _OPERATORS for c in word) or (at_start and word == "export")

    def resolve(self, word: str) -> str:
        """Return the absolute path that a word names; "" if that can't be known here."""
        if word == "~" or word.startswith("~/"):
            word = os.path.expanduser(word) if not self.user else "$"
        if re.search(r"[$`*?~]", word):
            return ""
        if not os.path.isabs(word) and not self.directory:
            return ""
        return os.path.normpath(os.path.join(self.directory, word))

    def starts_worker(self, path: str) -> bool:
        """Return whether it seems to start a worker for the queue at a path."""
        verb = self._verb()
        if verb is not None and verb not in _VERBS:
            return False
        if self.command.rstrip().endswith(f"# dbbasic-queue: {path}"):
            return True
        named = self._named_queue()
        if named is not None:
            return named == path
        app = os.path.dirname(os.path.dirname(path))
        if path != os.path.join(app, "data/queue.tsv"):
            return path in self.words
        is_there = self.directory == app or any(
            self.resolve(word).startswith(f"{app}/") for word in self.words if "/" in word
        )
        return is_there and (
            verb is not None or any(_PROGRAM.search(os.path.basename(w)) for w in self.words)
        )

    def _verb(self) -> str | None:
        """Return the command of `dbbasic-queue` that it runs, "" if it is unclear; None if none."""
        for number, word in enumerate(self.words):
            if os.path.basename(word) not in ("dbbasic-queue", "dbbasic_queue"):
                continue
            skips = False
            for option in self.words[number + 1 :]:
                if skips or option.startswith("-"):
                    skips = option == "--file"
                    continue
                return option
            return ""
        return None

    def _named_queue(self) -> str | None:
        """Return the path of the queue that it names, "" if unclear; None if it names none."""
        for number, word in enumerate(self.words):
            if word == "--file" and number + 1 < len(self.words):
                return self.resolve(self.words[number + 1])
            if word.startswith("--file="):
                return self.resolve(word.removeprefix("--file="))
        if named := self.settings.get("DBBASIC_QUEUE_FILE"):
            return self.resolve(named.removeprefix("file:"))
        return "" if self.settings.get("DBBASIC_QUEUE_URL") else None


def _words(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return []


def find_lines(path: str) -> list[Line]:
    """Return the lines that start a worker for the queue at a path."""
    found: list[Line] = []
    for line in _all_lines():
        names = path in line.command or os.path.dirname(os.path.dirname(path)) in line.command
        if line.starts_worker(path) or (not line.words and names):
            found.append(line)
    return found


def _all_lines() -> Iterator[Line]:
    with suppress(InvalidArgument):  # there is no crontab program, or this user may not use it
        yield from _parse("crontab -l", read_crontab(), user="")
    for place, text in _read(_SYSTEM):
        yield from _parse(place, text, user=None)
    me = pwd.getpwuid(os.geteuid()).pw_name
    for place, text in _read(_SPOOLS):
        if (user := os.path.basename(place)) != me:
            yield from _parse(place, text, user=user)
    for place, text in _read(_SCRIPTS):
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        yield Line(place, "; ".join(lines), user="root", is_crontab=False)
    for place, text in _read(_UNITS):
        yield from _parse_unit(place, text)


def _read(patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for pattern in patterns:
        for place in sorted(glob.glob(os.path.expanduser(pattern))):
            try:
                if os.path.isfile(place):
                    yield place, Path(place).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # another user's


def _parse(place: str, text: str, user: str | None) -> Iterator[Line]:
    """Yield the lines of a crontab. A system's crontab, without `user`, names it in each line."""
    settings: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if setting := _SETTING.fullmatch(line):
            settings[setting[1]] = setting[2].strip().strip("\"'")
        elif found := _LINE.fullmatch(line):
            command, runs_it = found[1], user
            if runs_it is None:
                runs_it, _, command = command.strip().partition(" ")
            yield Line(place, command.strip(), user=runs_it, settings=settings)


def _parse_unit(place: str, text: str) -> Iterator[Line]:
    directory, user = "", ""
    settings: dict[str, str] = {}
    commands: list[str] = []
    for line in re.sub(r"\\\n", " ", text).split("\n"):
        key, _, value = line.partition("=")
        value = value.strip().replace("%%", "%")
        if key == "WorkingDirectory":
            directory = value.lstrip("-")
        elif key == "User":
            user = value
        elif key == "Environment":
            settings |= dict(w.partition("=")[::2] for w in _words(value) if "=" in w)
        elif key == "ExecStart":
            commands.append(value.lstrip("-@:+!").replace("$$", "$"))
    is_system = place.startswith("/etc/systemd/system/")
    for command in commands:
        yield Line(
            place,
            command,
            user=user or ("root" if is_system else ""),
            directory=directory,
            settings={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"} | settings,
            is_crontab=False,
        )
