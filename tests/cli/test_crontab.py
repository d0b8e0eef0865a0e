"""`dbbasic-queue crontab`: the line, and what `--install` and `--remove` leave of a crontab."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import environment, job, run_command
from ordinary_user import BARE, User, ordinary_user, what_is_missing

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

TOML = '[hello]\ncommand = ["echo", "Hello, {name}!"]\n\n[bad]\ncommand = ["sh", "-c", "exit 65"]\n'
needs_user = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


def app_in(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "handlers.toml").write_text(TOML)
    (place / "handlers.toml").chmod(0o644)
    return place


def printed_line(app: Path, *arguments: str, **more: str) -> str:
    done = run_command("crontab", *arguments, cwd=app, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removesuffix("\n")


def run_as_cron(line: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line's command as cron does: by sh, in a bare environment, up to the first `%`.

    What it prints is what cron would mail.
    """
    command = line.split(maxsplit=5)[5]
    command, _, _ = command.replace("\\%", "\0").partition("%")
    return subprocess.run(
        ["sh", "-c", command.replace("\0", "%").replace(" --linger 55s", "")],
        cwd="/",
        env={**BARE, "PYTHONPATH": environment()["PYTHONPATH"]},
        capture_output=True,
        timeout=60,
        check=False,
        umask=0o077,
    )


# -- the line --


def test_the_line_has_absolute_paths_a_utf8_locale_and_a_log(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    assert printed_line(app) == (
        f"* * * * * cd {app} && LC_ALL=C.UTF-8 {sys.executable} -m dbbasic_queue run "
        f"{app}/handlers.toml --linger 55s 2>&1 | tee -a {app}/worker.log "
        f"# dbbasic-queue: {app}/data/queue.tsv"
    )


@pytest.mark.parametrize("name", ["plain", "100 % of 'it'", "Žofie's & co; $HOME `id`", "a#b\\"])
def test_the_line_runs_the_jobs_in_any_directory_as_cron_runs_it(tmp_path: Path, name: str) -> None:
    app = app_in(tmp_path / name)
    with Queue(app / "data/queue.tsv") as queue:
        queue.enqueue("hello", {"name": "Žofie 渡辺"}, job_id="x")
        mail = run_as_cron(printed_line(app))
        assert (mail.stdout, mail.stderr) == (b"", b"")
        assert job(queue, "x")["result"] == "Hello, Žofie 渡辺!"


def test_the_line_names_a_queue_that_is_not_the_default_one(tmp_path: Path) -> None:
    app = app_in(tmp_path / "app")
    path = tmp_path / "other place" / "100%.tsv"
    with Queue(path) as queue:
        queue.enqueue("hello", {"name": "Ada"}, job_id="x")
        line = printed_line(app, "--file", str(path))
        assert run_as_cron(line).stdout == b""
        assert job(queue, "x")["status"] == "completed"
    assert not (app / "data").exists()


def test_the_mail_of_a_failed_job_is_one_line_which_the_log_has_too(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    with Queue(app / "data/queue.tsv") as queue:
        queue.enqueue("bad", {}, job_id="x")
    mail = run_as_cron(printed_line(app))
    assert mail.stderr == b""
    assert mail.stdout.decode().endswith("ERROR bad x failed, attempt 1: exit code 65\n")
    assert mail.stdout.count(b"\n") == 1
    assert (app / "worker.log").read_bytes() == mail.stdout


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda app: (app / "handlers.toml").unlink(), "No such file"),
        (lambda app: (app / "handlers.toml").write_text("[x]\ncommand = 5\n"), "[x]: command"),
        (lambda app: (app / "data").chmod(0o777), "world-writable"),
        (lambda app: (app / "data/queue.tsv").write_text("no queue\n"), "header"),
    ],
)
def test_the_mail_about_a_broken_app_is_one_line_that_says_what_is_wrong(
    tmp_path: Path, breaks: object, told: str
) -> None:
    app = app_in(tmp_path)
    with Queue(app / "data/queue.tsv") as queue:
        queue.enqueue("hello", {"name": "Ada"})
    line = printed_line(app)
    breaks(app)  # type: ignore[operator]
    mail = run_as_cron(line)
    assert told in mail.stdout.decode()
    assert mail.stdout.count(b"\n") == 1
    assert mail.stderr == b""


