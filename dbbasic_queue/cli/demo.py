"""The demo: real jobs in a real queue, shown with the commands that a user would type.

Nothing is faked. The worker is the file that users copy, run as cron runs it. The emails go by SMTP
to a server on loopback. The output is that of awk, grep and cat. At the end the demo checks its own
results. Its directory is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dbbasic_queue.jobqueue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent
MAX_LINE = 4096
MAX_MAIL = 1_048_576

OVERVIEW = r"""awk -F'\t' '{ print $1, $2, $4, $7 }' data/queue.tsv"""
TALLY = r"""awk -F'\t' 'NR > 1 { n[$4]++ } END { for (s in n) print n[s], s }' data/queue.tsv"""
WAITING = r"""awk -F'\t' '$4 == "pending" { print $1, "due at", $6 ":", $8 }' data/queue.tsv"""
# The shell acquires the queue's lock, so it can add a row while passes and apps are running.
SHELL_JOB = (
    r"""printf '%s\t%s\t%s\tpending\t0\t0\t0\t\t\n' from-a-shell send_email """
    r"""'{"to": "shell@example.org", "subject": "Hello", "body": "From printf."}' | """
    r"""flock data/queue.tsv.lock sh -c 'cat >> data/queue.tsv'"""
)


def run(directory: str | None = None) -> int:
    """Run the demo in an empty or new `directory`, by default a temporary one; return an exit code.

    0 if every result was right; otherwise 1, and stderr says what is wrong. Raises OSError if the
    directory isn't empty or can't be written.
    """
    home = fresh_directory(directory)
    try:
        with mail_server(home / "mails") as server:
            problems = tour(home, server)
    except KeyboardInterrupt:
        print(f"demo: interrupted; its files are in {home} (remove it with rm -r)", file=sys.stderr)
        raise
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    if problems:
        print(f"demo: something went wrong; see {home}", file=sys.stderr)
        return 1
    say(f"""
        Look around in {home}
        (data/queue.tsv, report.tsv, mails/). Remove it with rm -r.

        For your own queue, copy workers/queue_worker.py from there to your app,
        say /srv/app, and put your handlers into it. In that directory, the app calls

            from dbbasic_queue import enqueue
            enqueue("send_email",
                    {{"to": "you@example.org", "subject": "Hi", "body": "..."}})

        and cron runs the worker every minute (crontab -e):

            * * * * * cd /srv/app && {sys.executable} workers/queue_worker.py
        """)
    return 0


def fresh_directory(directory: str | None) -> Path:
    """Make the demo's directory, with the worker, the report's data and a folder for the emails."""
    if directory is None:
        home = Path(tempfile.mkdtemp(prefix="dbbasic-queue-demo-"))
    else:
        home = Path(directory).absolute()
        if home.exists() and not home.is_dir():
            raise NotADirectoryError(f"{home} is not a directory")
        home.mkdir(parents=True, exist_ok=True)
        if any(home.iterdir()):
            raise FileExistsError(f"{home} is not empty: the demo needs a directory of its own")
    (home / "workers").mkdir()
    (home / "mails").mkdir()
    shutil.copyfile(worker_program(), home / "workers" / "queue_worker.py")
    shutil.copyfile(HERE / "demo_data.tsv", home / "elements.tsv")
    return home


def worker_program() -> Path:
    """Return the worker's path: in an installed package, or next to the package in a checkout."""
    for folder in (PACKAGE, PACKAGE.parent):
        program = folder / "workers" / "queue_worker.py"
        if program.is_file():
            return program
    raise FileNotFoundError(
        f"workers/queue_worker.py is not in {PACKAGE}: please reinstall the package"
    )


