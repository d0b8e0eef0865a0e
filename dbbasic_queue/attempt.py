"""One attempt: a payload goes into a handler, an outcome comes out, whatever the handler does."""

from __future__ import annotations

import os
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from dbbasic_queue import job
from dbbasic_queue.handlers import Delay, Fail, Job
from dbbasic_queue.rows import MAX_ERROR, check_instant, encode_json, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.handlers import Handler
    from dbbasic_queue.interrupts import Interrupts
    from dbbasic_queue.rows import Row

    Outcome = tuple[str, job.State | None]

INTERRUPTED = "interrupted"
_NOT_BEGUN = (AsyncGeneratorType, CoroutineType, GeneratorType)


def describe(error: BaseException) -> str:
    """Return an exception as the `error` column holds it: one line, `ValueError: no such user`.

    A plain Exception, or Fail, gives its message alone, one without a message its type alone. At
    most 500 characters of the message are kept. One whose text raises is told by its type.
    """
    name = type(error).__name__
    try:
        message = "".join((str(error),))[: MAX_ERROR + 1]  # a plain str, whatever it was
    except BaseException as e:  # noqa: BLE001 - whatever it is, the pass must go on
        message = f"(its text cannot be had: {type(e).__name__})"
    if len(message) > MAX_ERROR:
        message = message[: MAX_ERROR - 1] + "…"
    if not message:
        return escape(name)
    return escape(message if type(error) in (Exception, Fail) else f"{name}: {message}")


class Attempts:
    """Runs attempts for one pass, under its policy."""

    def __init__(
        self,
        interrupts: Interrupts,
        max_attempts: int,
        max_result: int,
        clock: Callable[[], float],
    ) -> None:
        self.interrupts = interrupts
        self.max_attempts = max_attempts
        self.max_result = max_result
        self.clock = clock
        self.process = os.getpid()

    def run(self, handler: Handler | None, row: Row, payload: Any) -> Outcome:
        """Run the handler; return the outcome's name and the job's next state.

        INTERRUPTED, without a state, where the pass was asked to stop at once.
        """
        if handler is None:
            return self.failed(handler, row.state, f"No handler for {escape(row.type)}")
        try:
            result = self._call(handler, row, payload)
        except Delay as e:
            return self._delayed(handler, row.state, e)
        except Fail as e:
            return "failed", job.fail(row.state, describe(e))
        except BaseException as e:  # noqa: BLE001 - SystemExit, too, is the job's error
            if isinstance(e, KeyboardInterrupt) and self.interrupts.received:
                return INTERRUPTED, None
            return self.failed(handler, row.state, describe(e))
        return "completed", self._completed(row.state, result)

    def _call(self, handler: Handler, row: Row, payload: Any) -> Any:
        arguments = [payload]
        if handler.takes_job:
            arguments.append(Job(row.id, row.type, row.state.attempts, row.state.created_at))
        try:
            self.interrupts.in_handler = True
            result = handler.function(*arguments)
        finally:
            self.interrupts.in_handler = False
            if os.getpid() != self.process:
                _end_child(row.type)
        if isinstance(result, _NOT_BEGUN):
            if not isinstance(result, AsyncGeneratorType):
                result.close()
            raise TypeError(
                f"the handler returned a {type(result).__name__}, which has not begun: "
                "give a plain function"
            )
        return result

    def failed(self, handler: Handler | None, state: job.State, error: str) -> Outcome:
        """Return what an error makes of the job: a retry, or the end."""
        if state.attempts >= self.limit(handler):
            return "failed", job.fail(state, error)
        seconds = handler.wait(state.attempts) if handler else job.backoff(state.attempts)
        return "retried", job.retry(state, error, job.later(self.clock(), seconds))

    def limit(self, handler: Handler | None) -> int:
        """Return how many attempts a job of this handler has."""
        return (handler and handler.max_attempts) or self.max_attempts

    def _delayed(self, handler: Handler, state: job.State, delay: Delay) -> Outcome:
        now = self.clock()
        try:
            when, reason = delay.when, "".join((str(delay.reason),))[:MAX_ERROR]
            if isinstance(when, (int, float)) and not isinstance(when, bool):
                when = now + min(max(when, 0), 2 * job.LATEST)
            run_at = max(check_instant(when, "Delay"), job.later(now, 0))
        except BaseException as e:  # noqa: BLE001 - what it carries is the handler's, too
            return self.failed(handler, state, describe(e))
        return "delayed", job.delay(state, escape(reason), run_at)

    def _completed(self, state: job.State, result: object) -> job.State | None:
        if result is None:
            return job.complete(state, "")
        try:
            return job.complete(state, encode_json(result, self.max_result))
        except BaseException as e:  # noqa: BLE001 - the work is done: it must not run again
            return job.complete(state, "", escape("result not kept: ") + describe(e))


def _end_child(job_type: str) -> None:
    """End a process that a handler has forked and left: it must not become a second worker."""
    text = f"the handler for {escape(job_type)} came back in a forked child; it ends here\n"
    try:
        os.write(2, b"dbbasic_queue: " + text.encode())
    finally:
        os._exit(1)
