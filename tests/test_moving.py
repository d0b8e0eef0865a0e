"""`move`: all jobs of a queue go to another one, once each, whatever happens in between."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NOW, TERMS, Clock, add_lines, history, job, line, raises, raising

from dbbasic_queue import Handlers, Queue, QueueMoved, moving, open_queue
from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.model import states
from dbbasic_queue.monitoring import status
from dbbasic_queue.monitoring.live import Live
from dbbasic_queue.monitoring.why import why

if TYPE_CHECKING:
    from collections.abc import Callable

    from postgres_server import PostgresServer
    from valkey_server import ValkeyServer

    from dbbasic_queue.moving import Outcome


def work(payload: Any) -> Any:
    return payload


class Place:
    """Two queues, by their URLs or paths, and what opens them."""

    def __init__(self, old: str, new: str, clock: Clock) -> None:
        self.old, self.new, self.clock = old, new, clock

    def open(self, url: str, *, even_if_moved: bool = False) -> Queue:
        return open_queue(url, clock=self.clock, fsync=False, even_if_moved=even_if_moved)

    def move(self, source: str = "", target: str = "", **more: Any) -> Outcome:
        """Move from the old place to the new one, or between others, as a new process would."""
        with (
            self.open(source or self.old, even_if_moved=True) as from_queue,
            self.open(target or self.new, even_if_moved=True) as to_queue,
        ):
            return moving.move(from_queue.store, to_queue.store, clock=self.clock, **more)

    def address(self) -> str:
        """Return the address of the new place."""
        return self.open(self.new).path

    def left(self) -> list[str]:
        """Return the ids in the old place."""
        with self.open(self.old, even_if_moved=True) as old:
            return [row.id for row in old.store.rows()]


@pytest.fixture
def text_file(tmp_path: Path) -> Callable[[str], str]:
    return lambda name: str(tmp_path / name / "queue.tsv")


@pytest.fixture
def redis(tmp_path: Path, valkey: ValkeyServer) -> Callable[[str], str]:
    return lambda name: valkey.url(_name(tmp_path / name))


@pytest.fixture
def postgresql(tmp_path: Path, postgres: PostgresServer) -> Callable[[str], str]:
    return lambda name: postgres.url(f"q_{_name(tmp_path / name)}")


def _name(directory: Path) -> str:
    return hashlib.sha1(str(directory).encode(), usedforsecurity=False).hexdigest()[:30]


PAIRS = [
    "text_file text_file",
    "text_file postgresql",
    "postgresql text_file",
    "text_file redis",
    "redis text_file",
]
"""The fixtures of the old and the new place; each maps a name to a path or URL."""


@pytest.fixture(params=PAIRS)
def make_place(
    request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Place]:
    monkeypatch.setattr(moving, "PATIENCE_SECONDS", 0.0)
    old, new = (request.getfixturevalue(name) for name in request.param.split())
    return lambda name: Place(old(f"old{name}"), new(f"new{name}"), clock)


@pytest.fixture
def place(make_place: Callable[[str], Place]) -> Place:
    return make_place("")


@pytest.fixture
def files(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Two files, whose rows a test can write."""
    monkeypatch.setattr(moving, "PATIENCE_SECONDS", 0.0)
    return Place(str(tmp_path / "old" / "queue.tsv"), str(tmp_path / "new" / "queue.tsv"), clock)


def test_pending_jobs_move_with_all_that_is_known_of_them(place: Place) -> None:
    with place.open(place.old) as old:
        old.enqueue("greet", {"to": "ada"}, job_id="due")
        old.enqueue("greet", None, NOW + 500, job_id="later")
        old.enqueue("fail", 1, job_id="again")
        old.enqueue("greet", 2, job_id="done")
        old.enqueue("greet", 3, NOW + 500, job_id="cancelled")
        old.cancel_job("cancelled")
        old.process_jobs({"fail": lambda _: 1 / 0}, skip_unknown=True)
        old.edit_job("due", {"to": "eve"})
        before = {name: job(old, name) for name in ("due", "later", "again")}
    done = place.move()
    assert (done.moved, done.is_complete()) == (4, True)
    with place.open(place.new) as new:
        assert {name: job(new, name) for name in before} == before
        assert job(new, "again")["error"] == "ZeroDivisionError: division by zero"
    assert place.left() == ["cancelled"]
    with place.open(place.old, even_if_moved=True) as old:
        assert job(old, "cancelled")["status"] == "cancelled"


