"""The demo, started as users start it; and its mail server, tested with smtplib."""

from __future__ import annotations

import email
import email.policy
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import PROJECT, Child, wait_for

from dbbasic_queue import Queue
from dbbasic_queue.cli import demo

if TYPE_CHECKING:
    from collections.abc import Iterator

FRIENDS = [f"{name}@example.org" for name in ("ada", "grace", "katherine", "shell")]


def run_demo(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dbbasic_queue", "demo", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(cwd), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """One run of the demo: its directory, its output, and how many seconds it took."""
    home = tmp_path_factory.mktemp("toured")
    began = time.monotonic()
    done = run_demo("--dir", "home", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    return home / "home", done.stdout, time.monotonic() - began


def test_the_demo_takes_less_than_ten_seconds(toured: tuple[Path, str, float]) -> None:
    assert toured[2] < 10


@pytest.mark.skipif(shutil.which("flock") is None, reason="the demo's shell needs flock")
def test_the_demo_sends_each_mail_once(toured: tuple[Path, str, float]) -> None:
    home, _, _ = toured
    mails = [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in (home / "mails").iterdir()
    ]
    assert sorted(mail["To"] for mail in mails) == FRIENDS
    assert {mail["From"] for mail in mails} == {"demo@example.org"}


def test_the_demo_reports_on_real_data(toured: tuple[Path, str, float]) -> None:
    home, _, _ = toured
    header, *lines = (home / "elements.tsv").read_text(encoding="utf-8").splitlines()
    elements = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
    header, *lines = (home / "report.tsv").read_text(encoding="utf-8").splitlines()
    report = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]

    assert [row["period"] for row in report] == list("1234567")
    for row in report:
        weights = [float(e["atomic_weight"]) for e in elements if e["period"] == row["period"]]
        assert int(row["count"]) == len(weights)
        assert float(row["sum"]) == pytest.approx(sum(weights))
        assert float(row["min"]) == min(weights)
        assert float(row["max"]) == max(weights)
        assert float(row["mean"]) == pytest.approx(sum(weights) / len(weights))


def test_the_demos_elements_are_sorted_and_listed_once() -> None:
    text = (PROJECT / "dbbasic_queue" / "cli" / "demo_data.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    assert {len(row) for row in rows} == {6}
    numbers = [int(row[0]) for row in rows]
    # Elements without a standard atomic weight are left out.
    assert numbers == sorted({*range(1, 84), 90, 91, 92} - {43, 61})
    for column in (1, 2):
        assert len({row[column] for row in rows}) == len(rows)
    for number, _, _, period, _, _ in rows:
        assert int(period) == 1 + sum(int(number) > gas for gas in (2, 10, 18, 36, 54)) + (
            int(number) > 86
        )


def test_the_demo_leaves_a_job_that_waits_for_its_second_attempt(
    toured: tuple[Path, str, float],
) -> None:
    home, printed, _ = toured
    with Queue(home / "data" / "queue.tsv") as queue:
        [job] = queue.jobs(status="pending")
    assert (job["id"], job["attempts"]) == ("mail-to-busy", 1)
    assert "451" in str(job["error"])
    assert 0 < job["run_at"] - time.time() < 130
    assert f"mail-to-busy due at {job['run_at']}: " in printed


def test_the_demo_runs_the_file_that_users_copy(toured: tuple[Path, str, float]) -> None:
    ours, copied = PROJECT / "workers", toured[0] / "workers"
    assert (copied / "queue_worker.py").read_bytes() == (ours / "queue_worker.py").read_bytes()


def test_every_command_that_the_demo_shows_works_for_the_user(
    toured: tuple[Path, str, float], tmp_path: Path
) -> None:
    home, printed, _ = toured
    shutil.copytree(home, tmp_path / "home")
    commands = re.findall(r"^\$ ((?:awk|grep|cat) .*)$", printed, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path / "home",
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout, command
    assert done.stdout == "5 completed\n1 pending\n" or done.stdout == "1 pending\n5 completed\n"


def test_the_demo_creates_a_new_directory_by_default(tmp_path: Path) -> None:
    done = run_demo(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    [home] = tmp_path.iterdir()
    assert f"Look around in {home}\n" in done.stdout


def test_an_interrupted_demo_says_where_its_files_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dbbasic_queue", "demo", "--dir", "home"]
    child = Child(command, tmp_path, "demo", {**os.environ, "PYTHONPATH": str(PROJECT)})
    try:
        wait_for((tmp_path / "home/data/queue.tsv").exists, "the first job")
        child.signal(signal.SIGINT)
        assert child.wait() == 130
        said = f"demo: interrupted; its files are in {tmp_path}/home (remove it with rm -r)\n"
        assert child.errors.read_text() == said
    finally:
        child.clean_up()


def test_the_demo_does_not_touch_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").touch()
    done = run_demo("--dir", "mine", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not empty" in done.stderr
    assert os.listdir(tmp_path / "mine") == ["note"]
    done = run_demo("--dir", "mine/note", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mine/note is not a directory" in done.stderr


def test_the_demo_ignores_the_settings_in_the_environment(tmp_path: Path) -> None:
    stray = {"SMTP_USER": "me", "SMTP_STARTTLS": "1", "QUEUE_LOG_LEVEL": "loud"}
    queue_file = str(tmp_path / "mine" / "queue.tsv")
    done = run_demo("--dir", "home", cwd=tmp_path, DBBASIC_QUEUE_FILE=queue_file, **stray)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "mine").exists()
    url = f"file:{queue_file}"  # it isn't a file, usually, but the queue of a whole company
    done = run_demo("--dir", "home_2", cwd=tmp_path, DBBASIC_QUEUE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "mine").exists()


def test_the_demo_says_which_tools_are_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cat").symlink_to(shutil.which("cat") or "cat")
    done = run_demo("--dir", "home", cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert (done.returncode, done.stderr) == (0, "")
    for tool in ("awk", "grep", "flock"):
        assert f"(not run: this machine has no {tool})" in done.stdout
    assert "Checked: 3 emails arrived" in done.stdout


def test_a_demo_that_loses_mails_reports_it_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.MailServer, "keep", lambda server, mail, recipients: None)
    assert demo.run(str(tmp_path / "home")) == 1
    printed = capsys.readouterr()
    assert "emails to [] arrived" in printed.err
    assert "Checked" not in printed.out


def test_a_demo_with_a_broken_worker_reports_it_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('out of order')\n", encoding="utf-8")
    monkeypatch.setattr(demo, "worker_program", lambda: broken)
    assert demo.run(str(tmp_path / "home")) == 1
    assert "the worker ended with 1: out of order" in capsys.readouterr().err


# --- the mail server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[demo.MailServer]:
    with demo.mail_server(tmp_path) as server:
        yield server


@pytest.fixture
def client(server: demo.MailServer) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP("127.0.0.1", server.server_address[1], "test", timeout=10) as client:
        yield client


def test_a_mail_is_kept_as_it_was_sent(client: smtplib.SMTP, tmp_path: Path) -> None:
    mail = b"Subject: dots\r\n\r\n.\r\n..\r\n.begins with a dot\r\nGr\xc3\xbc\xc3\x9fe\r\n"
    client.sendmail("me@example.org", ["ada@example.org", "bob@example.org"], mail)
    client.sendmail("", ["ada@example.org"], b"Subject: from nobody\r\n\r\n")
    assert (tmp_path / "1.eml").read_bytes() == mail.replace(b"\r\n", b"\n")
    assert (tmp_path / "2.eml").read_bytes() == b"Subject: from nobody\n\n"


def test_the_server_records_the_recipients_of_each_mail(
    server: demo.MailServer, client: smtplib.SMTP
) -> None:
    client.sendmail("me@example.org", ["ada@example.org", "bob@example.org"], b"x")
    client.sendmail("me@example.org", ["ada@example.org"], b"x")
    assert server.accepted == ["ada@example.org", "bob@example.org", "ada@example.org"]


def test_a_busy_mailbox_is_refused_for_a_while(
    server: demo.MailServer, client: smtplib.SMTP, tmp_path: Path
) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
        client.sendmail("me@example.org", ["busy@example.org"], b"x")
    assert refusal.value.recipients["busy@example.org"][0] == 451
    assert (server.accepted, list(tmp_path.iterdir())) == ([], [])


def test_commands_out_of_order_are_refused(client: smtplib.SMTP) -> None:
    client.helo()
    assert client.docmd("DATA")[0] == 503
    assert client.rcpt("ada@example.org")[0] == 503
    assert client.docmd("MAIL", "FROM:me@example.org")[0] == 501
    assert client.docmd("VRFY", "ada")[0] == 500
    assert client.docmd("")[0] == 500
    assert client.mail("me@example.org")[0] == 250
    assert client.docmd("DATA")[0] == 503
    assert client.rcpt("ada@example.org")[0] == 250
    assert client.rset()[0] == 250
    assert client.docmd("DATA")[0] == 503
    assert client.noop()[0] == 250
    assert client.quit()[0] == 221


def test_a_mail_that_is_too_large_is_refused_and_the_next_is_not(
    server: demo.MailServer, client: smtplib.SMTP
) -> None:
    with pytest.raises(smtplib.SMTPDataError, match="552"):
        client.sendmail("me@example.org", ["ada@example.org"], b"x" * 70 + b"\r\n" * 600_000)
    client.sendmail("me@example.org", ["bob@example.org"], b"x")
    assert server.accepted == ["bob@example.org"]


def test_an_incomplete_mail_is_not_kept(server: demo.MailServer, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 10) as connection:
        replies = connection.makefile("rb")
        assert replies.readline() == b"220 demo\r\n"
        for command in (b"MAIL FROM:<me@example.org>", b"RCPT TO:<ada@example.org>", b"DATA"):
            connection.sendall(command + b"\r\n")
            assert replies.readline()[:1] in (b"2", b"3")
        connection.sendall(b"Subject: half a mail\r\n\r\nAnd th")
        connection.shutdown(socket.SHUT_WR)
        assert replies.read() == b""
        replies.close()
    assert (server.accepted, list(tmp_path.iterdir())) == ([], [])


def test_an_endless_command_ends_the_connection(server: demo.MailServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), 10) as connection:
        replies = connection.makefile("rb")
        assert replies.readline() == b"220 demo\r\n"
        connection.sendall(b"x" * demo.MAX_LINE)
        assert replies.read() == b""
        replies.close()
