#!/usr/bin/env python3
"""The program that cron runs: one pass over the queue, with the handlers below.

Copy this file into your application, change HANDLERS to your own jobs, and let cron start it
every minute:

    * * * * * cd /srv/app && python3 workers/queue_worker.py

(with the Python that has dbbasic_queue, such as /srv/app/venv/bin/python). The queue is the file
that DBBASIC_QUEUE_FILE names, else data/queue.tsv below the working directory.

A pass in which all went well prints nothing. A job that failed for good is named on stderr, which
cron mails; a job that will be tried again is named only with QUEUE_LOG_LEVEL=WARNING, and every
job with -v (or QUEUE_LOG_LEVEL=INFO).

Exit codes:

    0   the pass was made; whether a job failed is said by the queue and on stderr
    1   the queue could not be worked: one line on stderr says why
    2   wrong usage
    75  no pass was made: too many are at work, or the queue's lock was not to be had
    130 stopped by Ctrl-C, 143 by SIGTERM: the job in hand is recorded or given back

A handler takes the job's payload and returns a JSON value, or None. An exception is the job's
error: the queue tries the job again later, and fails it after MAX_ATTEMPTS. A worker that is killed
may run a job twice, so a handler should do no harm the second time. File names in a payload are
trusted: take none from a stranger.
"""

from __future__ import annotations

# A pass starts every minute, and mostly finds nothing to do: what only one handler needs is
# imported in that handler.
import contextlib
import logging
import os
import sys

from dbbasic_queue import process_jobs
from dbbasic_queue.errors import QueueBusy, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_ATTEMPTS = 3
LINGER = 0  # seconds to stay and pick up what becomes due; 60 leaves no gap until cron's next pass
WORKERS = 1  # jobs at a time
EX_TEMPFAIL = 75  # of sysexits.h
STDERR_TAIL = 4096
USAGE = "usage: queue_worker.py [-v]"


def send_email(payload: Any) -> dict[str, str]:
    """Send one mail: {"to", "subject", "body"}, and "message_id" if you like.

    The server is SMTP_HOST (localhost), port SMTP_PORT (25), and the sender SMTP_FROM
    (queue@HOSTNAME). With SMTP_USER and SMTP_PASSWORD it logs in, and then uses STARTTLS unless
    SMTP_STARTTLS=0; SMTP_STARTTLS=1 asks for it without a login. SMTP_TIMEOUT (30) is in seconds.

    One job is one recipient: a mail that is tried again goes to nobody who has it already. Give a
    `message_id` ("<order-17@example.org>") and mailboxes can drop the copy that a killed worker
    may cause.

    Returns {"to", "message_id"} once the server has accepted the mail.
    """
    import re
    import smtplib
    import socket
    import ssl
    from email.message import EmailMessage
    from email.utils import localtime, make_msgid

    to, subject, body = texts(payload, "to", "subject", "body", optional="message_id")
    recipient = mail_address("to", to)
    default_sender = f"queue@{socket.gethostname()}"
    sender = mail_address("SMTP_FROM", os.environ.get("SMTP_FROM") or default_sender)
    message_id = payload.get("message_id", make_msgid(domain=sender.domain))
    if not re.fullmatch(r"<[!-;=?A-~]{1,200}@[!-;=?A-~]{1,200}>", str(message_id)):
        raise ValueError(f"message_id is not of the form <name@domain>: {message_id!r}")
    message = EmailMessage()
    message["From"], message["To"], message["Date"] = sender, recipient, localtime()
    message["Subject"] = one_line("subject", subject)
    message["Message-ID"] = message_id
    message.set_content(body)

    user = os.environ.get("SMTP_USER")
    starttls = os.environ.get("SMTP_STARTTLS") or ("1" if user else "0")
    address: str = recipient.addr_spec
    host, port = os.environ.get("SMTP_HOST") or "localhost", number_from("SMTP_PORT", 25)
    timeout = number_from("SMTP_TIMEOUT", 30)
    with contextlib.closing(smtplib.SMTP(host, port, timeout=timeout)) as server:
        if starttls != "0":
            server.starttls(context=ssl.create_default_context())
        if user:
            server.login(user, os.environ.get("SMTP_PASSWORD", ""))
        try:
            server.send_message(message, sender.addr_spec, [address])
        except smtplib.SMTPRecipientsRefused as refusal:
            code, reply = refusal.recipients[address]
            answer = reply.decode("utf-8", "replace")
            raise OSError(f"{address} was refused: {code} {answer}") from None
        # The mail is accepted: a server that fails at the farewell must not get it a second time.
        with contextlib.suppress(smtplib.SMTPException, OSError):
            server.quit()
    return {"to": address, "message_id": message_id}


