"""How RQ sees the jobs: their ids, their RQ queues, and the fields of their hashes.

- Each type of job has an RQ queue of its own, `QUEUE.TYPE`. RQ's worker could lose a job that it
  takes from one of several queues; ours claims jobs in a script, and never has to look past those
  that it can't claim.
- RQ's job names one function, `run`, which refuses: only a pass of `dbbasic_queue` runs these jobs.
- Results and errors are kept until the job is removed. There is no pickle.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from redis import Redis
from rq import Queue, Worker
from rq.job import Job, JobStatus
from rq.registry import (
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from dbbasic_queue.errors import QueueError
from dbbasic_queue.model import states
from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.model.records import encode_state

if TYPE_CHECKING:
    from dbbasic_queue.model.rows import Row
    from dbbasic_queue.model.states import State

    Field = str | bytes | int

_result: Any = Result  # neither has types
_json: Any = JSONSerializer

KEYS = {
    "JOB": Job.key_for(""),
    "RESULTS": _result.get_key(""),
    "QUEUE": Queue.redis_queue_namespace_prefix,
    "QUEUES": Queue.redis_queues_keys,
    "SCHEDULED": ScheduledJobRegistry.key_template.format(""),
    "STARTED": StartedJobRegistry.key_template.format(""),
    "FINISHED": FinishedJobRegistry.key_template.format(""),
    "FAILED": FailedJobRegistry.key_template.format(""),
    "CANCELED": CanceledJobRegistry.key_template.format(""),
    "WORKER": Worker.redis_worker_namespace_prefix,
    "WORKERS": Worker.redis_workers_keys,
    "WORKERS_BY_QUEUE": WORKERS_BY_QUEUE_KEY % "",
}
"""RQ's keys, or their beginnings, by their names in the scripts"""

PLACES = {
    states.COMPLETED: "finished",
    states.FAILED: "failed",
    states.CANCELLED: "canceled",
}
"""status of a finished job -> where RQ has its id"""

PLACES_OF = {
    states.PENDING: ("queue", "scheduled"),
    states.PROCESSING: ("started",),
} | {status: (place,) for status, place in PLACES.items()}
"""status -> the values of q_place"""

_FOREVER = -1
_LONGEST_RESULT = 10_000
"""A longer result isn't shown to RQ's tools: it would be kept twice."""


def run(job_type: str, job_id: str) -> None:
    """Refuse to run a job: RQ's own worker calls this."""
    raise QueueError(
        f"{job_type} {job_id} is a job of dbbasic_queue, so RQ's worker can't run it: stop this "
        "worker, and run the job with process_jobs, or with the command dbbasic-queue"
    )


_RUN = f"{run.__module__}.{run.__qualname__}"


def rq_id(queue: str, job_id: str) -> str:
    """Return RQ's id of a job: RQ allows no dot, and has one namespace for all queues.

    >>> rq_id("mail", "a.b_c")
    'mail_-a_-b__c'
    """
    return f"{queue}.{job_id}".replace("_", "__").replace(".", "_-")


def own_id(rq_id: str) -> str:
    """Return the id that `rq_id` was given.

    >>> own_id("mail_-a_-b__c"), own_id(rq_id("q_-", "_-._"))
    ('a.b_c', '_-._')
    """
    parts = rq_id.split("__")  # a pair of underscores never overlaps another: see the test
    return "_".join(part.replace("_-", ".") for part in parts).partition(".")[2]


def timestamp() -> str:
    """Return the time of now as RQ writes it."""
    return utcformat(now())


class NewJobs:
    """Makes the hashes of new jobs as RQ's own classes do, but each field of a type only once."""

    def __init__(self, queue: str, redis: Redis) -> None:
        self._queue = queue
        self._redis = redis
        self._time = timestamp()
        self._common: dict[str, dict[str, Field]] = {}
        """type -> the fields that all its jobs have"""

    def fields(self, row: Row, place: str) -> dict[str, Field]:
        """Return the fields that RQ and we need."""
        common = self._common.get(row.type)
        if common is None:
            common = self._common[row.type] = self._rq_fields(row)
        data = _json.dumps((_RUN, None, (row.type, row.id), {}))
        fields = common | {"data": zlib.compress(data, 1), "description": f"{row.type} {row.id}"}
        if place == "queue":
            fields["enqueued_at"] = self._time
        fields |= state_fields(row.state, place) | {"q_payload": row.payload}
        return {name: value for name, value in fields.items() if value != b""}

    def _rq_fields(self, row: Row) -> dict[str, Field]:
        job = Job.create(
            _RUN,
            args=(row.type, row.id),
            id=rq_id(self._queue, row.id),
            connection=self._redis,
            serializer=JSONSerializer,
            origin=f"{self._queue}.{row.type}",
            timeout=_FOREVER,
            result_ttl=_FOREVER,
            failure_ttl=_FOREVER,
        )
        return {name: value for name, value in job.to_dict().items() if value not in ("", None)}


def state_fields(state: State, place: str) -> dict[str, Field]:
    """Return the fields of a hash that show a state; `place` is where RQ has the job's id."""
    fields: dict[str, Field] = {"q_state": encode_state(state), "status": _status(state, place)}
    error = unescape(state.error)
    fields["exc_info"] = zlib.compress(error.encode("utf-8", "replace")) if error else b""
    if state.status == states.PENDING:
        claimed = states.claim(state)
        assert claimed is not None
        fields["q_next"] = encode_state(claimed)
    elif state.status in PLACES:
        fields["ended_at"] = timestamp()
        fields["result"] = state.result if len(state.result) <= _LONGEST_RESULT else ""
    return fields


def _status(state: State, place: str) -> str:
    if state.error == states.STOPPED:
        return JobStatus.STOPPED.value
    return {
        "queue": JobStatus.QUEUED,
        "scheduled": JobStatus.SCHEDULED,
        "started": JobStatus.STARTED,
        "finished": JobStatus.FINISHED,
        "failed": JobStatus.FAILED,
        "canceled": JobStatus.CANCELED,
    }[place].value


def worker_fields(name: str) -> dict[str, Any]:
    """Return the fields of RQ's hash of a worker, as RQ's `Worker.serialize` has them."""
    import sys

    from rq.version import VERSION

    host, _, pid = name.rpartition(".")
    return {
        "birth": timestamp(),
        "last_heartbeat": timestamp(),
        "pid": pid,
        "hostname": host,
        "ip_address": "",
        "version": VERSION,
        "python_version": sys.version,
        "state": "idle",
    }
