"""Calls the hooks of a pass, after the outcome is on the disk, counted and logged.

- Whatever a hook does, the outcome stays and the pass goes on: an exception of any kind is logged.
- Like a handler, a hook runs in a context of its own, and Ctrl-C interrupts it. The pass then ends
  after the other hooks of that job.
"""

from __future__ import annotations

import os

from dbbasic_queue.handlers import Job
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.jsontext import decode_json
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.attempt import end_child, own_context
from dbbasic_queue.passes.hooks import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State
    from dbbasic_queue.passes.hooks import Hooks
    from dbbasic_queue.passes.signals import Interrupts


class HookCalls:
    """Calls the hooks for the jobs of one pass; `path` is that of its queue."""

    def __init__(self, hooks: Hooks, path: str, interrupts: Interrupts) -> None:
        self._hooks = hooks
        self._path = path
        self._interrupts = interrupts
        self._process = os.getpid()

    def ended(self, outcome: str, row: Row, state: State) -> None:
        """Call the hooks for an attempt that has ended, by its outcome and the recorded state.

        There are none for jobs that were delayed or stopped.
        """
        hooks = self._hooks
        if outcome == "completed":
            if hooks.on_success:
                self._call("on_success", hooks.on_success, row, _result(state))
        elif outcome == "failed":
            if hooks.on_failure:
                self._call("on_failure", hooks.on_failure, row, unescape(state.error))
        elif outcome == "retried" and hooks.on_retry:
            self._call("on_retry", hooks.on_retry, row, unescape(state.error), state.run_at)

    def _call(self, kind: str, hooks: list[Callable[..., object]], row: Row, *facts: Any) -> None:
        for hook in hooks:
            try:
                self._call_one(hook, Job(row, self._path), *facts)
            except BaseException as e:  # noqa: BLE001 - sys.exit, too: the outcome is recorded
                if self._interrupts.raised(e):
                    continue  # the pass ends after these hooks, and raises it
                if log := log_lines.logger():
                    log_lines.hook_failed(log, kind, name_of(hook), row.id, row.type, e)

    def _call_one(self, hook: Callable[..., object], *arguments: Any) -> None:
        try:
            context = own_context()
            self._interrupts.in_handler = getattr(hook, "may_be_interrupted", True)
            context.run(hook, *arguments)
        finally:
            self._interrupts.in_handler = False
            if os.getpid() != self._process:
                end_child(f"the hook {name_of(hook)}")


def _result(state: State) -> Any:
    """Return the result as `get_job` does; None if it wasn't kept."""
    return decode_json(state.result) if state.result else None