def tour(home: Path, server: MailServer) -> list[str]:
    """Enqueue, run the worker, show the file; return what went wrong."""
    elements = len(read_lines(home / "elements.tsv")) - 1
    problems: list[str] = []
    friends = ["ada@example.org", "grace@example.org", "katherine@example.org"]
    say(f"""
        The demo's directory is {home}

        1. An app enqueues five jobs: three emails, a fourth one to a busy mailbox,
           and a report on the {elements} chemical elements that have a standard atomic
           weight. The queue is a text file; here are its columns id, type, status
           and attempts:
        """)
    with Queue(home / "data" / "queue.tsv") as queue:
        queue.enqueue_many("send_email", [greeting(friend) for friend in friends])
        queue.enqueue("send_email", greeting("busy@example.org"), job_id="mail-to-busy")
        report = {"source": "elements.tsv", "target": "report.tsv"}
        report |= {"group_by": "period", "value": "atomic_weight"}
        queue.enqueue("generate_report", report, job_id="report-1")
        problems += show(home, OVERVIEW)

        say(
            "\n2. Cron would start the worker every minute."
            "\n   It prints nothing unless a job fails:\n"
        )
        problems += work(home, server)

        say("\n3. The file now. The email to the busy mailbox will be retried in two minutes:\n")
        problems += show(home, TALLY)
        problems += show(home, WAITING)
        problems += show(home, "grep -c completed data/queue.tsv")
        problems += show(home, "cat report.tsv")

        say("\n4. A shell can add a job, too. Then the worker runs again:\n")
        problems += show(home, SHELL_JOB)
        if queue.get_job("from-a-shell"):  # without the program flock, the job is not added
            friends.append("shell@example.org")
            problems += work(home, server)
            problems += show(home, "grep from-a-shell data/queue.tsv")
        problems += show(home, "grep -h '^To:' mails/*.eml")
        problems += show(home, TALLY)
        return problems + wrong_results(home, queue, friends, server.accepted)


def wrong_results(home: Path, queue: Queue, friends: list[str], accepted: list[str]) -> list[str]:
    """Return which results are wrong."""
    problems = []
    if sorted(accepted) != sorted(friends):
        problems.append(
            f"emails to {sorted(friends)} were expected, emails to {sorted(accepted)} arrived"
        )
    rows = sum(int(line.split("\t")[1]) for line in read_lines(home / "report.tsv")[1:])
    if rows != len(read_lines(home / "elements.tsv")) - 1:
        problems.append(f"the report counts {rows} rows")
    counts = {status: count for status, count in queue.counts().items() if count}
    if counts != {"completed": len(friends) + 1, "pending": 1}:
        problems.append(f"the queue counts {counts}")
    retried = queue.get_job("mail-to-busy")
    if retried is None or retried["attempts"] != 1 or "451" not in (retried["error"] or ""):
        problems.append(f"the email to the busy mailbox is not waiting for a retry: {retried}")
    elif not problems:
        due = time.strftime("%H:%M:%S", time.localtime(retried["run_at"]))
        say(f"""
            Checked: {len(friends)} emails arrived, each once; the report is complete;
            one job waits for its second attempt at {due}. (The demo's mail server
            has stopped by then, so that attempt would fail, too.)""")
    return problems


