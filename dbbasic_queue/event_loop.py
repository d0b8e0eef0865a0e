"""One event loop for the coroutines of a pass that runs one job at a time.

It is the same for every job of the pass, so a client that a handler keeps open stays usable; what
a job leaves running on it is cancelled before the next one begins, as `asyncio.run` does.
"""

from __future__ import annotations

import asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any


class OneLoop:
    """Runs one coroutine after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns, or raise what it raises."""
        try:
            return self._loop.run_until_complete(coroutine)
        finally:
            coroutine.close()  # where it could not begin: another loop runs in this thread
            cancel_all(self._loop)

    def close(self) -> None:
        """Close the loop."""
        try:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


def cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs on a loop that stands still, and let it end."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
