"""The jobs of a queue in Redis or Valkey, in RQ's keys: `backend` describes the methods.

RQ's tools see the jobs: `rq info` and dashboards count and show them, and our workers. `rq.lua`
says how they are kept. RQ's own workers can't run them, and what RQ's tools change is noticed when
a pass looks for due jobs, see `_Repair`: a job that they remove is removed, one that they cancel is
cancelled, one that they requeue is requeued, and any other is put back where it was.

Jobs that are due when they are added run in the order of adding; those that become due later run in
the order of `run_at`, after the jobs that were due before them.
"""

from __future__ import annotations

import math
import time
import uuid
from typing import TYPE_CHECKING

from dbbasic_queue import errors
from dbbasic_queue.engines import rq_jobs
from dbbasic_queue.engines.backend import (
    DEAD_SECONDS,
    MOVED,
    Change,
    LiveWorker,
    StoredRow,
    unique_key,
)
from dbbasic_queue.engines.redis_client import Client, News, parse_url, read_scripts
from dbbasic_queue.engines.store import EngineStore
from dbbasic_queue.model import states
from dbbasic_queue.model.records import decode_state
from dbbasic_queue.model.rows import Row
from dbbasic_queue.store.history import Attempt
from dbbasic_queue.store.protocol import Overview, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    from dbbasic_queue.engines.redis_client import Argument

_MOVED = b"the queue was moved"
"""the reply of a script that did nothing because of that"""
_ROWS_PER_SCRIPT = 500
_BYTES_PER_PAGE = 4 << 20
_DUE_PER_SCRIPT = 1000
_MOST_FEW = 10_000
"""how many jobs at most are looked up by their status: a script must not block others"""
_MOST_HISTORY = 100_000
_HISTORY_PER_SCRIPT = 512
_MOST_PUT_BACK = 10_000
_REPAIR_SECONDS = 1.0
"""how long after a repair the next one can be: RQ's tools may be changing jobs all the time"""


def open_store(url: str) -> EngineStore:
    """Return the store of the queue that a URL names; no connection is made yet.

    `url` is as redis-py takes it: `redis://[USER:PASSWORD@]HOST:PORT/NUMBER`, `rediss:` with TLS,
    `unix:///PATH`; `valkey:` and `valkeys:` mean the same. `?queue=NAME` chooses one of several
    queues. Raises NotAQueue for any other.
    """
    return EngineStore(RqBackend(url))


