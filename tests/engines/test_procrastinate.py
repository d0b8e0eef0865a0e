"""The backend in PostgreSQL: transactions, installation, other tools, broken connections."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

import procrastinate
import psycopg
import pytest
from helpers import EMPTY, NONE, at_once, job, join, notes, raises, wait_for, wait_for_notes
from postgres_server import PASSWORD, PostgresServer
from procrastinate.schema import SchemaManager

from dbbasic_queue import DuplicateJob, Fail, Handler, InvalidArgument, StoreError, open_queue
from dbbasic_queue.engines.procrastinate import ProcrastinateBackend
from dbbasic_queue.engines.store import EngineStore
from dbbasic_queue.errors import NotAQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers import Programs

    from dbbasic_queue import Queue


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of this test's queue."""
    return "q_" + hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:20]


@pytest.fixture
def url(postgres: PostgresServer, name: str) -> str:
    return postgres.url(name)


@pytest.fixture
def queue(url: str) -> Iterator[Queue]:
    with open_queue(url) as queue:
        yield queue


def backend_of(queue: Queue) -> ProcrastinateBackend:
    assert isinstance(queue.store, EngineStore)
    return cast("ProcrastinateBackend", queue.store.backend)


def let_workers_expire(server: PostgresServer, name: str) -> None:
    server.execute(
        f"UPDATE {name}.procrastinate_workers SET last_heartbeat = now() - interval '31 s'"
    )


# -- enqueueing within a transaction --


@contextmanager
def psycopg3(server: PostgresServer) -> Iterator[Any]:
    with closing(psycopg.connect(server.url())) as connection:
        yield connection


@contextmanager
def psycopg2(server: PostgresServer) -> Iterator[Any]:
    driver = pytest.importorskip("psycopg2")
    with closing(driver.connect(server.url())) as connection:
        yield connection


@contextmanager
def django(server: PostgresServer) -> Iterator[Any]:
    library = pytest.importorskip("django")
    settings = pytest.importorskip("django.conf").settings
    if not settings.configured:
        settings.configure()
        library.setup()
    place = {"HOST": "127.0.0.1", "PORT": server.port, "NAME": "postgres"}
    login = {"USER": "tester", "PASSWORD": PASSWORD, "ENGINE": "django.db.backends.postgresql"}
    handler = pytest.importorskip("django.db.utils").ConnectionHandler
    connection = handler({"default": place | login})["default"]
    with closing(connection):
        connection.set_autocommit(False)
        yield connection


@contextmanager
def sqlalchemy(server: PostgresServer) -> Iterator[Any]:
    library = pytest.importorskip("sqlalchemy")
    engine = library.create_engine(server.url().replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        yield connection.connection
    engine.dispose()


@pytest.fixture(params=[psycopg3, psycopg2, django, sqlalchemy], ids=lambda kind: kind.__name__)
def connection(request: pytest.FixtureRequest, postgres: PostgresServer) -> Iterator[Any]:
    """A connection of the application, which has a transaction of its own."""
    with request.param(postgres) as connection:
        yield connection


def test_a_job_of_a_transaction_is_there_after_its_commit(queue: Queue, connection: Any) -> None:
    payload = {"to": "é\0\\ud800", "n": [1.5, None]}
    one = queue.enqueue("greet", payload, connection=connection)
    many = queue.enqueue_many("greet", range(20), connection=connection)
    once = queue.enqueue("greet", 1, job_id="mine", exist_ok=True, connection=connection)
    unique = queue.enqueue("greet", "u", unique="pending", connection=connection)
    assert queue.counts() == EMPTY
    connection.commit()
    assert [found["id"] for found in queue.jobs()] == [one, *many, once, unique]
    assert job(queue, one)["payload"] == payload
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 23}


def test_a_rollback_leaves_nothing(queue: Queue, connection: Any, name: str) -> None:
    queue.enqueue("greet", {}, job_id="mine", connection=connection)
    queue.enqueue_many("greet", range(3), connection=connection)
    connection.rollback()
    assert queue.counts() == EMPTY
    assert queue.enqueue("greet", {}, job_id="mine") == "mine"


