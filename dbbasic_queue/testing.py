"""For tests of programs that use a queue: a clock that the test moves, and a queue with that clock.

The pytest fixture `job_queue` returns a `JobQueue`. It works without pytest, too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dbbasic_queue.jobqueue import MAX_ATTEMPTS, Queue
from dbbasic_queue.model.jsontext import MAX_PAYLOAD, decode_json, encode_json
from dbbasic_queue.model.states import PENDING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dbbasic_queue.model.jobdict import JobDict

MOST_PASSES = 1000
_SHOWN = 20


class Clock:
    """A clock that stands still until the test moves it; a call returns `now`, in Unix seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.now!r})"

    def move(self, seconds: float) -> None:
        """Move the clock forward by that many seconds, or back by a negative number."""
        self.now += seconds


class Redirected:
    """Makes queues read an attribute of another queue, `to`, instead of their own.

    Queues in memory, and queues whose file is below the directory `except_below`, keep their own.
    It is a data descriptor of the class, so it hides the queues' own attribute of that name.
    """

    def __init__(self, name: str, to: Queue, except_below: str) -> None:
        self._name = name
        self._to = to
        self._kept = os.path.join(os.path.realpath(except_below), "")

    def __get__(self, queue: Queue | None, owner: type[Queue]) -> Any:
        if queue is None:
            return self
        path: str = queue.__dict__["path"]
        is_shared: bool = queue.__dict__["store"].is_shared
        is_redirected = is_shared and not path.startswith(self._kept)
        return (self._to if is_redirected else queue).__dict__[self._name]

    def __set__(self, queue: Queue, value: Any) -> None:
        queue.__dict__[self._name] = value


REDIRECTED = ("path", "store", "now")
"""The attributes that make a queue use another one's jobs and clock."""


class JobQueue(Queue):
    """A queue in a text file, with a clock that stands still, and assertions about its jobs.

    It doesn't wait for the disk (`fsync=False`). A `connection` is accepted, and has no effect: the
    job is there at once.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        super().__init__(path, fsync=False, clock=clock)
        self.store.__dict__["within"] = lambda _: self.store
        self.clock = clock

    def run_all(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        max_attempts: int = MAX_ATTEMPTS,
        *,
        skip_unknown: bool = False,
    ) -> dict[str, int]:
        """Run jobs, with their retries and delays, until none is left; without waiting.

        If no job is due, the clock moves to the next `run_at`. Schedules add the jobs that are due
        at the call. Those that become due while the clock moves are left to the next call, because
        a schedule has no end. Returns the sums of the counts of `process_jobs`. Raises
        AssertionError, and shows the remaining jobs, after 1,000 passes.
        """
        sums: dict[str, int] = {}
        for number in range(MOST_PASSES):
            how = {"skip_unknown": skip_unknown, "with_schedules": number == 0}
            done = self._pass(handlers, max_attempts, 1, **how).run()
            sums = {name: sums.get(name, 0) + n for name, n in done.items()}
            if any(done.values()):
                continue
            later = [job["run_at"] for job in self.jobs(PENDING) if job["run_at"] > self.clock.now]
            if not later:
                return sums
            self.clock.now = min(later)
        raise AssertionError(
            f"the jobs never end: after {MOST_PASSES} passes these jobs are left; one of "
            f"them keeps delaying itself, or enqueuing another:\n{_listed(self.jobs(PENDING))}"
        )

    def enqueued(self, job_type: str, /, *payload: Any, **members: Any) -> list[JobDict]:
        """Return the jobs of a type that were enqueued, in any status.

        A `payload` selects the jobs with exactly this payload (None is `{}`, as in `enqueue`);
        `members` select those whose payload is an object with at least these members.
        """
        if len(payload) > 1:
            raise TypeError("give one payload, or some of its members by name")
        whole = [_as_kept({} if value is None else value) for value in payload]
        wanted = {name: _as_kept(value) for name, value in members.items()}
        return [
            job
            for job in self.jobs(job_type=job_type)
            if whole in ([], [job["payload"]])
            and (not wanted or _has_members(job["payload"], wanted))
        ]

    def assert_enqueued(self, job_type: str, /, *payload: Any, **members: Any) -> JobDict:
        """Return the first job that `enqueued` finds; raises AssertionError if there is none."""
        found = self.enqueued(job_type, *payload, **members)
        if not found:
            raise AssertionError(
                f"no job {_call(job_type, payload, members)} was enqueued; "
                f"these jobs were:\n{_listed(self.jobs())}"
            )
        return found[0]

    def assert_not_enqueued(self, job_type: str, /, *payload: Any, **members: Any) -> None:
        """Raise AssertionError if `enqueued` finds a job."""
        found = self.enqueued(job_type, *payload, **members)
        if found:
            raise AssertionError(
                f"a job {_call(job_type, payload, members)} was enqueued:\n{_listed(found)}"
            )


def _as_kept(value: Any) -> Any:
    """Return a payload as it is read back: a tuple becomes a list."""
    return decode_json(encode_json(value, MAX_PAYLOAD))


def _has_members(payload: Any, wanted: dict[str, Any]) -> bool:
    return isinstance(payload, dict) and all(
        name in payload and payload[name] == value for name, value in wanted.items()
    )


def _call(job_type: str, payload: tuple[Any, ...], members: dict[str, Any]) -> str:
    arguments = [repr(value) for value in payload]
    arguments += [f"{name}={value!r}" for name, value in members.items()]
    return f"{job_type}({', '.join(arguments)})"


def _listed(jobs: Any) -> str:
    lines = []
    for job in jobs:
        payload = repr(job["payload"])
        shown = payload if len(payload) <= 200 else payload[:200] + "..."
        error = f" {job['error']}" if job["error"] else ""
        lines.append(f"  {job['type']} {shown} {job['status']} at {job['run_at']}{error}")
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN} more"]
    return "\n".join(lines) or "  nothing"
