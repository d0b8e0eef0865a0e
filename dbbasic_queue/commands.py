"""Commands: handlers that run a program, in any language, instead of a Python function.

- The program is started directly, never by a shell: a payload can't become a command.
- Each attempt has a process of its own, with or without a time limit. It starts the program, which
  is killed with all that it has started: see `passes.guardian`.
- `passes.program` runs the program. It is imported when the first job runs.
"""

from __future__ import annotations

import math
import os

from dbbasic_queue.errors import InvalidHandlers, InvalidJob, QueueError
from dbbasic_queue.handlers import Fail, Handler
from dbbasic_queue.model.jsontext import encode_json
from dbbasic_queue.queue import default_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta
    from typing import Any, Literal, Protocol

    from dbbasic_queue.handlers import Backoff, Job
    from dbbasic_queue.jobqueue import Queue

    Parts = list[tuple[str, str]]
    """an argument: pairs of literal text and the member that follows it, "" for none"""

    class Registry(Protocol):
        """The registry of a command."""

        queue: Queue | None


class Command(Handler):
    """A handler that runs a program. You can use it anywhere you can use a `Handler`.

    `command` is the program and its arguments. `{name}` in an argument stands for that member of
    the payload, which must be text or a number; `{{` and `}}` stand for braces. If no argument has
    such a placeholder, the program gets the payload's JSON on stdin, otherwise its stdin is empty.
    `cwd` is the program's working directory, by default the current one; a relative program with a
    slash is relative to it. A program without a slash is looked up in PATH.

    Lines such as `40 100 frame 40` that the program writes to its descriptor 3 report its progress:
    see `Job.progress`. Other lines are ignored. The last 64 KiB of its stdout and stderr are kept:
    see `Queue.output`.

    The program's environment has `DBBASIC_QUEUE_JOB_ID`, `DBBASIC_QUEUE_JOB_TYPE`,
    `DBBASIC_QUEUE_ATTEMPT` and `DBBASIC_QUEUE_FILE`. Its exit code decides how the job ends:

    - 0: completed. Its stdout is the result: JSON or, if it isn't that, text; None if it is empty.
    - 75 (EX_TEMPFAIL of sysexits.h): an error that is expected. It is logged at level INFO.
    - 65 (EX_DATAERR): failed, without further attempts, as by `Fail`.
    - any other, and death by a signal: an error, with the last line of its stderr.

    A payload that doesn't fit the placeholders fails the job, too: if a member is missing, isn't
    text or a number, or has a NUL; and if an argument would begin with a placeholder's "-", as an
    option does, unless the command has an argument "--" before it.

    The other arguments are those of `Handler`. By default there is no time limit.

    Raises InvalidHandlers for an invalid argument. Whether the program exists is found out when it
    is started.
    """

    is_command = True

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | timedelta | None = math.inf,
        concurrency: int | None = None,
        priority: int = 0,
    ) -> None:
        directory = os.curdir if cwd is None else cwd
        if not isinstance(directory, str) and not hasattr(directory, "__fspath__"):
            raise InvalidHandlers(f"invalid cwd {cwd!r}: must be the path of a directory")
        self.program = Program(command, os.path.abspath(os.fspath(directory)))
        super().__init__(
            self.program,
            max_attempts=max_attempts,
            backoff=backoff,
            timeout=math.inf if timeout is None else timeout,
            concurrency=concurrency,
            priority=priority,
        )

    def enter_process(self, queue: str, max_result: int) -> None:
        self.program.queue, self.program.max_result = queue, max_result