def test_a_taken_id_does_not_abort_the_transaction(queue: Queue, connection: Any) -> None:
    queue.enqueue("greet", {}, job_id="taken")
    queue.enqueue("greet", {}, job_id="before", connection=connection)
    with pytest.raises(DuplicateJob):
        queue.enqueue("greet", {}, job_id="taken", connection=connection)
    with pytest.raises(DuplicateJob):
        queue.enqueue("greet", {}, job_id="before", connection=connection)
    queue.enqueue("greet", {}, job_id="after", connection=connection)
    connection.commit()
    assert [found["id"] for found in queue.jobs()] == ["taken", "before", "after"]


def test_an_id_that_another_transaction_has_added_in_the_meantime_is_taken(
    queue: Queue, postgres: PostgresServer
) -> None:
    found: list[object] = []

    def add() -> None:
        with pytest.raises(DuplicateJob):
            found.append(queue.enqueue("greet", 2, job_id="mine"))

    with psycopg3(postgres) as connection:
        queue.enqueue("greet", 1, job_id="mine", connection=connection)
        thread = threading.Thread(target=add)
        thread.start()
        wait_for(lambda: waiting(postgres) == 1, "the second call to wait for the first")
        connection.commit()
        join(thread, "the call that waits for the transaction")
    assert found == []
    assert [row["payload"] for row in queue.jobs()] == [1]


def test_a_unique_job_of_an_open_transaction_is_seen_by_others_who_wait_for_its_end(
    queue: Queue, postgres: PostgresServer
) -> None:
    ids: list[str] = []
    with psycopg3(postgres) as connection:
        first = queue.enqueue("sync", 1, unique="pending", connection=connection)
        thread = threading.Thread(
            target=lambda: ids.append(queue.enqueue("sync", 1, unique="pending"))
        )
        thread.start()
        wait_for(lambda: waiting(postgres) == 1, "the second call to wait for the first")
        connection.commit()
        join(thread, "the call that waits for the transaction")
    assert ids == [first]


