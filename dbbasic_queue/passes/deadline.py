"""Waits for a call, but not longer than a deadline: for calls to other servers.

A timeout of a socket isn't enough. It starts again with each byte, and a name server that doesn't
answer isn't subject to it.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def within(seconds: float, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in a thread of its own, and raise what it raises.

    Raises TimeoutError if it has not returned after `seconds`: the thread, a daemon, goes on. If
    the system refuses a thread, the function is called in this one.
    """
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as e:  # noqa: BLE001 - the caller raises it
            raised.append(e)

    thread = threading.Thread(target=call, name="queue-call", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        function(*arguments)
        return
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if raised:
        raise raised.pop()