def test_there_is_no_mail_before_the_first_job(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    mail = run_as_cron(printed_line(app))
    assert (mail.stdout, mail.stderr) == (b"", b"")
    assert not (app / "data").exists()


def test_a_program_a_module_a_schedule_and_no_log_can_be_named(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    (app / "jobs.py").write_text("")
    line = printed_line(app, "jobs.py", "--schedule", " */5  1-3 * * mon", "--no-log")
    assert line.startswith(f"*/5 1-3 * * mon cd {app} && LC_ALL=C.UTF-8 {sys.executable} ")
    assert shlex.split(line, comments=True)[-1] == f"{app}/jobs.py"
    line = printed_line(app, "jobs:all", "--schedule", "@hourly", "--no-log")
    assert shlex.split(line, comments=True)[-2:] == ["run", "jobs:all"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["missing.toml"], "there is no file 'missing.toml'"),
        (["--schedule", "* * * *"], "must be five fields"),
        (["--log", "/nowhere/worker.log"], "can't write to /nowhere/worker.log"),
        (["--file", "a\nb.tsv"], "a path has a line break in it"),
        (["--file", "a" * 200 + "/" + "b" * 200 + "/" + "c" * 200], "cron doesn't accept"),
    ],
)
def test_what_cron_could_not_run_is_refused(
    tmp_path: Path, arguments: list[str], error: str
) -> None:
    done = run_command("crontab", *arguments, cwd=app_in(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_directory_without_a_worker_is_refused(tmp_path: Path) -> None:
    done = run_command("crontab", cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no worker in" in done.stderr


def test_a_password_is_not_written_into_a_line_that_ps_shows(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    done = run_command(
        *("crontab", "--no-log"), cwd=app, DBBASIC_QUEUE_URL="redis://:secret@127.0.0.1:1/0"
    )
    assert done.returncode == 1
    assert "secret" not in done.stdout + done.stderr


# -- installing and removing it --


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary_user() as found:
        app_in(found.app)
        yield found


BEFORE = [
    None,
    b"# mine\n\n\nMAILTO=ada@example.com\n*/7 * * * * date +\\%F  # often\n",
    b"\n \n# a\n# b\n# c\n# d\n@daily /bin/true\t \n\n",
    b"# dbbasic-queue: not a line of ours\n0 0 * * * echo '\xff\x85\xe2\x80\xa8' \x0c\n",
    b"# DO NOT EDIT, or do\n* * * * * true # dbbasic-queue: /other/data/queue.tsv\n",
]


@needs_user
@pytest.mark.parametrize("before", BEFORE)
def test_after_remove_the_crontab_is_byte_for_byte_what_it_was(
    user: User, before: bytes | None
) -> None:
    user.set_crontab(before)
    assert user.crontab() == before
    line = user.queue_command("crontab").encode()
    assert user.queue_command("crontab", "--install") == f"installed\t{line.decode()}"
    assert user.crontab() == (before or b"") + line
    assert user.queue_command("crontab", "--install").startswith("unchanged\t")
    assert user.crontab() == (before or b"") + line
    assert user.queue_command("crontab", "--remove").startswith("removed\t")
    assert user.crontab() == before


@needs_user
def test_a_line_that_is_installed_again_stays_in_its_place(user: User) -> None:
    user.set_crontab(b"# first\n")
    user.queue_command("crontab", "--install")
    installed = user.crontab()
    assert installed is not None
    user.set_crontab(installed + b"# last\n")
    user.queue_command("crontab", "--install", "--schedule", "@hourly", "--no-log")
    line = user.queue_command("crontab", "--schedule", "@hourly", "--no-log").encode()
    assert user.crontab() == b"# first\n" + line + b"# last\n"
    user.queue_command("crontab", "--remove")
    assert user.crontab() == b"# first\n# last\n"


@needs_user
def test_a_line_that_was_edited_or_commented_out_is_removed_and_its_neighbours_stay(
    user: User,
) -> None:
    line = user.queue_command("crontab").encode()
    mine = b"0 3 * * * cd " + bytes(user.app) + b" && ./backup\n"
    user.set_crontab(mine + b"#" + line.replace(b"* * * * *", b"*/9 * * * *") + mine + line)
    user.queue_command("crontab", "--remove")
    assert user.crontab() == mine + mine


@needs_user
def test_the_lines_of_two_queues_do_not_disturb_each_other(user: User) -> None:
    user.set_crontab(None)
    user.queue_command("crontab", "--install")
    one = user.crontab()
    user.queue_command("crontab", "--install", "--file", "mail/queue.tsv")
    assert user.crontab() != one
    user.queue_command("crontab", "--remove", "--file", "mail/queue.tsv")
    assert user.crontab() == one
    user.queue_command("crontab", "--remove")
    assert user.crontab() is None


@needs_user
def test_removing_a_line_that_is_not_there_is_an_error_and_changes_nothing(user: User) -> None:
    user.set_crontab(b"# mine\n")
    done = user.run(str(user.python), "-m", "dbbasic_queue", "crontab", "--remove")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the crontab has no line" in done.stderr
    assert user.crontab() == b"# mine\n"


@needs_user
def test_a_schedule_that_the_crontab_program_refuses_changes_nothing(user: User) -> None:
    user.set_crontab(b"# mine\n")
    command = [str(user.python), "-m", "dbbasic_queue", "crontab", "--install"]
    done = user.run(*command, "--schedule", "99 * * * *")
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert user.crontab() == b"# mine\n"


@needs_user
def test_comments_at_the_top_of_a_crontab_without_a_header_are_kept(user: User) -> None:
    """Debian's `crontab -l` leaves out the first three comments, which it takes for its header."""
    spool = Path("/var/spool/cron/crontabs", user.name)
    user.set_crontab(b"# x\n")
    if not spool.is_file():
        pytest.skip("this cron keeps its crontabs in another place")
    mine = b"# one\n# two\n# three\n0 3 * * * true\n"
    spool.write_bytes(mine)  # as a backup would be restored
    user.queue_command("crontab", "--install")
    user.queue_command("crontab", "--remove")
    assert user.crontab() == mine


# -- systemd --


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", ["shop", '50 % "off" $HOME\'s\\n'])
def test_systemd_accepts_the_units(tmp_path: Path, name: str) -> None:
    app = app_in(tmp_path / name)
    units = tmp_path / "units"
    units.mkdir()
    done = run_command(
        *("crontab", "--systemd", "--out", str(units), "--file", "my data/queue.tsv"), cwd=app
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in units.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["path", "service", "timer"]
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(str(units / name) for name in names)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        timeout=60,
        check=False,
    )
    ours = [line for line in checked.stderr.splitlines() if str(units) in line or "queue" in line]
    assert (checked.returncode, ours) == (0, [])


def test_the_units_run_as_this_user_and_are_not_overwritten(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    arguments = ("crontab", "--systemd", "--out", str(tmp_path))
    assert run_command(*arguments, cwd=app).returncode == 0
    [service] = tmp_path.glob("*.service")
    assert "\nUser=root\n" in service.read_text() or os.geteuid() != 0
    before = service.read_text()
    service.write_text("edited")
    refused = run_command(*arguments, cwd=app)
    assert refused.returncode == 1
    assert f"{service} is there already, and was not changed (remove it, or" in refused.stderr
    assert service.read_text() == "edited"
    missing = run_command("crontab", "--systemd", "--out", "no such/", cwd=app)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == (
        "dbbasic-queue: invalid --out 'no such/': must be a directory that exists (mkdir -p "
        "'no such/' makes it; without --out, the units are printed)\n"
    )
    assert before in run_command("crontab", "--systemd", cwd=app).stdout