class RqBackend:
    """The jobs of one queue in Redis or Valkey."""

    def __init__(self, url: str) -> None:
        place = parse_url(url)
        self.name = place.name
        self.url = url
        self._queue = place.queue
        self._client = Client(place, _SCRIPTS)
        self._put_back: set[str] = set()
        """ids of jobs that were claimed and unclaimed here: `claim` may meet them again"""
        self._repairs_at = -math.inf  # on the monotonic clock

    def __reduce__(self) -> Any:
        """Let another process open the same queue, with connections of its own."""
        return RqBackend, (self.url,)

    def exists(self) -> bool:
        """Return whether the queue was ever used."""
        return bool(self._client.command("EXISTS", self._client.prefix + "meta"))

    def close(self) -> None:
        """Close all connections; the next call opens one again."""
        self._client.close()

    # -- jobs --

    def within(self, connection: Any) -> NoReturn:
        """Raise InvalidArgument: there is no transaction that a job could be part of."""
        raise errors.no_transaction(self.name)

    def add(self, rows: Sequence[Row], *, own_id: bool = False, anyway: bool = False) -> bool:
        """Add jobs, in this order, all or none; False if one of the ids is taken and `own_id`."""
        if not rows:
            return True
        batches: list[list[Argument]] = []
        for first, end in _ranges(len(rows), _ROWS_PER_SCRIPT):
            kind = "more" if batches else "own" if own_id else "random"
            batches.append([int(anyway), kind, end - first, *self._packed(rows[first:end])])
        if len(batches) == 1:
            added = self._client.change("add", *batches[0])
        else:
            added = self._client.change_together("add", batches)
        return bool(self._unless_moved(added) == b"1")

    def _unless_moved(self, reply: Any) -> Any:
        """Return a script's reply; raises QueueMoved if it says that the queue was moved."""
        if reply == _MOVED:
            raise errors.queue_moved(self.name, self.read(MOVED).decode())
        return reply

    def _packed(self, rows: Sequence[Row]) -> list[Argument]:
        """Return rows as arguments of a script: the fields that all of them have only once."""
        new = rq_jobs.NewJobs(self._queue, self._client.connection())
        places = [_place_of_new(row.state) for row in rows]
        fields = [new.fields(row, place) for row, place in zip(rows, places, strict=True)]
        common = set(fields[0].items()) if fields else set()
        for one in fields:
            common &= one.items()
        arguments = [2 * len(common), *_flat(common)]
        for row, place, one in zip(rows, places, fields, strict=True):
            arguments += [
                self._rq_id(row.id),
                self._rq_queue(row.type),
                place,
                row.state.run_at,
                int(row.state.attempts > 0),
                row.state.created_at,
                unique_key(row),
                2 * (len(one) - len(common)),
                *_flat(one.items() - common),
            ]
        return arguments

    def add_unless_pending(self, row: Row, *, anyway: bool = False) -> str | None:
        """Add a pending job, unless a pending one has the same `unique_key`; return its id."""
        packed = self._packed([row])
        found = self._unless_moved(
            self._client.change("add_unless_pending", int(anyway), unique_key(row), *packed)
        )
        return rq_jobs.own_id(found.decode()) if found else None

    def find(self, job_id: str) -> StoredRow | None:
        """Return the job, or None."""
        found = self._client.run("find", self._rq_id(job_id))
        return self._row(found) if found else None

    def find_many(self, job_ids: Sequence[str]) -> dict[str, StoredRow]:
        """Return job id -> the job, for those that exist."""
        found: dict[str, StoredRow] = {}
        for first, end in _ranges(len(job_ids), _ROWS_PER_SCRIPT):
            rows = self._client.run("some", *map(self._rq_id, job_ids[first:end]))
            found |= {row.id: row for row in map(self._row, rows)}
        return found

    def overview(self, now: float) -> Overview:
        """Return how many jobs there are, and which were due first."""
        processing, *queues = self._client.run("overview", _score_after(now))
        counts = {states.PROCESSING: processing}
        types = []
        for queue, pending, completed, failed, cancelled, due, later, *heads in queues:
            for status, count in (
                (states.PENDING, pending),
                (states.COMPLETED, completed),
                (states.FAILED, failed),
                (states.CANCELLED, cancelled),
            ):
                counts[status] = counts.get(status, 0) + count
            if pending:
                first = min(map(self._row, heads), key=_due_at, default=None)
                next_at = self._row(later).state.run_at if later else None
                types.append(Waiting(self._type(queue), pending, due, first, next_at))
        return Overview(counts, types, self._oldest)

    def _oldest(self) -> float | None:
        return next(map(_due_at, self._rows(states.FINISHED, bytes_per_page=0)), None)

    def rows(
        self,
        statuses: Collection[str] = states.STATUSES,
        job_type: str | None = None,
        *,
        only_errors: bool = False,
    ) -> Iterator[StoredRow]:
        """Yield the jobs with one of the statuses, in the order of `add`."""
        if tuple(statuses) == (states.PROCESSING,):
            yield from map(self._row, self._client.run("processing"))
            return
        queue = "" if job_type is None else self._rq_queue(job_type)
        few = None
        if states.COMPLETED not in statuses:
            few = self._client.run("placed", _MOST_FEW, queue, *_places(statuses))
        if few is None:
            yield from self._rows(statuses, queue, only_errors=only_errors)
            return
        for first, end in _ranges(len(few), _ROWS_PER_SCRIPT):
            for row in map(self._row, self._client.run("some", *few[first:end])):
                if row.state.status in statuses and (row.state.error or not only_errors):
                    yield row

    def _rows(
        self,
        statuses: Collection[str],
        queue: str = "",
        *,
        only_errors: bool = False,
        bytes_per_page: int = _BYTES_PER_PAGE,
    ) -> Iterator[StoredRow]:
        """Look at all jobs for those that are wanted."""
        places = _places(statuses)
        after, last = b"0", b""
        while True:
            last, after, *rows = self._client.run(
                "rows", after, last, bytes_per_page, queue, int(only_errors), *places
            )
            yield from map(self._row, rows)
            if not after:
                return

    def change(self, changes: Sequence[Change], *, again: bool = False) -> list[bool]:
        """Make each change whose job still has the version that was read; return which were."""
        if not changes:
            return []
        arguments: list[Argument] = []
        for change in changes:
            arguments += self._change_arguments(change)
        which = [(change.row.id, change.row.version) for change in changes]
        made = self._client.change("change", len(changes), *arguments, which=which, again=again)
        return [one == ord("1") for one in made]

    def _change_arguments(self, change: Change) -> list[Argument]:
        row, state, payload = change
        fields: dict[str, Any] = {}
        target, run_at, is_retry, unique = "removed", 0, False, ""
        if payload is not None:
            target, fields = "keep", {"q_payload": payload}
            unique = unique_key(Row(row.id, row.type, payload, row.state))
        elif state is not None:
            target = self._target(row, state)
            fields = rq_jobs.state_fields(state, "started" if target == "keep" else target)
            run_at, is_retry = state.run_at, state.attempts > 0
        flat = _flat(fields.items())
        first: list[Argument] = [
            self._rq_id(row.id),
            row.version,
            target,
            run_at,
            int(is_retry),
            unique,
        ]
        return [*first, len(flat), *flat]

    def _target(self, row: StoredRow, state: states.State) -> str:
        """Return where RQ will have the id of a job.

        A pending job that isn't scheduled stays in its queue, and an unclaimed one goes back to its
        place there. Any other is scheduled first: only `look` knows which jobs are due.
        """
        if state.status == states.PROCESSING:
            return "keep"
        if state.status != states.PENDING:
            return rq_jobs.PLACES[state.status]
        before = row.state
        is_unclaimed = (
            before.status == states.PROCESSING
            and state.run_at == before.run_at
            and state.attempts < before.attempts
        )
        if not is_unclaimed:
            return "scheduled"
        self._put_back.add(row.id)
        return "queue"

    def types(self) -> set[str]:
        """Return the types of all jobs that are pending."""
        return {self._type(queue) for queue in self._client.run("pending")}

    pending_types = types

    def has_open(self) -> bool:
        """Return whether any job is pending or processing."""
        return bool(self._client.run("has_open"))

    def count_due(self, now: float) -> int:
        """Return how many pending jobs are due at `now`."""
        return int(self._client.run("count_due", _score_after(now)))

    def due_late(self, now: float) -> Iterator[StoredRow]:
        """Yield the pending jobs whose times a wrong clock may have set."""
        tolerance = states.CLOCK_TOLERANCE_SECONDS
        latest, *retries = self._client.run("late", now, tolerance)
        for first, end in _ranges(len(retries), _ROWS_PER_SCRIPT):
            yield from map(self._row, self._client.run("some", *retries[first:end]))
        if not latest:
            return
        seen = 0
        for row in self.rows((states.PENDING,)):
            seen = max(seen, row.state.created_at)
            is_late_retry = row.state.attempts and row.state.run_at > now
            if row.state.created_at > now + tolerance and not is_late_retry:
                yield row
        self._client.run("set_latest", latest, seen)

    # -- named values --

    def read(self, name: str) -> bytes:
        """Return a value, b"" if it isn't set."""
        value: bytes | None = self._client.command("HGET", self._client.prefix + "values", name)
        return value or b""

    def replace(
        self,
        name: str,
        before: bytes,
        after: bytes,
        rows: Sequence[Row] = (),
        *,
        anyway: bool = False,
    ) -> bool:
        """Set a value, and add jobs, if it is still `before`; return whether it was."""
        packed = self._packed(rows)
        made = self._client.change("replace", int(anyway), name, before, after, len(rows), *packed)
        return bool(self._unless_moved(made) == b"1")

    # -- workers, and what they have claimed --

    def open_worker(self, name: str, parallel: int) -> str:
        """Register a worker, as one that is alive; return its id."""
        worker = f"{name}.{uuid.uuid4().hex[:8]}"
        fields = _flat(rq_jobs.worker_fields(name).items())
        self._client.run("open_worker", worker, f"{name}\t{parallel}", int(DEAD_SECONDS), *fields)
        return worker

    def beat(self, worker: str) -> bool:
        """Say that a worker is alive; False if it counted as dead."""
        return bool(self._client.run("beat", worker, int(DEAD_SECONDS), rq_jobs.timestamp()))

    def close_worker(self, worker: str) -> None:
        """Remove a worker. Jobs that it still has are those of a dead worker."""
        self._client.run("close_worker", worker)

    def workers(self) -> list[LiveWorker]:
        """Return the live workers."""
        found = []
        for text, listed_at, *claims in self._client.run("workers"):
            name, parallel, started_at = text.decode().split("\t")
            pairs = zip(claims[::2], claims[1::2], strict=True)
            found.append(
                LiveWorker(
                    name,
                    float(started_at),
                    float(listed_at or started_at),
                    int(parallel),
                    frozenset(
                        (rq_jobs.own_id(job.decode()), decode_state(state).attempts)
                        for job, state in pairs
                    ),
                )
            )
        return found

    def claimed(self, worker: str) -> list[StoredRow]:
        """Return the jobs that a worker has claimed and not recorded, in the order of claims."""
        return [self._row(row) for row in self._client.run("claimed", worker)]

    def dead_claims(self) -> list[tuple[StoredRow, bool]]:
        """Return the `processing` jobs of dead workers, and whether each may have been started."""
        found = []
        for text, *rows in self._client.run("dead_claims"):
            parallel = int(text.split(b"\t")[1])
            found += [(self._row(row), at < parallel) for at, row in enumerate(rows)]
        return found

    def listen(self) -> News:
        """Open a connection on which the server reports added jobs."""
        return self._client.listen()

    def look(self, now: float) -> int:
        """Add the scheduled jobs that are due to their RQ queues; return a mark."""
        mark, changed = self._promote(now)
        if changed and time.monotonic() >= self._repairs_at:
            self._repairs_at = time.monotonic() + _REPAIR_SECONDS
            _Repair(self, self._client, now).run(changed)
            mark, _ = self._promote(now)
        return mark

    def _promote(self, now: float) -> tuple[int, list[str]]:
        """Also return the RQ queues that RQ's tools have changed."""
        score, at = _score_after(now), rq_jobs.timestamp()
        while True:
            due, mark, *changed = self._client.run("look", score, _DUE_PER_SCRIPT, at)
            if due < _DUE_PER_SCRIPT:
                return mark, [queue.decode() for queue in changed]

    def has_due(self, types: Collection[str], now: float, mark: int | None) -> bool:
        """Return whether a job of one of the types, not after the mark, is due."""
        queues = map(self._rq_queue, types)
        return bool(self._client.run("has_due", "" if mark is None else mark, *queues))

    def claim(
        self,
        worker: str,
        types: Collection[str],
        most: int,
        now: float,
        *,
        mark: int | None,
        limits: Mapping[str, tuple[int, int]],
        skip: Collection[str],
        anyway: bool = False,
    ) -> list[StoredRow]:
        """Claim up to `most` due jobs of these types, the earliest added first."""
        if not types or most <= 0:
            return []
        queues: list[Argument] = []
        for job_type in types:
            queues += [self._rq_queue(job_type), *limits.get(job_type, ("", ""))]
        if len(self._put_back) > _MOST_PUT_BACK:
            self._put_back &= set(skip)
        skipped = [self._rq_id(job_id) for job_id in self._put_back.intersection(skip)]
        rows = self._client.change(
            "claim",
            int(anyway),
            worker,
            most,
            "" if mark is None else mark,
            rq_jobs.timestamp(),
            len(types),
            *queues,
            *skipped,
        )
        claimed = [self._row(row) for row in self._unless_moved(rows)]
        self._put_back.difference_update(row.id for row in claimed)
        return claimed

    # -- what attempts leave behind --

    def add_history(self, lines: Iterable[str]) -> None:
        """Add rows, as `history.Attempt` parses them. The last 100,000 are kept."""
        rows = [(self._rq_id(line.partition("\t")[0]), line) for line in lines]
        for first, end in _ranges(len(rows), _HISTORY_PER_SCRIPT):
            arguments = [argument for pair in rows[first:end] for argument in pair]
            self._client.change("add_history", _MOST_HISTORY, *arguments)

    def history(self, job_id: str, since: float) -> Iterator[str]:
        """Yield the rows, those of one job unless `job_id` is "", in the order of adding."""
        for line in self._history(job_id):
            if (not job_id or line.startswith(f"{job_id}\t")) and Attempt(line).ended_at >= since:
                yield line

    def _history(self, job_id: str) -> Iterator[str]:
        if job_id:
            found = self._client.run("history_of", self._rq_id(job_id))
            if found is not None:
                yield from map(_text, found)
                return
        after = "-"
        while entries := self._client.command(
            "XRANGE", self._client.prefix + "history", after, "+", "COUNT", _DUE_PER_SCRIPT
        ):
            for number, fields in entries:
                yield _text(fields[b"row"])
                after = f"({number.decode()}"

    def put_output(self, job_id: str, attempt: int, line: str) -> None:
        """Keep a row, as `output.Output` parses it, until the job is removed."""
        self._client.run("put_output", self._rq_id(job_id), attempt, line)

    def output(self, job_id: str, attempt: int | None) -> str | None:
        """Return the row of an attempt, or the one that was kept last; None if there is none."""
        number = "" if attempt is None else attempt
        line = self._client.run("output", self._rq_id(job_id), number)
        return _text(line) if line else None

    def put_progress(self, job_id: str, line: str | None) -> None:
        """Keep a row, as `progress.Progress` parses it, or remove it for None."""
        self._client.run("put_progress", self._rq_id(job_id), line or "")

    def progress(self, job_ids: Collection[str]) -> dict[str, str]:
        """Return job id -> row, for those that have one."""
        found: dict[str, str] = {}
        ids = list(job_ids)
        for first, end in _ranges(len(ids), _DUE_PER_SCRIPT):
            some = ids[first:end]
            key = self._client.prefix + "progress"
            lines = self._client.command("HMGET", key, *map(self._rq_id, some))
            found |= {i: _text(line) for i, line in zip(some, lines, strict=True) if line}
        return found

    # -- the server --

    def warnings(self) -> list[str]:
        """Return what in the server's settings could lose jobs, one sentence each."""
        try:
            found = [
                self._client.command("CONFIG", "GET", name)
                for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
            ]
        except errors.StoreError as e:
            if "refuses" not in str(e):
                raise
            return [
                "the server doesn't show its settings, so it is unknown whether jobs survive its "
                "restart: see that it has appendonly yes and maxmemory-policy noeviction"
            ]
        settings = {_text(k): _text(v) for one in found for k, v in _pairs(one)}
        warnings = []
        if settings.get("appendonly") != "yes":
            warnings.append(
                "a restart or crash of the server loses jobs: appendonly isn't yes (set it, and "
                "appendfsync always)"
            )
        elif settings.get("appendfsync") != "always":
            warnings.append(
                "a power cut of the server loses the changes of the last second or more: "
                f"appendfsync is {settings.get('appendfsync')} (set it to always)"
            )
        policy = settings.get("maxmemory-policy", "")
        if policy != "noeviction":
            warnings.append(
                f"the server may remove jobs when its memory is full: maxmemory-policy is {policy} "
                "(set it to noeviction)"
            )
        return warnings

    # -- names --

    def _rq_id(self, job_id: str) -> str:
        return rq_jobs.rq_id(self._queue, job_id)

    def _rq_queue(self, job_type: str) -> str:
        return f"{self._queue}.{job_type}"

    def _type(self, queue: bytes) -> str:
        return queue.decode().partition(".")[2]

    def _row(self, found: Sequence[Any]) -> StoredRow:
        job, queue, payload, state, version = found
        return StoredRow(
            rq_jobs.own_id(job.decode()),
            self._type(queue),
            _text(payload),
            decode_state(state),
            int(version),
        )


