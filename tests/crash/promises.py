"""What the log of a run promises: which jobs were enqueued, acknowledged, started and reported."""

from __future__ import annotations

from time import gmtime, strftime
from typing import Any

from bench import SCHEDULES, START
from disk import FINAL, instant_of

CHANGES = ("requeue", "remove", "archive")
"""the operations on finished jobs"""


def is_scheduled(key: str) -> bool:
    """Return whether a key is that of a job that a schedule has added."""
    return key.partition(".")[0] in SCHEDULES


class Promises:
    """The promises in a log: which jobs were enqueued, acknowledged, started and reported."""

    def __init__(self, events: list[list[Any]]) -> None:
        self.events = events
        self.called: dict[str, Any] = {}
        """key -> `run_at`, or None for at once, of each job whose enqueue was called"""
        self.kept: dict[str, str] = {}
        """key -> id of each job that must be in the queue: its enqueue was acknowledged"""
        self.key_of: dict[str, str] = {}
        """id -> key"""
        self.removed: set[str] = set()
        """keys of the jobs whose removal was acknowledged, or is known to be made"""
        self.paused: set[str] = set()
        """keys of the jobs whose type is certainly paused"""
        self.archived: set[str] = set()
        self.requeued: dict[str, int] = {}
        """key -> how often it was requeued"""
        self.underway: dict[int, tuple[str, list[str]]] = {}
        """pid -> a change of finished jobs that was called and has not ended"""
        self.made_despite_error: list[tuple[str, str]] = []
        """(operation, message) of changes that were made though the call raised"""
        self.cancelled: set[str] = set()
        """keys of the jobs whose cancel was acknowledged"""
        self.stopping: dict[str, int] = {}
        """key -> how often a job may be started, once a stop of it was acknowledged while it was
        claimed: one more time if it wasn't running yet"""
        self.versions: dict[str, set[int]] = {}
        """key -> the versions that the job's payload may have, if it was edited"""
        self.edited: dict[str, int] = {}
        """key -> the version of its last edit that was acknowledged"""
        self.raised: list[tuple[list[str], str, list[Any]]] = []
        """(keys, operation, the error as in the log) of each call that raised"""
        self.had: dict[str, int] = {}
        """key -> attempts before the log was started, less those that a requeue has reset"""
        self.returned: dict[str, int] = {}
        """key -> attempts that were certainly returned, because a delay was recorded"""
        self.delayed: dict[str, int] = {}
        """key -> attempts that raised Delay, and whose outcome isn't reported"""
        self.starts: dict[str, int] = {}
        """key -> how often its handler was entered"""
        self.starts_under_error: dict[str, int] = {}
        """the same, only while calls failed"""
        self.starts_by: dict[int, set[str]] = {}
        """pid -> keys of the jobs that it has started"""
        self.outcomes: dict[str, tuple[str, int]] = {}
        """id -> the last known status and its attempt, which is -1 if a reader saw the status"""
        self.now: float = START
        """the clock, in Unix seconds"""
        self.latest: float = START
        """the latest time that it ever had"""
        self.has_schedules = False
        self.scheduled_from: float | None = None
        """the clock when the first pass had returned that has schedules: later instants are due"""
        self.scheduled_to: float = 0
        """the clock when the last one had returned: earlier instants were added"""
        self.error_is_over = False
        self.wrong: list[str] = []
        """the promises that the log itself shows to be broken, as in `checks`"""
        self._editing: dict[tuple[int, str], tuple[set[int], int]] = {}
        """pid and key -> the versions before a call that was made, and its version"""
        self._running: dict[str, int] = {}
        self._under_error = False
        for pid, what, *rest in events:
            read = getattr(self, f"_read_{what}", None)
            if read is not None:
                read(pid, *rest)

    def _read_call(self, pid: int, keys: str, operation: str, run_at: float | None) -> None:
        if operation == "enqueue":
            self.called[keys] = run_at
        elif operation == "edit":
            before = self.versions.get(keys, {0})
            self._editing[pid, keys] = before, int(run_at or 0)
            self.versions[keys] = before | {int(run_at or 0)}
        elif operation in CHANGES:
            self.underway[pid] = operation, keys.split()
        elif operation == "resume":
            self.paused.difference_update(keys.split())

    def _read_done(self, pid: int, keys: str, operation: str, value: Any) -> None:
        if operation == "enqueue":
            self._keep(keys, value)
        elif operation == "enqueue_many":
            for key, job_id in zip(keys.split(" "), value, strict=True):
                self._keep(key, job_id)
        elif (operation == "cancel" and value is True) or (
            operation == "stop" and value == "cancelled"
        ):
            self.cancelled.add(keys)
        elif operation == "pass" and self.has_schedules:
            self.scheduled_to = max(self.scheduled_to, self.now)
            if self.scheduled_from is None:
                self.scheduled_from = self.now
        elif operation == "stop" and value == "processing":
            self.stopping[keys] = self.starts.get(keys, 0) + (keys not in self._running)
        elif operation == "edit":
            before, version = self._editing.pop((pid, keys))
            self.versions[keys] = {version} if value else before
            self.edited[keys] = version if value else self.edited.get(keys, 0)
        elif operation == "pause":
            self.paused.update(keys.split())
        elif operation in CHANGES:
            if value != len(keys.split()):
                self.wrong.append(f"P2: {operation} of {keys!r} returned {value!r}")
            self.underway.pop(pid, None)
            self._change(keys, operation)

    def _keep(self, key: str, job_id: str) -> None:
        self.kept[key] = job_id
        self.key_of[job_id] = key

    def _read_raised(self, pid: int, keys: str, operation: str, *error: Any) -> None:
        self.raised.append((keys.split(" "), operation, list(error)))
        if operation in CHANGES:
            self.underway.pop(pid, None)

    def _read_made(self, _: int, keys: str, operation: str, made: bool) -> None:
        killed = [pid for pid, what in self.underway.items() if what == (operation, keys.split())]
        for pid in killed:
            del self.underway[pid]
        if not killed:
            self.made_despite_error.append((operation, self.raised[-1][2][-1]))
        if made:
            self._change(keys, operation)

    def _change(self, keys: str, operation: str) -> None:
        """Forget what was promised about jobs that are requeued or removed."""
        for key in keys.split():
            self.outcomes.pop(self.kept.get(key, key), None)
            self.cancelled.discard(key)
            self.stopping.pop(key, None)
            if operation == "requeue":
                self.called[key] = None  # it is due now
                self.had[key] = self.had.get(key, 0) - self.started(key)
                self.delayed.pop(key, None)
                self.requeued[key] = self.requeued.get(key, 0) + 1
            else:
                self.kept.pop(key, None)
                self.removed.add(key)
            if operation == "archive":
                self.archived.add(key)

    def _read_start(self, pid: int, key: str, now: float, version: int) -> None:
        self.starts[key] = self.starts.get(key, 0) + 1
        if version not in self.versions.get(key, {0}):
            self.wrong.append(f"P2: {key} is started with payload {version}: {self.versions[key]}")
        self.starts_by.setdefault(pid, set()).add(key)
        if self._under_error:
            self.starts_under_error[key] = self.starts_under_error.get(key, 0) + 1
        if key in self._running:
            self.wrong.append(f"P4: {key} is started by {pid} while {self._running[key]} runs it")
        self._running[key] = pid
        if key in self.cancelled:
            self.wrong.append(f"P2: {key} is started after its acknowledged cancel")
        if key in self.stopping and self.starts[key] > self.stopping[key]:
            self.wrong.append(f"P2: {key} is started again after a request to stop it")
        job_id = self.kept.get(key, key)
        if self.outcomes.get(job_id, ("", 0))[0] in FINAL:
            self.wrong.append(f"P2: {key} is started after its reported {self.outcomes[job_id][0]}")
        if key in self.paused:
            self.wrong.append(f"P2: {key} is started while its type is paused")
        if key in self.removed:
            self.wrong.append(f"P2: {key} is started after its removal")
        too_early = now < (self.called.get(key) or 0)
        if is_scheduled(key):  # if the clock was set back after it was added, it is pulled in
            too_early = self.latest < instant_of(key.partition(".")[2])
        if too_early:
            self.wrong.append(f"P1: {key} is started before its time")

    def _read_attempts(self, _: int, key: str, attempts: int) -> None:
        self.had[key] = attempts

    def started(self, key: str) -> int:
        """Return how many attempts of a job were started, not counting those surely returned."""
        return self.had.get(key, 0) + self.starts.get(key, 0) - self.returned.get(key, 0)

    def started_at_least(self, key: str) -> int:
        """Return the same number without attempts that may have been returned."""
        return self.started(key) - self.delayed.get(key, 0)

    def _read_delay(self, _: int, key: str) -> None:
        self.delayed[key] = self.delayed.get(key, 0) + 1

    def _read_end(self, _: int, key: str) -> None:
        self._running.pop(key, None)

    def _read_outcome(self, _: int, job_id: str, name: str, status: str, attempt: int) -> None:
        self.outcomes[job_id] = (status, attempt)
        key = self.key_of.get(job_id, job_id)
        if name == "delayed":
            self.returned[key] = self.returned.get(key, 0) + 1
            self.delayed[key] -= 1

    def _read_final(self, _: int, job_id: str, status: str) -> None:
        self.outcomes[job_id] = (status, -1)

    def _read_clock(self, _: int, now: float) -> None:
        self.now = now
        self.latest = max(self.latest, now)

    def _read_schedules(self, _: int) -> None:
        self.has_schedules = True

    def scheduled(self) -> set[str]:
        """Return the keys of the scheduled jobs that were certainly added."""
        if self.scheduled_from is None:
            return set()
        return {
            f"{name}.{strftime('%Y%m%dT%H%M%SZ', gmtime(instant))}"
            for name, seconds in SCHEDULES.items()
            for instant in range(seconds, int(self.scheduled_to) + 1, seconds)
            if instant > self.scheduled_from
        }

    def may_be_scheduled(self, key: str) -> bool:
        """Return whether a key is that of one of the schedules' instants."""
        if not self.has_schedules or not is_scheduled(key):
            return False
        name, _, stamp = key.partition(".")
        return instant_of(stamp) > START and instant_of(stamp) % SCHEDULES[name] == 0

    def _read_dead(self, _: int, pid: int) -> None:
        self._running = {key: who for key, who in self._running.items() if who != pid}

    def _read_error(self, _: int, __: str) -> None:
        self._under_error = True

    def _read_over(self, _: int) -> None:
        self._under_error = False
        self.error_is_over = True

    def _read_wrong(self, _: int, text: str) -> None:
        self.wrong.append(text)
