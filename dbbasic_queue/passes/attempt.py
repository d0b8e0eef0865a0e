"""One attempt: a payload goes into a handler, an outcome comes out, whatever the handler does.

- No exception of a handler reaches the pass: it becomes the job's outcome. An attempt that a signal
  has interrupted, or that the system has no process for, isn't counted.
- Work that is done is never run again: a result that can't be kept doesn't fail the job.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import copy_context
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from dbbasic_queue.errors import not_started
from dbbasic_queue.handlers import Delay, Fail, Job
from dbbasic_queue.lazy import load
from dbbasic_queue.model import states
from dbbasic_queue.model.checks import check_instant
from dbbasic_queue.model.escaping import MAX_ERROR, escape
from dbbasic_queue.model.jsontext import encode_json
from dbbasic_queue.model.records import decode_state, encode_state
from dbbasic_queue.passes.tracebacks import class_path, format_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context
    from types import ModuleType
    from typing import Any

    from dbbasic_queue.errors import StoreError
    from dbbasic_queue.handlers import Handler
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.passes.event_loop import OneLoop
    from dbbasic_queue.passes.link import PassLink
    from dbbasic_queue.passes.policies import Policies
    from dbbasic_queue.passes.signals import Interrupts
    from dbbasic_queue.passes.tail import Printed

    Outcome = tuple[str, states.State | None, "Details"]
    """its name (a key of `Pass.counts`, or INTERRUPTED), the job's next state, the details"""

INTERRUPTED = "interrupted"
_SIGNAL_SECONDS = 0.5
"""how long a signal to a whole service may take from a job's process to the pass"""
_REFUSED_SECONDS = 5
"""how long a job waits that the system had no process for"""
_UNSTARTED_TYPES = (AsyncGeneratorType, GeneratorType)
"""what a generator function returns: none of its code has run"""


def describe(error: BaseException) -> str:
    """Return an exception as the `error` column holds it: one line, `ValueError: no such user`.

    For a plain Exception, or Fail, it is only the message; without a message, only the type. At
    most 500 characters of the message are kept, then it is escaped. If `str(error)` raises, the
    message names the type of that exception.

    >>> describe(ValueError("no such user"))
    'ValueError: no such user'
    >>> describe(Exception("no such user")), describe(KeyboardInterrupt())
    ('no such user', 'KeyboardInterrupt')
    """
    name = type(error).__name__
    try:
        message = "".join((str(error),))[: MAX_ERROR + 1]  # a plain str, whatever it was
    except BaseException as e:  # noqa: BLE001 - whatever it is, the pass must go on
        message = f"(its text isn't available: {type(e).__name__})"
    if len(message) > MAX_ERROR:
        message = message[: MAX_ERROR - 1] + "…"
    if not message:
        return escape(name)
    return escape(message if type(error) in (Exception, Fail) else f"{name}: {message}")


class Details:
    """What an attempt leaves besides its outcome, for people.

    `traceback` and `exception`, the path of its class, are those of the handler's exception,
    escaped. `own_process` is whether the attempt had a process of its own, and `printed` what it
    has printed there, or None.
    """

    __slots__ = ("exception", "own_process", "printed", "traceback")

    def __init__(self, error: BaseException | None = None) -> None:
        self.traceback = format_traceback(error) if error else ""
        # A command's error has no traceback: it isn't an exception of Python code.
        self.exception = class_path(error) if error and self.traceback else ""
        self.own_process = False
        self.printed: Printed | None = None


NO_DETAILS = Details()


class Refused(Exception):
    """Raised if the system refuses what a handler needs, which the text names: it hasn't started.

    Its cause is the system's error.
    """


class ResultLost(Exception):
    """Raised instead of returning a result that can't be kept: the work is done.

    Its cause says why.
    """


