#!/usr/bin/env python3
"""The program that cron runs: it runs the due jobs once, with the handlers below.

Copy this file into your application, replace the handlers with your own, and let cron start it
every minute:

    * * * * * cd /srv/app && python3 workers/queue_worker.py

Use a Python that has dbbasic_queue installed, such as /srv/app/.venv/bin/python. The queue is the
one that the environment names (DBBASIC_QUEUE_URL or DBBASIC_QUEUE_FILE), otherwise data/queue.tsv
in the working directory.

If no job fails, nothing is printed. A job that has failed for good is reported on stderr, and cron
emails the report to you. QUEUE_LOG_LEVEL=WARNING also reports jobs that will be tried again; -v or
QUEUE_LOG_LEVEL=INFO reports every job. QUEUE_MAIL_TO=ops@example.org sends one mail per pass about
failed jobs, with the mail settings of `send_email`. QUEUE_PING_URL=https://... is requested after
each pass, so that a monitoring service can alert you if passes stop.

Exit codes:

    0   finished; jobs may have failed (see stderr and the queue)
    1   the queue could not be used: one line on stderr says why
    2   wrong usage
    75  try again later: too many passes are running, or the queue's lock could not be acquired
    130 stopped by Ctrl-C, 143 by SIGTERM: the running job's result was saved, or the job was
        returned to the queue

A handler receives the job's payload and returns a JSON value or None. If it raises an exception,
the job is tried again later, and fails after MAX_ATTEMPTS. If the worker is killed, a job may run
twice: write handlers so that a second run does no harm. File names in a payload are trusted: don't
accept them from users.
"""

from __future__ import annotations

# A pass starts every minute and usually finds nothing to do. So modules that only one handler
# needs are imported in that handler.
import contextlib
import logging
import os
import sys

from dbbasic_queue import Handlers, process_jobs
from dbbasic_queue.errors import QueueBusy, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_ATTEMPTS = 3
LINGER = 0  # seconds to wait for more jobs; 60 leaves no gap until cron starts the next pass
WORKERS = 1  # how many jobs run at the same time
EX_TEMPFAIL = 75  # from sysexits.h: try again later
STDERR_TAIL = 4096
USAGE = "usage: queue_worker.py [-v]"
HANDLERS = Handlers()


@HANDLERS.handler
def send_email(payload: Any) -> dict[str, str]:
    """Send one email. The payload is {"to", "subject", "body"}, optionally with "message_id".

    Settings, from the environment (defaults in parentheses): the server SMTP_HOST (localhost) and
    SMTP_PORT (25), the sender SMTP_FROM (queue@HOSTNAME), SMTP_TIMEOUT in seconds (30). With
    SMTP_USER and SMTP_PASSWORD it logs in over STARTTLS; SMTP_STARTTLS=0 logs in without it, and
    SMTP_STARTTLS=1 uses it without a login.

    Send to one recipient per job: then a retry can't reach a recipient who already has the email.
    If the worker is killed after sending, the email is sent again; with a `message_id`
    ("<order-17@example.org>"), mail programs can recognize the copy.

    Returns {"to", "message_id"} once the server has accepted the email.
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
        raise ValueError(f"invalid message_id {message_id!r}: must be <name@domain>")
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
            raise OSError(f"the server rejected {address}: {code} {answer}") from None
        # The server has accepted the email. If QUIT fails, the email must not be sent again.
        with contextlib.suppress(smtplib.SMTPException, OSError):
            server.quit()
    return {"to": address, "message_id": message_id}


@HANDLERS.handler
def generate_report(payload: Any) -> dict[str, str | int]:
    """Summarize a table. The payload is {"source", "target", "group_by", "value"}.

    `source` is a .csv or .tsv file in UTF-8 whose first row names the columns. `target` is the .csv
    or .tsv file to write: one row per value of the column `group_by`, in order of first appearance,
    with the count, sum, min, max and mean of the column `value`. Sums are decimal, so amounts of
    money add up exactly. The source is read row by row. The target appears only when complete.

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
                problem = "more or fewer columns than the first row"
                raise ValueError(f"{source}, line {reader.line_num}: {problem}")
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


@HANDLERS.handler
def convert_video(payload: Any) -> dict[str, str | int]:
    """Convert a video with ffmpeg. The payload is {"source", "target"}.

    The target's suffix selects the format. Settings, from the environment (defaults in
    parentheses): the program VIDEO_CONVERTER (ffmpeg), which is called with ffmpeg's arguments;
    VIDEO_TIMEOUT in seconds (3600); VIDEO_MAX_BYTES (2147483648). If the program runs longer, or
    the target grows larger, it is killed with every process it has started. The target appears only
    when complete.

    Returns {"target", "bytes"}.
    """
    source, target = texts(payload, "source", "target")
    refuse_same_file(source, target)
    program = os.environ.get("VIDEO_CONVERTER") or "ffmpeg"
    seconds = number_from("VIDEO_TIMEOUT", 3600)
    max_bytes = number_from("VIDEO_MAX_BYTES", 2_147_483_648)
    with whole_file(target) as unfinished:
        # ffmpeg can't mistake absolute names for options ("-y.mp4") or protocols ("concat:a|b").
        # The whitelist keeps a playlist from fetching files from the network.
        command = [program, "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file"]
        command += ["-i", os.path.abspath(source), unfinished]
        run_bounded(command, seconds, unfinished, max_bytes)
        size = os.path.getsize(unfinished)
    return {"target": target, "bytes": size}


