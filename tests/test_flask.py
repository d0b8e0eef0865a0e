"""`dbbasic_queue.flask`: the queue of an app, its command line, jobs in app contexts, the page."""

from __future__ import annotations

import asyncio
import gc
import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import Child, environment, job, rows, run_command
from ordinary_user import BARE

from dbbasic_queue import Queue, Worker
from dbbasic_queue.errors import InvalidHandlers, NotAQueue
from dbbasic_queue.queue import default_queue

pytest.importorskip("flask")
from flask import Flask, current_app, g, session

from dbbasic_queue.flask import FlaskHandlers

APP = """
from flask import Flask, current_app
from dbbasic_queue.flask import FlaskHandlers

app = Flask(__name__)
app.config.from_prefixed_env()
jobs = FlaskHandlers()
jobs.init_app(app)


@jobs.handler
def greet(payload):
    return f"{current_app.name} greets {payload['name']}"


@jobs.handler(timeout=30)
def greet_slowly(payload):
    return greet(payload)
"""


def new_app(directory: Path, **config: Any) -> Flask:
    app = Flask(config.pop("name", "shop"), instance_path=str(directory))
    app.secret_key = "a secret"
    app.config.update(config)
    return app


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """An app whose instance folder is the test's directory."""
    return new_app(tmp_path)


@pytest.fixture
def jobs(app: Flask) -> FlaskHandlers:
    """The registry of the app."""
    return FlaskHandlers(app)


# -- the queue --


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({}, "{}/queue.tsv"),
        ({"QUEUE_PATH": "data/jobs.tsv"}, "{}/data/jobs.tsv"),
        ({"QUEUE_PATH": Path("/srv/queue.tsv")}, "/srv/queue.tsv"),
        ({"QUEUE_URL": "memory:"}, "memory:"),
    ],
)
def test_the_queue_is_that_of_the_configuration_or_in_the_instance_folder(
    tmp_path: Path, config: dict[str, Any], path: str
) -> None:
    app = new_app(tmp_path, **config)
    assert FlaskHandlers(app).queue.path == path.format(tmp_path)


def test_a_path_and_a_url_are_an_error(tmp_path: Path) -> None:
    both = new_app(tmp_path, QUEUE_URL="memory:", QUEUE_PATH="queue.tsv")
    with pytest.raises(NotAQueue, match="both QUEUE_URL and QUEUE_PATH are set"):
        FlaskHandlers(both)
    with pytest.raises(NotAQueue, match="http"):
        FlaskHandlers(new_app(tmp_path, QUEUE_PATH="http://host"))


def test_a_view_adds_jobs_to_the_queue_of_its_app(tmp_path: Path) -> None:
    """One registry serves the apps of a factory, such as those of tests."""
    jobs = FlaskHandlers()

    @jobs.handler
    def greet(payload: str) -> str:
        return f"{current_app.name} greets {payload}"

    def create_app(name: str) -> Flask:
        app = new_app(tmp_path, name=name, QUEUE_PATH=f"{name}.tsv")
        jobs.init_app(app)
        app.add_url_rule("/", view_func=lambda: greet.enqueue(name.upper()))
        return app

    for app in [create_app("one"), create_app("two")]:
        job_id = app.test_client().get("/").text
        with app.app_context():
            assert jobs.queue.process_jobs(jobs)["completed"] == 1
            assert job(jobs.queue, job_id)["result"] == f"{app.name} greets {app.name.upper()}"
        assert len(rows(tmp_path / f"{app.name}.tsv")) == 1


def test_without_one_app_the_queue_isnt_clear(tmp_path: Path) -> None:
    jobs = FlaskHandlers()
    with pytest.raises(InvalidHandlers, match="no apps have this registry"):
        jobs.queue.counts()
    first, second = new_app(tmp_path), new_app(tmp_path, QUEUE_PATH="other.tsv")
    jobs.init_app(first)
    assert jobs.queue.path == str(tmp_path / "queue.tsv")
    jobs.init_app(second)
    with pytest.raises(InvalidHandlers, match="2 apps have this registry, and none is the current"):
        jobs.queue.counts()
    with second.app_context():
        assert jobs.queue.path == str(tmp_path / "other.tsv")
    stranger = new_app(tmp_path, name="stranger")
    with stranger.app_context(), pytest.raises(InvalidHandlers, match="'stranger' isn't an app"):
        jobs.queue.counts()
    del second
    gc.collect()  # apps of tests that have ended don't count
    assert jobs.queue.path == str(tmp_path / "queue.tsv")


# -- jobs --