class Attempts:
    """Runs attempts for one pass.

    Each method that runs one returns its outcome, and writes nothing. The outcome is INTERRUPTED,
    without a state, if the pass was asked to end at once.
    """

    def __init__(
        self,
        interrupts: Interrupts,
        policies: Policies,
        max_result: int,
        clock: Callable[[], float],
        queue: str,
        link: PassLink,
    ) -> None:
        self.interrupts = interrupts
        self.policies = policies
        self.max_result = max_result
        self.clock = clock
        self.queue = queue
        """the queue's path, or its URL"""
        self.link = link
        self.process = os.getpid()
        """the process that runs the handlers; a child that a handler forks is ended"""
        self.refused: StoreError | None = None
        """why a job was not started, if the system had no process for it; the caller resets it"""
        self._loop: OneLoop | None = None
        self._around = policies.hooks.around if policies.hooks is not None else None
        """the hooks around each handler, or None"""

    def run(self, handler: Handler | None, row: Row, payload: Any) -> Outcome:
        """Run the handler in this thread. If it is None, the attempt fails."""
        if handler is None:
            return self.failed(handler, row.state, f"No handler for {escape(row.type)}")
        try:
            result = self._call(handler, row, payload)
        except Refused as e:
            return self._not_started(row.state, str(e), e.__cause__ or e)
        except BaseException as e:  # noqa: BLE001 - SystemExit, too, is the job's error
            return self._raised(handler, row.state, e)
        return self._returned(row.state, result)

    def run_limited(
        self,
        handler: Handler,
        row: Row,
        payload: Any,
        timeout: float,
        tick: Callable[[], None],
        slot: int,
    ) -> Outcome:
        """Run the handler in a process of its own that is killed after `timeout` seconds.

        `slot` is the descriptor of the pass's slot file, or -1: the slot stays locked as long as
        the job may run. If a stop is requested, the process is killed within a second. `tick` is
        called about ten times a second. Signals interrupt the attempt only right after such a call:
        anywhere else, an exception could leave the process running. `tick` handles its own errors:
        one that it raised would be the job's.
        """
        time_limit = load(_time_limit)

        def work() -> bytes:
            self.process = os.getpid()
            self._loop = None
            self.link.is_in_pass = False
            self.interrupts.received.clear()
            handler.enter_process(self.queue, self.max_result)
            outcome, after, details = self.run(handler, row, payload)
            assert after is not None
            head = f"{outcome}\n{details.exception}\n{details.traceback}\n"
            return head.encode() + encode_state(after)

        def tick_or_raise() -> None:
            tick()
            self.interrupts.raise_if_at_once()

        try:
            content, printed = time_limit.run(
                work, timeout, tick_or_raise, lambda: self.link.is_to_stop(row), slot
            )
        except time_limit.NotStarted as e:
            return self._not_started(row.state, "the job's process", e.__cause__ or e)
        except time_limit.Died as e:
            details = Details()
            details.own_process, details.printed = True, e.printed
            if e.by_end_signal and self._is_asked_to_end_too():
                return INTERRUPTED, None, details
            return self.failed(handler, row.state, str(e), details)
        except BaseException as e:  # noqa: BLE001 - a signal
            return self._raised(handler, row.state, e)
        outcome, exception, trace, after = content.split(b"\n", 3)
        details = Details()
        details.exception, details.traceback = exception.decode(), trace.decode()
        details.own_process, details.printed = True, printed
        return outcome.decode(), decode_state(after), details

    def _is_asked_to_end_too(self) -> bool:
        """Return whether the signal that ended a job's process was sent to the whole service.

        Such a signal reaches one process after the other, so this waits up to half a second.
        """
        end = time.monotonic() + _SIGNAL_SECONDS
        while not (asked := self.interrupts.stop_requested()) and time.monotonic() < end:
            time.sleep(0.01)
        return asked

    async def run_coroutine(self, handler: Handler, row: Row, payload: Any) -> Outcome:
        """Run a coroutine function as a task of its own, next to other jobs on one event loop."""
        try:
            _copy_decimal_context()
            start = self._start_within if self._around else self._start
            result = await start(handler, row, payload)
        except BaseException as e:  # noqa: BLE001
            return self._raised(handler, row.state, e)
        finally:
            if os.getpid() != self.process:
                _end_handlers_child(row.type)
        return self._returned(row.state, result)

    def _call(self, handler: Handler, row: Row, payload: Any) -> Any:
        try:
            context = own_context()
            self.interrupts.in_handler = True
            start = self._start_within if self._around else self._start
            result = context.run(start, handler, row, payload)
            if isinstance(result, CoroutineType):
                result = context.run(self._finish, result)
        finally:
            self.interrupts.in_handler = False
            if os.getpid() != self.process:
                _end_handlers_child(row.type)
        if isinstance(result, _UNSTARTED_TYPES):
            raise _unstarted(result)
        return result

    def _start(self, handler: Handler, row: Row, payload: Any) -> Any:
        """Call the function and return its result; a coroutine function hasn't run any code yet."""
        if handler.takes_job or handler.unpack:
            return handler.start(payload, self._job(row) if handler.takes_job else None)
        return handler.function(payload)

    def _job(self, row: Row) -> Job:
        return Job(row, self.link)

    def _start_within(self, handler: Handler, row: Row, payload: Any) -> Any:
        """Call the function within the `around` hooks, and return its result.

        For a coroutine function, returns a coroutine that does it. Otherwise, a coroutine that the
        function returns has been awaited.
        """
        around, hooks, job = load(_load_around), self._around, self._job(row)

        def call() -> Any:
            try:
                result = self._start(handler, row, payload)
                if isinstance(result, CoroutineType):
                    result = self._finish(result)
            finally:
                if os.getpid() != self.process:  # it must not leave the parent's hooks
                    _end_handlers_child(row.type)
            if isinstance(result, _UNSTARTED_TYPES):
                raise _unstarted(result)
            return result

        async def call_async() -> Any:
            try:
                return await self._start(handler, row, payload)
            finally:
                if os.getpid() != self.process:
                    _end_handlers_child(row.type)

        if handler.is_coroutine:
            return around.call_async(hooks, job, call_async)
        return around.call(hooks, job, call)

    def _finish(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        if self._loop is None:
            try:
                self._loop = load(_one_loop)()
            except OSError as e:
                coroutine.close()
                raise Refused("an event loop") from e
        return self._loop.run(coroutine)

    def close(self) -> None:
        """Close the event loop, if a handler needed one."""
        if self._loop is not None and os.getpid() == self.process:
            self._loop.close()
        self._loop = None

    def _raised(self, handler: Handler, state: states.State, error: BaseException) -> Outcome:
        if isinstance(error, Delay):
            return self._delayed(handler, state, error)
        if isinstance(error, Fail):
            return "failed", states.fail(state, describe(error)), Details(error)
        if isinstance(error, ResultLost):
            return _not_kept(state, error.__cause__ or error)
        if self.interrupts.caused(error):
            return INTERRUPTED, None, NO_DETAILS
        return self.failed(handler, state, describe(error), Details(error))

    def failed(
        self,
        handler: Handler | None,
        state: states.State,
        error: str,
        details: Details = NO_DETAILS,
    ) -> Outcome:
        """Return the outcome of an error: a retry, or "failed" if no attempt is left.

        `error` is escaped.
        """
        if state.attempts >= self.policies.limit_of(handler):
            return "failed", states.fail(state, error), details
        run_at = states.retry_at(self.clock(), self.policies.wait_of(handler, state.attempts))
        return "retried", states.retry(state, error, run_at), details

    def _not_started(self, state: states.State, what: str, error: BaseException) -> Outcome:
        """Return the outcome of a job that wasn't started because the system refused `what`.

        It is a delay of a few seconds, so that a pass that lingers doesn't try all the time.
        """
        self.refused = not_started(what, error)
        reason = escape(str(self.refused.strerror)[:MAX_ERROR])
        return (
            "delayed",
            states.delay(state, reason, states.later(self.clock(), _REFUSED_SECONDS)),
            NO_DETAILS,
        )

    def _delayed(self, handler: Handler, state: states.State, delay: Delay) -> Outcome:
        now = self.clock()
        try:
            when, reason = delay.when, "".join((str(delay.reason),))[:MAX_ERROR]
            if hasattr(when, "total_seconds"):
                when = when.total_seconds()
            if isinstance(when, (int, float)) and not isinstance(when, bool):
                when = now + min(max(when, 0), 2 * states.LATEST)
            run_at = max(check_instant(when, "Delay"), states.later(now, 0))
        except BaseException as e:  # noqa: BLE001 - the handler's values may raise anything
            return self.failed(handler, state, describe(e))
        return "delayed", states.delay(state, escape(reason), run_at), NO_DETAILS

    def _returned(self, state: states.State, result: object) -> Outcome:
        if result is None:
            return "completed", states.complete(state, ""), NO_DETAILS
        try:
            text = encode_json(result, self.max_result)
            return "completed", states.complete(state, text), NO_DETAILS
        except BaseException as e:  # noqa: BLE001 - the work is done: it must not run again
            return _not_kept(state, e)


def _not_kept(state: states.State, error: BaseException) -> Outcome:
    """Return the outcome of a job whose result can't be kept, and why."""
    reason = escape("result not kept: ") + describe(error)
    return "completed", states.complete(state, "", reason), NO_DETAILS


def own_context() -> Context:
    """Return a context for one job: context variables that it sets don't reach the next job."""
    context = copy_context()
    if "decimal" in sys.modules:
        context.run(_copy_decimal_context)
    return context


def _copy_decimal_context() -> None:
    """Give this job its own decimal context: a handler may change the precision in it."""
    decimal = sys.modules.get("decimal")
    if decimal is not None and (set_context := getattr(decimal, "setcontext", None)):
        set_context(decimal.getcontext().copy())


def _unstarted(result: object) -> TypeError:
    """Return the error for a handler that has returned a generator: none of its code has run."""
    if isinstance(result, GeneratorType):
        result.close()
    return TypeError(
        f"the handler returned a {type(result).__name__}, which has not started: "
        "give a function, or a coroutine function"
    )


def _end_handlers_child(job_type: str) -> None:
    """End a forked child in which a handler has returned."""
    end_child(f"the handler for {escape(job_type)}")


def end_child(function: str) -> None:
    """End a forked child in which a function has returned: it must not become a second worker."""
    text = f"{function} returned in a child that it had forked; that child ends now\n"
    try:
        os.write(2, b"dbbasic_queue: " + text.encode())
    finally:
        os._exit(1)


def _time_limit() -> ModuleType:
    from dbbasic_queue.passes import time_limit

    return time_limit


def _load_around() -> ModuleType:
    from dbbasic_queue.passes import around

    return around


def _one_loop() -> type[OneLoop]:
    from dbbasic_queue.passes.event_loop import OneLoop

    return OneLoop