class _Repair:
    """Makes up for what RQ's own tools and workers have done to our jobs."""

    def __init__(self, backend: RqBackend, client: Client, now: float) -> None:
        self._backend = backend
        self._client = client
        self._now = now

    def run(self, queues: Sequence[str]) -> None:
        """Repair the jobs of these RQ queues."""
        for queue in queues:
            in_queue, in_schedule, pending = map(set, self._client.run("members", queue))
            jobs = list(in_queue | in_schedule | pending)
            for first, end in _ranges(len(jobs), _ROWS_PER_SCRIPT):
                some = jobs[first:end]
                places = self._client.run("places", *some)
                for job, (place, status) in zip(some, places, strict=True):
                    found = job in in_queue, job in in_schedule
                    if not place or found != (place == b"queue", place == b"scheduled"):
                        self._repair(job, queue, place, status)

    def _repair(self, job: bytes, queue: str, place: bytes, status: bytes) -> None:
        """Repair a job that isn't where it should be."""
        change: Callable[[states.State], states.State | None] | None = None
        if place in (b"queue", b"scheduled") and status == b"canceled":
            change = states.cancel
        else:
            self._client.run("put_back", queue, job)
            if place in (b"failed", b"canceled"):
                change = self._requeue
        row = self._backend.find(rq_jobs.own_id(job.decode())) if change else None
        if row and change and (state := change(row.state)):
            self._backend.change([Change(row, state)])

    def _requeue(self, state: states.State) -> states.State | None:
        return states.requeue(state, self._now, int(self._now))


def _score_after(now: float) -> int:
    """Return the score below which scheduled jobs are due: `score_of` adds less than a second."""
    return math.floor(now) + 1


def _places(statuses: Collection[str]) -> list[str]:
    """Return the values of q_place that jobs with these statuses have."""
    return [place for status in statuses for place in rq_jobs.PLACES_OF[status]]


def _due_at(row: StoredRow) -> float:
    return max(row.state.run_at, row.state.created_at)


def _place_of_new(state: states.State) -> str:
    """Return where RQ gets the id of a new job. One that is due already is added to its queue."""
    if state.status == states.PENDING:
        return "queue" if state.run_at <= state.created_at else "scheduled"
    return rq_jobs.PLACES[state.status]


def _flat(pairs: Iterable[tuple[str, Argument]]) -> list[Argument]:
    return [item for pair in pairs for item in pair]


def _ranges(length: int, most: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, most):
        yield first, min(first + most, length)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def _pairs(reply: Any) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(reply, dict):
        yield from reply.items()
    else:
        yield from zip(reply[::2], reply[1::2], strict=True)


_SCRIPTS = read_scripts(rq_jobs.KEYS)