def generate_report(payload: Any) -> dict[str, str | int]:
    """Sum up a table: {"source", "target", "group_by", "value"}.

    `source` is a .csv or .tsv file (UTF-8) whose first row names the columns; `target` becomes a
    file of the kind that its own name says, with the count, sum, min, max and mean of column
    `value` for each value of column `group_by`, in order of first appearance. Sums are decimal, so
    that money adds up. The source is read row by row, and the target appears only when complete.

    Returns {"rows", "groups", "target"}.
    """
    import csv
    from decimal import Decimal, InvalidOperation

    source, target, group_by, value = texts(payload, "source", "target", "group_by", "value")
    refuse_same_file(source, target)
    source_delimiter, target_delimiter = delimiter_of(source), delimiter_of(target)
    rows = 0
    groups: dict[str, tuple[int, Decimal, Decimal, Decimal]] = {}
    with open(source, encoding="utf-8-sig", newline="") as table:
        reader = csv.DictReader(table, delimiter=source_delimiter, strict=True)
        for column in (group_by, value):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{source} has no column {column!r}")
        for row in reader:
            rows += 1
            if None in row or None in row.values():
                raise ValueError(f"{source}, line {reader.line_num}: not as wide as the first row")
            try:
                amount = Decimal(row[value])
            except InvalidOperation:
                amount = Decimal("NaN")
            if not amount.is_finite():
                raise ValueError(f"{source}, line {reader.line_num}: no number in column {value!r}")
            key = row[group_by]
            count, total, least, most = groups.get(key, (0, Decimal(0), amount, amount))
            groups[key] = (count + 1, total + amount, min(least, amount), max(most, amount))

    with whole_file(target) as name, open(name, "x", encoding="utf-8", newline="") as report:
        writer = csv.writer(report, delimiter=target_delimiter, lineterminator="\n")
        writer.writerow([group_by, "count", "sum", "min", "max", "mean"])
        for key, (count, total, least, most) in groups.items():
            writer.writerow([key, count, total, least, most, f"{total / count:.12g}"])
    return {"rows": rows, "groups": len(groups), "target": target}