class RegisteredCommand(Command):
    """A command that knows its job type, so it can enqueue jobs."""

    schedule: str | None = None
    """the schedule that was declared with it: none, `Handlers.every` declares it"""

    def __init__(self, handlers: Registry, job_type: str, command: Command) -> None:
        self.__dict__.update(command.__dict__)
        self.type = job_type
        self._handlers = handlers

    def is_again(self, old: object) -> bool:
        """Return whether this is the command of `old`, as in a module that was reloaded."""
        return isinstance(old, RegisteredCommand) and self.program == old.program

    def enqueue(
        self,
        payload: Any = None,
        run_at: float | datetime | None = None,
        *,
        job_id: str | None = None,
        exist_ok: bool = False,
        unique: Literal["pending"] | None = None,
    ) -> str:
        """Add a job of this type to the registry's queue, like `Queue.enqueue`.

        Raises InvalidJob, too, if the payload doesn't fit the command's placeholders.
        """
        try:
            self.program.filled({} if payload is None else payload)
        except Fail as e:
            raise InvalidJob(f"invalid payload: {e}") from None
        queue = self._handlers.queue or default_queue()
        return queue.enqueue(
            self.type, payload, run_at, job_id=job_id, exist_ok=exist_ok, unique=unique
        )


class Program:
    """A program with its arguments, and the directory that it runs in.

    `queue` and `max_result` are those of the pass; None outside the process of an attempt.
    """

    queue: str | None = None
    max_result: int | None = None

    def __init__(self, command: Sequence[str | os.PathLike[str]], directory: str) -> None:
        self.command = _checked(command)
        self.directory = directory
        self._arguments = [_parsed(argument) for argument in self.command]
        takes_member = [any(name for _, name in parts) for parts in self._arguments]
        if takes_member[0]:
            raise InvalidHandlers(
                f"invalid command {self.command!r}: the program itself has a placeholder, so a "
                "payload could choose what is run (name the program)"
            )
        if any(takes_member[i] for i in _code(self.command)):
            raise InvalidHandlers(
                f"invalid command {self.command!r}: its code has a placeholder, so a payload could "
                """run any command (give it as an argument: ["sh", "-c", 'ls "$1"', "sh", "{x}"])"""
            )
        self.name = self._arguments[0][0][0]
        """a path, or a name that is looked up in PATH"""
        self._takes_members = any(takes_member)

    def __repr__(self) -> str:
        return repr(self.command)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return (self.command, self.directory) == (other.command, other.directory)

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, payload: Any, job: Job | None = None) -> Any:
        """Run the program for a job, and return its result; see `Command`.

        Raises QueueError outside the process of an attempt.
        """
        from dbbasic_queue.passes.program import result_of

        if job is None or self.queue is None or self.max_result is None:
            raise QueueError(
                f"the command {self} runs only as the handler of a job, in a process of its own "
                "(pass the Command itself to process_jobs, or to a registry's add)"
            )
        return result_of(
            self.name,
            self.filled(payload),
            _environment(job, self.queue),
            self.directory,
            None if self._takes_members else encode_json(payload, _ANY_LENGTH).encode() + b"\n",
            self.max_result,
            job.progress,
        )

    def filled(self, payload: Any) -> list[bytes]:
        """Return the arguments for a payload. Raises Fail if it doesn't fit."""
        if self._takes_members and not isinstance(payload, dict):
            raise Fail(
                f"the payload is of type {type(payload).__name__}: must be a JSON object, whose "
                "members replace the command's placeholders"
            )
        filled = []
        after_dashes = False
        for parts in self._arguments:
            text = b""
            for literal, name in parts:
                text += os.fsencode(literal) + (_text(payload, name) if name else b"")
            literal, name = parts[0]
            if name and not literal and text[:1] == b"-" and not after_dashes:
                raise Fail(
                    f"the payload's member {name!r} begins with a dash, so the program could take "
                    'it as an option (put the argument "--" before it into the command)'
                )
            after_dashes = after_dashes or parts == [("--", "")]
            filled.append(text)
        return filled


def _checked(command: Any) -> list[str]:
    """Return the command as a list of str. Raises InvalidHandlers if it can't be started."""
    if isinstance(command, (str, bytes)) or not hasattr(command, "__iter__"):
        raise InvalidHandlers(
            f"invalid command {command!r}: must be a list with the program and its arguments "
            '(["sh", "-c", "..."] runs a line of shell)'
        )
    found = [os.fspath(word) if hasattr(word, "__fspath__") else word for word in command]
    for word in found:
        if not isinstance(word, str):
            raise InvalidHandlers(
                f"invalid command {found!r}: {word!r} isn't text (put it in quotes)"
            )
        if "\0" in word:
            raise InvalidHandlers(f"invalid command {found!r}: an argument can't contain a NUL")
    if not found or not found[0]:
        raise InvalidHandlers(f"invalid command {found!r}: must begin with a program")
    return found