CALLS: dict[str, Callable[[Queue], object]] = {
    "enqueue": lambda queue: queue.enqueue("greet", 1),
    "enqueue with an id": lambda queue: queue.enqueue("greet", 1, job_id=f"new-{id(queue)}"),
    "enqueue once": lambda queue: queue.enqueue("greet", 1, job_id="done", exist_ok=True),
    "enqueue unique": lambda queue: queue.enqueue("greet", 1, unique="pending"),
    "enqueue_many": lambda queue: queue.enqueue_many("greet", [1]),
    "get_job": lambda queue: queue.get_job("done"),
    "cancel_job": lambda queue: queue.cancel_job("done"),
    "requeue": lambda queue: queue.requeue("done"),
    "requeue_failed": lambda queue: queue.requeue_failed(),
    "edit_job": lambda queue: queue.edit_job("done", 1),
    "purge": lambda queue: queue.purge(0),
    "jobs": lambda queue: list(queue.jobs()),
    "counts": lambda queue: queue.counts(),
    "history": lambda queue: queue.history("done"),
    "output": lambda queue: queue.output("done"),
    "pause": lambda queue: queue.pause(),
    "resume": lambda queue: queue.resume(),
    "paused": lambda queue: queue.paused(),
    "schedules": lambda queue: queue.schedules(),
    "unreadable": lambda queue: list(queue.unreadable()),
    "metrics": lambda queue: queue.metrics(),
    "process_jobs": lambda queue: queue.process_jobs({"greet": work}),
    "process_jobs that lingers": lambda queue: queue.process_jobs({"greet": work}, linger=0.2),
    "run_until_complete": lambda queue: queue.run_until_complete({"greet": work}),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_says_where_the_queue_is_until_it_is_moved_back(place: Place, name: str) -> None:
    """Whether the caller has used the queue before or not."""
    call = CALLS[name]
    with place.open(place.old) as old, place.open(place.old) as unused:
        old.enqueue("greet", {}, job_id="done")
        old.process_jobs({"greet": work})
        assert job(old, "done")["status"] == "completed"
        place.move()
        for queue in (old, unused):
            with pytest.raises(QueueMoved, match="was moved to") as caught:
                call(queue)
            assert caught.value.address == place.address()
        assert place.left() == ["done"]
        place.move(place.new, place.old)
        for queue in (unused, old):
            call(queue)


@pytest.mark.parametrize("fails", [False, True])
def test_a_running_job_is_recorded_in_the_old_place_and_nothing_else_starts_there(
    place: Place, fails: bool
) -> None:
    outcomes = []

    def handler(payload: int) -> int:
        assert payload == 1, "a job of a queue that was moved has started"
        with place.open(place.old) as other:
            other.enqueue("work", 2, job_id="second")
        outcomes.append(place.move())
        if fails:
            raise ValueError("no")
        return payload

    with place.open(place.old) as old:
        old.enqueue("work", 1, job_id="first")
        with pytest.raises(QueueMoved):
            old.process_jobs({"work": handler}, linger=9)
        with pytest.raises(QueueMoved):
            old.enqueue("work", 3)
    assert [(done.moved, done.running) for done in outcomes] == [(1, ["first"])]
    with place.open(place.old, even_if_moved=True) as old, place.open(place.new) as new:
        assert job(old, "first")["status"] == ("pending" if fails else "completed")
        done = place.move()
        assert (done.moved, done.is_complete()) == (int(fails), True)
        moved = ["second", "first"] if fails else ["second"]
        assert [found["id"] for found in new.jobs()] == moved
        assert job(new, moved[-1])["attempts"] == int(fails)


def test_a_pass_that_has_found_due_jobs_claims_none_once_the_queue_was_moved(place: Place) -> None:
    with place.open(place.old) as old, place.open(place.old, even_if_moved=True) as mover:
        old.enqueue("work", 1)
        claims = old.store.open_claims(TERMS, NOW, 1)
        assert claims.find_due(NOW)
        mover.store.set_moved(place.address())
        with pytest.raises(QueueMoved):
            claims.claim(1, NOW)
        claims.abandon()


def test_several_passes_say_where_the_queue_is(place: Place) -> None:
    with place.open(place.old) as old:
        old.enqueue("move", 1)
        old.enqueue("work", 2)
        handlers = {"move": lambda _: bool(place.move().running), "work": work}
        with pytest.raises(QueueMoved) as caught:
            old.process_jobs(handlers, workers=2, linger=9)
        assert caught.value.address == place.address()
        assert str(caught.value).startswith(f"{old.path} was moved to {place.address()}: ")


class Spy:
    """A store that calls a function before each call of one of its methods."""

    def __init__(self, store: Any, name: str, before: Callable[..., object]) -> None:
        self._store, self._name, self._before = store, name, before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._name:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(*args, **kwargs)
            return method(*args, **kwargs)

        return call


def test_a_job_that_others_change_in_the_meantime_is_moved_as_it_is_then(place: Place) -> None:
    with place.open(place.old) as old, place.open(place.new) as new:
        for name in ("run", "cancelled", "edited", "left"):
            old.enqueue(name, {}, job_id=name)
        seen: list[dict[str, int]] = []

        def interfere(*_: object) -> None:
            if not seen:
                seen.append(old.process_jobs({"run": work}, skip_unknown=True))
                assert old.cancel_job("cancelled")
                assert old.edit_job("edited", {"now": 1})

        with place.open(place.old, even_if_moved=True) as source:
            store: Any = Spy(source.store, "exchange", interfere)
            done = moving.move(store, new.store, clock=place.clock)
        assert done.moved == 2
        assert seen[0]["completed"] == 1
        assert sorted(found["id"] for found in new.jobs()) == ["edited", "left"]
        assert job(new, "edited")["payload"] == {"now": 1}


def test_a_move_that_stops_before_or_after_any_step_loses_and_doubles_nothing(
    make_place: Callable[[str], Place], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is a call that changes a store; the source has jobs of all kinds."""
    monkeypatch.setattr(moving, "_BATCH", 3)
    steps = {"exchange", "add_missing", "set_moved", "update_schedules", "remove"}
    steps |= {"pause", "resume", "add_history"}

    class Stopped(BaseException):
        """A kill."""

    for at in itertools.count():
        place = make_place(str(at))
        jobs = Handlers(name="program")
        jobs.handler("work")(work)
        jobs.every(3600, "work", name="hourly")
        with place.open(place.old) as old:
            old.process_jobs(jobs)
            ids = [old.enqueue("work", n, NOW + n * 5000) for n in range(8)]
            old.pause("other")
            assert old.process_jobs(jobs)["completed"] == 1
            clock.now += 3600
            old.process_jobs(jobs)
            counts = old.counts()
            assert counts["pending"] == 7
        made = itertools.count()

        def step(made: itertools.count[int] = made, at: int = at) -> None:
            if next(made) == at:
                raise Stopped

        class Stops:
            def __init__(self, store: Any, step: Callable[[], None] = step) -> None:
                self._store, self._step = store, step

            def __getattr__(self, name: str) -> Any:
                method = getattr(self._store, name)
                if name not in steps:
                    return method

                def call(*args: Any, **more: Any) -> Any:
                    self._step()
                    result = method(*args, **more)
                    self._step()
                    return result

                return call

        is_stopped = False
        with (
            place.open(place.old, even_if_moved=True) as source,
            place.open(place.new, even_if_moved=True) as target,
        ):
            try:
                stores: Any = Stops(source.store), Stops(target.store)
                moving.move(*stores, finished=True, history=True, clock=clock)
            except Stopped:
                is_stopped = True
            left, arrived = list(source.store.rows()), list(target.store.rows())
            if is_stopped and left and arrived:
                found = status.Status(source.store, clock.now).verdict
                assert found.command == f"dbbasic-queue move --to {quote(target.path)}", at
        pending = _pending(place)
        assert len(pending) == len(set(pending)), f"a job is pending in both, after step {at}"
        assert place.move(finished=True, history=True).is_complete()
        assert place.left() == []
        with place.open(place.new) as new:
            assert {found["id"] for found in new.jobs()} >= {*ids}
            assert new.counts() == counts
            assert new.paused() == {"other"}
            assert [found["name"] for found in new.schedules()] == ["hourly"]
            assert len(history(new, ids[0])) == 1
            clock.now += 3600
            assert new.process_jobs(jobs)["completed"] >= 1
        with place.open(place.old, even_if_moved=True) as old:
            assert (old.schedules(), old.paused()) == ([], frozenset())
        clock.now = NOW
        if not is_stopped:
            break
    assert at > 20


def _pending(place: Place) -> list[str]:
    found = []
    for path in (place.old, place.new):
        with place.open(path, even_if_moved=True) as queue:
            found += [found["id"] for found in queue.jobs(status="pending")]
    return found


def test_an_interrupted_move_is_named_with_the_command_that_finishes_it(place: Place) -> None:
    """Between the first and the third step, its jobs are pending in neither queue."""
    with place.open(place.old) as old:
        old.enqueue("work", 1, NOW, job_id="due")
        old.process_jobs({"work": raises(ValueError("no: way"))})
        old.enqueue("work", 2, NOW, job_id="new")
        old.cancel_job(old.enqueue("other", 3))
        live = Live(old.store)
        assert (live.status(NOW).move, live.status(NOW).verdict.command) == (None, "")
        with place.open(place.new) as new:
            address = new.path
            broken: Any = Spy(new.store, "add_missing", raising(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                moving.move(old.store, broken, clock=place.clock)
            assert list(new.store.rows()) == []
        looks = (status.Status(old.store, NOW), live.status(NOW), Live(old.store).status(NOW))
        for found in looks:
            assert found.move is not None
            assert found.move.as_dict() == {"to": address, "on_the_way": 2, "arrived": 0}
            assert str(found.verdict) == (
                f"idle: nothing is due; but a move to {address} isn't finished: 2 jobs are on "
                "their way, and not run until it is (if it was interrupted, run it again)"
            )
            assert found.verdict.command == f"dbbasic-queue move --to {quote(address)}"
        row = old.store.find("due")
        assert row is not None and "no: way" in row.state.error
        reason = why(old.store, row, NOW)
        assert reason.command == f"dbbasic-queue move --to {quote(address)}"
        assert reason.text.startswith(f"it is on its way to {address}, and that move isn't")
    assert place.move().is_complete()
    with place.open(place.old, even_if_moved=True) as old:
        assert status.Status(old.store, NOW).move is None
        assert status.Status(old.store, NOW).verdict.command == ""


def test_a_move_is_seen_also_if_only_the_journal_shows_it(
    files: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.open(files.old) as old:
        old.enqueue("work", 1)
        old.cancel_job(old.enqueue("work", 2))
        store: Any = old.store
        monkeypatch.setattr(store.files, "is_fold_cheap", lambda *_: False)
        (row,) = store.rows(statuses=("pending",))
        withdrawn = states.withdraw(row.state, states.as_address(files.new))
        assert withdrawn is not None
        store.exchange([(row, withdrawn)])
        assert b"Moving to" not in Path(files.old).read_bytes()
        found = status.Status(old.store, NOW).move
        assert found is not None and found.on_the_way == 1


def test_the_address_of_a_move_is_known_also_if_it_looks_like_an_error(files: Place) -> None:
    files.new = str(Path(files.old).with_name("ValueError: no.tsv"))
    with files.open(files.old) as old, files.open(files.new) as new:
        old.enqueue("work", 1, NOW)
        old.process_jobs({"work": raises(ValueError("no: way"))})
        broken: Any = Spy(new.store, "add_missing", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            moving.move(old.store, broken, clock=files.clock)
        found = status.Status(old.store, NOW).move
        assert found is not None and found.address == files.new
    assert files.move().moved == 1
    with files.open(files.new) as new:
        (moved,) = new.jobs()
        assert "no: way" in (moved["error"] or "")


def test_rows_that_a_shell_appends_later_are_reported_and_moved_by_moving_again(
    files: Place,
) -> None:
    with files.open(files.old) as old:
        old.enqueue("work", 1, job_id="moved")
        files.move()
        address = Path(files.old + ".moved").read_text(encoding="utf-8")
        assert address == f"{files.new}\n"
        add_lines(Path(files.old), line("late", type="work"))
        with pytest.raises(QueueMoved):
            old.process_jobs({"work": work})
    with files.open(files.old, even_if_moved=True) as old:
        lines = list(status.lines(old.store, files.clock()))
    assert lines[0] == f"queue\t{files.old}"
    assert lines[1].startswith(
        f"verdict\tmoved\tthis queue was moved to {files.new}, but not compl"
    )
    assert lines[2:4] == [f"moved\t{files.new}\t1", "pending\t1"]
    assert files.move().moved == 1
    with files.open(files.new) as new:
        assert [found["id"] for found in new.jobs()] == ["moved", "late"]
        assert new.process_jobs({"work": work})["completed"] == 2


def test_a_job_whose_id_another_job_has_stays_pending_and_the_queue_stays_open(
    place: Place,
) -> None:
    with place.open(place.old) as old, place.open(place.new) as new:
        old.enqueue("work", 1, job_id="taken")
        old.enqueue("work", 2, job_id="free")
        place.clock.now += 5
        new.enqueue("work", 3, job_id="taken")
        done = place.move()
        assert (done.moved, done.conflicts, done.is_complete()) == (1, ["taken"], False)
        assert job(old, "taken")["status"] == "pending"
        assert job(old, "taken")["error"] is None
        assert job(new, "taken")["payload"] == 3
        old.cancel_job("taken")
        assert place.move().is_complete()


def test_a_dead_pass_s_job_is_moved_as_one_to_retry_with_its_attempt_counted(
    files: Place,
) -> None:
    add_lines(Path(files.old), line("dead", type="work", status="processing", attempts=7))
    assert files.move().is_complete()
    with files.open(files.new) as new:
        found = job(new, "dead")
        assert (found["status"], found["attempts"]) == ("pending", 7)
        assert found["error"] == "worker died in attempt 7"


def test_schedules_go_on_in_the_new_place_without_an_instant_added_twice_or_lost(
    place: Place,
) -> None:
    jobs = Handlers(name="program")
    jobs.handler("work")(work)
    jobs.every(3600, "work", name="hourly", overlap=False)
    with place.open(place.old) as old, place.open(place.new) as new:
        old.process_jobs(jobs)
        place.clock.now += 3600
        old.pause("work")
        old.process_jobs(jobs)  # its job is added, and waits
        (first,) = [found["id"] for found in old.jobs()]
        assert place.move().schedules == 1
        assert new.paused() == {"work"}
        place.clock.now += 3600
        new.process_jobs(jobs)  # not added: that before still waits
        assert [found["id"] for found in new.jobs()] == [first]
        new.resume()
        new.process_jobs(jobs)
        place.clock.now += 3600
        new.process_jobs(jobs)
        assert len({found["id"] for found in new.jobs()}) == new.counts()["completed"] == 2
        place.move(place.new, place.old, finished=True)
        assert old.process_jobs(jobs)["completed"] == 0
        place.clock.now += 3600
        assert old.process_jobs(jobs)["completed"] == 1


def test_a_schedule_that_the_new_place_has_started_gets_the_instants_that_are_due_here(
    place: Place,
) -> None:
    jobs = Handlers(name="program")
    jobs.handler("work")(work)
    jobs.every(3600, "work", name="hourly", missed="all")
    with place.open(place.old) as old, place.open(place.new) as new:
        old.process_jobs(jobs)
        place.clock.now += 3 * 3600
        new.process_jobs(jobs)
        place.clock.now += 2 * 3600
        new.process_jobs(jobs)
        assert new.counts()["completed"] == 2
        place.move()
        assert new.process_jobs(jobs)["completed"] == 3
        assert new.process_jobs(jobs)["completed"] == 0


def test_finished_jobs_and_history_move_on_request(place: Place) -> None:
    with place.open(place.old) as old:
        old.enqueue("work", 1, job_id="done")
        old.process_jobs({"work": work})
        before = job(old, "done")
        attempts = history(old, "done")
    done = place.move(finished=True, history=True)
    assert (done.finished, done.history) == (1, 1)
    assert place.left() == []
    assert place.move(finished=True, history=True).history == 0
    with place.open(place.new) as new:
        assert job(new, "done") == before
        assert history(new, "done") == attempts


def test_a_moved_job_that_the_new_place_does_not_have_is_reported_and_kept(place: Place) -> None:
    with place.open(place.old) as old:
        old.enqueue("work", 1, job_id="kept")
        old.enqueue("work", 2, job_id="lost")

    def lose(*_: object) -> None:
        with place.open(place.new) as new:
            new.cancel_job("lost")
            place.clock.now += 5
            assert new.purge(0) == 1

    with (
        place.open(place.old, even_if_moved=True) as old,
        place.open(place.new, even_if_moved=True) as new,
    ):
        store: Any = Spy(old.store, "set_moved", lose)
        done = moving.move(store, new.store, clock=place.clock)
    assert (done.missing, done.is_complete()) == (["lost"], False)
    assert place.left() == ["lost"]
    with place.open(place.old, even_if_moved=True) as old:
        assert job(old, "lost")["error"] == f"Moved to {place.address()}"
    assert place.move().missing == ["lost"]


def test_a_withdrawn_job_is_neither_requeued_nor_removed(files: Place) -> None:
    error = f"Moving to {files.new}: no"
    old_job = line("withdrawn", type="work", status="cancelled", run_at=5, attempts=1, error=error)
    add_lines(Path(files.old), old_job)
    with files.open(files.old) as old:
        assert not old.requeue("withdrawn")
        assert old.purge(0) == old.remove_type("work") == 0
        with pytest.raises(InvalidArgument, match="not moved completely"):
            files.move(target=files.new.replace("queue", "other"))
        with pytest.raises(InvalidArgument, match="not moved completely"):
            files.move(files.new, files.old)
    assert files.move().moved == 1
    with files.open(files.new) as new:
        found = job(new, "withdrawn")
        assert (found["status"], found["attempts"], found["error"]) == ("pending", 1, "no")


def test_a_queue_is_moved_to_one_address_only(files: Place) -> None:
    other = files.new.replace("queue", "other")
    with files.open(files.old) as old:
        old.enqueue("work", 1)
    with pytest.raises(InvalidArgument, match="to itself"):
        files.move(target=files.old)
    files.move()
    with pytest.raises(InvalidArgument, match="was moved to"):
        files.move(target=other)
    with pytest.raises(InvalidArgument, match="was moved to"):
        files.move(other, files.old)


def test_jobs_are_moved_into_memory_but_not_from_there(place: Place) -> None:
    with place.open(place.old) as old:
        old.enqueue("work", 1, job_id="a")
    memory = open_queue("memory:", clock=place.clock)
    with place.open(place.old, even_if_moved=True) as source:
        assert moving.move(source.store, memory.store).moved == 1
        assert memory.process_jobs({"work": work})["completed"] == 1
        memory.enqueue("work", 2)
        with pytest.raises(InvalidArgument, match="in the memory"):
            moving.move(memory.store, source.store)
