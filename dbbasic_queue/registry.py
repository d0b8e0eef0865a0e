"""The registry: declares functions as handlers, and lets them enqueue jobs of their type."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping

from dbbasic_queue.errors import InvalidArgument, InvalidHandlers, InvalidJob
from dbbasic_queue.handlers import JOB_IN_PAYLOAD, Handler
from dbbasic_queue.lazy import load
from dbbasic_queue.model.checks import check_seconds, check_type
from dbbasic_queue.queue import default_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

    from dbbasic_queue.commands import Command, RegisteredCommand
    from dbbasic_queue.handlers import Backoff, Job
    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.passes.hooks import Hooks
    from dbbasic_queue.schedules import Missed, Schedule
    from dbbasic_queue.toml_file import HandlersFile

    P = ParamSpec("P")
    R = TypeVar("R")
    Payload = TypeVar("Payload")
    Hook = TypeVar("Hook", bound=Callable[..., Any])
    OnFailure = TypeVar("OnFailure", bound=Callable[[Job, str], object])
    OnSuccess = TypeVar("OnSuccess", bound=Callable[[Job, Any], object])
    OnRetry = TypeVar("OnRetry", bound=Callable[[Job, str, int], object])
    Around = TypeVar("Around", bound=Callable[[Job], Any])
    AnyRegistered = TypeVar("AnyRegistered", "Registered", RegisteredCommand)

    class TypedHandler(Handler, Generic[Payload, P, R]):
        """What `@jobs.handler` returns, to type checkers: the same function, with `enqueue`."""

        type: str
        __name__: str
        __wrapped__: Callable[..., Any]

        def __call__(self, payload: Payload, /, *args: P.args, **kwargs: P.kwargs) -> R:
            """Call the function."""

        def enqueue(
            self,
            payload: Payload | None = None,
            run_at: float | datetime | None = None,
            *,
            job_id: str | None = None,
            exist_ok: bool = False,
            unique: Literal["pending"] | None = None,
        ) -> str:
            """Add a job of this type."""

    class UnpackingHandler(Handler, Generic[P, R]):
        """The same for `unpack=True`: the payload's members are the function's arguments."""

        type: str
        __name__: str

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """Call the function."""

        def enqueue(
            self,
            payload: dict[str, Any] | None = None,
            run_at: float | datetime | None = None,
            *,
            job_id: str | None = None,
            exist_ok: bool = False,
            unique: Literal["pending"] | None = None,
        ) -> str:
            """Add a job of this type."""


_declared: dict[str, set[str]] = {}
"""program -> names of the schedules that its registries in this process have declared"""


class Handlers(Mapping[str, Handler]):
    """A registry of handlers. You can pass one anywhere you can pass a dict of handlers.

    Registering a type twice is an error, except for the function of a reloaded module, which
    replaces the old one. Job types are case-sensitive, unless `ignore_case=True`. The functions'
    `enqueue` adds jobs to `queue`, by default the default queue; a registry with a `queue` can only
    be used in that queue's passes. A registry can be pickled if its functions can.

    With `keep` (seconds, or a `timedelta`), its passes now and then remove the finished jobs of its
    types that were due longer ago than that: at most once an hour, when they have run their jobs.

    `name` is the program that its schedules belong to: passes remove a schedule that its program no
    longer declares. By default it is the path of the file that makes the registry, which is the
    same in each process that imports it.

    Raises InvalidHandlers for an invalid `keep`, and for a name that is empty or isn't text.
    """

    def __init__(
        self,
        *,
        ignore_case: bool = False,
        queue: Queue | None = None,
        keep: float | timedelta | None = None,
        name: str | None = None,
    ) -> None:
        if name is None:
            frame = sys._getframe(1)
            while frame.f_back and frame.f_locals.get("self") is self:  # a subclass's __init__
                frame = frame.f_back
            file = frame.f_globals.get("__file__")
            name = os.path.abspath(file) if isinstance(file, str) else None
        elif not isinstance(name, str) or not name:
            raise InvalidHandlers(f"invalid name {name!r} of a registry: must be text, not empty")
        self.ignore_case = ignore_case
        self.queue = queue
        self.keep = None if keep is None else check_seconds(keep, "keep", error=InvalidHandlers)
        """for how many seconds finished jobs are kept; None if they are never removed"""
        self.name = name
        """the program that the schedules belong to; None for code that isn't in a file"""
        self.schedules: dict[str, Schedule] = {}
        """name -> declared schedule"""
        self._sources: dict[str, tuple[object, int]] = {}
        self.hooks: Hooks | None = None
        """the hooks, None without any: a pass imports nothing for them"""
        self._handlers: dict[str, Registered | RegisteredCommand] = {}

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *, queue: Queue | None = None) -> Handlers:
        """Return a registry of the commands that a TOML file declares; see docs/commands.md.

        Each table is a job type; that of `on_failure` says whom to tell about failed jobs. Raises
        InvalidHandlers, naming the file, the table and the key, for an unknown key, an invalid
        value and a missing program, and if other users could change the file or a program; OSError
        if the file can't be read.
        """
        from dbbasic_queue.toml_file import read

        file = read(path)
        where = os.fspath(path)
        try:
            handlers = cls(queue=queue, **{"name": os.path.abspath(path), **file.settings})
            for job_type, command in file.commands.items():
                where = f"{os.fspath(path)}: [{job_type}]"
                handlers.add(job_type, command)
                if schedule := file.schedules.get(job_type):
                    handlers.every(job_type=job_type, **schedule)
            where = f"{os.fspath(path)}: [on_failure]"
            handlers._notify(file)
        except (InvalidHandlers, InvalidArgument) as e:
            raise InvalidHandlers(f"{where}: {e}") from None
        return handlers

    def _notify(self, file: HandlersFile) -> None:
        """Register the hooks that a file declares. Raises InvalidArgument for invalid values."""
        if file.mail is not None:
            from dbbasic_queue.notify import Mail

            self.on_failure(Mail(**file.mail))
        if file.webhook is not None:
            from dbbasic_queue.notify import Webhook

            self.on_failure(Webhook(file.webhook))

    def __repr__(self) -> str:
        return f"<Handlers {', '.join(self._handlers) or '(none)'}>"

    if TYPE_CHECKING:

        @overload
        def handler(
            self, function: Callable[Concatenate[Payload, P], R], /
        ) -> TypedHandler[Payload, P, R]: ...

        @overload
        def handler(
            self,
            job_type: str | None = None,
            /,
            *,
            unpack: Literal[True],
            max_attempts: int | None = None,
            backoff: Backoff | None = None,
            timeout: float | timedelta | None = None,
            concurrency: int | None = None,
            priority: int = 0,
            every: str | float | timedelta | None = None,
            timezone: str | None = None,
            missed: Missed = "once",
            overlap: bool = True,
            schedule_name: str | None = None,
        ) -> Callable[[Callable[P, R]], UnpackingHandler[P, R]]: ...

        @overload
        def handler(
            self,
            job_type: str | None = None,
            /,
            *,
            unpack: Literal[False] = False,
            max_attempts: int | None = None,
            backoff: Backoff | None = None,
            timeout: float | timedelta | None = None,
            concurrency: int | None = None,
            priority: int = 0,
            every: str | float | timedelta | None = None,
            timezone: str | None = None,
            missed: Missed = "once",
            overlap: bool = True,
            schedule_name: str | None = None,
        ) -> Callable[[Callable[Concatenate[Payload, P], R]], TypedHandler[Payload, P, R]]: ...

    def handler(
        self,
        job_type: Any = None,
        /,
        *,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        timeout: float | timedelta | None = None,
        concurrency: int | None = None,
        priority: int = 0,
        unpack: bool = False,
        every: str | float | timedelta | None = None,
        timezone: str | None = None,
        missed: Missed = "once",
        overlap: bool = True,
        schedule_name: str | None = None,
    ) -> Any:
        """Register a function: `@jobs.handler`, or `@jobs.handler("type", max_attempts=5)`.

        By default, the type is the function's name. The policy's arguments are those of `Handler`.
        The function can still be called as before, and gets `enqueue`, with the arguments of
        `Queue.enqueue` after the type.

        With `every`, passes also add jobs of this type by that schedule, with the payload `{}`: it
        and the arguments after it are those of `Handlers.every`, where `schedule_name` is `name`.

        Raises InvalidHandlers if the type is taken or invalid, for a function that no pass could
        call, and for an invalid schedule.
        """
        schedule: dict[str, Any] | None = None
        if every is not None:
            schedule = {"timezone": timezone, "missed": missed, "overlap": overlap}
            schedule |= {"every": every, "name": schedule_name}
        elif (timezone, missed, overlap, schedule_name) != (None, "once", True, None):
            raise InvalidHandlers(
                "timezone, missed, overlap and schedule_name belong to a schedule: give every=..., "
                "too"
            )
        policy = {
            "max_attempts": max_attempts,
            "backoff": backoff,
            "timeout": timeout,
            "concurrency": concurrency,
            "priority": priority,
            "unpack": unpack,
        }
        if callable(job_type):
            return self._register(None, job_type, policy, schedule)
        return lambda function: self._register(job_type, function, policy, schedule)

    def add(self, job_type: str, command: Command) -> RegisteredCommand:
        """Register a command under a job type; return it with a method `enqueue`.

        `enqueue` has the arguments of `Queue.enqueue` after the type. It raises InvalidJob for a
        payload that doesn't fit the command's placeholders, too. Raises InvalidHandlers if the type
        is taken or invalid.
        """
        from dbbasic_queue.commands import Command, RegisteredCommand

        if not isinstance(command, Command):
            raise InvalidHandlers(
                f"invalid command {command!r}: must be a Command (register a function with "
                "@handler)"
            )
        try:
            check_type(job_type)
        except InvalidJob as e:
            raise InvalidHandlers(str(e)) from None
        return self._keep(job_type, RegisteredCommand(self, job_type, command))

    def _register(
        self,
        given: str | None,
        function: Callable[..., Any],
        policy: dict[str, Any],
        schedule: dict[str, Any] | None = None,
    ) -> Registered:
        try:
            job_type = check_type(getattr(function, "__name__", "") if given is None else given)
        except InvalidJob as e:
            raise InvalidHandlers(f'{e} (give another one: @handler("..."))') from None
        if isinstance(function, Handler) and function.is_command:
            raise InvalidHandlers(
                f"invalid handler {function!r}: a command has a policy of its own (register it "
                "with add)"
            )
        return self._keep(job_type, Registered(self, job_type, function, policy), schedule)

    def _keep(
        self, job_type: str, registered: AnyRegistered, schedule: dict[str, Any] | None = None
    ) -> AnyRegistered:
        key = self._key(job_type)
        old = self._handlers.get(key)
        if old is not None and not registered.is_again(old):
            raise InvalidHandlers(
                f"job type {job_type!r} is registered twice: give one of the functions another "
                'type, @handler("...")'
            )
        before = old.schedule if old else None
        if schedule is not None:
            declared = load(_schedule)(job_type=job_type, **schedule)
            self._declare(declared, again=declared.name == before)
            registered.schedule = declared.name
        if before is not None and before != registered.schedule:
            self.schedules = {n: s for n, s in self.schedules.items() if n != before}
            _declared[self.name or ""].discard(before)
        self._handlers[key] = registered
        return registered

    def every(
        self,
        every: str | float | timedelta,
        job_type: str,
        *,
        payload: Any = None,
        name: str | None = None,
        timezone: str | None = None,
        missed: Missed = "once",
        overlap: bool = True,
    ) -> None:
        """Declare a schedule: passes with this registry add a job of a type at each of its times.

        - `every` is a cron expression such as `"0 3 * * *"`, or an interval: whole seconds, or a
          `timedelta`, at least 1 s, counted since 1970.
        - `payload` is any JSON value, at most 1 MiB; None becomes `{}`.
        - `name` identifies the schedule: 1 to 47 characters from A-Z a-z 0-9 . _ -, by default the
          job type. The job of 02:00 UTC on 26 November 2026 has the id `NAME.20261126T020000Z`.
        - `timezone`, for an expression, is a name such as `"Europe/Berlin"`, by default `"local"`,
          the machine's. Daylight saving is handled as by Debian's cron.
        - `missed`: if no pass ran for a while, "once" adds only the latest missed time, "skip" only
          if that is at most 5 minutes ago, "all" each of the latest 1,000.
        - `overlap=False`: nothing is added while the job that was added last is pending or running.

        Each time is added exactly once, by whichever pass comes first, from the next one on: a new
        or changed schedule adds nothing for the time before. Needs cronsim for expressions:
        `pip install "dbbasic-queue[schedule]"`.

        Raises InvalidHandlers for an invalid argument, for a name that is taken, and if the
        registry has no name.
        """
        schedule = load(_schedule)(
            every,
            job_type,
            payload,
            name=name,
            timezone=timezone,
            missed=missed,
            overlap=overlap,
        )
        caller = sys._getframe(1).f_globals
        source = caller.get("__name__"), id(caller.get("__spec__"))  # a reload makes a new one
        known = self._sources.get(schedule.name, source)
        self._declare(schedule, again=known[0] == source[0] and known[1] != source[1])
        self._sources[schedule.name] = source

    def _declare(self, schedule: Schedule, *, again: bool) -> None:
        """Add a schedule; `again` is whether it replaces that of a module that was reloaded."""
        if self.name is None:
            raise InvalidHandlers(
                f"schedule {schedule.name!r} needs the name of its program, and this code isn't in "
                'a file: give one, Handlers(name="...")'
            )
        if schedule.name in self.schedules and not again:
            raise InvalidHandlers(
                f"schedule {schedule.name!r} is declared twice: give one of them another name"
            )
        # A running pass notices a new dict.
        self.schedules = {**self.schedules, schedule.name: schedule}
        _declared.setdefault(self.name, set()).add(schedule.name)

    def retired(self, names: list[str]) -> list[str]:
        """Return those of these schedules that no registry of this program has declared.

        Only the registries of this process are known. One that was unpickled has declared its
        schedules in another process.
        """
        declared = self.schedules.keys() | _declared.get(self.name or "", set())
        return [name for name in names if name not in declared]

    def on_failure(self, hook: OnFailure) -> OnFailure:
        """Register a function that is called for each job that fails for good.

        It gets the `Job`, and its error as text. It is called in the pass's process, after the
        outcome is on the disk. If it raises, that is logged, and changes nothing. Several hooks are
        called in the order of registration. Can be used as a decorator; returns `hook`. The module
        `notify` has hooks that send mails.

        Raises InvalidHandlers for a function that can't be called like this.
        """
        return self._add_hook("on_failure", hook)

    def on_success(self, hook: OnSuccess) -> OnSuccess:
        """Register a function that is called for each completed job.

        It gets the `Job`, and its result as `get_job` returns it. Otherwise like `on_failure`.
        """
        return self._add_hook("on_success", hook)

    def on_retry(self, hook: OnRetry) -> OnRetry:
        """Register a function that is called for each job that failed and will be tried again.

        It gets the `Job`, its error as text, and when it is due again, in Unix seconds. Otherwise
        like `on_failure`.
        """
        return self._add_hook("on_retry", hook)

    def around(self, hook: Around) -> Around:
        """Register a context manager function, which is entered around each call of a handler.

        It gets the `Job`, and runs in the process and the context of the handler: in the task of a
        coroutine, and in the process of a handler with a `timeout`. Several are nested, the first
        one outside. What it raises is the job's error. It can't hide the handler's error. A plain
        context manager works for all handlers; an async one only if all handlers are coroutine
        functions. Can be used as a decorator, above `contextlib.contextmanager`; returns `hook`.

        Raises InvalidHandlers for a function that can't be called like this.
        """
        return self._add_hook("around", hook)

    def _add_hook(self, kind: str, hook: Hook) -> Hook:
        if self.hooks is None:
            from dbbasic_queue.passes.hooks import Hooks

            self.hooks = Hooks()
        self.hooks.add(kind, hook)
        return hook

    def _key(self, job_type: str) -> str:
        return job_type.lower() if self.ignore_case else job_type

    def __getitem__(self, job_type: str) -> Handler:
        return self._handlers[self._key(job_type)]

    if not TYPE_CHECKING:

        def get(self, job_type, default=None):  # a pass asks for every job of an unknown type
            return self._handlers.get(self._key(job_type), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


class Registered(Handler):
    """A handler that knows its job type, so it can enqueue jobs.

    It is pickled like a function, by its module and name. So it can be sent to a process pool if
    the module has it under the function's own name.
    """

    __qualname__: str

    def __init__(
        self,
        handlers: Handlers,
        job_type: str,
        function: Callable[..., Any],
        policy: dict[str, Any],
    ) -> None:
        super().__init__(function, **policy)
        self.type = job_type
        self.schedule: str | None = None
        """the name of the schedule that was declared with it"""
        self._handlers = handlers
        self.__module__ = getattr(function, "__module__", None) or __name__
        self.__name__ = getattr(function, "__name__", job_type)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self._spec = getattr(sys.modules.get(self.__module__), "__spec__", None)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __reduce__(self) -> str:
        return self.__qualname__

    def is_again(self, old: Handler) -> bool:
        """Return whether this is the function of `old`, from another run of its module or cell.

        A cell is one of a notebook. Two functions with the same name differ in their line numbers.
        """
        if not isinstance(old, Registered):
            return False
        if (self.__module__, self.__qualname__) != (old.__module__, old.__qualname__):
            return False
        if "<" in self.__qualname__:
            return False  # lambdas and inner functions share their names
        here, there = _location(self), _location(old)
        return self._spec is not old._spec or here[0] != there[0] or here == there

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

        With `unpack=True`, raises InvalidJob if the payload doesn't fit the function's signature.
        """
        self._check_fit(payload)
        queue = self._handlers.queue or default_queue()
        return queue.enqueue(
            self.type, payload, run_at, job_id=job_id, exist_ok=exist_ok, unique=unique
        )

    def _check_fit(self, payload: Any) -> None:
        if not self.unpack:
            return
        from inspect import signature

        members = {} if payload is None else payload
        if not isinstance(members, dict):
            raise InvalidJob(
                f"invalid payload of type {type(payload).__name__}: must be a dict of the "
                f"arguments that {self.type} unpacks"
            )
        if self.takes_job and "job" in members:
            raise InvalidJob(f"invalid payload: {JOB_IN_PAYLOAD}")
        fit = signature(self.function)
        try:
            fit.bind(**members | ({"job": None} if self.takes_job else {}))
        except TypeError as e:
            raise InvalidJob(
                f"invalid payload: {e} (its members are the arguments of {self.__name__}{fit})"
            ) from None


def _schedule() -> type[Schedule]:
    from dbbasic_queue.schedules import Schedule

    return Schedule


def _location(function: Any) -> tuple[object, object]:
    """Return the file and the first line of the function inside all decorators."""
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        function = inner
    code = getattr(function, "__code__", None)
    return getattr(code, "co_filename", None), getattr(code, "co_firstlineno", None)