_CODE_OPTIONS = {
    **dict.fromkeys(("sh", "bash", "dash", "ash", "zsh", "ksh", "python"), "c"),
    **dict.fromkeys(("perl", "ruby", "node"), "e"),
    "php": "r",
}
"""the letter of the option by which these programs run code from the command line"""


def _code(command: list[str]) -> list[int]:
    """Return which arguments may be code of a shell, or of another interpreter.

    >>> _code(["/bin/bash", "-ec", "-x", "ls {x}", "{y}"]), _code(["sh", "my.sh", "-c", "{x}"])
    ([1, 2, 3], [])
    """
    option = _CODE_OPTIONS.get(os.path.basename(command[0]).rstrip("0123456789."))
    found: list[int] = []
    for i, word in enumerate(command[1:], 1):
        is_option = word[:1] == "-"
        if found or (option and is_option and word[:2] != "--" and option in word):
            found.append(i)
        if not is_option:
            break  # the code itself, or the script, whose arguments follow
    return found


def _parsed(argument: str) -> Parts:
    """Split an argument at its placeholders.

    Raises InvalidHandlers for a single brace, and for a name with other characters than letters,
    digits, "_", "-" and ".".

    >>> _parsed("--crf={crf}"), _parsed("{{}}")
    ([('--crf=', 'crf'), ('', '')], [('{}', '')])
    """
    parts = []
    literal = ""
    rest = argument
    while rest:
        if rest[:2] in ("{{", "}}"):
            literal, rest = literal + rest[0], rest[2:]
        elif rest[0] == "{":
            name, brace, rest = rest[1:].partition("}")
            if not brace or not name or not all(c.isalnum() or c in "_-." for c in name):
                raise InvalidHandlers(
                    f"invalid placeholder {{{name}{brace} in the argument {argument!r}: must be "
                    "the name of a member, such as {input} (write {{ and }} for braces)"
                )
            parts.append((literal, name))
            literal = ""
        elif rest[0] == "}":
            raise InvalidHandlers(
                f"invalid argument {argument!r}: it has a single brace (write {{{{ and }}}} for "
                "braces)"
            )
        else:
            literal, rest = literal + rest[0], rest[1:]
    return [*parts, (literal, "")]


def _text(payload: dict[str, Any], name: str) -> bytes:
    """Return what replaces a placeholder. Raises Fail if the payload has no such text or number."""
    value = payload.get(name)
    if isinstance(value, str):
        if "\0" in value:
            raise Fail(f"the payload's member {name!r} contains a NUL: no argument can")
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise Fail(
                f"the payload's member {name!r} contains half of a surrogate pair: no argument can"
            ) from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return encode_json(value, _ANY_LENGTH).encode()
    if name not in payload:
        raise Fail(f"the payload has no member {name!r}, which the command needs")
    kind = _JSON_NAMES.get(type(value), f"of type {type(value).__name__}")
    raise Fail(f"the payload's member {name!r} is {kind}: must be text or a number")


_ANY_LENGTH = 1 << 62
_JSON_NAMES = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


def _environment(job: Job, queue: str) -> dict[str, str]:
    """Return the program's environment: that of this process, and what it has to know of the job.

    If the program uses the default queue, that is the one with this job.
    """
    found = dict(os.environ)
    found["DBBASIC_QUEUE_JOB_ID"] = job.id
    found["DBBASIC_QUEUE_JOB_TYPE"] = job.type
    found["DBBASIC_QUEUE_ATTEMPT"] = str(job.attempt)
    if os.path.isabs(queue):
        found["DBBASIC_QUEUE_FILE"] = queue
        found.pop("DBBASIC_QUEUE_URL", None)
    elif "://" in queue:  # on a server, not in the memory of this process
        found["DBBASIC_QUEUE_URL"] = queue
        found.pop("DBBASIC_QUEUE_FILE", None)
    return found
