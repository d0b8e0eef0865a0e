"""What README.md and docs/*.md promise beyond examples: crontabs, shell jobs, users, links."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller
from blocks import BY_CI, PAGES, PROJECT, Block, all_blocks, blocks_of
from helpers import server_port
from running import Page, environment

from dbbasic_queue import Queue

BLOCKS = all_blocks()
CRONTABS = [block for block in BLOCKS if block.language == "crontab"]
SETTING = re.compile(r"(\w+)=(.*)")
FIELD = re.compile(r"(\*|[\d,-]+)(/\d+)?")


def test_every_page_is_found() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "tutorial.md", "handlers.md", "workers.md", "deployment.md"} <= names


def test_ci_runs_the_two_commands_of_the_readme_as_written() -> None:
    script = (PROJECT / ".ci/run").read_text(encoding="utf-8")
    for name in BY_CI:
        assert f"from_readme {name}" in script
        assert [block.page for block in BLOCKS if name in block.words] == ["README.md"]
        assert f"```sh {name}\n" in (PROJECT / "README.md").read_text(encoding="utf-8")


# -- crontabs


class Crontab:
    """The settings of a crontab, and its commands with their five fields."""

    def __init__(self, block: Block) -> None:
        self.settings: dict[str, str] = {}
        self.commands: list[tuple[str, str]] = []
        for line in block.code.splitlines():
            if not line or line.startswith("#"):
                continue
            if setting := SETTING.fullmatch(line):
                self.settings[setting[1]] = setting[2]
                continue
            *fields, command = line.split(maxsplit=5)
            assert len(fields) == 5 and all(map(FIELD.fullmatch, fields)), f"{block}: {line}"
            assert "%" not in command.replace("\\%", ""), f"{block}: cron cuts lines at a %: {line}"
            self.commands.append((" ".join(fields), command))


@pytest.mark.parametrize("block", CRONTABS, ids=str)
def test_a_crontab_is_valid_and_starts_programs_that_the_page_or_the_project_has(
    block: Block,
) -> None:
    files = {other.file for other in BLOCKS if other.page == block.page}
    if any("startproject" in other.code for other in BLOCKS if other.page == block.page):
        files.add("manage.py")
    for _, command in Crontab(block).commands:
        for script in re.findall(r"[\w/.]+\.py\b", command):
            assert script in files or (PROJECT / script).is_file(), command


def cron_starts(command: str, page: Page, settings: dict[str, str]) -> None:
    """Run a line of a crontab in the environment that cron gives it; it prints nothing."""
    bare = {"HOME": "/", "LOGNAME": "app", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
    bare["PYTHONPATH"] = page.environment["PYTHONPATH"]  # where .venv/bin/python finds this package
    done = subprocess.run(
        ["sh", "-c", page.here(command)],
        cwd="/",
        env=bare | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), command


@pytest.mark.parametrize(
    ("name", "path", "job_type", "payload"),
    [
        ("docs/frameworks.md", "instance/queue.tsv", "greet", {"name": "Ada"}),
        ("examples/flask-app/README.md", "instance/queue.tsv", "write_receipt", {"name": "Ada"}),
        ("examples/fastapi-app/README.md", "data/queue.tsv", "count", "a text"),
        ("examples/php-page/README.md", "data/queue.tsv", "receipt", {"name": "Ada"}),
    ],
)
def test_cron_runs_a_job_with_the_line_of(
    name: str, path: str, job_type: str, payload: object, tmp_path: Path
) -> None:
    if "php" in name and shutil.which("php") is None:
        pytest.skip("needs php")
    page, crontab = page_and_crontab(name, tmp_path)
    ((when, command),) = crontab.commands
    assert when == "* * * * *"
    with Queue(page.directory / path) as queue:
        job_id = queue.enqueue(job_type, payload)
        cron_starts(command.replace("--linger 55s", "--linger 0s"), page, crontab.settings)
        found = queue.get_job(job_id)
    assert found is not None and found["status"] == "completed", found


def page_and_crontab(name: str, directory: Path) -> tuple[Page, Crontab]:
    """Write the files of a page, or copy those of an example; return it, and its only crontab."""
    blocks = blocks_of(PROJECT / name)
    page = Page(directory / "app", blocks)
    if name.startswith("examples"):
        without_data = shutil.ignore_patterns("data", "instance", "__pycache__")
        source = (PROJECT / name).parent
        shutil.copytree(source, page.directory, ignore=without_data, dirs_exist_ok=True)
    for block in blocks:
        if block.file:
            page.write(block.file, block.code)
    (crontab,) = [Crontab(block) for block in blocks if block.language == "crontab"]
    return page, crontab


def test_cron_sends_the_receipt_of_an_order_whose_server_died_with_the_lines_of_the_example_site(
    tmp_path: Path,
) -> None:
    page, crontab = page_and_crontab("examples/django-site/README.md", tmp_path)
    migrate = [sys.executable, "manage.py", "migrate", "-v", "0"]
    subprocess.run(migrate, cwd=page.directory, env=page.environment, check=True)
    with closing(sqlite3.connect(page.directory / "data/db.sqlite3")) as database:
        database.execute("INSERT INTO shop_order (email) VALUES ('ada@example.com')")
        database.commit()
    (_, run), (_, repair) = crontab.commands
    cron_starts(repair, page, crontab.settings)
    cron_starts(run.replace("--linger 55", "--linger 0"), page, crontab.settings)
    with Queue(page.directory / "data/queue.tsv") as queue:
        (job,) = queue.jobs()
    assert (job["id"], job["status"]) == ("receipt-1", "completed")
    (mail,) = (page.directory / "data/mails").iterdir()
    assert "To: ada@example.com" in mail.read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_cron_sends_a_mail_with_the_crontab_of(name: str, tmp_path: Path) -> None:
    blocks = blocks_of(PROJECT / name)
    page = Page(tmp_path / "app", blocks)
    for block in blocks:
        if block.file:
            page.write(block.file, block.code)
    (crontab,) = [Crontab(b) for b in blocks if b.language == "crontab" and "SMTP_HOST" in b.code]
    mails: list[str] = []

    async def keep(server: object, session: object, envelope: object) -> str:
        mails.append(bytes(getattr(envelope, "content", b"")).decode())
        return "250 OK"

    receiver = SimpleNamespace(handle_DATA=keep)
    smtp = Controller(receiver, hostname="localhost", port=server_port())
    settings = crontab.settings | {"SMTP_HOST": "localhost", "SMTP_PORT": str(smtp.port)}
    assert settings.keys() == crontab.settings.keys()
    with Queue(page.directory / "data/queue.tsv") as queue:
        job_id = queue.enqueue("welcome", {"to": "ada@example.com"})
        smtp.start()
        try:
            for when, command in crontab.commands:
                if when == "* * * * *":
                    cron_starts(command, page, settings)
        finally:
            smtp.stop()
        job = queue.get_job(job_id)
    assert job is not None and job["status"] == "completed", job
    (mail,) = mails
    assert f"From: {crontab.settings['SMTP_FROM']}" in mail
    assert "To: ada@example.com" in mail


def long_ago(seconds: float) -> float:
    return time.time() - seconds


def test_the_purges_in_crontabs_archive_finished_jobs(tmp_path: Path) -> None:
    lines = [
        (block, when, command)
        for block in CRONTABS
        for when, command in Crontab(block).commands
        if " purge " in command
    ]
    assert lines
    for number, (block, when, command) in enumerate(lines):
        page = Page(tmp_path / str(number), [])
        days = re.search(r"--older-than (\d+)d\b", command)
        archive = re.search(r"--archive (\S+)", command)
        assert days and archive, f"{block}: {command}"
        assert not when.startswith("*"), f"{block}: {when} {command}"
        file = page.directory / "data/queue.tsv"
        seconds = (int(days[1]) + 1) * 86_400
        with Queue(file, clock=partial(long_ago, seconds)) as then:
            then.enqueue("old", {}, job_id="old")
        with Queue(file) as queue:
            queue.enqueue("new", {}, job_id="new")
            queue.process_jobs({"old": len, "new": len})
            done = subprocess.run(
                ["sh", "-c", page.here(command)],
                timeout=60,
                env=page.environment,
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "purged\t1\told=1\n", "")
            assert [job["id"] for job in queue.jobs()] == ["new"]
        archived = (page.directory / archive[1]).read_text("utf-8").splitlines()
        assert [line.split("\t")[0] for line in archived] == ["id", "old"]


# -- a job from a shell


def test_a_job_that_a_shell_appends_as_a_page_says_is_run(tmp_path: Path) -> None:
    append = re.compile(r"flock data/queue\.tsv\.lock .*printf.* >> data/queue\.tsv\b(?!\.)")
    found = [b for b in BLOCKS if b.language == "sh" and append.search(b.code)]
    assert found
    for number, block in enumerate(found):
        (tmp_path / str(number)).mkdir()
        with Queue(tmp_path / str(number) / "data/queue.tsv") as queue:
            later = queue.enqueue("later", {}, run_at=9_999_999_999)
            lines = [line.removeprefix("$ ") for line in block.code.splitlines()]
            subprocess.run(
                ["sh", "-euc", "\n".join(lines)], cwd=tmp_path / str(number), check=True, timeout=60
            )
            (added,) = [job for job in queue.jobs() if job["id"] != later]
            assert queue.process_jobs({added["type"]: lambda payload: payload})["completed"] == 1
            job = queue.get_job(added["id"])
            assert job is not None and job["result"] == job["payload"] != {}


# -- two users

USER = """
import os, pwd, sys, tempfile
from dbbasic_queue import Queue
os.umask(0o077)
with tempfile.TemporaryDirectory() as home, Queue(home + "/queue.tsv") as queue:
    queue.enqueue("who", "loads every module, which www-data may not be able to read")
    assert queue.process_jobs({"who": str})["completed"] == 1
