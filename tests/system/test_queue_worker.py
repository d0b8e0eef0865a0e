"""The worker that users copy: its handlers do real work, and cron can run it.

Mails go to a real SMTP server (aiosmtpd) and programs are real processes. The worker's file is
copied as a user copies it, and started as cron starts it.
"""

from __future__ import annotations

import contextlib
import csv
import email
import email.policy
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from helpers import PROJECT, server_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import EmailMessage
    from types import ModuleType

WORKER = PROJECT / "workers" / "queue_worker.py"
HEADER = "id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
MAIL = {"to": "ada@example.org", "subject": "Hello", "body": "A first line.\n"}


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("queue_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def poll(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- send_email


class Mailbox:
    """The mails that a real SMTP server has accepted, and how it answers."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.quit_reply = "221 Bye"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("busy@"):
            return "451 4.2.1 Mailbox busy"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.envelopes.append(envelope)
        return "250 OK"

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return self.quit_reply

    def log_in(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        self.logins.append((login.login, login.password))
        return AuthResult(success=login.password == b"right")

    def mails(self) -> list[EmailMessage]:
        mails = []
        for envelope in self.envelopes:
            assert isinstance(envelope.content, bytes)
            mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return mails


@contextlib.contextmanager
def smtp_server(mailbox: Mailbox, **options: Any) -> Iterator[int]:
    controller = Controller(mailbox, hostname="127.0.0.1", port=server_port(), **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


@pytest.fixture
def smtp_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SMTP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("SMTP_FROM", "The App <app@example.org>")
    monkeypatch.setenv("SMTP_TIMEOUT", "10")


@pytest.fixture
def mailbox(smtp_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    mailbox = Mailbox()
    with smtp_server(mailbox) as port:
        monkeypatch.setenv("SMTP_PORT", str(port))
        yield mailbox


def test_a_mail_arrives_as_it_was_given(worker: ModuleType, mailbox: Mailbox) -> None:
    body = "Grüße, 你好.\n.\n..a dot begins this line\nand this one ends the mail\n"
    result = worker.send_email({"to": "ada@example.org", "subject": "Ünïcode", "body": body})

    [mail], [envelope] = mailbox.mails(), mailbox.envelopes
    assert envelope.mail_from == "app@example.org"
    assert envelope.rcpt_tos == ["ada@example.org"]
    assert (mail["From"], mail["To"]) == ("The App <app@example.org>", "ada@example.org")
    assert mail["Subject"] == "Ünïcode"
    assert mail.get_content().replace("\r\n", "\n") == body
    assert abs(mail["Date"].datetime.timestamp() - time.time()) < 60
    assert result == {"to": "ada@example.org", "message_id": mail["Message-ID"]}
    assert result["message_id"].endswith("@example.org>")
    json.dumps(result, allow_nan=False)


def test_a_recipient_may_have_a_name(worker: ModuleType, mailbox: Mailbox) -> None:
    result = worker.send_email({**MAIL, "to": '"Lovelace, Ada" <ada@example.org>'})

    assert mailbox.envelopes[0].rcpt_tos == ["ada@example.org"]
    assert mailbox.mails()[0]["To"].addresses[0].display_name == "Lovelace, Ada"
    assert result["to"] == "ada@example.org"


def test_a_message_id_from_the_payload_stays_the_same_on_every_attempt(
    worker: ModuleType, mailbox: Mailbox
) -> None:
    for _ in range(2):
        worker.send_email({**MAIL, "message_id": "<order-17@example.org>"})
    assert [mail["Message-ID"] for mail in mailbox.mails()] == ["<order-17@example.org>"] * 2


def test_mails_without_a_given_message_id_have_different_ones(
    worker: ModuleType, mailbox: Mailbox
) -> None:
    first, second = worker.send_email(MAIL), worker.send_email(MAIL)
    assert first["message_id"] != second["message_id"]


@pytest.mark.parametrize(
    "payload",
    [
        None,
        [],
        "ada@example.org",
        {},
        {"to": "ada@example.org", "subject": "Hello"},
        {**MAIL, "to": ""},
        {**MAIL, "subject": 7},
        {**MAIL, "body": None},
        {**MAIL, "to": ["ada@example.org"]},
        {**MAIL, "cc": "eve@example.org"},
        {**MAIL, "to": "ada@example.org, eve@example.org"},
        {**MAIL, "to": "friends: ada@example.org, eve@example.org;"},
        {**MAIL, "to": "ada"},
        {**MAIL, "to": "ada@"},
        {**MAIL, "to": "ada@exa mple.org"},
        {**MAIL, "to": "ada@example.org (eve@example.org)"},
        {**MAIL, "to": "Ada <ada@example.org> eve@example.org"},
        {**MAIL, "message_id": "order-17"},
        {**MAIL, "message_id": "<a@b> <c@d>"},
        {**MAIL, "message_id": 17},
        {**MAIL, "body": "half a character: \ud800"},
    ],
)
def test_a_bad_mail_is_a_value_error_and_is_not_sent(
    worker: ModuleType, mailbox: Mailbox, payload: Any
) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        worker.send_email(payload)
    assert mailbox.envelopes == []


LINE_BREAKS = [
    "x\r\nBcc: eve@example.org",
    "x\nBcc: eve@example.org",
    "x\n",
    "x\r",
    "x\n\nA second body",
    "x\x0b\x0c\x1c\x85\u2028Bcc: eve@example.org",
    "x\x00y",
    # Encoded words: the header parser decodes them, and old Pythons write the line break unescaped.
    "=?utf-8?q?x=0D=0ABcc:_eve=40example.org?=",
    "=?utf-8?b?eA0KQmNjOiBldmVAZXhhbXBsZS5vcmc=?=",
]


@pytest.mark.parametrize("text", LINE_BREAKS)
def test_no_subject_can_add_a_header(worker: ModuleType, mailbox: Mailbox, text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        worker.send_email({**MAIL, "subject": text})
    assert mailbox.envelopes == []


@pytest.mark.parametrize("shape", ["{} <ada@example.org>", "ada@example.org{}", "{}@example.org"])
@pytest.mark.parametrize("text", LINE_BREAKS)
def test_no_recipient_can_add_a_header_or_a_command(
    worker: ModuleType, mailbox: Mailbox, text: str, shape: str
) -> None:
    with contextlib.suppress(ValueError):
        worker.send_email({**MAIL, "to": shape.format(text)})
    assert all(mail["Bcc"] is None for mail in mailbox.mails())
    assert all("eve" not in str(envelope.rcpt_tos) for envelope in mailbox.envelopes)


def test_no_message_id_can_add_a_header(worker: ModuleType, mailbox: Mailbox) -> None:
    with pytest.raises(ValueError, match="message_id"):
        worker.send_email({**MAIL, "message_id": "<a@b>\r\nBcc: eve@example.org"})
    assert mailbox.envelopes == []


def test_the_error_names_the_rejected_recipient_and_the_reason(
    worker: ModuleType, mailbox: Mailbox
) -> None:
    with pytest.raises(OSError, match=r"^the server rejected busy@example.org: 451 4.2.1 Mailbox"):
        worker.send_email({**MAIL, "to": "busy@example.org"})
    assert mailbox.envelopes == []


def test_if_the_server_fails_at_quit_the_mail_is_not_sent_again(
    worker: ModuleType, mailbox: Mailbox
) -> None:
    mailbox.quit_reply = "421 too busy to say goodbye"
    assert worker.send_email(MAIL)["to"] == "ada@example.org"
    assert len(mailbox.envelopes) == 1


def test_a_server_that_never_answers_ends_the_attempt(
    worker: ModuleType, smtp_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("SMTP_PORT", str(silent.getsockname()[1]))
        monkeypatch.setenv("SMTP_TIMEOUT", "1")
        began = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            worker.send_email(MAIL)
        assert time.monotonic() - began < 10


def test_if_the_server_is_down_the_job_fails(
    worker: ModuleType, smtp_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_PORT", str(server_port()))
    with pytest.raises(ConnectionRefusedError):
        worker.send_email(MAIL)


@pytest.mark.parametrize("port", ["0", "-1", "smtp", "25.0", "²"])
def test_an_invalid_port_is_an_error_that_names_the_variable(
    worker: ModuleType, smtp_environment: None, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("SMTP_PORT", port)
    with pytest.raises(ValueError, match=r"invalid SMTP_PORT .* must be a positive whole number"):
        worker.send_email(MAIL)


def test_a_password_is_not_sent_in_the_clear(
    worker: ModuleType, smtp_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = Mailbox()
    with smtp_server(mailbox, authenticator=mailbox.log_in, auth_require_tls=False) as port:
        monkeypatch.setenv("SMTP_PORT", str(port))
        monkeypatch.setenv("SMTP_USER", "app")
        monkeypatch.setenv("SMTP_PASSWORD", "right")
        with pytest.raises(Exception, match="STARTTLS"):
            worker.send_email(MAIL)
        assert (mailbox.logins, mailbox.envelopes) == ([], [])

        monkeypatch.setenv("SMTP_STARTTLS", "0")
        worker.send_email(MAIL)
        assert mailbox.logins == [(b"app", b"right")]
        assert len(mailbox.envelopes) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_login_goes_over_tls_to_a_server_whose_certificate_is_trusted(
    worker: ModuleType, smtp_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    options = {"tls_context": context, "authenticator": mailbox.log_in}
    with smtp_server(mailbox, **options) as port:
        monkeypatch.setenv("SMTP_PORT", str(port))
        monkeypatch.setenv("SMTP_USER", "app")
        monkeypatch.setenv("SMTP_PASSWORD", "right")
        with pytest.raises(ssl.SSLCertVerificationError):
            worker.send_email(MAIL)
        assert mailbox.logins == []

        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        worker.send_email(MAIL)
        assert mailbox.logins == [(b"app", b"right")]
        assert len(mailbox.envelopes) == 1


# --- generate_report


def report_of(worker: ModuleType, folder: Path, text: str, **changes: str) -> list[list[str]]:
    (folder / "source.csv").write_text(text, encoding="utf-8")
    payload = {"source": str(folder / "source.csv"), "target": str(folder / "report.csv")}
    worker.generate_report({**payload, "group_by": "city", "value": "price", **changes})
    with open(folder / "report.csv", encoding="utf-8", newline="") as report:
        return list(csv.reader(report))


def test_a_report_sums_up_each_group_exactly(worker: ModuleType, tmp_path: Path) -> None:
    table = "city,price\nOslo,0.1\nBonn,7\nOslo,0.2\nOslo,-10\nBonn,10\n"
    assert report_of(worker, tmp_path, table) == [
        ["city", "count", "sum", "min", "max", "mean"],
        ["Oslo", "3", "-9.7", "-10", "0.2", "-3.23333333333"],
        ["Bonn", "2", "17", "7", "10", "8.5"],
    ]


def test_the_result_of_a_report_has_its_rows_groups_and_target(
    worker: ModuleType, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.tsv", tmp_path / "report.tsv"
    source.write_text("city\tprice\nOslo\t1\nBonn\t2\nOslo\t3\n", encoding="utf-8")
    payload = {"source": str(source), "target": str(target), "group_by": "city", "value": "price"}
    result = worker.generate_report(payload)
    assert result == {"rows": 3, "groups": 2, "target": str(target)}
    assert target.read_text(encoding="utf-8").splitlines()[1] == "Oslo\t2\t4\t1\t3\t2"


def test_a_report_reads_files_written_by_spreadsheets(worker: ModuleType, tmp_path: Path) -> None:
    table = '\ufeffcity,price\r\n"Baden, ""the"" one\nin Austria",5\r\nØrsta,6\r\n'
    rows = report_of(worker, tmp_path, table)
    assert [row[0] for row in rows[1:]] == ['Baden, "the" one\nin Austria', "Ørsta"]


def test_a_report_on_a_table_without_rows_has_only_a_header(
    worker: ModuleType, tmp_path: Path
) -> None:
    assert len(report_of(worker, tmp_path, "city,price\n")) == 1


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("", "no column 'city'"),
        ("town,price\nOslo,1\n", "no column 'city'"),
        ("city,prize\nOslo,1\n", "no column 'price'"),
        ("city,price\nOslo,1\nBonn,one\n", "line 3: no number in column 'price'"),
        ("city,price\nOslo,\n", "line 2: no number"),
        ("city,price\nOslo,NaN\n", "line 2: no number"),
        ("city,price\nOslo,-Infinity\n", "line 2: no number"),
        ("city,price\nOslo,1\nBonn\n", "line 3: more or fewer columns"),
        ("city,price\nOslo,1,5\n", "line 2: more or fewer columns"),
    ],
)
def test_an_invalid_table_is_an_error_that_names_the_line(
    worker: ModuleType, tmp_path: Path, table: str, complaint: str
) -> None:
    (tmp_path / "report.csv").write_text("yesterday's report", encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        report_of(worker, tmp_path, table)
    assert (tmp_path / "report.csv").read_text(encoding="utf-8") == "yesterday's report"
    assert sorted(os.listdir(tmp_path)) == ["report.csv", "source.csv"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target": "report.xlsx"}, "must end in .csv or .tsv"),
        ({"source": "source"}, "must end in .csv or .tsv"),
        ({"source": "same.csv", "target": "./same.csv"}, "the same file"),
        ({"group_by": ""}, "'group_by' must be a non-empty string"),
        ({"where": "price > 3"}, "unknown keys: where"),
    ],
)
def test_an_invalid_report_payload_is_an_error(
    worker: ModuleType, tmp_path: Path, changes: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        report_of(worker, tmp_path, "city,price\nOslo,1\n", **changes)


def test_a_report_that_cannot_be_written_leaves_nothing_behind(
    worker: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "report.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        report_of(worker, tmp_path, "city,price\nOslo,1\n")
    assert sorted(os.listdir(tmp_path)) == ["report.csv", "source.csv"]


def test_a_report_uses_the_same_memory_for_any_number_of_rows(
    worker: ModuleType, tmp_path: Path
) -> None:
    row = "Oslo,1.25," + "x" * 100 + "\n"
    (tmp_path / "warm.csv").write_text("city,price,note\n" + row, encoding="utf-8")
    (tmp_path / "large.csv").write_text("city,price,note\n" + row * 20_000, encoding="utf-8")

    def peak(source: str) -> int:
        payload = {"source": str(tmp_path / source), "target": str(tmp_path / "report.csv")}
        tracemalloc.start()
        try:
            worker.generate_report({**payload, "group_by": "city", "value": "price"})
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("warm.csv")
    assert peak("large.csv") < 500_000 < os.path.getsize(tmp_path / "large.csv")


# --- convert_video


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that creates converters: real programs with ffmpeg's arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").write_bytes(b"frames")

    def make(body: str) -> Path:
        program = tmp_path / "converter"
        program.write_text(
            f"#!{sys.executable} -S\nimport os, sys, time\n"
            "source, target = sys.argv[sys.argv.index('-i') + 1:]\n" + body,
            encoding="utf-8",
        )
        program.chmod(0o755)
        monkeypatch.setenv("VIDEO_CONVERTER", str(program))
        return program

    return make


COPY = "open(target, 'wb').write(open(source, 'rb').read())\n"


def test_a_video_is_converted_by_the_program(
    worker: ModuleType, converter: Callable[[str], Path], tmp_path: Path
) -> None:
    converter(COPY)
    result = worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    assert result == {"target": "out.webm", "bytes": 6}
    assert (tmp_path / "out.webm").read_bytes() == b"frames"
    assert sorted(os.listdir(tmp_path)) == ["converter", "in.mp4", "out.webm"]


def test_the_program_writes_to_a_new_name_with_the_suffix_of_the_target(
    worker: ModuleType, converter: Callable[[str], Path], tmp_path: Path
) -> None:
    converter("assert target.endswith('.webm') and not os.path.exists(target)\n" + COPY)
    for _ in range(2):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})


@pytest.mark.parametrize(
    "name", ["-y.mp4", "--help", "$(touch pwned).mp4", "a; touch pwned", "a b\n'\".mp4", "concat:a"]
)
def test_file_names_are_never_options_protocols_or_commands(
    worker: ModuleType, converter: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    converter("assert source[0] == '/' and target[0] == '/', sys.argv\n" + COPY)
    (tmp_path / name).write_bytes(b"odd")
    worker.convert_video({"source": name, "target": f"{name}.webm"})
    assert (tmp_path / f"{name}.webm").read_bytes() == b"odd"
    assert not (tmp_path / "pwned").exists()


def test_if_the_program_fails_the_error_has_its_status_and_last_line(
    worker: ModuleType, converter: Callable[[str], Path], tmp_path: Path
) -> None:
    converter(COPY + "sys.exit('first\\nlast words: \\u00fc')")
    (tmp_path / "out.webm").write_bytes(b"the old one")
    with pytest.raises(RuntimeError, match=r"converter exited with status 1: last words: ü$"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    assert (tmp_path / "out.webm").read_bytes() == b"the old one"
    assert sorted(os.listdir(tmp_path)) == ["converter", "in.mp4", "out.webm"]


def test_if_the_program_is_killed_the_error_has_the_signal(
    worker: ModuleType, converter: Callable[[str], Path]
) -> None:
    converter("os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match="status -9: no message"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})


def test_if_the_program_writes_no_target_the_job_fails(
    worker: ModuleType, converter: Callable[[str], Path]
) -> None:
    converter("")
    with pytest.raises(FileNotFoundError):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})


def test_if_the_program_does_not_exist_the_error_names_it(
    worker: ModuleType, converter: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEO_CONVERTER", "no-such-converter")
    with pytest.raises(FileNotFoundError, match="no-such-converter"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})


def test_a_program_that_takes_too_long_is_killed_with_its_child_processes(
    worker: ModuleType,
    converter: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The grandchild inherits the lock, so the lock is free only after the grandchild is dead too.
    converter(
        "import fcntl, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "lock = open('alive', 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "os.fork()\n"
        "open(target, 'w').write('half')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("VIDEO_TIMEOUT", "1")
    with pytest.raises(RuntimeError, match="converter was killed after 1 seconds"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    with open(tmp_path / "alive", encoding="utf-8") as lock:
        poll(lambda: try_lock(lock))
    assert sorted(os.listdir(tmp_path)) == ["alive", "converter", "in.mp4"]


def test_a_program_that_writes_too_much_is_killed(
    worker: ModuleType,
    converter: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converter(
        "with open(target, 'wb', 0) as out:\n"
        "    while os.path.exists(target):\n"
        "        out.write(b'x' * 1000)\n"
        "        time.sleep(0.001)\n"
    )
    monkeypatch.setenv("VIDEO_MAX_BYTES", "20000")
    with pytest.raises(RuntimeError, match="wrote more than 20000 bytes"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    assert sorted(os.listdir(tmp_path)) == ["converter", "in.mp4"]


def test_if_a_finished_program_wrote_too_much_the_job_fails(
    worker: ModuleType, converter: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    converter(COPY)
    monkeypatch.setenv("VIDEO_MAX_BYTES", "5")
    with pytest.raises(RuntimeError, match="wrote more than 5 bytes"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})


def test_a_program_that_prints_a_lot_does_not_block_and_the_error_stays_short(
    worker: ModuleType, converter: Callable[[str], Path]
) -> None:
    converter("os.write(2, b'x' * 300_000)\nos.write(2, b'\\nthe end')\nsys.exit(3)")
    with pytest.raises(RuntimeError, match=r"converter exited with status 3: the end$"):
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    converter("os.write(2, b'x' * 300_000)\nsys.exit(3)")
    with pytest.raises(RuntimeError) as failure:
        worker.convert_video({"source": "in.mp4", "target": "out.webm"})
    assert len(str(failure.value)) < 5_000


# --- main


class App:
    """A user's application: a directory with a copy of the worker, and a queue."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.queue_file = home / "data" / "queue.tsv"
        (home / "workers").mkdir()
        shutil.copy(WORKER, home / "workers" / "queue_worker.py")
        # Cron starts programs with almost no environment variables and the C locale.
        self.environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONUTF8": "0"}
        self.environment |= {"PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(PROJECT)}
        self.environment |= environment

    def add(self, name: str, job_type: str, payload: Any, attempts: int = 0) -> None:
        self.queue_file.parent.mkdir(exist_ok=True, mode=0o750)
        rows = self.rows() or [HEADER.rstrip("\n").split("\t")]
        text = json.dumps(payload, ensure_ascii=False)
        rows.append([name, job_type, text, "pending", "0", "0", str(attempts), "", ""])
        lines = ["\t".join(row) + "\n" for row in rows]
        self.queue_file.write_text("".join(lines), encoding="utf-8")

    def rows(self) -> list[list[str]]:
        if not self.queue_file.exists():
            return []
        text = self.queue_file.read_text(encoding="utf-8")
        return [line.split("\t") for line in text.removesuffix("\n").split("\n")]

    def job(self, name: str) -> dict[str, str]:
        header, *rows = self.rows()
        [row] = [row for row in rows if row[0] == name]
        return dict(zip(header, row, strict=True))

    def work(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "workers/queue_worker.py", *arguments],
            cwd=self.home,
            env={**self.environment, **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )


@pytest.fixture
def app(tmp_path: Path) -> App:
    (tmp_path / "app").mkdir()
    return App(tmp_path / "app")


NO_PRICE = {"source": "none.csv", "target": "t.csv", "group_by": "city", "value": "price"}


def test_if_all_jobs_succeed_nothing_is_printed(app: App, mailbox: Mailbox) -> None:
    app.environment |= {name: os.environ[name] for name in ("SMTP_HOST", "SMTP_PORT", "SMTP_FROM")}
    (app.home / "prices.csv").write_text("city,price\nØrsta,5\n", encoding="utf-8")
    app.add("mail-1", "send_email", {**MAIL, "subject": "Grüße"})
    app.add("report-1", "generate_report", {**NO_PRICE, "source": "prices.csv"})

    done = app.work()

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [mail["Subject"] for mail in mailbox.mails()] == ["Grüße"]
    assert "Ørsta" in (app.home / "t.csv").read_text(encoding="utf-8")
    assert app.job("mail-1")["status"] == app.job("report-1")["status"] == "completed"
    assert json.loads(app.job("report-1")["result"]) == {"rows": 1, "groups": 1, "target": "t.csv"}


def test_if_there_is_nothing_to_do_nothing_is_printed(app: App) -> None:
    done = app.work()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_job_that_will_be_tried_again_is_reported_only_on_request(app: App) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    done = app.work()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert app.job("report-1")["status"] == "pending"
    assert "none.csv" in app.job("report-1")["error"]

    app.add("report-2", "generate_report", NO_PRICE)
    done = app.work(QUEUE_LOG_LEVEL="warning")
    assert (done.returncode, done.stdout) == (0, "")
    assert "report-2" in done.stderr and "report-1" not in done.stderr


def test_a_job_that_failed_for_good_is_reported_on_stderr(app: App) -> None:
    app.add("report-1", "generate_report", NO_PRICE, attempts=2)
    app.add("fine-1", "convert_video", {"source": "a", "target": "b"}, attempts=0)
    done = app.work(VIDEO_CONVERTER="/bin/false")
    assert (done.returncode, done.stdout) == (0, "")
    assert "report-1" in done.stderr and "none.csv" in done.stderr
    assert "fine-1" not in done.stderr
    assert app.job("report-1")["status"] == "failed"


def test_every_job_is_reported_with_v(app: App) -> None:
    (app.home / "prices.csv").write_text("city,price\nOslo,5\n", encoding="utf-8")
    app.add("report-1", "generate_report", {**NO_PRICE, "source": "prices.csv"})
    done = app.work("-v")
    assert (done.returncode, done.stdout) == (0, "")
    assert "report-1" in done.stderr


def test_failed_jobs_are_mailed_to_the_address_in_the_environment(
    app: App, mailbox: Mailbox, smtp_environment: None
) -> None:
    app.environment |= {name: os.environ[name] for name in ("SMTP_HOST", "SMTP_PORT", "SMTP_FROM")}
    app.add("report-1", "generate_report", NO_PRICE, attempts=2)
    app.add("report-2", "generate_report", NO_PRICE, attempts=2)
    done = app.work(QUEUE_MAIL_TO="ops@example.org, ada@example.org")
    assert (done.returncode, done.stdout) == (0, "")
    (mail,) = mailbox.mails()
    assert mailbox.envelopes[0].rcpt_tos == ["ops@example.org", "ada@example.org"]
    assert mail["From"] == "app@example.org"
    assert mail["Subject"].startswith(f"2 jobs failed in {app.queue_file} on ")
    assert "generate_report, job report-1, 3 attempts" in mail.get_content()
    assert app.work(QUEUE_MAIL_TO="ops@example.org").returncode == 0
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("failed", [0, 1])
def test_the_url_in_the_environment_is_requested_after_the_pass(app: App, failed: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if failed:
            app.add("report-1", "generate_report", NO_PRICE, attempts=2)
        with subprocess.Popen(
            [sys.executable, "workers/queue_worker.py"],
            cwd=app.home,
            env={
                **app.environment,
                "QUEUE_PING_URL": f"http://127.0.0.1:{server.getsockname()[1]}/5f0c",
            },
            stderr=subprocess.PIPE,
        ) as process:
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /5f0c HTTP/1.1\r\n")
                if failed:
                    assert app.job("report-1")["status"] == "failed"
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("QUEUE_MAIL_TO", "ops"), ("QUEUE_PING_URL", "example.org"), ("SMTP_PORT", "x")],
)
def test_an_invalid_setting_is_wrong_usage_and_runs_no_job(
    app: App, setting: str, value: str
) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    done = app.work(**{"QUEUE_MAIL_TO": "ops@example.org"} | {setting: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert value in done.stderr and "QUEUE_MAIL_TO, QUEUE_PING_URL" in done.stderr
    assert app.job("report-1")["attempts"] == "0"


def test_if_every_slot_is_taken_the_exit_code_is_75(app: App) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    with contextlib.ExitStack() as slots:
        for number in range(65):  # slots are numbered from 0 or from 1
            path = app.queue_file.with_name(f"queue.tsv.pass.{number}")
            slot = slots.enter_context(open(path, "w", encoding="utf-8"))
            path.chmod(0o600)
            fcntl.flock(slot, fcntl.LOCK_EX)
        done = app.work()
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.startswith("queue_worker: ") and done.stderr.count("\n") == 1
    assert app.job("report-1")["attempts"] == "0"


@contextlib.contextmanager
def worker_in_a_video(app: App, program: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the worker and wait until its converter has created the file `started`."""
    app.add("video-1", "convert_video", {"source": "a.mp4", "target": "b.webm"})
    with subprocess.Popen(
        [sys.executable, "workers/queue_worker.py"],
        cwd=app.home,
        env={**app.environment, "VIDEO_CONVERTER": str(program)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            poll((app.home / "started").exists)
            yield process
        finally:
            process.kill()


def test_ctrl_c_kills_the_program_of_the_running_job_and_returns_the_job(
    app: App, converter: Callable[[str], Path]
) -> None:
    program = converter(
        "import fcntl\n"
        "lock = open('alive', 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "open(target, 'w').write('half')\n"
        "open('started', 'w').close()\n"
        "time.sleep(600)\n"
    )
    with worker_in_a_video(app, program) as process:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, b"")
    assert app.job("video-1")["status"] == "pending"
    assert sorted(os.listdir(app.home)) == ["alive", "data", "started", "workers"]
    with open(app.home / "alive", encoding="utf-8") as lock:
        poll(lambda: try_lock(lock))


def test_sigterm_lets_the_running_job_finish(app: App, converter: Callable[[str], Path]) -> None:
    program = converter(
        "open('started', 'w').close()\n"
        "while not os.path.exists('go'):\n"
        "    time.sleep(0.01)\n"
        "open(target, 'w').write('whole')\n"
    )
    with worker_in_a_video(app, program) as process:
        process.send_signal(signal.SIGTERM)
        (app.home / "go").touch()
        printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed) == (143, b"")
    assert app.job("video-1")["status"] == "completed"
    assert (app.home / "b.webm").read_text(encoding="utf-8") == "whole"


def test_if_the_queue_cannot_be_used_one_line_says_so_and_the_exit_code_is_1(app: App) -> None:
    app.queue_file.mkdir(parents=True)
    done = app.work()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("queue_worker: ") and done.stderr.count("\n") == 1
    assert "queue.tsv" in done.stderr


@pytest.mark.parametrize("arguments", [["--every-minute"], ["-v", "-v"], ["data/queue.tsv"]])
def test_wrong_usage_exits_with_2_and_runs_no_job(app: App, arguments: list[str]) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    done = app.work(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert app.job("report-1")["attempts"] == "0"


def test_an_invalid_log_level_is_wrong_usage(app: App) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    done = app.work(QUEUE_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "invalid QUEUE_LOG_LEVEL 'loud': must be DEBUG, " in done.stderr
    assert app.job("report-1")["attempts"] == "0"


def test_the_environment_can_name_the_queue(app: App) -> None:
    app.add("report-1", "generate_report", NO_PRICE)
    app.queue_file.parent.rename(app.home / "jobs")
    app.work(DBBASIC_QUEUE_FILE="jobs/queue.tsv")
    app.queue_file = app.home / "jobs" / "queue.tsv"
    assert app.job("report-1")["attempts"] == "1"
    assert not (app.home / "data").exists()


def test_an_idle_pass_does_not_import_modules_that_only_a_handler_needs(app: App) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['queue_worker.py']\n"
        "try:\n"
        "    runpy.run_path('workers/queue_worker.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'argparse', 'csv', 'decimal', 'email', 'smtplib', 'ssl', 'subprocess'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=app.home,
        env=app.environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_crontab_line_of_the_worker_starts_it(app: App) -> None:
    text = WORKER.read_text(encoding="utf-8")
    [line] = [line.strip() for line in text.splitlines() if line.strip().startswith("* * *")]
    command = line.removeprefix("* * * * * ").replace("/srv/app", str(app.home))
    assert command.endswith("python3 workers/queue_worker.py")
    app.add("report-1", "generate_report", NO_PRICE)
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("python3", sys.executable)],
        cwd="/",
        env=app.environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert app.job("report-1")["attempts"] == "1"
