"""The file that declares commands, `handlers.toml`: one table per job type.

- Everything in it is checked when it is read: keys, values, and whether the programs exist.
- It decides what runs as this user, as do the programs that it names by a path. So each of them
  has to be as protected from other users as the queue's directory.
"""

from __future__ import annotations

import os

from dbbasic_queue.commands import Command
from dbbasic_queue.errors import InvalidHandlers
from dbbasic_queue.handlers import Backoff, Fail
from dbbasic_queue.model.checks import check_type, parse_seconds
from dbbasic_queue.store.disk.access import is_world_writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dbbasic_queue.commands import Program

    Checks = Mapping[str, Callable[[Any], Any]]
    """a key -> what returns its checked value, or raises ValueError or InvalidHandlers"""


def _seconds(value: Any) -> float:
    """Return a duration: a number of seconds, or text with a unit. Its range isn't checked."""
    if isinstance(value, str):
        return parse_seconds(value)
    return _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"invalid value {value!r}: must be a number")
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"invalid value {value!r}: must be a whole number")
    return value


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"invalid value {value!r}: must be true or false")
    return value


def _backoff(value: Any) -> Backoff:
    if not isinstance(value, dict):
        raise ValueError(
            f"invalid value {value!r}: must be a table, such as {{ first = 30, factor = 3 }}"
        )
    return Backoff(**_checked(value, _BACKOFF_KEYS))


def _every(value: Any) -> str | float:
    """Return a cron expression, or an interval in seconds. Expressions aren't checked."""
    try:
        return _seconds(value)
    except ValueError:
        if not isinstance(value, str):
            raise
        if len(value.split()) < _FEWEST_FIELDS and not value.startswith("@"):
            raise ValueError(
                f'invalid schedule {value!r}: must be a cron expression, such as "0 3 * * *", or '
                'an interval with a unit, such as "15m"'
            ) from None
        return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"invalid value {value!r}: must be text")
    return value


