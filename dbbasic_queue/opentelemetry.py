"""OpenTelemetry: one span per attempt, in a trace whose id is derived from the job's id.

So the program that has enqueued a job, and each pass that runs it, know the job's trace without
storing anything: the first 16 bytes of the SHA-256 of `dbbasic_queue:` and the job's id are the
trace id, the next 8 bytes are the id of the span that is the parent of each attempt's. No such span
is recorded; it stands for the job itself.

The names of the attributes are those of OpenTelemetry's semantic conventions for messaging.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from dbbasic_queue.handlers import Delay, JobStopped
from dbbasic_queue.passes.signals import StopRequested
from dbbasic_queue.passes.tracebacks import class_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span, TracerProvider

    from dbbasic_queue.handlers import Job

    Hook = Callable[[Job], AbstractContextManager[None]]

NAME = "dbbasic_queue"
"""the name of the tracer, and of the messaging system"""
_FLUSH_MILLISECONDS = 5000
_ENDS = (Delay, JobStopped, StopRequested, KeyboardInterrupt, asyncio.CancelledError)
"""what ends an attempt without being an error"""


def span_context(job_id: str) -> SpanContext:
    """Return the context that a job's attempts are children of: always the same for an id.

    Link to it where the job is enqueued: `trace.get_current_span().add_link(span_context(job_id))`.

    >>> f"{span_context('5f0c2a9e71d84b36').trace_id:032x}"
    '24da919a657b18b2b3aa58b820079d97'
    """
    digest = hashlib.sha256(f"{NAME}:{job_id}".encode()).digest()
    return SpanContext(
        trace_id=int.from_bytes(digest[:16], "big"),
        span_id=int.from_bytes(digest[16:24], "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )


def trace_attempts(provider: TracerProvider | None = None) -> Hook:
    """Return an `around` hook that records a span for each attempt.

    It is registered by `jobs.around(trace_attempts())`.

    `provider` is by default the global one, as it is at each attempt. An exception of the handler
    is recorded, and the span's status is then an error. In a process that was forked after this
    call, such as that of a handler with a `timeout`, the spans are exported before the attempt
    ends, because the process may end with it; that takes up to 5 seconds.
    """
    process = os.getpid()

    @contextmanager
    def around(job: Job) -> Iterator[None]:
        spans = trace.get_tracer_provider() if provider is None else provider
        try:
            with (
                spans.get_tracer(NAME).start_as_current_span(
                    f"process {job.type}",
                    trace.set_span_in_context(NonRecordingSpan(span_context(job.id))),
                    SpanKind.CONSUMER,
                    {
                        "messaging.system": NAME,
                        "messaging.operation.name": "process",
                        "messaging.operation.type": "process",
                        "messaging.destination.name": job.type,
                        "messaging.message.id": job.id,
                        "dbbasic_queue.attempt": job.attempt,
                    },
                    record_exception=False,
                    set_status_on_exception=False,
                ) as span,
                _recording(span),
            ):
                yield
        finally:
            if os.getpid() != process and (flush := getattr(spans, "force_flush", None)):
                flush(_FLUSH_MILLISECONDS)

    return around


@contextmanager
def _recording(span: Span) -> Iterator[None]:
    """Record how the attempt ends, if it raises an exception."""
    try:
        yield
    except _ENDS as e:
        span.set_attribute("dbbasic_queue.ended_by", type(e).__name__)
        raise
    except BaseException as e:
        span.record_exception(e)
        span.set_attribute("error.type", class_path(e))
        span.set_status(StatusCode.ERROR, type(e).__name__)
        raise