def waiting(server: PostgresServer) -> int:
    """Return how many calls wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return int(server.execute(sql)[0][0])


def test_an_error_in_the_transaction_says_that_it_is_aborted(queue: Queue, connection: Any) -> None:
    queue.enqueue("greet", {})
    with closing(connection.cursor()) as cursor, pytest.raises(Exception, match="zero"):
        cursor.execute("SELECT 1 / 0")
    with pytest.raises(StoreError, match="roll it back") as caught:
        queue.enqueue("greet", {}, connection=connection)
    assert PASSWORD not in str(caught.value)
    connection.rollback()
    assert queue.counts()["pending"] == 1


def test_only_a_synchronous_connection_to_postgresql_is_accepted(queue: Queue) -> None:
    orm = pytest.importorskip("sqlalchemy.orm")
    with closing(sqlite3.connect(":memory:")) as sqlite, orm.Session() as session:
        for other in (sqlite, session, object(), "postgresql:", psycopg.AsyncConnection):
            with pytest.raises(InvalidArgument, match=r"pass session\.connection\(\)\.connection"):
                queue.enqueue("greet", {}, connection=other)
    assert not queue.store.exists()


# -- installation, and Procrastinate's own tools --


def test_many_first_calls_at_once_install_the_queue_once(url: str) -> None:
    queues = [open_queue(url) for _ in range(8)]
    assert not queues[0].store.exists()
    at_once(*(lambda q=q: q.enqueue("greet", {}) for q in queues))
    assert queues[0].counts() == EMPTY | {"pending": 8}
    for queue in queues:
        queue.close()


def test_a_user_who_can_only_create_a_schema_makes_and_uses_a_queue(
    postgres: PostgresServer, name: str
) -> None:
    user = f"{name}_user"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD 'secret'")
    postgres.execute(f"GRANT CREATE ON DATABASE postgres TO {user}")
    with open_queue(postgres.url(name, user=user, password="secret")) as queue:
        ids = queue.enqueue_many("greet", range(3))
        assert queue.process_jobs({"greet": raises(Fail("no"))}) == NONE | {
            "failed": 1,
            "completed": 2,
        }
        assert queue.requeue(ids[0])
        assert queue.cancel_job(ids[0])
        assert queue.purge(0) == 3
        assert queue.counts() == EMPTY


def test_reading_a_queue_that_was_never_used_creates_nothing(
    queue: Queue, postgres: PostgresServer, name: str
) -> None:
    assert queue.counts() == EMPTY
    assert queue.process_jobs({"greet": raises()}) == NONE
    assert queue.paused() == frozenset()
    assert queue.history("x") == []
    assert not queue.cancel_job("x")
    assert postgres.execute("SELECT FROM pg_namespace WHERE nspname = %s", name) == []
    assert queue.pause("greet")
    assert queue.store.exists()


def test_an_older_queue_gets_the_functions_of_a_newer_version_and_keeps_its_jobs(
    queue: Queue, url: str, postgres: PostgresServer, name: str
) -> None:
    queue.enqueue("greet", {}, job_id="kept")
    postgres.execute(f"COMMENT ON TABLE {name}.dbbasic_jobs IS 'dbbasic_queue 0'")
    postgres.execute(f"DROP FUNCTION {name}.dbbasic_claim")
    with open_queue(url) as again:
        assert again.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
    postgres.execute(f"COMMENT ON TABLE {name}.dbbasic_jobs IS 'dbbasic_queue 999'")
    with open_queue(url) as again, pytest.raises(NotAQueue, match="upgrade"):
        again.counts()


def app_in(server: PostgresServer, schema: str) -> procrastinate.App:
    connector = procrastinate.SyncPsycopgConnector(
        conninfo=server.url(), kwargs={"options": f"-c search_path={schema}"}
    )
    return procrastinate.App(connector=connector)


def test_an_applications_own_procrastinate_in_the_same_database_is_left_alone(
    queue: Queue, postgres: PostgresServer, name: str
) -> None:
    theirs = f"{name}_app"
    with psycopg.connect(postgres.url()) as connection:
        connection.execute(f"CREATE SCHEMA {theirs}".encode())
        connection.execute(f"SET search_path TO {theirs}".encode())
        connection.execute(SchemaManager.get_schema())
    queue.enqueue("greet", {})
    with app_in(postgres, theirs).open() as app:
        app.configure_task("greet").defer(n=1)
        assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
        assert [found.status for found in app.job_manager.list_jobs()] == ["todo"]
    with (
        open_queue(postgres.url(theirs)) as wrong,
        pytest.raises(NotAQueue, match="choose another"),
    ):
        wrong.enqueue("greet", {})


def test_procrastinates_tools_show_each_job_with_its_status(
    queue: Queue, postgres: PostgresServer, name: str
) -> None:
    for status in ("pending", "completed", "failed", "cancelled", "stopped", "again", "retried"):
        queue.enqueue(status, {}, job_id=status)
    queue.cancel_job("cancelled")
    queue.cancel_job("again")
    queue.requeue("again")
    seen: dict[str, str] = {}

    def statuses() -> dict[str, str]:
        with app_in(postgres, name).open() as app:
            found = list(app.job_manager.list_jobs())
        assert all(one.task_name == one.queue for one in found)
        return {str(one.task_kwargs["id"]): str(one.status) for one in found}

    def stop(_: object) -> None:
        queue.stop_job("stopped")
        raise ValueError("no")

    handlers: dict[str, Any] = {
        "completed": lambda _: seen.update(statuses()),
        "failed": raises(Fail("no")),
        "stopped": stop,
        "retried": raises(ValueError("no")),
    }
    queue.process_jobs(handlers, skip_unknown=True)
    assert seen["completed"] == "doing"
    assert statuses() == {
        "pending": "todo",
        "completed": "succeeded",
        "failed": "failed",
        "cancelled": "cancelled",
        "stopped": "aborted",
        "again": "todo",
        "retried": "todo",
    }
    queue.remove_type("completed")
    assert "completed" not in statuses()


def test_what_procrastinates_tools_change_or_delete_is_changed_in_the_queue(
    queue: Queue, postgres: PostgresServer, name: str
) -> None:
    ids = queue.enqueue_many("greet", range(3))
    with app_in(postgres, name).open() as app:
        first, second, third = app.job_manager.list_jobs()
        assert first.id and second.id and third.id
        app.job_manager.cancel_job_by_id(first.id)
        app.job_manager.cancel_job_by_id(second.id, delete_job=True)
    assert job(queue, ids[0])["status"] == "cancelled"
    assert queue.get_job(ids[1]) is None
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}
    assert queue.requeue(ids[0])
    assert queue.process_jobs({"greet": raises()}) == NONE | {"completed": 1}


# -- claiming --


def test_a_claim_reads_no_jobs_that_it_cannot_claim(queue: Queue, postgres: PostgresServer) -> None:
    now = time.time()
    queue.enqueue_many("paused", range(3000))
    queue.enqueue_many("greet", range(3000), now + 3600)
    queue.enqueue_many("greet", range(5))
    now = time.time()  # enqueueing 6,000 jobs may take a while
    backend = backend_of(queue)
    worker = backend.open_worker("host.1", 1)
    mark = backend.look(now)
    for when, count in ((now + 1, 5), (now + 1, 0), (now - 3600, 0)):
        with psycopg3(postgres) as connection:
            inside = backend.within(connection)
            assert inside.has_due(["greet"], when, mark) is bool(count)
            found = inside.claim(worker, ["greet"], 100, when, mark=mark, limits={}, skip=[])
            assert len(found) == count
            ((read,),) = connection.execute(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables "
                "WHERE schemaname = %s AND relname = 'dbbasic_jobs'",
                [backend.schema],
            )
            assert read < 50
            connection.commit()


def test_added_jobs_are_reported_once_and_after_the_commit(
    queue: Queue, postgres: PostgresServer
) -> None:
    queue.enqueue("a", 0)
    backend = backend_of(queue)
    with psycopg.connect(postgres.url(), autocommit=True) as listener:
        for channel in (f"dbbasic_queue.{backend.schema}", "procrastinate_any_queue_v1"):
            listener.execute(f'LISTEN "{channel}"'.encode())
        news = backend.listen()
        queue.enqueue_many("a", range(100))
        queue.enqueue("a", 0, unique="pending")
        queue.enqueue("b", 0, unique="pending")
        queue.enqueue("b", 0, unique="pending")
        channels = [message.channel for message in listener.notifies(timeout=1)]
        assert channels == [f"dbbasic_queue.{backend.schema}"] * 2
        assert news.have_come()
        assert not news.have_come()
        with psycopg3(postgres) as connection:
            queue.enqueue("a", 1, connection=connection)
            assert not news.have_come()
            connection.commit()
        assert [message.channel for message in listener.notifies(timeout=1)] == channels[:1]
        assert news.have_come()
        news.close()


def test_four_processes_keep_a_limit_exactly(
    queue: Queue, programs: Programs, url: str, tmp_path: Path
) -> None:
    queue.enqueue_many("greet", range(60))
    source = """
        from dbbasic_queue import Handler, open_queue

        def handler(n):
            note("running", "+1")
            time.sleep(0.03)
            note("running", "-1")

        with open_queue(sys.argv[1]) as queue:
            queue.counts()
            note("ready", "1")
            while not Path("go").exists():
                time.sleep(0.001)
            while queue.counts()["pending"]:
                queue.process_jobs({"greet": Handler(handler, concurrency=2)})
    """
    children = [programs.start(source, url) for _ in range(4)]
    wait_for_notes(tmp_path / "ready", 4)
    (tmp_path / "go").touch()
    for child in children:
        child.succeed()
    running, most = 0, 0
    for line in notes(tmp_path / "running"):
        running += int(line)
        most = max(most, running)
    assert (most, running, queue.counts()["completed"]) == (2, 0, 60)


# -- dead workers --


def test_a_job_that_kills_its_worker_each_time_fails_when_its_attempts_are_used_up(
    queue: Queue, programs: Programs, postgres: PostgresServer, url: str, name: str
) -> None:
    job_id = queue.enqueue("greet", {})
    source = """
        from dbbasic_queue import Handler, open_queue

        def kill(_):
            os.kill(os.getpid(), signal.SIGKILL)

        open_queue(sys.argv[1]).process_jobs({"greet": Handler(kill, max_attempts=2)})
    """
    handlers = {"greet": Handler(raises(), max_attempts=2)}
    for attempt in (1, 2):
        assert programs.start(source, url).wait() == -9
        assert job(queue, job_id)["attempts"] == attempt
        assert queue.process_jobs(handlers)["recovered"] == 0  # it may still be alive
        let_workers_expire(postgres, name)
        assert queue.process_jobs(handlers)["recovered"] == 1
        queue.run_now(job_id)
    found = job(queue, job_id)
    assert (found["status"], found["attempts"]) == ("failed", 2)
    assert found["error"] == "worker died in attempt 2"
    assert postgres.execute(f"SELECT FROM {name}.dbbasic_workers") == []


def test_a_worker_that_counts_as_dead_records_nothing_and_starts_nothing(
    queue: Queue, postgres: PostgresServer, url: str, name: str
) -> None:
    ids = queue.enqueue_many("greet", range(2))
    ran = []

    def handler(n: int) -> None:
        ran.append(n)
        let_workers_expire(postgres, name)
        with open_queue(url) as other:
            assert other.process_jobs({"greet": raises()}) == NONE | {
                "recovered": 1,
                "completed": 1,
            }

    assert queue.process_jobs({"greet": handler}) == NONE
    assert ran == [0]
    first, second = (job(queue, one) for one in ids)
    assert (first["status"], first["error"]) == ("pending", "worker died in attempt 1")
    assert second["status"] == "completed"


# -- broken connections --


class Proxy:
    """Forwards connections to the server; cuts one instead of forwarding one reply."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose_reply_to = b""
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server.port))
        loses = threading.Event()

        def replies() -> None:
            while answer := server.recv(1 << 20):
                if loses.is_set():
                    self.lost += 1
                    break
                client.sendall(answer)
            client.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=replies, daemon=True)
        thread.start()
        with client, server:
            try:
                while request := client.recv(1 << 20):
                    if self.lose_reply_to and self.lose_reply_to in request:
                        self.lose_reply_to = b""
                        loses.set()
                    server.sendall(request)
            except OSError:
                pass
            server.shutdown(socket.SHUT_RDWR)
            thread.join()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(postgres)
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    ("function", "call", "pending"),
    [
        ("add", lambda q: q.enqueue("new", 1), 3),
        ("add", lambda q: q.enqueue("new", 1, job_id="new"), 3),
        ("add", lambda q: q.enqueue_many("new", [1, 2]), 4),
        ("add_unless_pending", lambda q: q.enqueue("new", 1, unique="pending"), 3),
        ("replace", lambda q: q.pause("new") or pytest.fail("paused twice"), 2),
        ("change", lambda q: q.cancel_job("a") or pytest.fail("cancelled twice"), 1),
        ("change", lambda q: q.edit_job("a", 5) or pytest.fail("edited twice"), 2),
        ("change", lambda q: q.remove_type("greet") == 2 or pytest.fail("removed twice"), 0),
        ("change", lambda q: q.process_jobs({"greet": raises()}), 0),
        ("claim", lambda q: q.process_jobs({"greet": raises()}), 0),
        ("open_worker", lambda q: q.process_jobs({"greet": raises()}), 0),
        ("close_worker", lambda q: q.process_jobs({"greet": raises()}), 0),
        ("add_history", lambda q: q.process_jobs({"greet": raises()}), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_whose_reply_is_lost_is_made_once(
    queue: Queue, proxy: Proxy, name: str, function: str, call: Callable[[Queue], Any], pending: int
) -> None:
    for n, job_id in enumerate("ab"):
        queue.enqueue("greet", n, job_id=job_id)
    address = f"postgresql://tester:{PASSWORD}@127.0.0.1:{proxy.port}/postgres?queue={name}"
    with open_queue(address) as cut:
        proxy.lose_reply_to = f"dbbasic_{function}(".encode()
        result = call(cut)
    assert proxy.lost == 1
    assert queue.counts()["pending"] == pending
    if isinstance(result, dict):
        assert result == NONE | {"completed": 2}
        assert queue.counts() == EMPTY | {"completed": 2}
        assert sorted(row.id for row in queue.store.history()) == ["a", "b"]
        assert [row["attempts"] for row in queue.jobs()] == [1, 1]


def test_a_connection_cut_during_a_claim_loses_no_job(
    queue: Queue, postgres: PostgresServer, name: str
) -> None:
    queue.enqueue_many("greet", range(5))
    ran: list[int] = []
    with psycopg3(postgres) as connection:
        connection.execute(f"LOCK TABLE {name}.procrastinate_jobs IN SHARE MODE".encode())
        thread = threading.Thread(target=lambda: queue.process_jobs({"greet": ran.append}))
        thread.start()
        wait_for(lambda: waiting(postgres) == 1, "the claim")
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        )
        connection.rollback()
        join(thread, "the pass")
    assert ran == list(range(5))
    assert queue.counts() == EMPTY | {"completed": 5}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_loses_no_job_and_runs_none_again(
    programs: Programs, tmp_path: Path, mode: Any
) -> None:
    server = PostgresServer(fsync=True)
    try:
        with open_queue(server.url()) as queue:
            queue.enqueue_many("greet", range(120))
            assert backend_of(queue).warnings() == []
            child = programs.start(
                """
                from dbbasic_queue import open_queue

                def handler(n):
                    note("ran", str(n))
                    time.sleep(0.01)
                    return n

                print(open_queue(sys.argv[1]).process_jobs({"greet": handler})["completed"])
                """,
                server.url(),
            )
            for count in (20, 60):
                wait_for_notes(tmp_path / "ran", count)
                server.restart(mode)
                queue.enqueue("other", {}, job_id=f"after-{count}")
            assert child.succeed() == "120"
            assert sorted(map(int, notes(tmp_path / "ran"))) == list(range(120))
            assert queue.counts() == EMPTY | {"completed": 120, "pending": 2}
            server.stop(mode)
            with pytest.raises(StoreError, match="PostgreSQL"):
                queue.counts()
    finally:
        server.remove()


def test_a_forked_child_uses_connections_of_its_own(
    queue: Queue, programs: Programs, url: str
) -> None:
    programs.run(
        """
        from dbbasic_queue import open_queue
        queue = open_queue(sys.argv[1])
        queue.enqueue("greet", 0)
        (idle,) = queue.store.backend._client._connections._idle
        server_process = idle.info.backend_pid
        child = os.fork()
        queue.enqueue("greet", 1)
        if not child:
            (own,) = queue.store.backend._client._connections._idle
            assert own.info.backend_pid != server_process
            del queue, idle, own
            import gc
            gc.collect()
            sys.exit()  # with all that Python does at its end
        assert os.waitpid(child, 0)[1] == 0
        queue.enqueue("greet", 2)
        assert idle.info.backend_pid == server_process and not idle.closed
        assert list(queue.store.backend._client._connections._idle) == [idle]
        """,
        url,
    )
    assert sorted(cast("int", row["payload"]) for row in queue.jobs()) == [0, 1, 1, 2]


# -- URLs and messages --


@pytest.mark.parametrize(
    "wrong",
    [
        f"postgresql://tester:{PASSWORD}@127.0.0.1:1/postgres",
        f"postgresql://tester:{PASSWORD}@127.0.0.1:{{port}}/nowhere",
        f"postgresql://tester:x{PASSWORD}@127.0.0.1:{{port}}/postgres",
        f"postgresql://127.0.0.1:{{port}}/postgres?user=nobody&password={PASSWORD}",
    ],
)
def test_no_message_shows_the_password(postgres: PostgresServer, wrong: str) -> None:
    with open_queue(wrong.format(port=postgres.port)) as queue:
        with pytest.raises(StoreError) as caught:
            queue.enqueue("greet", {})
        shown = [str(caught.value), repr(caught.value), repr(queue), str(queue.store.path)]
        assert not [text for text in shown if PASSWORD in text]
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "wrong",
    [
        f"postgresql://tester:{PASSWORD}@[::1/postgres",
        f"postgresql://tester:{PASSWORD}@127.0.0.1/postgres?no=such",
        f"postgresql://tester:{PASSWORD}@127.0.0.1/postgres?queue=a-b",
        f"postgresql://tester:{PASSWORD}@127.0.0.1/postgres?queue=pg_x",
        f"postgresql://tester:{PASSWORD}@127.0.0.1/postgres?queue=" + "x" * 41,
        f"postgresql://tester:{PASSWORD}@127.0.0.1/postgres?queue=a&queue=b",
    ],
)
def test_an_invalid_url_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(NotAQueue) as caught:
        open_queue(wrong)
    assert PASSWORD not in str(caught.value)