def test_each_job_has_an_app_context_of_its_own(app: Flask, jobs: FlaskHandlers) -> None:
    ended: list[object] = []
    app.teardown_appcontext(lambda _: ended.append(g.get("name")))

    @jobs.handler
    def plain(payload: str) -> object:
        before, g.name = g.get("name"), payload
        return [before, current_app.name]

    @jobs.handler
    async def coroutine(payload: str) -> object:
        before, g.name = g.get("name"), payload
        await asyncio.sleep(0.001)
        return [before, g.name]

    @jobs.handler(timeout=30)
    def in_a_process(payload: str) -> object:
        return [g.get("name"), current_app.name]

    queue = jobs.queue
    for job_type in ("plain", "coroutine", "in_a_process"):
        queue.enqueue_many(job_type, ["ada", "bob"])
    assert queue.process_jobs(jobs)["completed"] == 6
    results = [found["result"] for found in queue.jobs()]
    shop = [None, "shop"]
    assert results == [shop, shop, [None, "ada"], [None, "bob"], shop, shop]
    assert ended == ["ada", "bob", "ada", "bob"]  # in the process of its own, too


def test_the_jobs_of_a_worker_in_a_thread_have_a_context(app: Flask, jobs: FlaskHandlers) -> None:
    @jobs.handler
    def greet(payload: str) -> str:
        return current_app.name

    queue = jobs.queue
    with Worker(queue, jobs):
        found = queue.wait(queue.enqueue("greet", {}), 30)
    assert found and found["result"] == "shop"


# -- flask queue ... --


def test_flask_queue_suggests_commands_that_work_here(app: Flask, jobs: FlaskHandlers) -> None:
    run = partial(app.test_cli_runner().invoke, prog_name="flask")
    with jobs.queue as queue:
        queue.enqueue("greet", {}, job_id="paused")
        queue.pause()
        queue.cancel_job(queue.enqueue("greet", {}, job_id="cancelled"))
    status = run(args=["queue", "status", "--json"]).stdout
    assert json.loads(status)["command"] == "flask queue resume"
    assert "\tflask queue resume\n" in run(args=["queue", "show", "paused"]).stdout
    doctor = run(args=["queue", "doctor"]).stdout
    assert "\tflask queue resume\n" in doctor and "dbbasic-queue " not in doctor
    refused = run(args=["queue", "run-now", "cancelled"]).stderr
    assert refused.startswith("flask queue: cancelled was not made due: it is cancelled")
    assert refused.endswith("first: flask queue requeue cancelled)\n")
    wrong = run(args=["queue", "nonsense"]).stderr
    assert wrong.endswith("(see flask queue --help)\n")
    # Afterwards, the program itself names itself again.
    done = run_command("status", "--file", queue.path, cwd=Path("/"))
    assert f"dbbasic-queue --file {queue.path} resume" in done.stdout