def convert_video(payload: Any) -> dict[str, str | int]:
    """Convert a video with ffmpeg: {"source", "target"}; the target's suffix names the format.

    VIDEO_CONVERTER (ffmpeg) is the program; it is given ffmpeg's arguments. It is killed, with all
    that it started, after VIDEO_TIMEOUT (3600) seconds or when the target outgrows VIDEO_MAX_BYTES
    (2147483648). The target appears only when complete.

    Returns {"target", "bytes"}.
    """
    source, target = texts(payload, "source", "target")
    refuse_same_file(source, target)
    program = os.environ.get("VIDEO_CONVERTER") or "ffmpeg"
    seconds = number_from("VIDEO_TIMEOUT", 3600)
    max_bytes = number_from("VIDEO_MAX_BYTES", 2_147_483_648)
    with whole_file(target) as unfinished:
        # Absolute names cannot be taken for options ("-y.mp4") or for protocols ("concat:a|b"),
        # and the whitelist keeps a playlist from fetching what it names from the network.
        command = [program, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file"]
        command += ["-i", os.path.abspath(source), unfinished]
        run_bounded(command, seconds, unfinished, max_bytes)
        size = os.path.getsize(unfinished)
    return {"target": target, "bytes": size}


HANDLERS = {
    "send_email": send_email,
    "generate_report": generate_report,
    "convert_video": convert_video,
}


def texts(payload: Any, *names: str, optional: str = "") -> list[str]:
    """Return the payload's texts under `names`; ValueError if one is missing, empty or unknown."""
    if not isinstance(payload, dict):
        raise ValueError(f"the payload must be an object with {', '.join(names)}")
    unknown = payload.keys() - {*names, optional}
    if unknown:
        # Passed over in silence, a "cc" would be a mail that somebody never gets.
        raise ValueError(f"the payload has unknown keys: {', '.join(sorted(unknown))}")
    for name in names:
        if not isinstance(payload.get(name), str) or not payload[name]:
            raise ValueError(f"the payload needs a text {name!r}")
    return [payload[name] for name in names]


def number_from(variable: str, default: int) -> int:
    """Return the environment's positive whole number; ValueError if it is anything else."""
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{variable} must be a positive whole number, not {text!r}")
    return int(text)


def one_line(name: str, text: str) -> str:
    """Return a text that makes one header; ValueError if it could end it and begin another."""
    import re

    # The email package decodes "=?utf-8?q?=0D=0ABcc:...?=" in what it is given, and older Pythons
    # (CVE-2024-6923) then write the line break as it is.
    if re.search(r"[\x00-\x1f\x7f]|=\?.*\?=", text):
        raise ValueError(f"{name} has a control character or an encoded word in it: {text!r}")
    return text


def mail_address(name: str, text: str) -> Any:
    """Return the Address in "Ada <ada@example.org>" or "ada@example.org"; ValueError if none."""
    import re
    from email.headerregistry import Address

    # The standard parser is lenient: it makes ada@exa of "ada@exa mple.org", and mails to it.
    part = r"[^\s<>()\[\],;:\\\"@]+"
    match = re.fullmatch(rf"([^<>]*)<({part})@({part})>|({part})@({part})", one_line(name, text))
    if match is None:
        raise ValueError(f"{name} is not one mail address: {text!r}")
    return Address((match[1] or "").strip(' "'), match[2] or match[4], match[3] or match[5])


def delimiter_of(name: str) -> str:
    """Return what separates the columns of a file of this name."""
    if not name.lower().endswith((".csv", ".tsv")):
        raise ValueError(f"{name!r} must end in .csv or .tsv")
    return "," if name.lower().endswith(".csv") else "\t"


def refuse_same_file(source: str, target: str) -> None:
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError(f"source and target are the same file: {source!r}")


@contextlib.contextmanager
def whole_file(target: str) -> Iterator[str]:
    """Yield a new name beside `target`; its file becomes `target` if the block ends well.

    By the end the file is on the disk; after an error nothing is left, and `target` is untouched.
    """
    import secrets

    folder, name = os.path.split(os.path.abspath(target))
    # The name is new each time: a killed worker's program may still be writing to its own. The
    # suffix is kept, because converters choose the format by it.
    unfinished = os.path.join(folder, f".{secrets.token_hex(4)}.{name}")
    try:
        yield unfinished
        descriptor = os.open(unfinished, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def run_bounded(command: list[str], seconds: int, output: str, max_bytes: int) -> None:
    """Run a program to its end; RuntimeError if it fails, runs too long or writes too much."""
    import signal
    import subprocess
    import time

    deadline = time.monotonic() + seconds
    tail = b""
    with subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a process group of its own, so that all of it can be killed
    ) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
                # As much as a pipe holds: a program that never stops talking cannot fill memory.
                tail = (tail + (process.stderr.read(65536) or b""))[-STDERR_TAIL:]
                if os.path.exists(output) and os.path.getsize(output) > max_bytes:
                    raise RuntimeError(f"{command[0]} wrote more than {max_bytes} bytes")
                if process.returncode is None and time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} was killed after {seconds} seconds")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        said = tail.decode("utf-8", "replace").strip().rpartition("\n")[2] or "no message"
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}: {said}")


def main(arguments: list[str]) -> int:
    """Make one pass over the queue and return the exit code."""
    if arguments not in ([], ["-v"]):
        print(USAGE, file=sys.stderr)
        return 2
    level = "INFO" if arguments else os.environ.get("QUEUE_LOG_LEVEL") or "ERROR"
    try:
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    except ValueError:
        print(f"{USAGE}\nQUEUE_LOG_LEVEL is no level: {level!r}", file=sys.stderr)
        return 2
    try:
        process_jobs(HANDLERS, MAX_ATTEMPTS, linger=LINGER, workers=WORKERS)
    except KeyboardInterrupt:
        return 130
    except (QueueError, OSError) as error:
        print(f"queue_worker: {error}", file=sys.stderr)
        return EX_TEMPFAIL if isinstance(error, QueueBusy) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