def test_the_same_place_has_one_name_however_its_url_is_written() -> None:
    urls = [
        "postgresql://me:one@Example.org/app",
        "postgres://me@example.org:5432/app?queue=dbbasic_queue",
        "postgresql:///app?host=example.org&user=me&password=two&connect_timeout=3",
    ]
    names = {open_queue(url).store.path for url in urls}
    assert names == {"postgresql://me@example.org:5432/app?queue=dbbasic_queue"}
    assert open_queue(urls[0] + "?queue=mail").store.path not in names


def test_a_pickled_backend_opens_the_same_queue(queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    again = pickle.loads(pickle.dumps(backend_of(queue)))
    assert again.find("mine").type == "greet"
    again.close()


# -- what attempts leave behind, and the server's settings --


def test_the_last_hundred_thousand_attempts_are_kept(queue: Queue) -> None:
    queue.enqueue("greet", {})
    backend = backend_of(queue)
    line = "job\tgreet\t{}\tcompleted\t1\t{}.000\t0.1\t\t\tw\t\t\n"
    for start in range(0, 125_000, 12_500):
        backend.add_history(line.format(n, n) for n in range(start, start + 12_500))
    numbers = [int(row.split("\t")[2]) for row in backend.history("", 0)]
    assert numbers == list(range(numbers[0], 125_000))
    assert 100_000 <= len(numbers) <= 112_500
    assert len(list(backend.history("job", 124_990.0))) == 10


def test_output_that_is_not_text_is_kept_until_the_job_is_removed(queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    backend = backend_of(queue)
    line = "mine\tgreet\t1\t1.000\t0\t\udcff\\0é\n"
    backend.put_output("mine", 1, line)
    backend.put_output("mine", 2, "other\n")
    backend.put_output("unknown", 1, line)
    assert backend.output("mine", 1) == line
    assert backend.output("mine", None) == "other\n"
    assert backend.output("unknown", None) is None
    queue.remove_type("greet")
    assert backend.output("mine", 1) is None


def test_settings_that_can_lose_jobs_are_reported(queue: Queue, url: str) -> None:
    found = backend_of(queue).warnings()  # the tests' server is quick, not durable
    assert [text.split()[0] for text in found] == [
        "synchronous_commit",
        "fsync",
        "full_page_writes",
    ]
    with open_queue(url, fsync=False) as quick:
        quick.enqueue("greet", {})
        assert os.fspath(quick.store.path) == backend_of(queue).name