def test_flask_queue_is_the_command_line_on_the_apps_queue(
    app: Flask, jobs: FlaskHandlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBBASIC_QUEUE_FILE", "/nowhere/queue.tsv")
    run = app.test_cli_runner().invoke
    missing = run(args=["queue", "list"])
    assert missing.exit_code == 1 and "there is no queue" in missing.stderr
    done = run(args=["queue", "enqueue", "greet", '{"name": "ada"}'])
    assert done.exit_code == 0, done.output
    job_id = done.stdout.strip()
    assert job(jobs.queue, job_id)["payload"] == {"name": "ada"}
    listed = run(args=["queue", "list", "--status", "pending"])
    assert listed.stdout.split("\t")[:2] == [job_id, "greet"]
    assert run(args=["queue", "cancel", job_id]).exit_code == 0
    assert job(jobs.queue, job_id)["status"] == "cancelled"
    assert run(args=["queue", "list", "--nonsense"]).exit_code == 2
    assert "usage: shop queue" in run(args=["queue", "--help"]).stdout
    assert default_queue().path == "/nowhere/queue.tsv"  # as before


def test_flask_run_in_a_program_of_its_own_runs_jobs(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    queue = Queue(tmp_path / "instance/queue.tsv")
    ids = [queue.enqueue(name, {"name": "ada"}) for name in ("greet", "greet_slowly")]
    command = [sys.executable, "-m", "flask", "--app", "shop", "queue", "run", "shop:jobs"]
    child = Child(command, tmp_path, "flask")
    try:
        assert child.wait() == 0, child.errors.read_text("utf-8")
    finally:
        child.clean_up()
    assert [job(queue, job_id)["result"] for job_id in ids] == ["shop greets ada"] * 2


def test_the_queue_can_be_named_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    command = [sys.executable, "-m", "flask", "--app", "shop", "queue", "list"]
    path = {"FLASK_QUEUE_PATH": str(tmp_path / "jobs.tsv")}
    Queue(tmp_path / "jobs.tsv").enqueue("greet", {}, job_id="mine")
    child = Child(command, tmp_path, "flask", {**environment(), **path})
    try:
        assert child.wait() == 0, child.errors.read_text("utf-8")
    finally:
        child.clean_up()
    assert child.output.read_text("utf-8").startswith("mine\tgreet\t")


# -- flask queue crontab --


def crontab(directory: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `flask queue crontab` in a directory, with the app shop:app unless FLASK_APP differs."""
    return subprocess.run(
        [sys.executable, "-m", "flask", "queue", "crontab", *arguments],
        cwd=directory,
        env={**environment(), "FLASK_APP": "shop", **more},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_cron_runs_the_line_of_flask_queue_crontab_with_the_app(tmp_path: Path) -> None:
    """In an environment of cron's, without FLASK_APP and the queue's path."""
    place = tmp_path / "100 % of 'it'"
    place.mkdir()
    (place / "shop.py").write_text(APP)
    queue = Queue(tmp_path / "jobs %.tsv")
    ids = [queue.enqueue(name, {"name": "Žofie"}) for name in ("greet", "greet_slowly")]
    done = crontab(place, "shop:jobs", FLASK_QUEUE_PATH=queue.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"* * * * * cd {shlex.quote(str(place))} && ".replace("%", "\\%"))
    assert done.stdout.endswith(f"# dbbasic-queue: {queue.path}\n".replace("%", "\\%"))
    command = done.stdout.split(maxsplit=5)[5].replace("\\%", "%")
    assert " --linger 55s" in command
    ran = subprocess.run(
        ["sh", "-c", command.replace(" --linger 55s", "")],
        cwd="/",
        env={**BARE, "LC_ALL": "C", "PYTHONPATH": environment()["PYTHONPATH"]},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert [job(queue, job_id)["result"] for job_id in ids] == ["shop greets Žofie"] * 2


@pytest.mark.parametrize(
    ("arguments", "more", "error"),
    [
        ([], {}, "name the app's registry as MODULE:NAME, such as: flask queue crontab shop:jobs"),
        (["worker.py"], {}, "name the app's registry as MODULE:NAME"),
        (["shop:jbos"], {}, "the module shop has no jbos"),
        (["shop:plain"], {}, "shop:plain isn't a registry of this app"),
        (["shop:jobs"], {"FLASK_QUEUE_URL": "redis://:se-cret@127.0.0.1:1/0"}, "has a password"),
    ],
)
def test_flask_queue_crontab_refuses_what_would_run_without_the_app(
    tmp_path: Path, arguments: list[str], more: dict[str, str], error: str
) -> None:
    (tmp_path / "shop.py").write_text(f"{APP}\n\nplain = {{'greet': greet}}\n")
    done = crontab(tmp_path, *arguments, **more)
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert "se-cret" not in done.stderr


def test_a_command_line_of_ones_own_gets_told_what_to_write(
    app: Flask, jobs: FlaskHandlers
) -> None:
    done = app.test_cli_runner().invoke(args=["queue", "crontab", "shop:jobs"])
    assert done.exit_code == 1
    assert "PROGRAM queue run MODULE:NAME --linger 55s" in done.stderr
    done = app.test_cli_runner().invoke(args=["queue", "init"])
    assert done.exit_code == 1
    assert "this app has its handlers already" in done.stderr


# -- the page --


def test_the_page_is_for_those_that_the_session_allows(app: Flask) -> None:
    FlaskHandlers().init_app(
        app, allow=lambda _: "all" if session.get("admin") else None, prefix="/staff/queue/"
    )
    app.add_url_rule("/staff/queues", view_func=lambda: "a view")
    client = app.test_client()
    assert client.get("/staff/queue/").status_code == 403
    with client.session_transaction() as changed:
        changed["admin"] = True
    found = client.get("/staff/queue/")
    assert found.status_code == 200
    assert 'href="/staff/queue/jobs"' in found.text
    assert client.get("/staff/queue").headers["location"] == "/staff/queue/"
    assert client.get("/staff/queues").text == "a view"


def test_the_page_is_only_there_under_the_hosts_that_the_app_trusts(app: Flask) -> None:
    app.config["TRUSTED_HOSTS"] = ["shop.example.org"]
    FlaskHandlers().init_app(app, allow=lambda _: "all")
    found = {
        host: app.test_client().get("/queue/", headers={"Host": host}).status_code
        for host in ("shop.example.org", "evil.example", "a b")
    }
    assert found == {"shop.example.org": 200, "evil.example": 400, "a b": 400}


def test_without_allow_there_is_no_page(app: Flask, jobs: FlaskHandlers) -> None:
    assert app.test_client().get("/queue/").status_code == 404


@pytest.mark.parametrize("prefix", ["queue", "", "/"])
def test_the_page_needs_a_path(app: Flask, prefix: str) -> None:
    with pytest.raises(ValueError, match="invalid prefix"):
        FlaskHandlers().init_app(app, allow=lambda _: "read", prefix=prefix)
