"""The metrics of a queue, as a dict and as a Prometheus textfile."""

from __future__ import annotations

import os
import random
import resource
import stat
import statistics
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, Clock, add_attempts, add_lines, line, sibling
from prometheus_client.parser import text_string_to_metric_families

from dbbasic_queue import Fail, InvalidArgument, NotAQueue, Queue, StoreError
from dbbasic_queue.model.states import STATUSES
from dbbasic_queue.monitoring.metrics import percentile
from dbbasic_queue.monitoring.prometheus import to_text

if TYPE_CHECKING:
    from pathlib import Path

NOTHING = {"p50": None, "p95": None, "p99": None, "sum": 0, "count": 0}


# --- percentiles


@pytest.mark.parametrize("count", [2, 3, 10, 99, 100, 101, 1000])
def test_percentiles_equal_those_of_the_standard_library(count: int) -> None:
    drawn = random.Random(count)
    values = sorted(drawn.expovariate(1) for _ in range(count))
    theirs = statistics.quantiles(values, n=100, method="inclusive")
    for number in (50, 95, 99):
        assert percentile(values, number / 100) == pytest.approx(theirs[number - 1])


def test_the_percentiles_of_one_value_are_that_value() -> None:
    assert {percentile([7.5], share) for share in (0.5, 0.95, 0.99)} == {7.5}


# --- the dict


def test_the_metrics_of_a_missing_queue_are_zeros(queue: Queue, path: Path) -> None:
    assert queue.metrics() == {
        "jobs": dict.fromkeys(STATUSES, 0),
        "paused": 0,
        "oldest_pending": 0,
        "window": 1,
        "types": {},
    }
    assert not path.parent.exists()


