"""One event loop for the coroutines of a pass that runs one job at a time.

All jobs of the pass use the same loop, so a client that a handler keeps open stays usable. Tasks
that a job leaves running are cancelled before the next job starts, as `asyncio.run` does.

The functions also serve the loop of `concurrent`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Iterable
    from typing import Any


class OneLoop:
    """Runs one coroutine after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns, or raise what it raises.

        Raises RuntimeError if an event loop is already running in this thread.
        """
        try:
            if asyncio._get_running_loop() is not None:
                raise RuntimeError(
                    "the handler returned a coroutine, and an event loop is already running in "
                    "this thread: run the pass in a thread of its own (asyncio.to_thread)"
                )
            return self._loop.run_until_complete(coroutine)
        finally:
            coroutine.close()  # if it hasn't started
            cancel_all(self._loop)

    def close(self) -> None:
        """Close the loop."""
        if asyncio._get_running_loop() is None:
            with suppress(BaseException):
                _finish(self._loop, self._loop.shutdown_default_executor())
        close(self._loop)


def close(loop: asyncio.AbstractEventLoop, hidden: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Cancel the remaining tasks, and the `hidden` ones, and close the loop.

    Exceptions of these tasks are ignored: the pass goes on.
    """
    if asyncio._get_running_loop() is None:
        with suppress(BaseException):
            cancel_all(loop, hidden)
        with suppress(BaseException):
            _finish(loop, loop.shutdown_asyncgens())
    loop.close()


def hide(task: asyncio.Task[Any]) -> None:
    """Remove a task from `asyncio.all_tasks()`: a job that cancels those means only its own."""
    asyncio._unregister_task(task)


def cancel_all(loop: asyncio.AbstractEventLoop, hidden: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Cancel the tasks of a loop that isn't running, and run it until they have ended."""
    tasks = {*asyncio.all_tasks(loop), *hidden}
    for task in tasks:
        task.cancel()
    if tasks:
        _finish(loop, asyncio.gather(*tasks, return_exceptions=True))


def _finish(loop: asyncio.AbstractEventLoop, last: Awaitable[object]) -> None:
    """Run the loop until `last` has ended, even if tasks stop the loop or call `sys.exit`."""
    task = asyncio.ensure_future(last, loop=loop)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        with suppress(SystemExit):
            loop.run_forever()
