"""`dbbasic_queue.opentelemetry`: spans of attempts, recorded by OpenTelemetry's own SDK."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import Clock, job, note, notes

from dbbasic_queue import Backoff, Delay, Fail, Handlers, JobStopped, Queue

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from dbbasic_queue.opentelemetry import span_context, trace_attempts


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The exporter that the provider sends finished spans to."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    """A provider of the SDK."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


@pytest.fixture
def jobs(queue: Queue, provider: TracerProvider) -> Handlers:
    """A registry with the hook."""
    jobs = Handlers(queue=queue, name="test")
    jobs.around(trace_attempts(provider))
    return jobs


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_each_attempt_is_a_span_in_the_trace_of_its_job(
    queue: Queue, jobs: Handlers, spans: InMemorySpanExporter, clock: Clock
) -> None:
    @jobs.handler(backoff=Backoff(first=0))
    def greet(_: object, this: Any) -> str:
        if this.attempt == 1:
            raise ValueError("the service is down")
        return format(trace.get_current_span().get_span_context().span_id, "016x")

    job_id = greet.enqueue({})
    queue.process_jobs(jobs)
    queue.process_jobs(jobs)
    first, second = spans.get_finished_spans()
    context = span_context(job_id)
    for number, span in enumerate((first, second), 1):
        assert (span.name, span.kind) == ("process greet", SpanKind.CONSUMER)
        assert span.context.trace_id == context.trace_id
        assert span.parent is not None
        assert (span.parent.span_id, span.parent.is_remote) == (context.span_id, True)
        assert attributes(span) == {
            "messaging.system": "dbbasic_queue",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "greet",
            "messaging.message.id": job_id,
            "dbbasic_queue.attempt": number,
        } | ({"error.type": "ValueError"} if number == 1 else {})
    assert first.status.status_code == StatusCode.ERROR
    (event,) = first.events
    assert event.name == "exception"
    assert dict(event.attributes or {})["exception.message"] == "the service is down"
    assert second.status.status_code == StatusCode.UNSET and not second.events
    # The handler ran within the span.
    assert job(queue, job_id)["result"] == format(second.context.span_id, "016x")


def test_the_program_that_enqueues_links_to_the_same_trace(
    queue: Queue, jobs: Handlers, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    @jobs.handler
    def greet(_: object) -> None:
        pass

    with provider.get_tracer("shop").start_as_current_span("POST /orders"):
        job_id = greet.enqueue({})
        trace.get_current_span().add_link(span_context(job_id))
    queue.process_jobs(jobs)
    request, attempt = spans.get_finished_spans()
    (link,) = request.links
    assert link.context.trace_id == attempt.context.trace_id != request.context.trace_id
    assert attempt.parent is not None
    assert link.context.span_id == attempt.parent.span_id


def test_the_ids_are_those_of_the_documented_hash() -> None:
    """`printf dbbasic_queue:receipt-7 | sha256sum` begins with the trace id and the span id."""
    context = span_context("receipt-7")
    ids = f"{context.trace_id:032x}{context.span_id:016x}"
    assert ids == "a1729566adefc7dd161572cd588d3982ebf4814a954017fb"
    assert context.trace_flags.sampled


@pytest.mark.parametrize(
    ("error", "by"),
    [(Delay(60), "Delay"), (JobStopped("someone has called stop_job"), "JobStopped")],
)
def test_an_attempt_that_is_delayed_or_stopped_isnt_an_error(
    queue: Queue, jobs: Handlers, spans: InMemorySpanExporter, error: Exception, by: str
) -> None:
    @jobs.handler
    def greet(_: object) -> None:
        raise error

    greet.enqueue({})
    queue.process_jobs(jobs)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code == StatusCode.UNSET
    assert attributes(span)["dbbasic_queue.ended_by"] == by


def test_a_job_that_fails_at_once_is_an_error_of_that_class(
    queue: Queue, jobs: Handlers, spans: InMemorySpanExporter
) -> None:
    @jobs.handler
    def greet(_: object) -> None:
        raise Fail("no such user")

    greet.enqueue({})
    queue.process_jobs(jobs)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR
    assert attributes(span)["error.type"] == "dbbasic_queue.handlers.Fail"


def test_coroutines_that_run_next_to_each_other_have_spans_of_their_own(
    queue: Queue, jobs: Handlers, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    @jobs.handler
    async def greet(name: str) -> None:
        with provider.get_tracer("shop").start_as_current_span(f"inside {name}"):
            await asyncio.sleep(0.001)

    ids = [greet.enqueue(name, job_id=name) for name in ("ada", "bob", "eve")]
    queue.process_jobs(jobs, workers=3)
    found = {span.name: span for span in spans.get_finished_spans()}
    attempts = {
        attributes(s)["messaging.message.id"]: s
        for s in spans.get_finished_spans()
        if s.kind == SpanKind.CONSUMER
    }
    assert sorted(attempts) == sorted(ids)
    for name in ids:
        inside = found[f"inside {name}"]
        assert inside.parent is not None
        assert inside.parent.span_id == attempts[name].context.span_id


class FileExporter(SpanExporter):
    """Exports to a file, which also forked processes can write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Any) -> SpanExportResult:
        for span in spans:
            note(self._path, json.dumps([span.name, dict(span.attributes or {})]))
        return SpanExportResult.SUCCESS


def test_spans_of_processes_that_end_with_their_job_are_exported_first(
    queue: Queue, tmp_path: Path
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(FileExporter(tmp_path / "spans"), schedule_delay_millis=600_000)
    )
    jobs = Handlers(queue=queue, name="test")
    jobs.around(trace_attempts(provider))

    @jobs.handler(timeout=30)
    def greet(name: str) -> str:
        if name == "bob":
            raise ValueError("no")
        return name

    @jobs.handler(priority=1)
    def plain(_: object) -> None:
        """Its span waits in the pass's process, while those of the others are exported."""

    for name in ("ada", "bob"):
        greet.enqueue(name, job_id=name)
    plain.enqueue({}, job_id="plain")
    queue.process_jobs(jobs)
    found = [json.loads(text)[1] for text in notes(tmp_path / "spans")]
    assert [(span["messaging.message.id"], span.get("error.type")) for span in found] == [
        ("ada", None),
        ("bob", "ValueError"),
    ]
    provider.shutdown()
    assert len(notes(tmp_path / "spans")) == 3


def test_without_a_provider_nothing_is_recorded_and_jobs_run(queue: Queue) -> None:
    jobs = Handlers(queue=queue, name="test")
    jobs.around(trace_attempts())

    @jobs.handler(timeout=30)
    def greet(_: object) -> str:
        return "done"

    job_id = greet.enqueue({})
    assert queue.process_jobs(jobs)["completed"] == 1
    assert job(queue, job_id)["result"] == "done"