def _text_or_list(value: Any) -> str | list[Any]:
    return _list(value) if isinstance(value, list) else _text(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(
            f'invalid value {value!r}: must be a list, such as ["./program", "argument"]'
        )
    return value


_FEWEST_FIELDS = 5
"""of a cron expression, unless it is a name such as @daily"""
_FILE_KEYS: Checks = {
    "ignore_case": _true_or_false,
    "keep": _seconds,
    "name": _text,
}
"""outside of all tables: arguments of `Handlers`"""
_TABLE_KEYS: Checks = {
    "command": _list,
    "max_attempts": _whole_number,
    "backoff": _backoff,
    "timeout": _seconds,
    "concurrency": _whole_number,
    "priority": _whole_number,
}
"""in the table of a job type: arguments of `Command`"""
_SCHEDULE_KEYS: Checks = {
    "every": _every,
    "timezone": _text,
    "missed": _text,
    "overlap": _true_or_false,
    "payload": lambda value: value,
    "schedule_name": _text,
}
"""there too: arguments of `Handlers.every`, where `schedule_name` is `name`, as in `handler`"""
_ON_FAILURE = "on_failure"
"""the table that isn't a job type: whom to tell about jobs that have failed for good"""
_ON_FAILURE_KEYS: Checks = {
    "mail": _text_or_list,
    "sender": _text,
    "server": _text,
    "port": _whole_number,
    "user": _text,
    "password": _text,
    "tls": _text,
    "webhook": _text,
}
"""there: arguments of `notify.Mail`, where `mail` is `to`, and of `notify.Webhook`"""
_BACKOFF_KEYS: Checks = {
    "first": _seconds,
    "factor": _number,
    "cap": _seconds,
    "jitter": _number,
}


class HandlersFile:
    """What a file declares: its job types with their commands, and the settings of the registry.

    `schedules` has the arguments of `Handlers.every` for the job types that have a schedule.
    `mail` has those of `notify.Mail`, `webhook` that of `notify.Webhook`; None if there is none.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.commands: dict[str, Command] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.mail: dict[str, Any] | None = None
        self.webhook: str | None = None


def read(path: str | os.PathLike[str]) -> HandlersFile:
    """Read and check a file. The commands' working directory is the one that the file is in.

    Raises InvalidHandlers, naming the file, the table and the key; OSError if the file can't be
    read.
    """
    import tomllib

    place = os.fspath(path)
    directory = os.path.dirname(os.path.abspath(place))
    with open(place, "rb") as file:
        content = file.read()
    where = place
    try:
        _refuse_unprotected(os.path.abspath(place))
        found = tomllib.loads(content.decode())
        tables = {name: value for name, value in found.items() if isinstance(value, dict)}
        settings = _checked({key: found[key] for key in found.keys() - tables}, _FILE_KEYS)
        declared = HandlersFile(settings)
        if (table := tables.pop(_ON_FAILURE, None)) is not None:
            where = f"{place}: [{_ON_FAILURE}]"
            _add_notifications(declared, table, os.path.abspath(place))
            where = place
        if not tables:
            raise ValueError(
                "it declares no job type (write a table for each, such as [send_email])"
            )
        for job_type, table in tables.items():
            where = f"{place}: [{job_type}]"
            check_type(job_type)
            arguments = _checked(table, {**_TABLE_KEYS, **_SCHEDULE_KEYS})
            schedule = {key: arguments.pop(key) for key in _SCHEDULE_KEYS if key in arguments}
            command = declared.commands[job_type] = _command(arguments, directory)
            if schedule:
                declared.schedules[job_type] = _schedule(schedule, command)
    except (ValueError, InvalidHandlers) as e:  # those of tomllib and check_type are ValueErrors
        raise InvalidHandlers(f"{where}: {e}") from None
    return declared


def _add_notifications(declared: HandlersFile, table: dict[str, Any], path: str) -> None:
    """Take over the table `on_failure`. Raises ValueError."""
    arguments = _checked(table, _ON_FAILURE_KEYS)
    declared.webhook = arguments.pop("webhook", None)
    if "mail" in arguments:
        declared.mail = {"to": arguments.pop("mail"), **arguments}
    elif arguments:
        raise ValueError(f"{next(iter(arguments))} belongs to a mail: give mail, an address, too")
    elif declared.webhook is None:
        raise ValueError("it names nobody: give mail, an address, or webhook, a URL")
    if "password" in arguments and os.stat(path).st_mode & 0o004:
        raise ValueError(f"password: every user can read {path} (chmod o-r it)")


def _command(arguments: dict[str, Any], directory: str) -> Command:
    """Return the command that a table declares. Raises ValueError or InvalidHandlers."""
    if "command" not in arguments:
        raise ValueError('no command: must have one, such as command = ["./program", "{member}"]')
    command = Command(**arguments, cwd=directory)
    _check_program(command.program)
    return command


def _schedule(arguments: dict[str, Any], command: Command) -> dict[str, Any]:
    """Return the arguments of `Handlers.every`. Raises ValueError if a command can't run its jobs.

    Whether the schedule itself is valid isn't checked.
    """
    if "every" not in arguments:
        key = next(iter(arguments))
        raise ValueError(f"{key} belongs to a schedule: give every, too")
    try:
        command.program.filled(arguments.get("payload", {}))
    except Fail as e:
        raise ValueError(f"payload: {e} (each job of the schedule gets this payload)") from None
    if "schedule_name" in arguments:
        arguments["name"] = arguments.pop("schedule_name")
    return arguments


def _checked(given: dict[str, Any], checks: Checks) -> dict[str, Any]:
    """Return the values after their checks. Raises ValueError, naming the key."""
    checked = {}
    for key, value in given.items():
        if key not in checks:
            raise ValueError(f"unknown key {key!r} ({_way_out(key, value, checks)})")
        try:
            checked[key] = checks[key](value)
        except (ValueError, InvalidHandlers) as e:
            raise ValueError(f"{key}: {e}") from None
    return checked


def _way_out(key: str, value: object, checks: Checks) -> str:
    from difflib import get_close_matches

    if close := get_close_matches(key, checks, 1, 0.7):
        return f"did you mean {close[0]}?"
    if isinstance(value, dict):
        return 'a job type with a dot needs quotes, as in ["mail.send"]'
    return f"known keys: {', '.join(checks)}"


# -- the programs, and their protection ------------------------------------------------------------


def _check_program(program: Program) -> None:
    """Raise ValueError if a program is missing, or if other users could change it."""
    name = program.name
    if "/" not in name:
        if not any(_is_program(os.path.join(place, name)) for place in os.get_exec_path()):
            searched = os.pathsep.join(os.get_exec_path())
            raise ValueError(
                f"command: there is no program {name} in PATH, which is {searched} (for one in "
                f"{program.directory}, write ./{name})"
            )
        for word in program.command[1:]:
            # The script that this program runs, as in `php report.php`.
            path = os.path.join(program.directory, word)
            if os.path.isfile(path):
                _refuse_unprotected(path)
                break
        return
    path = os.path.join(program.directory, name.removeprefix("./"))
    if not os.path.isfile(path):
        raise ValueError(f"command: there is no program {path}")
    if not _is_program(path):
        raise ValueError(f"command: {path} isn't executable (chmod +x it)")
    _refuse_unprotected(path)


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _refuse_unprotected(path: str) -> None:
    """Raise ValueError if any user could change a file, or put another one in its place.

    If it is a link, that is true for the directory of the link, and for that of its target.
    """
    target = os.path.realpath(path)
    for place in (target, os.path.dirname(target), os.path.dirname(path)):
        if is_world_writable(place):
            raise ValueError(
                f"{place} is world-writable, so any user could change what is run (chmod o-w it"
                f"{', or move the files to another directory' if os.path.isdir(place) else ''})"
            )
