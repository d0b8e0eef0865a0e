"""Collects failed jobs, and sends one digest about them when the pass ends.

- Collecting a job only changes memory, so it never delays the recording of an outcome. A daemon
  thread sends. It starts with the first failure, and sleeps until that is a minute old, or until
  the pass ends: then all outcomes are recorded, the journal is folded and the slot is released.
- A digest that can't be sent is logged, and its jobs are in the next one. A long-running pass tries
  again by itself, after 1, 2, 4 and up to 64 minutes, but at most a minute after another failure.
  At the end of the process the digest is lost.
- One of several forked passes sends nothing. It writes each failure to the pipe of its report, and
  the supervisor collects it: so it isn't lost if the pass is killed later. If the pipe is full,
  because the supervisor is stopped, the pass goes on, and its thread writes the failures.
- A digest has the first jobs and the number of all, so its size is limited.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from weakref import WeakValueDictionary

from dbbasic_queue.lazy import load
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.deadline import within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypedDict

    from dbbasic_queue.handlers import Job

    class Failure(TypedDict):
        """A job that has failed for good."""

        id: str
        type: str
        attempts: int
        error: str


LISTED = 20
"""how many jobs a digest lists; the others are only counted"""
_QUIET_SECONDS = 60.0
"""how long failures are collected, unless the pass ends before"""
_LONGEST_RETRY_SECONDS = 64 * 60.0
_FORWARD_SECONDS = 0.5
"""the same in a forked pass, if its pipe is full"""
_SEND_SECONDS = 20.0
"""how long one digest may take"""
_FLUSH_SECONDS = 30.0
"""how long the end of a pass waits for all digests"""

_numbers = itertools.count(1)
_digests: WeakValueDictionary[int, Digest] = WeakValueDictionary()
"""number -> digest; a forked pass and its supervisor know a digest by its number"""


class Failures:
    """Failed jobs of one queue: the first LISTED of them, and how many there are."""

    def __init__(self) -> None:
        self.first: list[Failure] = []
        self.count = 0

    def add(self, first: list[Failure], count: int) -> None:
        """Add `count` jobs, of which `first` has the first ones."""
        self.first += first[: max(LISTED - len(self.first), 0)]
        self.count += count


class Digest:
    """An `on_failure` hook that collects the failed jobs. Subclasses define `send`.

    It isn't interrupted by signals: that could leave its lock held, and it only changes memory.

    What it has collected belongs to one process: a forked child starts without any. A copy by
    `pickle` does, too.
    """

    may_be_interrupted = False

    def __init__(self) -> None:
        self._number = next(_numbers)
        _digests[self._number] = self
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._change = threading.Condition()
        """held to read or change the rest, and notified of each change"""
        self._collected: dict[str, Failures] = {}
        """a queue's path -> its failed jobs that aren't sent yet"""
        self._sending: dict[str, Failures] = {}
        """the same for those that are being sent"""
        self._flushed: set[str] = set()
        """the queues whose passes have ended: their jobs are sent without waiting"""
        self._thread: threading.Thread | None = None
        self._due_at = 0.0
        """when to send the rest, on the monotonic clock"""
        self._tries = 0
        """how many tries have failed since the last success"""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Digest.__init__(self)
        self.__dict__.update(state)

    def send(self, queue: str, failed: list[Failure], count: int) -> None:
        """Send one digest: `count` jobs have failed, and `failed` are the first of them.

        Raises an exception if it isn't certain that the digest was received.
        """
        raise NotImplementedError

    def title(self) -> str:
        """Return what is sent, and to whom, for the log: it has no secret."""
        raise NotImplementedError

    def __call__(self, job: Job, error: str) -> None:
        """Collect a job that has failed for good."""
        failure: Failure = {
            "id": job.id,
            "type": job.type,
            "attempts": job.attempt,
            "error": error,
        }
        self.collect(job._queue, [failure], 1)

    def collect(self, queue: str, first: list[Failure], count: int) -> None:
        """Add failed jobs of a queue, as for `send`. They are sent later, by a thread."""
        with self._state():
            pipe = self._pipe()
            if pipe is not None and pipe.write_now(self._number, queue, first, count):
                return
            wait = _QUIET_SECONDS if pipe is None else _FORWARD_SECONDS
            due_at = time.monotonic() + wait
            self._due_at = min(self._due_at, due_at) if self._collected else due_at
            self._collected.setdefault(queue, Failures()).add(first, count)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="queue-digest", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return  # no thread: the end of the pass sends it
                self._thread = thread

    def _state(self) -> threading.Condition:
        """Return the condition that guards the state. In a forked child, start without any."""
        if self._process != os.getpid():
            self._forget()
        return self._change

    def start_flush(self, queue: str) -> bool:
        """Make the thread send the failed jobs of a queue now.

        Returns False if there are none. Without a thread, they are sent by the time it returns.
        """
        with self._state():
            if queue not in self._collected and queue not in self._sending:
                return False
            self._flushed.add(queue)
            self._change.notify_all()
            has_thread = self._thread is not None
        if not has_thread:
            self._send_next(wait=False)
        return True

    def end_flush(self, queue: str, seconds: float) -> None:
        """Wait until the thread has sent them, or has failed to; log it if that takes too long."""
        with self._change:
            if not self._change.wait_for(lambda: self._is_flushed(queue), seconds) and (
                log := log_lines.logger()
            ):
                log_lines.slow_digest(log, self.title(), _FLUSH_SECONDS)
            self._flushed.discard(queue)

    def _is_flushed(self, queue: str) -> bool:
        is_left = queue in self._collected or queue in self._sending
        return not is_left or queue not in self._flushed

    def _run(self) -> None:
        while self._send_next(wait=True):
            pass

    def _send_next(self, *, wait: bool) -> bool:
        """Wait until it is time to send, then try to send; return False if nothing is left.

        Jobs whose digest couldn't be sent are collected again.
        """
        with self._change:
            while not self._take() and wait and self._collected:
                self._change.wait(self._due_at - time.monotonic())
            if not self._sending:
                self._thread = None
                return False
            flushed = self._flushed & self._sending.keys()
        kept = {queue: f for queue, f in self._sending.items() if not self._is_sent(queue, f)}
        with self._change:
            self._tries = self._tries + 1 if kept else 0
            for queue, newer in self._collected.items():
                kept.setdefault(queue, Failures()).add(newer.first, newer.count)
            self._collected = kept
            self._sending = {}
            wait_seconds = _QUIET_SECONDS * 2 ** min(max(self._tries - 1, 0), 6)
            self._due_at = time.monotonic() + min(wait_seconds, _LONGEST_RETRY_SECONDS)
            self._flushed -= flushed
            self._change.notify_all()
        return True

    def _take(self) -> bool:
        """Move the jobs that it is time to send to `_sending`; return whether there are any."""
        is_due = time.monotonic() >= self._due_at
        for queue in list(self._collected):
            if is_due or queue in self._flushed:
                self._sending[queue] = self._collected.pop(queue)
        return bool(self._sending)

    def _is_sent(self, queue: str, failures: Failures) -> bool:
        """Send one digest; log it and return False if that fails."""
        try:
            pipe = self._pipe()
            if pipe is not None:
                pipe.write(self._number, queue, failures.first, failures.count)
            else:
                within(_SEND_SECONDS, self.send, queue, failures.first, failures.count)
        except BaseException as e:  # noqa: BLE001 - whatever it is, the thread goes on
            if log := log_lines.logger():
                reason = load(_describe)(e)
                log_lines.not_sent(log, self.title(), failures.count, queue, reason)
            return False
        return True

    def _pipe(self) -> Pipe | None:
        """Return the pipe to the supervisor that has this digest, too; None if there is none."""
        pipe = _to_supervisor
        return pipe if pipe is not None and pipe.leads_to(self._number) else None


def flush(queues: Iterable[str]) -> None:
    """Send what was collected about queues in this process; wait for it, at most 30 seconds."""
    end = time.monotonic() + _FLUSH_SECONDS
    waiting = [
        (digest, queue)
        for digest in list(_digests.values())
        for queue in queues
        if digest.start_flush(queue)
    ]
    for digest, queue in waiting:
        digest.end_flush(queue, max(end - time.monotonic(), 0))


# -- several forked passes: only their supervisor sends


class Pipe:
    """The pipe from a forked pass to its supervisor; `fd` is its end in this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._process = os.getpid()
        self._numbers = frozenset(_digests)
        self._writing = threading.Lock()

    def leads_to(self, number: int) -> bool:
        """Return whether the supervisor has this digest, and this process writes to the pipe."""
        return number in self._numbers and self._process == os.getpid()

    def write(self, number: int, queue: str, first: list[Failure], count: int) -> None:
        """Write failures as one line of JSON. Raises OSError if the supervisor is dead."""
        left = memoryview(_line(number, queue, first, count))
        with self._writing:
            while left:
                left = left[os.write(self._fd, left) :]

    def write_now(self, number: int, queue: str, first: list[Failure], count: int) -> bool:
        """Write failures if that doesn't have to wait; return whether they were written."""
        line = _line(number, queue, first, count)
        if len(line) > select.PIPE_BUF or not self._writing.acquire(blocking=False):
            return False
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            # If the pipe is ready, it has space for PIPE_BUF bytes.
            is_ready = poll.poll(0) == [(self._fd, select.POLLOUT)]
            return is_ready and os.write(self._fd, line) == len(line)
        except OSError:
            return False
        finally:
            self._writing.release()

    def end(self) -> None:
        """Write no more lines; returns when a line that is being written is complete."""
        self._writing.acquire()


def _line(number: int, queue: str, first: list[Failure], count: int) -> bytes:
    line = {"digest": number, "queue": queue, "failed": first, "count": count}
    return load(_to_json)(line).encode() + b"\n"


_to_supervisor: Pipe | None = None


def forward(fd: int) -> Pipe:
    """In a forked pass: write failures to this pipe from now on, instead of sending them."""
    global _to_supervisor
    _to_supervisor = Pipe(fd)
    return _to_supervisor


def receive(line: dict[str, Any]) -> str:
    """In the supervisor: collect what a forked pass has written. Returns the queue's path."""
    queue: str = line["queue"]
    digest = _digests.get(line["digest"])
    if digest is not None:
        digest.collect(queue, line["failed"], line["count"])
    return queue


# -- imported when a job has failed


def _to_json() -> Callable[[object], str]:
    import json

    return json.dumps


def _describe() -> Callable[[BaseException], str]:
    from dbbasic_queue.passes.attempt import describe

    return describe