def greeting(recipient: str) -> dict[str, str]:
    return {"to": recipient, "subject": "Hello from a text file", "body": "It was a row.\n"}


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def say(text: str) -> None:
    """Print a text without its indentation, and flush it: other programs print in between."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    print("\n".join(line[margin:].rstrip() for line in lines), flush=True)


def show(home: Path, command: str) -> list[str]:
    """Run a shell command in `home`, and show it with its output; return its problem, if any."""
    print(f"$ {command}", flush=True)
    for program in re.findall(r"^\w+|(?<=\| )\w+", command):
        # printf is built into the shell.
        if program != "printf" and shutil.which(program) is None:
            print(f"(not run: this machine has no {program})", flush=True)
            return []
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=home, capture_output=True, encoding="utf-8", timeout=60
    )
    print(done.stdout, end="", flush=True)
    if done.returncode or done.stderr:
        return [f"{command}: status {done.returncode} {done.stderr}".rstrip()]
    return []


def work(home: Path, server: MailServer) -> list[str]:
    """Run the worker as cron would; return its problem, if any."""
    ours = ("SMTP_", "QUEUE_LOG_LEVEL", "DBBASIC_QUEUE_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    settings = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(server.server_address[1])}
    settings["SMTP_FROM"] = "demo@example.org"
    # The worker must use this package, and a checkout may not be installed.
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= settings | {"PYTHONPATH": os.pathsep.join(paths)}
    assignments = " ".join(f"{name}={text}" for name, text in settings.items())
    print(f"$ {assignments} python3 workers/queue_worker.py", flush=True)
    began = time.monotonic()
    command = [sys.executable, "workers/queue_worker.py"]
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, encoding="utf-8", timeout=60
    )
    print(f"(status {done.returncode} after {time.monotonic() - began:.2f} s)", flush=True)
    if done.returncode or done.stdout or done.stderr:
        return [f"the worker ended with {done.returncode}: {done.stdout}{done.stderr}".rstrip()]
    return []


class MailSession(socketserver.StreamRequestHandler):
    """One SMTP conversation (the minimum of RFC 5321) that saves its emails as files."""

    timeout = 10
    server: MailServer

    def handle(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []
        with contextlib.suppress(OSError):  # a client that hangs up or falls silent
            self.reply("220 demo")
            while (line := self.rfile.readline(MAX_LINE)).endswith(b"\n"):
                verb, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
                self.reply(self.answer(verb.upper(), rest))
                if verb.upper() == "QUIT":
                    return

    def reply(self, text: str) -> None:
        self.wfile.write(text.encode("utf-8") + b"\r\n")

    def answer(self, verb: str, rest: str) -> str:
        path = re.match(r"(?:FROM|TO): ?<([^<>\s]*)>", rest, re.IGNORECASE)
        match verb:
            case "HELO" | "EHLO" | "RSET":
                self.sender, self.recipients = None, []
                return "250 demo"
            case "NOOP":
                return "250 OK"
            case "QUIT":
                return "221 bye"
            case "MAIL" | "RCPT" if path is None:
                return "501 a path in <> is missing"
            case "MAIL" if path:
                self.sender, self.recipients = path[1], []
                return "250 OK"
            case "RCPT" if path and self.sender is not None:
                if path[1].startswith("busy@"):
                    return "451 4.2.1 mailbox busy, try again later"
                self.recipients.append(path[1])
                return "250 OK"
            case "DATA" if self.recipients:
                return self.take_mail()
            case "RCPT" | "DATA":
                return "503 not now"
        return "500 unknown command"

    def take_mail(self) -> str:
        self.reply("354 end with a dot on a line of its own")
        mail = bytearray()
        while (line := self.rfile.readline(MAX_LINE)) != b".\r\n":
            if not line:
                raise ConnectionResetError("the client hung up within an email")
            if len(mail) <= MAX_MAIL:
                mail += line[1:] if line.startswith(b".") else line
        recipients, self.sender, self.recipients = self.recipients, None, []
        if len(mail) > MAX_MAIL:
            return "552 too large"
        self.server.keep(bytes(mail).replace(b"\r\n", b"\n"), recipients)
        return "250 OK"


class MailServer(socketserver.ThreadingTCPServer):
    """A mail server on loopback that saves each accepted email in `folder` as a file, N.eml."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), MailSession)
        self.folder = folder
        self.accepted: list[str] = []
        self.mails = 0
        self.lock = threading.Lock()

    def keep(self, mail: bytes, recipients: list[str]) -> None:
        with self.lock:
            self.mails += 1
            (self.folder / f"{self.mails}.eml").write_bytes(mail)
            self.accepted += recipients


@contextlib.contextmanager
def mail_server(folder: Path) -> Iterator[MailServer]:
    """Run a mail server on a free loopback port until the block ends."""
    with MailServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