def test_the_metrics_of_real_passes_show_how_their_jobs_ran(
    queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    class Watch:
        @staticmethod
        def monotonic() -> float:
            return seconds

    monkeypatch.setattr("dbbasic_queue.passes.executor.time", Watch)

    def resize(payload: float) -> None:
        nonlocal seconds
        seconds += payload
        clock.now += payload
        if payload == 4:
            raise Fail("too large")

    for payload in (1, 2, 3, 4):
        queue.enqueue("resize", payload)
    queue.enqueue("mail", {}, run_at=NOW + 3600)
    queue.enqueue("mail", {}, run_at=NOW + 60)
    queue.process_jobs({"resize": resize})
    clock.now = NOW + 100
    found = queue.metrics()
    assert found["jobs"] == dict.fromkeys(STATUSES, 0) | {"pending": 2, "completed": 3, "failed": 1}
    assert found["window"] == 99  # since the first attempt ended
    assert found["oldest_pending"] == 40
    assert list(found["types"]) == ["mail", "resize"]
    assert found["types"]["mail"] == {
        "attempts": {},
        "rate": 0,
        "waiting": NOTHING,
        "running": NOTHING,
        "oldest_pending": 40,
    }
    resized = found["types"]["resize"]
    assert resized["attempts"] == {"completed": 3, "failed": 1}
    assert resized["rate"] == pytest.approx(4 / 99)
    assert resized["running"] == pytest.approx(
        {"p50": 2.5, "p95": 3.85, "p99": 3.97, "sum": 10, "count": 4}
    )
    assert resized["waiting"] == pytest.approx(  # 0, 1, 3 and 6 seconds
        {"p50": 2, "p95": 5.55, "p99": 5.91, "sum": 10, "count": 4}
    )
    assert resized["oldest_pending"] == 0


def test_only_attempts_within_the_window_count(queue: Queue, path: Path) -> None:
    ends = (NOW - 3601, NOW - 3600, NOW - 30, NOW, NOW + 1)
    add_attempts(path, *({"ended_at": f"{at}.000"} for at in ends))
    hour = queue.metrics()
    assert hour["window"] == 3600
    assert hour["types"]["greet"]["attempts"] == {"completed": 3}
    assert hour["types"]["greet"]["rate"] == pytest.approx(3 / 3600)
    minute = queue.metrics(60)
    assert minute["window"] == 60
    assert minute["types"]["greet"]["rate"] == pytest.approx(2 / 60)
    assert queue.metrics(timedelta(minutes=1)) == minute
    assert queue.metrics(1e9)["window"] == 3601
    assert queue.metrics(float("inf"))["window"] == 3601


def test_a_very_short_history_does_not_give_a_huge_rate(queue: Queue, path: Path) -> None:
    add_attempts(path, {"ended_at": f"{NOW}.000"})
    assert queue.metrics()["types"]["greet"]["rate"] == 1


def test_the_older_history_file_counts_too(queue: Queue, path: Path) -> None:
    add_attempts(path, {}, {})
    sibling(path, "history").rename(sibling(path, "history.1"))
    add_attempts(path, {})
    assert queue.metrics()["types"]["greet"]["attempts"] == {"completed": 3}


def test_an_attempt_that_died_is_counted_and_has_no_times(queue: Queue, path: Path) -> None:
    add_attempts(path, {"outcome": "died", "seconds": ""})
    found = queue.metrics()["types"]["greet"]
    assert found["attempts"] == {"died": 1}
    assert found["waiting"] == found["running"] == NOTHING


def test_a_clock_set_back_gives_no_negative_waiting_time(queue: Queue, path: Path) -> None:
    add_attempts(path, {"due_at": NOW + 100})
    assert queue.metrics()["types"]["greet"]["waiting"]["p50"] == 0


def test_the_oldest_pending_job_is_the_one_that_was_due_first(queue: Queue, path: Path) -> None:
    early: dict[str, Any] = {"created_at": NOW - 500}
    add_lines(
        path,
        line("a", type="a", run_at=NOW - 7, **early),
        line("b", type="a", run_at=NOW - 30, **early),
        line("c", type="b", run_at=5, created_at=NOW - 20),  # due when it came
        line("d", type="b", run_at=NOW + 1),
        line("e", type="c", run_at=NOW + 50),
        line("f", type="b", run_at=NOW - 400, status="failed", **early),
    )
    found = queue.metrics()
    assert found["oldest_pending"] == 30
    oldest = {name: of_type["oldest_pending"] for name, of_type in found["types"].items()}
    assert oldest == {"a": 30, "b": 20, "c": 0}


def test_pending_jobs_of_paused_types_are_counted(queue: Queue) -> None:
    for job_type in ("a", "a", "b"):
        queue.enqueue(job_type, {})
    queue.pause("a")
    assert queue.metrics()["paused"] == 2
    queue.pause()
    assert queue.metrics()["paused"] == 3
    queue.process_jobs({})
    (sample,) = parse(to_text(queue.metrics()))["dbbasic_queue_paused_jobs"].samples
    assert sample.value == 3


@pytest.mark.parametrize("window", [0, -1, float("nan"), True, "60", None])
def test_an_invalid_window_is_refused(queue: Queue, window: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"invalid window .*: must be seconds or a timedelta"):
        queue.metrics(window)


def test_a_history_that_is_a_symbolic_link_is_refused(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    add_attempts(path, {})
    sibling(path, "history").rename(tmp_path / "elsewhere")
    sibling(path, "history").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAQueue):
        queue.metrics()


# --- the textfile


def parse(text: str) -> dict[str, Any]:
    """Return the metric families that Prometheus' own parser finds, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Any) -> dict[tuple[str, ...], float]:
    return {(s.name, *s.labels.values()): s.value for s in family.samples}


def test_prometheus_reads_every_figure_of_the_textfile(queue: Queue, path: Path) -> None:
    times = ["0.500000", "1.500000", "2.500000"]
    add_attempts(path, *({"seconds": n, "type": "resize"} for n in times))
    add_attempts(path, {"outcome": "failed", "type": "mail", "seconds": "0.250000"})
    queue.enqueue("mail", {}, run_at=NOW + 5)
    queue.enqueue("later", {}, run_at=NOW + 50)
    queue.now = Clock(NOW + 12)
    families = parse(to_text(queue.metrics()))
    kinds = {name.removeprefix("dbbasic_queue_"): f.type for name, f in families.items()}
    assert kinds == {
        "jobs": "gauge",
        "paused_jobs": "gauge",
        "oldest_pending_seconds": "gauge",
        "type_oldest_pending_seconds": "gauge",
        "window_seconds": "gauge",
        "attempts": "gauge",
        "attempts_per_second": "gauge",
        "waiting_seconds": "summary",
        "running_seconds": "summary",
    }
    assert all(family.documentation for family in families.values())
    values = {
        key: value
        for name, family in families.items()
        for key, value in samples(family).items()
        if key[0].startswith(name)
    }
    pre = "dbbasic_queue_"
    assert values[(pre + "jobs", "pending")] == 2
    assert values[(pre + "jobs", "cancelled")] == 0
    assert values[(pre + "oldest_pending_seconds",)] == 7
    assert values[(pre + "type_oldest_pending_seconds", "mail")] == 7
    assert values[(pre + "type_oldest_pending_seconds", "later")] == 0
    assert values[(pre + "window_seconds",)] == 17
    assert values[(pre + "attempts", "resize", "completed")] == 3
    assert values[(pre + "attempts", "mail", "failed")] == 1
    assert values[(pre + "attempts_per_second", "resize")] == pytest.approx(3 / 17)
    assert values[(pre + "running_seconds", "resize", "0.5")] == 1.5
    assert values[(pre + "running_seconds", "resize", "0.95")] == pytest.approx(2.4)
    assert values[(pre + "running_seconds_sum", "resize")] == 4.5
    assert values[(pre + "running_seconds_count", "resize")] == 3
    assert values[(pre + "waiting_seconds", "mail", "0.99")] == 4.75
    assert values[(pre + "waiting_seconds_count", "later")] == 0
    assert (pre + "waiting_seconds", "later", "0.5") not in values


def test_a_hostile_job_type_cannot_forge_a_metric(queue: Queue, path: Path) -> None:
    strange = 'a"} 1\r# \\" \x1b[31m {x="\u2028'
    add_lines(path, line("x", type=strange))
    queue.process_jobs({})
    families = parse(to_text(queue.metrics()))
    assert {name.removeprefix("dbbasic_queue_") for name in families} == {
        "jobs",
        "paused_jobs",
        "oldest_pending_seconds",
        "type_oldest_pending_seconds",
        "window_seconds",
        "attempts",
        "attempts_per_second",
        "waiting_seconds",
        "running_seconds",
    }
    (sample,) = families["dbbasic_queue_attempts"].samples
    shown = 'a"} 1\\r# \\\\" \\x1b[31m {x="\\u2028'
    assert sample.labels == {"type": shown, "outcome": "retried"}
    (pending,) = families["dbbasic_queue_type_oldest_pending_seconds"].samples
    assert pending.labels == {"type": shown}


def test_write_metrics_replaces_the_file_atomically_and_everyone_can_read_it(
    queue: Queue, tmp_path: Path
) -> None:
    place = tmp_path / "queue.prom"
    mask = os.umask(0o077)
    try:
        queue.write_metrics(place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o644
        with place.open(encoding="utf-8") as reader:
            queue.enqueue("mail", {})
            queue.write_metrics(str(place))
            assert 'jobs{status="pending"} 0\n' in reader.read()  # the old one, whole
    finally:
        os.umask(mask)
    assert 'jobs{status="pending"} 1\n' in place.read_text("utf-8")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["queue.prom"]
    parse(place.read_text("utf-8"))


@pytest.mark.parametrize("kind", ["link", "FIFO", "directory", "notes"])
def test_write_metrics_only_replaces_its_own_file(queue: Queue, tmp_path: Path, kind: str) -> None:
    victim, place = tmp_path / "victim", tmp_path / "queue.prom"
    victim.write_text("precious")
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.write_text("notes")
    before = place.lstat()
    with pytest.raises(NotAQueue, match="left untouched"):
        queue.write_metrics(place)
    assert os.path.samestat(place.lstat(), before)
    assert victim.read_text() == "precious"
    assert kind != "notes" or place.read_text() == "notes"
    assert sorted(tmp_path.iterdir()) == [place, victim]


@pytest.mark.parametrize("name", ["queue.tsv", "null", "queue.prom.tsv"])
def test_write_metrics_only_accepts_names_that_end_in_prom(
    queue: Queue, path: Path, name: str
) -> None:
    queue.enqueue("mail", {})
    before = path.read_bytes()
    with pytest.raises(InvalidArgument, match=r"must end in \.prom"):
        queue.write_metrics(path.with_name(name))
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {"queue.tsv", "queue.tsv.lock"}


def test_write_metrics_replaces_a_file_damaged_by_a_power_cut(queue: Queue, tmp_path: Path) -> None:
    place = tmp_path / "queue.prom"
    for left in (b"", b"\0" * 40):
        place.write_bytes(left)
        queue.write_metrics(place)
        parse(place.read_text("utf-8"))


def test_the_old_textfile_stays_if_the_new_one_cannot_be_written(
    queue: Queue, tmp_path: Path
) -> None:
    place = tmp_path / "queue.prom"
    queue.write_metrics(place)
    before = place.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(StoreError, match="the metrics were not written"):
            queue.write_metrics(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert place.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["queue.prom"]
    with pytest.raises(StoreError, match="the metrics were not written"):
        queue.write_metrics(tmp_path / "nowhere" / "queue.prom")


def test_times_have_the_precision_of_the_history_file(queue: Queue, path: Path) -> None:
    add_attempts(path, {"due_at": NOW - 10, "ended_at": f"{NOW - 5}.125", "seconds": "0.125000"})
    assert queue.metrics()["types"]["greet"]["waiting"]["p50"] == 5