def texts(payload: Any, *names: str, optional: str = "") -> list[str]:
    """Return the payload's members `names`: non-empty strings.

    Raises ValueError if one is missing or empty, or if there is a member that isn't known.
    """
    if not isinstance(payload, dict):
        raise ValueError(f"invalid payload: must be an object with {', '.join(names)}")
    unknown = payload.keys() - {*names, optional}
    if unknown:
        # If unknown keys were ignored, nobody would notice that a "cc" isn't sent.
        raise ValueError(f"invalid payload: unknown keys: {', '.join(sorted(unknown))}")
    for name in names:
        if not isinstance(payload.get(name), str) or not payload[name]:
            raise ValueError(f"invalid payload: {name!r} must be a non-empty string")
    return [payload[name] for name in names]


def number_from(variable: str, default: int) -> int:
    """Return a positive integer from the environment. Raises ValueError for anything else."""
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"invalid {variable} {text!r}: must be a positive whole number")
    return int(text)


def one_line(name: str, text: str) -> str:
    """Return `text`. Raises ValueError if it could add another header to an email."""
    import re

    # The email package decodes encoded words such as "=?utf-8?q?=0D=0ABcc:...?=", and older Pythons
    # (CVE-2024-6923) then write the line break unescaped.
    if re.search(r"[\x00-\x1f\x7f]|=\?.*\?=", text):
        raise ValueError(f"invalid {name} {text!r}: no control characters or encoded words")
    return text


def mail_address(name: str, text: str) -> Any:
    """Return the Address in "Ada <ada@example.org>" or "ada@example.org".

    Raises ValueError for anything else, such as several addresses.
    """
    import re
    from email.headerregistry import Address

    # The standard parser is lenient: it reads "ada@exa mple.org" as ada@exa, and sends to that.
    part = r"[^\s<>()\[\],;:\\\"@]+"
    match = re.fullmatch(rf"([^<>]*)<({part})@({part})>|({part})@({part})", one_line(name, text))
    if match is None:
        raise ValueError(f"invalid {name} {text!r}: must be one email address")
    return Address((match[1] or "").strip(' "'), match[2] or match[4], match[3] or match[5])


def delimiter_of(name: str) -> str:
    """Return the column separator of a .csv or .tsv file. Raises ValueError for other names."""
    if not name.lower().endswith((".csv", ".tsv")):
        raise ValueError(f"invalid file name {name!r}: must end in .csv or .tsv")
    return "," if name.lower().endswith(".csv") else "\t"


def refuse_same_file(source: str, target: str) -> None:
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError(f"source and target are the same file: {source!r}")


@contextlib.contextmanager
def whole_file(target: str) -> Iterator[str]:
    """Yield the name of a temporary file, which is renamed to `target` at the end of the block.

    It is synced to disk first. If the block raises, it is removed, and `target` isn't changed.
    """
    import secrets

    folder, name = os.path.split(os.path.abspath(target))
    # A new name each time: a program started by a killed worker may still be writing to the old
    # one. It keeps the suffix, because converters choose the format by it.
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
    """Run a program. Raises RuntimeError if it fails, runs too long or writes too much.

    The error's message ends with the program's last line on stderr. When the time is up, the
    process group is killed.
    """
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
        start_new_session=True,  # a process group of its own, which can be killed as a whole
    ) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
                # At most what a pipe holds: a program that prints forever must not fill memory.
                tail = (tail + (process.stderr.read(65536) or b""))[-STDERR_TAIL:]
                if os.path.exists(output) and os.path.getsize(output) > max_bytes:
                    raise RuntimeError(f"{command[0]} wrote more than {max_bytes} bytes")
                if process.returncode is None and time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} was killed after {seconds} seconds")
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        message = tail.decode("utf-8", "replace").strip().rpartition("\n")[2] or "no message"
        raise RuntimeError(f"{command[0]} exited with status {process.returncode}: {message}")


def mail_failures(to: str) -> None:
    """Have failed jobs mailed to one or more addresses, separated by commas.

    Raises ValueError for an invalid setting.
    """
    from dbbasic_queue.notify import Mail

    sender = os.environ.get("SMTP_FROM") or f"queue@{os.uname().nodename}"
    user = os.environ.get("SMTP_USER")
    starttls = os.environ.get("SMTP_STARTTLS") or ("1" if user else "0")
    mail = Mail(
        to=[address.strip() for address in to.split(",")],
        sender=sender.rpartition("<")[2].rstrip("> "),
        server=os.environ.get("SMTP_HOST") or "localhost",
        port=number_from("SMTP_PORT", 25),
        user=user or None,
        password=os.environ.get("SMTP_PASSWORD", "") if user else None,
        tls="none" if starttls == "0" else "starttls",
    )
    HANDLERS.on_failure(mail)


def main(arguments: list[str]) -> int:
    """Run the due jobs and return the exit code."""
    if arguments not in ([], ["-v"]):
        print(USAGE, file=sys.stderr)
        return 2
    level = "INFO" if arguments else os.environ.get("QUEUE_LOG_LEVEL") or "ERROR"
    try:
        logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    except ValueError:
        levels = "DEBUG, INFO, WARNING, ERROR or CRITICAL"
        print(f"{USAGE}\ninvalid QUEUE_LOG_LEVEL {level!r}: must be {levels}", file=sys.stderr)
        return 2
    ping = os.environ.get("QUEUE_PING_URL") or None
    try:
        if mail_to := os.environ.get("QUEUE_MAIL_TO"):
            mail_failures(mail_to)
        process_jobs(HANDLERS, MAX_ATTEMPTS, linger=LINGER, workers=WORKERS, ping=ping)
    except ValueError as error:
        settings = "QUEUE_MAIL_TO, QUEUE_PING_URL and SMTP_*"
        print(f"{USAGE}\n{error} (the settings are {settings})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (QueueError, OSError) as error:
        print(f"queue_worker: {error}", file=sys.stderr)
        return EX_TEMPFAIL if isinstance(error, QueueBusy) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
