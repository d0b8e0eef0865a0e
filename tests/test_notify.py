"""Failed jobs are reported by mail and to webhooks: real servers on loopback, real processes."""

from __future__ import annotations

import email
import email.policy
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from helpers import (
    NONE,
    NOW,
    Programs,
    exit_code,
    job,
    join,
    line,
    note,
    python,
    server_port,
    wait_for,
)

from dbbasic_queue import Fail, Handlers, InvalidArgument, Job, Queue, Worker
from dbbasic_queue.notify import Mail, Webhook
from dbbasic_queue.passes import deadline, digests, http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import EmailMessage
    from pathlib import Path

HOST = socket.gethostname()


class Mailbox:
    """The mails that a real SMTP server has accepted; `refuses` are addresses that it doesn't."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.raw: list[bytes] = []
        self.recipients: list[list[str]] = []
        self.refuses: set[str] = set()
        self.reply = "250 OK"
        self.logins: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def handle_RCPT(
        self, server: object, session: object, envelope: Any, address: str, options: object
    ) -> str:
        if address in self.refuses:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        if self.reply.startswith("250"):
            self.raw.append(envelope.content)
            self.recipients.append(envelope.rcpt_tos)
            found = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.mails.append(found)
        return self.reply

    def log_in(
        self, server: object, session: object, envelope: object, mechanism: str, login: Any
    ) -> AuthResult:
        self.logins.append((login.login, login.password))
        return AuthResult(success=login.password == b"right")

    def text(self, number: int = -1) -> str:
        return str(self.mails[number].get_content()).replace("\r\n", "\n")

    def mail(self) -> Mail:
        return Mail("ops@example.org", server="127.0.0.1", port=self.port)


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    with smtp_server(mailbox) as mailbox.port:
        yield mailbox


@contextmanager
def smtp_server(mailbox: Mailbox, port: int = 0) -> Iterator[int]:
    controller = Controller(mailbox, hostname="127.0.0.1", port=port or server_port())
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


class Requests:
    """The requests that a real HTTP server has answered, and its next answers."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, bytes]] = []
        self.status = 200
        self.location = ""
        self.hangs = threading.Event()
        self.url = ""


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    requests = Requests()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            requests.received.append((self.command, self.path, self.rfile.read(length)))
            if requests.hangs.is_set():
                time.sleep(20)
            self.send_response(requests.status)
            if requests.location:
                self.send_header("Location", requests.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    requests.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield requests
    finally:
        server.shutdown()
        join(thread, "the end of the server")
        server.server_close()


@contextmanager
def silent_server() -> Iterator[int]:
    """A server that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def jobs() -> Handlers:
    jobs = Handlers()

    @jobs.handler("work")
    def work(payload: Any) -> None:
        if payload == "fail":
            raise Fail("no such user")
        if payload == "raise":
            raise ValueError("soon")

    return jobs


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == "dbbasic_queue" and r.levelno >= level and not hasattr(r, "job_id")
    ]


# --- the mail


def test_a_pass_sends_one_mail_about_the_jobs_that_have_failed_for_good(
    queue: Queue, path: Path, jobs: Handlers, mailbox: Mailbox
) -> None:
    jobs.on_failure(mailbox.mail())
    queue.enqueue("work", "fail", job_id="first")
    queue.enqueue("work", "raise")
    queue.enqueue("work", "fine")
    queue.enqueue("work", "fail", job_id="second")
    assert queue.process_jobs(jobs) == NONE | {"completed": 1, "failed": 2, "retried": 1}
    (mail,) = mailbox.mails
    assert mail["Subject"] == f"2 jobs failed in {path} on {HOST}"
    assert mail["To"] == "ops@example.org"
    assert mail["From"] == f"dbbasic-queue@{HOST}"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"] and mail["Message-ID"]
    text = mailbox.text()
    for job_id in ("first", "second"):
        assert f"work, job {job_id}, 1 attempt\n    no such user\n" in text
        assert f"dbbasic-queue show {job_id}\n" in text
        assert f"dbbasic-queue requeue {job_id}\n" in text
    assert f"export DBBASIC_QUEUE_FILE={path}\n" in text
    assert "more" not in text
    assert queue.process_jobs(jobs) == NONE
    assert len(mailbox.mails) == 1


def test_a_pass_without_failed_jobs_sends_nothing(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, requests: Requests
) -> None:
    jobs.on_failure(mailbox.mail())
    jobs.on_failure(Webhook(requests.url))
    queue.enqueue_many("work", ["fine", "raise"])
    assert queue.process_jobs(jobs) == NONE | {"completed": 1, "retried": 1}
    assert (mailbox.mails, requests.received) == ([], [])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_hook_of_the_program_can_choose_which_jobs_a_mail_reports(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, workers: int
) -> None:
    mail = mailbox.mail()

    @jobs.on_failure
    def choose(job: Job, error: str) -> None:
        if job.id in ("a", "c"):
            mail(job, error)

    for job_id in "abcd":
        queue.enqueue("work", "fail", job_id=job_id)
    queue.process_jobs(jobs, workers=workers)
    (sent,) = mailbox.mails
    assert sent["Subject"].startswith("2 jobs failed in ")
    assert "job a," in mailbox.text() and "job c," in mailbox.text()


def test_an_idle_pass_with_a_mail_imports_nothing_to_send_it(tmp_path: Path) -> None:
    done = python(
        "import sys; before = set(sys.modules)\n"
        "from dbbasic_queue import Handlers, Queue\n"
        "from dbbasic_queue.notify import Mail\n"
        "jobs = Handlers()\n"
        "jobs.on_failure(Mail('ops@example.org'))\n"
        f"Queue({str(tmp_path / 'queue.tsv')!r}).process_jobs(jobs)\n"
        "print(*sorted(set(sys.modules) - before))",
        flags=("-S",),
    )
    loaded = {*done.stdout.split()}
    assert "dbbasic_queue.passes.digests" in loaded
    heavy = {"contextlib", "email", "json", "logging", "re", "smtplib", "socket", "ssl", "urllib"}
    assert loaded.isdisjoint(heavy), done.stderr


def test_the_commands_in_a_mail_show_and_mend_a_job(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, programs: Programs
) -> None:
    jobs.on_failure(mailbox.mail())
    failed = queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    lines = [text.strip() for text in mailbox.text().splitlines()]
    commands = [text.partition("dbbasic-queue ")[2] for text in lines]
    script = next(text for text in lines if text.startswith("export "))
    for name in ("show", "requeue"):
        command = next(text for text in commands if text.startswith(f"{name} {failed}"))
        script += f"\npython -m dbbasic_queue {command}"
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-euc", script], env=environment, capture_output=True, text=True, check=True
    )
    assert f"id\t{failed}" in done.stdout and "no such user" in done.stdout
    assert f"requeued\t{failed}" in done.stdout
    assert job(queue, failed)["status"] == "pending"


def test_of_many_failed_jobs_a_mail_lists_the_first_and_counts_the_others(
    queue: Queue, jobs: Handlers, mailbox: Mailbox
) -> None:
    jobs.on_failure(mailbox.mail())
    ids = queue.enqueue_many("work", ["fail"] * 1520)
    assert queue.process_jobs(jobs)["failed"] == 1520
    (mail,) = mailbox.mails
    assert mail["Subject"].startswith("1,520 jobs failed in ")
    assert mailbox.text().count("dbbasic-queue show ") == 20
    assert all(i in mailbox.text() for i in ids[:20])
    assert "and 1,500 more\n" in mailbox.text()
    assert len(mailbox.raw[0]) < 10_000


def test_a_mail_goes_to_several_addresses_and_a_refused_one_is_logged(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.refuses = {"gone@example.org"}
    to = ["ada@example.org", "gone@example.org", "bob@example.org"]
    jobs.on_failure(Mail(to, "app@example.org", "127.0.0.1", mailbox.port))
    queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    assert mailbox.recipients == [["ada@example.org", "bob@example.org"]]
    assert mailbox.mails[0]["From"] == "app@example.org"
    assert messages(caplog) == [
        "the mail about failed jobs was not accepted for: ['gone@example.org']"
    ]
    queue.process_jobs(jobs)
    assert len(mailbox.mails) == 1


HOSTILE = (
    "x\r\nBcc: victim@example.org\r\n\r\nbody =?utf-8?q?=0D=0ABcc:victim=40example.org?= \x1b[31m"
)


def test_no_text_of_a_job_or_path_can_add_a_header_or_a_control_character(
    tmp_path: Path, mailbox: Mailbox
) -> None:
    jobs = Handlers()
    jobs.on_failure(mailbox.mail())
    folder = tmp_path / HOSTILE.replace("/", "").replace("\0", "")
    with Queue(folder / "queue.tsv") as queue:
        job_id = queue.enqueue("work", {})

        @jobs.handler("work")
        def work(payload: Any) -> None:
            raise Fail(HOSTILE)

        queue.process_jobs(jobs)
    (mail,) = mailbox.mails
    assert mail["Bcc"] is None
    assert mailbox.recipients == [["ops@example.org"]]
    assert "\n" not in mail["Subject"] and r"\r\nBcc" in mail["Subject"]
    assert "\x1b" not in mailbox.text() + mail["Subject"]
    assert job_id in mailbox.text()
    assert "\nBcc" not in mailbox.text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"to": "ops"}, "invalid to 'ops': must be an email address, such as ops@example.org"),
        ({"to": ""}, "invalid to ''"),
        ({"to": []}, r"invalid to: must be an email address, or a list of them"),
        ({"to": 7}, "invalid to"),
        ({"to": "ops@example.org\nBcc: eve@example.org"}, "invalid to"),
        ({"to": "ops@example.org, eve@example.org"}, "invalid to"),
        ({"to": ["ops@example.org", "Eve <eve@example.org>"]}, "invalid to 'Eve"),
        ({"to": "öps@example.org"}, "invalid to"),
        ({"sender": "a@b@c"}, "invalid sender 'a@b@c'"),
        ({"server": ""}, "invalid server ''"),
        ({"server": "mail example"}, "invalid server"),
        ({"port": 0}, "invalid port 0: must be a number from 1 to 65535"),
        ({"port": True}, "invalid port True"),
        ({"port": "25"}, "invalid port '25'"),
        ({"user": "ada"}, "give both"),
        ({"password": "secret"}, "give both"),
        ({"tls": True}, 'invalid tls True: must be "starttls", "implicit" or "none"'),
    ],
)
def test_an_invalid_argument_of_mail_is_refused_at_once(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        Mail(**({"to": "ops@example.org"} | arguments))


def test_tls_is_chosen_by_the_user_and_the_port() -> None:
    to = "ops@example.org"
    assert Mail(to).tls == "none"
    assert Mail(to, user="ada", password="x").tls == "starttls"
    assert Mail(to, port=465).tls == "implicit"
    assert Mail(to, user="ada", password="x", tls="none").tls == "none"


def test_a_password_is_not_sent_to_a_server_without_tls(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    mail = Mail(
        "ops@example.org", server="127.0.0.1", port=mailbox.port, user="ada", password="secret"
    )
    jobs.on_failure(mail)
    queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    assert mailbox.mails == []
    (message,) = messages(caplog)
    assert "STARTTLS" in message
    assert "secret" not in message + repr(mail)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_login_goes_over_tls_to_a_server_whose_certificate_is_trusted(
    queue: Queue,
    jobs: Handlers,
    tls: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    mailbox = Mailbox()
    options: dict[str, Any] = {"authenticator": mailbox.log_in}
    if tls == "starttls":
        options |= {"tls_context": context, "auth_required": True}
    else:  # aiosmtpd counts only STARTTLS as TLS
        options |= {"ssl_context": context, "auth_require_tls": False}
    controller = Controller(mailbox, hostname="127.0.0.1", port=server_port(), **options)
    with monkeypatch.context() as trusting:
        trusting.setenv("SSL_CERT_FILE", certificate)  # `start` makes a connection, too
        controller.start()
    try:
        jobs.on_failure(
            Mail(
                "ops@example.org",
                server="127.0.0.1",
                port=controller.port,
                user="app",
                password="right",
                tls=tls,
            )
        )
        queue.enqueue("work", "fail")
        queue.process_jobs(jobs)
        assert (mailbox.mails, mailbox.logins) == ([], [])
        assert "SSLCertVerificationError" in messages(caplog)[0]

        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        queue.enqueue("work", "fail")
        queue.process_jobs(jobs)
        assert mailbox.mails[0]["Subject"].startswith("2 jobs failed")
        assert mailbox.logins == [(b"app", b"right")]
    finally:
        controller.stop()


def test_a_pickled_mail_has_its_settings_and_reports_its_own_jobs(
    queue: Queue, mailbox: Mailbox
) -> None:
    mail = mailbox.mail()
    mail.collect("somewhere", [{"id": "a", "type": "b", "attempts": 1, "error": "c"}], 1)
    copy = pickle.loads(pickle.dumps(mail))
    jobs = Handlers()
    jobs.on_failure(copy)
    queue.enqueue("unknown", {})
    queue.process_jobs(jobs, 1)
    digests.flush(["somewhere"])
    assert sorted(m["Subject"].split(" on ")[0] for m in mailbox.mails) == sorted(
        [f"1 job failed in {queue.path}", "1 job failed in somewhere"]
    )


# --- the webhook


def test_a_webhook_gets_the_failed_jobs_as_json(
    queue: Queue, path: Path, jobs: Handlers, requests: Requests
) -> None:
    jobs.on_failure(Webhook(f"{requests.url}/hook?key=1"))
    ids = queue.enqueue_many("work", ["fail"] * 25)
    queue.process_jobs(jobs)
    ((method, target, body),) = requests.received
    assert (method, target) == ("POST", "/hook?key=1")
    assert json.loads(body) == {
        "queue": str(path),
        "host": HOST,
        "count": 25,
        "failed": [
            {"id": i, "type": "work", "attempts": 1, "error": "no such user"} for i in ids[:20]
        ],
    }


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_other_than_2xx_is_an_error_and_a_redirect_is_not_followed(
    queue: Queue,
    jobs: Handlers,
    requests: Requests,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    requests.status = status
    requests.location = f"{requests.url}/elsewhere" if status == 302 else ""
    jobs.on_failure(Webhook(f"{requests.url}/secret"))
    queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    assert [target for _, target, _ in requests.received] == ["/secret"]
    (message,) = messages(caplog)
    assert message.startswith(f"could not send the webhook of {requests.url} about 1 failed job")
    assert f"HTTP Error {status}" in message
    assert "secret" not in message


BAD_URLS = [
    "",
    "example.org",
    "ftp://example.org/",
    "file:///etc/passwd",
    "http://",
    "http:///path",
    "http://example.org:port/",
    "http://example.org:0/",
    "http://example.org:99999/",
    "http://user:secret@example.org/",
    "http://example.org/a b",
    "http://example.org/\r\nHost: x",
    "http://[::1/",
    "http://exämple.org/",
    b"http://example.org/",
    7,
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_not_http_is_refused_before_any_job_runs(
    queue: Queue, jobs: Handlers, url: Any
) -> None:
    with pytest.raises(InvalidArgument, match=r"^invalid url "):
        Webhook(url)
    job_id = queue.enqueue("work", "fine")
    with pytest.raises(InvalidArgument, match=r"^invalid ping "):
        queue.process_jobs(jobs, ping=url)
    assert job(queue, job_id)["status"] == "pending"


# --- a server that can't be reached


def test_ctrl_c_does_not_interrupt_a_digest_that_collects(
    queue: Queue, jobs: Handlers, mailbox: Mailbox
) -> None:
    class Interrupted(Mail):
        def collect(self, *arguments: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            super().collect(*arguments)

    jobs.on_failure(Interrupted("ops@example.org", server="127.0.0.1", port=mailbox.port))
    queue.enqueue("work", "fail")
    queue.enqueue("work", "fine")
    with pytest.raises(KeyboardInterrupt):
        queue.process_jobs(jobs)
    assert len(mailbox.mails) == 1
    assert queue.counts()["pending"] == 1


def test_a_refused_connection_is_logged_and_the_next_digest_has_the_same_jobs(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    mail = mailbox.mail()
    mail.port = port = server_port()
    jobs.on_failure(mail)
    first, second = queue.enqueue("work", "fail"), queue.enqueue("work", "fine")
    assert queue.process_jobs(jobs) == NONE | {"completed": 1, "failed": 1}
    assert job(queue, second)["status"] == "completed"
    (message,) = messages(caplog)
    assert message.startswith("could not send the mail to ops@example.org about 1 failed job in ")
    assert "Connection refused (it is tried again with the next one; no job is" in message
    third = queue.enqueue("work", "fail")
    with smtp_server(mailbox, port):
        queue.process_jobs(jobs)
    (sent,) = mailbox.mails
    assert sent["Subject"].startswith("2 jobs failed in ")
    assert first in mailbox.text() and third in mailbox.text()


def test_a_server_that_rejects_the_mail_is_logged(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox.reply = "451 4.3.0 try later\x1b[31m"
    jobs.on_failure(mailbox.mail())
    queue.enqueue("work", "fail")
    queue.process_jobs(jobs)
    (message,) = messages(caplog)
    assert "try later" in message and "\x1b" not in message


def test_a_server_that_never_answers_delays_neither_an_outcome_nor_the_next_jobs(
    queue: Queue,
    path: Path,
    jobs: Handlers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the pass waits for the server, all is recorded and folded, and the slot is released."""
    monkeypatch.setattr(digests, "_FLUSH_SECONDS", 0.5)
    seen: list[Any] = []

    def look() -> None:
        columns = [row.split("\t") for row in path.read_text("utf-8").splitlines()[1:]]
        seen.append(([row[3] for row in columns], slots_are_free(path)))

    class Slow(Mail):
        def send(self, *arguments: Any) -> None:
            look()
            super().send(*arguments)

    with silent_server() as port:
        jobs.on_failure(Slow("ops@example.org", server="127.0.0.1", port=port))
        queue.enqueue_many("work", ["fail", *["fine"] * 30])
        started_at = time.monotonic()
        queue.process_jobs(jobs)
        assert 0.5 <= time.monotonic() - started_at < 15
        (message,) = messages(caplog)  # the end of the server is another error
    assert seen == [(["failed", *["completed"] * 30], True)]
    assert message.startswith("the mail to ops@example.org about failed jobs was not sent within")


def slots_are_free(path: Path) -> bool:
    import fcntl

    for file in path.parent.glob("queue.tsv.pass.*"):
        with file.open("rb+") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


def test_a_call_that_takes_too_long_raises_and_one_that_raises_is_raised() -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0.01 seconds"):
        deadline.within(0.01, threading.Event().wait, 5)
    with pytest.raises(ZeroDivisionError):
        deadline.within(5, lambda: 1 / 0)


def test_a_mail_server_that_sends_its_answer_byte_by_byte_does_not_hold_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(digests, "_SEND_SECONDS", 0.3)
    stop = threading.Event()

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while not stop.wait(0.02):
                connection.sendall(b"2")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        mail = Mail("ops@example.org", server="127.0.0.1", port=server.getsockname()[1])
        mail.collect("trickle", [], 1)
        digests.flush(["trickle"])
        stop.set()
        join(thread, "the end of the server")
    assert "TimeoutError: no answer within 0.3 seconds" in messages(caplog)[0]


# --- a long-running pass


def test_a_lingering_pass_sends_when_the_first_failure_is_old_enough_and_goes_on(
    now_queue: Queue, jobs: Handlers, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_QUIET_SECONDS", 1.0)
    jobs.on_failure(mailbox.mail())
    with Worker(now_queue, jobs):
        now_queue.enqueue_many("work", ["fail"] * 3)
        wait_for(lambda: mailbox.mails, "the mail")
        assert mailbox.mails[0]["Subject"].startswith("3 jobs failed")
        now_queue.enqueue("work", "fail")
        wait_for(lambda: len(mailbox.mails) == 2, "the second mail")
        assert mailbox.mails[1]["Subject"].startswith("1 job failed")
        now_queue.enqueue("work", "fail")
        wait_for(lambda: now_queue.counts()["failed"] == 5, "the last failure")
    assert len(mailbox.mails) == 3  # sent when the worker stops


def test_while_a_mail_server_hangs_a_worker_starts_jobs_without_delay(
    now_queue: Queue, jobs: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_QUIET_SECONDS", 0.01)
    monkeypatch.setattr(digests, "_FLUSH_SECONDS", 0.01)
    with silent_server() as port:
        jobs.on_failure(Mail("ops@example.org", server="127.0.0.1", port=port))
        with Worker(now_queue, jobs):
            now_queue.enqueue("work", "fail")
            wait_for(lambda: threads("queue-call"), "the mail that hangs")
            for _ in range(5):
                started_at = time.monotonic()
                assert now_queue.wait(now_queue.enqueue("work", "fine"), 5)
                assert time.monotonic() - started_at < 4
            assert threads("queue-call")


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_failed_try_is_repeated_after_one_minute_then_two_then_four(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    class Broken(Webhook):
        def send(self, *_: object) -> None:
            raise OSError("no route")

    digest = Broken("http://127.0.0.1/")
    monkeypatch.setattr(digest, "_thread", threading.current_thread())
    digest.collect("q", [], 1)
    for _ in range(9):
        digest._due_at = 0
        digest._send_next(wait=True)
        waits.append(round((digest._due_at - time.monotonic()) / 60))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert digest._collected["q"].count == 1
    digest.collect("q", [], 1)  # another failure: again within a minute
    assert digest._due_at - time.monotonic() <= 60


def test_a_digest_that_cannot_be_sent_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Webhook("http://127.0.0.1:1/")
    monkeypatch.setattr(digest, "_thread", threading.current_thread())
    for n in range(100):
        digest.collect("q", [{"id": str(n), "type": "t", "attempts": 1, "error": "e"}], 1)
        digest._due_at = 0
        digest._send_next(wait=True)
    kept = digest._collected["q"]
    assert (kept.count, [f["id"] for f in kept.first]) == (100, [str(n) for n in range(20)])


def test_without_a_thread_the_end_of_the_pass_sends(
    queue: Queue, jobs: Handlers, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    jobs.on_failure(mailbox.mail())
    queue.enqueue("work", "fail")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    queue.process_jobs(jobs)
    assert len(mailbox.mails) == 1


# --- several processes


@pytest.mark.parametrize("kind", ["plain", "coroutine", "timeout"])
def test_a_pass_with_four_workers_sends_one_mail(queue: Queue, mailbox: Mailbox, kind: str) -> None:
    jobs = Handlers()
    jobs.on_failure(mailbox.mail())

    def fail(payload: Any) -> None:
        raise Fail(f"number {payload}")

    async def fail_async(payload: Any) -> None:
        fail(payload)

    function: Any = fail_async if kind == "coroutine" else fail
    jobs.handler("work", timeout=20 if kind == "timeout" else None)(function)
    jobs.handler("other")(fail)
    ids = queue.enqueue_many("work", range(12)) + queue.enqueue_many("other", range(4))
    assert queue.process_jobs(jobs, workers=4) == NONE | {"failed": 16}
    (mail,) = mailbox.mails
    assert mail["Subject"].startswith("16 jobs failed")
    assert all(f"job {i}, 1 attempt" in mailbox.text() for i in ids)


def test_four_workers_report_any_number_of_failed_jobs(
    queue: Queue, jobs: Handlers, mailbox: Mailbox
) -> None:
    jobs.on_failure(mailbox.mail())
    queue.enqueue_many("work", ["fail"] * 1000)
    assert queue.process_jobs(jobs, workers=4)["failed"] == 1000
    (mail,) = mailbox.mails
    assert mail["Subject"].startswith("1,000 jobs failed")


def test_a_worker_with_several_passes_sends_one_mail_without_waiting_for_its_end(
    mailbox: Mailbox, programs: Programs
) -> None:
    program = programs.start(
        f"""
        from dbbasic_queue import Fail, Handlers, Worker
        from dbbasic_queue.notify import Mail
        from dbbasic_queue.passes import digests
        vars(digests).update(dict(_QUIET_SECONDS=2.5, _FORWARD_SECONDS=0.1))
        jobs = Handlers()
        jobs.on_failure(Mail("ops@example.org", server="127.0.0.1", port={mailbox.port}))

        @jobs.handler
        def work(payload):
            raise Fail("no")

        queue.enqueue_many("work", range(20))
        Worker(queue, jobs, workers=3).run_forever()
        """
    )
    wait_for(lambda: mailbox.mails, "the mail")
    assert mailbox.mails[0]["Subject"].startswith("20 jobs failed")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert len(mailbox.mails) == 1


def test_no_failure_is_missing_in_the_mail_if_one_of_several_passes_is_killed(
    mailbox: Mailbox, programs: Programs
) -> None:
    """One of two passes runs ten jobs and dies in the last one, while the other pass waits."""
    program = programs.start(
        f"""
        from dbbasic_queue import Fail, Handlers, QueueError
        from dbbasic_queue.notify import Mail
        jobs = Handlers()
        jobs.on_failure(Mail("ops@example.org", server="127.0.0.1", port={mailbox.port}))

        @jobs.handler
        def work(payload):
            if payload == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Fail("no")

        jobs.handler("wait")(lambda payload: wait_for_notes("dead", 1))
        queue.enqueue("wait", {{}}, time.time() - 100)
        queue.enqueue_many("work", ["fail"] * 9 + ["die"])
        try:
            queue.process_jobs(jobs, workers=2)
        except QueueError as e:
            print(e)
        """
    )
    with Queue(programs.directory / "data/queue.tsv") as queue:
        wait_for(lambda: queue.counts()["failed"] == 9, "nine failed jobs")
    note(programs.directory / "dead", "so that the other pass ends")
    assert "SIGKILL" in program.succeed()
    (mail,) = mailbox.mails
    assert mail["Subject"].startswith("9 jobs failed")


def test_a_pass_whose_supervisor_is_stopped_goes_on_and_reports_everything_later() -> None:
    mail = Mail("ops@example.org")
    reading, writing = os.pipe()
    try:
        pipe = digests.Pipe(writing)
        failure: Any = {"id": "i", "type": "t", "attempts": 1, "error": "x" * 500}
        written = 0
        while pipe.write_now(mail._number, "q", [failure], 1):  # doesn't block if it is full
            written += 1
        assert written > 50
        seen = b""
        waiting = threading.Thread(target=pipe.write, args=(mail._number, "q", [failure], 7))
        waiting.start()
        while seen.count(b"\n") <= written:
            seen += os.read(reading, 65536)
        join(waiting, "the writer of the last failure")
        assert [json.loads(text)["count"] for text in seen.splitlines()] == [1] * written + [7]
        assert not pipe.write_now(mail._number, "q", [failure] * 10, 10)  # longer than PIPE_BUF
        assert pipe.write_now(mail._number, "q", [failure], 1)
        os.close(reading)
        assert not pipe.write_now(mail._number, "q", [failure], 1)  # the supervisor is dead
    finally:
        os.close(writing)


def test_a_job_that_killed_its_pass_for_the_last_time_is_in_the_next_mail(
    queue: Queue, path: Path, jobs: Handlers, mailbox: Mailbox
) -> None:
    jobs.on_failure(mailbox.mail())
    queue.enqueue("work", "later", NOW + 1000)
    with path.open("a", encoding="utf-8") as file:
        file.write(line("poison", type="work", status="processing", attempts=3))
    assert queue.process_jobs(jobs) == NONE | {"recovered": 1, "failed": 1}
    assert "job poison, 3 attempts\n    worker died in attempt 3\n" in mailbox.text()


def test_a_pass_that_ends_with_an_error_or_a_signal_sends_its_mail(
    queue: Queue, path: Path, jobs: Handlers, mailbox: Mailbox
) -> None:
    jobs.on_failure(mailbox.mail())

    @jobs.handler("stop")
    def stop(payload: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    queue.enqueue("work", "fail")
    queue.enqueue("stop", {})
    with pytest.raises(SystemExit):
        queue.process_jobs(jobs)
    assert len(mailbox.mails) == 1

    @jobs.handler("damage")
    def damage(payload: Any) -> None:
        path.write_text("not a queue\n")

    queue.enqueue("work", "fail")
    queue.enqueue("damage", {})
    queue.enqueue("damage", {})
    with pytest.raises(OSError):
        queue.process_jobs(jobs)
    assert len(mailbox.mails) == 2


def test_run_until_complete_sends_its_mail_even_if_an_error_ends_it(
    queue: Queue, path: Path, jobs: Handlers, mailbox: Mailbox
) -> None:
    @jobs.handler("damage")
    def damage(payload: Any) -> None:
        path.write_text("not a queue\n")

    jobs.on_failure(mailbox.mail())
    queue.enqueue("work", "fail")
    queue.enqueue("damage", {})
    with pytest.raises(OSError):
        queue.run_until_complete(jobs)
    assert len(mailbox.mails) == 1


def test_a_digest_of_a_forked_child_starts_empty(mailbox: Mailbox) -> None:
    mail = mailbox.mail()
    mail.collect("q", [], 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            digests.flush(["q"])
            code = 0 if not mail._collected and mail._thread is None else 2
        finally:
            os._exit(code)
    assert exit_code(pid) == 0
    assert mailbox.mails == []
    digests.flush(["q"])
    assert len(mailbox.mails) == 1


# --- the ping


def test_a_ping_is_sent_after_the_pass_even_if_jobs_have_failed(
    queue: Queue, jobs: Handlers, requests: Requests
) -> None:
    url = f"{requests.url}/ping/5f0c"
    queue.enqueue_many("work", ["fail", "raise"])
    assert queue.process_jobs(jobs, ping=url) == NONE | {"failed": 1, "retried": 1}
    assert requests.received == [("GET", "/ping/5f0c", b"")]
    assert queue.process_jobs(jobs, ping=url) == NONE  # an idle pass
    assert queue.process_jobs(jobs, ping=url, workers=2, linger=0.01) == NONE
    assert len(requests.received) == 3


@pytest.mark.parametrize(
    ("location", "reason", "followed"),
    [
        ("{}/second", "infinite loop", 2),
        ("file:///etc/passwd", "HTTP Error 302", 1),
        ("ftp://127.0.0.1/", "unknown url type: ftp", 1),
    ],
)
def test_a_ping_follows_redirects_but_only_to_http(
    queue: Queue,
    jobs: Handlers,
    requests: Requests,
    caplog: pytest.LogCaptureFixture,
    location: str,
    reason: str,
    followed: int,
) -> None:
    requests.status, requests.location = 302, location.format(requests.url)
    queue.process_jobs(jobs, ping=f"{requests.url}/first")
    (message,) = (m for m in messages(caplog, logging.WARNING) if "the ping to" in m)
    assert message.startswith(f"the ping to {requests.url} failed: ")
    assert reason in message
    assert [target for _, target, _ in requests.received][:2] == ["/first", "/second"][:followed]


def test_a_pass_that_raises_sends_no_ping(
    queue: Queue, path: Path, jobs: Handlers, requests: Requests
) -> None:
    @jobs.handler("stop")
    def stop(payload: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    queue.enqueue("stop", {})
    with pytest.raises(SystemExit):
        queue.process_jobs(jobs, ping=requests.url)
    path.write_text("not a queue\n")
    with pytest.raises(OSError):
        queue.process_jobs(jobs, ping=requests.url)
    assert requests.received == []


@pytest.mark.parametrize("problem", ["refused", "404", "hangs"])
def test_a_ping_that_fails_is_a_warning_and_changes_nothing(
    queue: Queue,
    jobs: Handlers,
    requests: Requests,
    problem: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "PING_SECONDS", 0.3)
    url = f"{requests.url}/secret"
    if problem == "refused":
        url = f"http://127.0.0.1:{server_port()}/secret"
    elif problem == "404":
        requests.status = 404
    else:
        requests.hangs.set()
    queue.enqueue("work", "fine")
    started_at = time.monotonic()
    assert queue.process_jobs(jobs, ping=url) == NONE | {"completed": 1}
    assert time.monotonic() - started_at < 15
    (record,) = [r for r in caplog.records if "the ping to" in r.getMessage()]
    assert record.levelno == logging.WARNING
    assert f"the ping to {url.removesuffix('/secret')} failed: " in record.getMessage()
    assert "secret" not in record.getMessage()


def test_the_module_function_pings_too(
    tmp_path: Path, jobs: Handlers, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbbasic_queue import process_jobs

    monkeypatch.setenv("DBBASIC_QUEUE_FILE", str(tmp_path / "data/queue.tsv"))
    process_jobs(jobs, ping=requests.url)
    assert len(requests.received) == 1


def test_the_time_limits_are_those_in_the_docs() -> None:
    assert (http.PING_SECONDS, http.WEBHOOK_SECONDS) == (5, 10)
    assert (digests.LISTED, digests._QUIET_SECONDS, digests._FLUSH_SECONDS) == (20, 60, 30)