if sys.argv[1] == "www-data":
    user = pwd.getpwnam("www-data")
    os.setgroups([user.pw_gid]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
with Queue(sys.argv[2] + "/queue.tsv") as queue:
    queue.enqueue("who", sys.argv[1])
    assert queue.process_jobs({"who": str})["completed"] == 1
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give directories away")
def test_root_and_the_web_server_share_a_queue_in_the_directories_of_the_pages() -> None:
    lines = [line for b in BLOCKS if "root" in b.words for line in b.code.splitlines()]
    commands = [line for line in lines if line.startswith("install -d")]
    assert len(commands) >= 2
    for number, command in enumerate(commands):
        with tempfile.TemporaryDirectory() as home:  # tmp_path lies where only root may enter
            Path(home).chmod(0o755)
            page = Page(Path(home) / "app", [])
            page.directory.chmod(0o755)
            subprocess.run(["sh", "-euc", page.here(command)], check=True, timeout=60)
            (directory,) = (file for file in page.directory.iterdir() if file.name != ".venv")
            users = ["root", "www-data", "root"] if number % 2 else ["www-data", "root", "www-data"]
            for user in users:
                done = subprocess.run(
                    [sys.executable, "-c", USER, user, str(directory)],
                    timeout=60,
                    env=environment(),
                    cwd=directory,
                    capture_output=True,
                    encoding="utf-8",
                    check=False,
                )
                assert done.returncode == 0, (user, command, done.stderr)


# -- a full disk


def fill_block(path: Path) -> None:
    """Make a queue that needs another block of the disk for the next job."""
    with Queue(path) as queue:
        queue.enqueue("send_email", {"to": ""})
        header, row = path.read_bytes().splitlines(keepends=True)
        free = 4096 - len(header) - 2 * len(row)
        queue.enqueue("send_email", {"to": "x" * free})
    assert path.stat().st_size == 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_the_full_disk_of_the_operations_page_is_as_shown_there(tmp_path: Path) -> None:
    blocks = blocks_of(PROJECT / "docs/operations.md")
    worker = next(block for block in blocks if block.file == "worker.py")
    parts = ("data/filler", "disk-space")
    disk = [b for b in blocks if b.language == "console" and any(part in b.code for part in parts)]
    assert len(disk) == 3 and all("norun" in block.words for block in disk)
    page = Page(tmp_path / "app", [worker, *(block._replace(words=()) for block in disk)])
    data = page.directory / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=755", "tmpfs", data], check=True)
    try:
        fill_block(data / "queue.tsv")
        assert page.run() == 3
    finally:
        subprocess.run(["umount", data], check=True)


# -- links


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        text = text.replace(block.code, "\n")
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 1
        while slug in found:
            slug, number = f"{slug.removesuffix(f'-{number - 1}')}-{number}", number + 1
        found.add(slug)
    return found


GLOBS = ("*.md", "examples/*/README.md", "benchmarks/*.md", "tests/**/README.md")
LINKING = sorted({*PAGES, *(page for glob in GLOBS for page in PROJECT.glob(glob))})


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(PROJECT)))
def test_the_relative_links_of_the_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        is_there = target.exists() and target.is_relative_to(PROJECT)
        if not is_there or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong
