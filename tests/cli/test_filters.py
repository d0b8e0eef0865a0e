"""Which jobs a command means: filters, order, prefixes of ids, instants; and what it prints."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from helpers import DAY, NOW, add_lines, line

from dbbasic_queue import Queue
from dbbasic_queue.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        """Run a command; return its exit code, what it printed, and its errors."""
        try:
            code = main(["--file", str(path), *arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def ids(run: Run) -> Callable[..., str]:
    """The ids that a command lists, separated by spaces."""

    def ids(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return " ".join(text.split("\t")[0] for text in out.splitlines())

    return ids


THEN = int(time.time()) - 10 * DAY


@pytest.fixture
def jobs(path: Path) -> None:
    """Six jobs: a to f, in the order of enqueueing."""
    add_lines(
        path,
        line("a", type="mail", created_at=THEN, run_at=THEN + 3 * DAY, payload='{"to": "ada"}'),
        line("b", type="sync", created_at=THEN, run_at=THEN + DAY, status="failed", attempts=3)[:-2]
        + "SMTP 450: busy\t\n",
        line("c", type="mail", created_at=THEN, run_at=THEN, status="completed", attempts=1)[:-1]
        + '"sent to ada"\n',
        line("d", type="call", created_at=THEN, run_at=THEN + 2 * DAY, status="failed", attempts=2)[
            :-2
        ]
        + "HTTP 500\t\n",
        line("e", type="call", created_at=THEN, run_at=4_000_000_000),
        line("f", type="mail", created_at=THEN + 4 * DAY, run_at=5, status="cancelled"),
    )


def test_the_planted_jobs_are_jobs(jobs: None, ids: Callable[..., str]) -> None:
    assert ids("list") == "a b c d e f"
    assert ids("failed") == "d b"
    assert ids("due") == "a"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--type mail", "a c f"),
        ("--type mail --type call", "a c d e f"),
        ("--type nothing", ""),
        ("--status failed", "b d"),
        ("--status failed --status pending", "a b d e"),
        ("--error SMTP", "b"),
        ("--error ^HTTP.[0-9]+$", "d"),
        ("--error .", "b d"),
        ("--text ada", "a c"),
        ("--text 450", "b"),
        ("--text f", "f"),
        ("--type mail --text ada --status completed", "c"),
        ("--since @DAY1", "a b d e f"),
        ("--until @DAY1", "c"),
        ("--since @DAY1 --until @DAY3", "b d"),
        ("--since 8d12h", None),
        ("--since 8.5d", "a d e f"),
        ("--since -8.5d", "a d e f"),
        ("--since=-8.5d", "a d e f"),
        ("--since now", "e"),
        ("--since +1h", "e"),
        ("--until +1h", "a b c d f"),
        ("--since @0", "a b c d e f"),
        ("--sort due", "c b d a f e"),
        ("--sort due --reverse", "e f a d b c"),
        ("--sort type", "d e a c f b"),
        ("--sort status", "a e c b d f"),
        ("--sort attempts --reverse --limit 3", "b d c"),
        ("--sort created --limit 2", "a b"),
        ("--sort id --reverse --limit 1", "f"),
        ("--reverse", "f e d c b a"),
        ("--reverse --limit 2", "f e"),
        ("--limit 2", "a b"),
        ("--limit 100", "a b c d e f"),
        ("--limit 0", None),
        ("--limit -1", None),
        ("--limit x", None),
        ("--sort size", None),
        ("--error (", None),
        ("--error [", None),
        ("--since soon", None),
        ("--since 2027-13-01", None),
        ("--since @nan", None),
        ("--since @-1", None),
        ("--since @1e99", None),
        ("--until 5", None),
        ("--until @inf", None),
        ("--until 99999999999999d", None),
    ],
)
def test_options_choose_and_sort_jobs(
    jobs: None, ids: Callable[..., str], run: Run, options: str, expected: str | None
) -> None:
    for number in (1, 3):
        options = options.replace(f"DAY{number}", str(THEN + number * DAY))
    if expected is not None:
        assert ids("list", *options.split()) == expected
        return
    code, out, err = run("list", *options.split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("dbbasic-queue list: argument --")


def test_failed_and_due_take_the_same_options(jobs: None, ids: Callable[..., str]) -> None:
    assert ids("failed", "--type", "sync") == "b"
    assert ids("failed", "--reverse") == "b d"
    assert ids("failed", "--limit", "1") == "d"
    assert ids("failed", "--sort", "id") == "b d"
    assert ids("due", "--text", "eve") == ""


def test_due_leaves_out_paused_types_and_lists_in_the_order_of_execution(
    path: Path, ids: Callable[..., str]
) -> None:
    with Queue(path) as queue:
        for job_id, run_at in (("third", 300), ("first", 100), ("second", 200)):
            queue.enqueue("work", {}, job_id=job_id, run_at=run_at)
        queue.enqueue("mail", {}, job_id="waits")
        queue.pause("mail")
        assert ids("due") == "first second third"
        queue.pause()
        assert ids("due") == ""


def test_a_date_without_an_offset_is_local_time(
    path: Path, ids: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = int(datetime.fromisoformat("2027-01-15T08:00:00+00:00").timestamp())
    assert at == NOW
    add_lines(path, line("a", run_at=NOW))
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert ids("list", "--since", "2027-01-15T03:00") == "a"
        assert ids("list", "--since", "2027-01-15T03:01") == ""
        assert ids("list", "--since", "2027-01-15T08:00Z") == "a"
        assert ids("list", "--since", "2027-01-15T08:00:01+00:00") == ""
        assert ids("list", "--until", "2027-01-16") == "a"
    finally:
        monkeypatch.undo()
        time.tzset()


# -- ids ---------------------------------------------------------------------------------------


@pytest.fixture
def similar(path: Path) -> None:
    add_lines(path, *(line(name, status="failed") for name in ("abcdefgh", "abcdefxy", "abcdef")))
    add_lines(path, line("zz", status="failed"), line("other-1", status="failed"))


def test_a_job_is_found_by_the_beginning_of_its_id_if_that_is_unique(
    similar: None, run: Run
) -> None:
    assert run("show", "o")[1].startswith("id\tother-1\n")
    assert run("show", "abcdefx")[1].startswith("id\tabcdefxy\n")
    assert run("show", "abcdef")[1].startswith("id\tabcdef\n")  # exactly this one
    code, out, err = run("show", "abcde")
    assert (code, out) == (1, "")
    assert err == (
        "dbbasic-queue: ambiguous id 'abcde': several begin with it (abcdefgh, abcdefxy, abcdef): "
        "write more of it\n"
    )
    assert run("show", "nothing") == (1, "", "dbbasic-queue: there is no job nothing\n")


def test_a_change_needs_six_characters_of_an_id_or_all_of_it(
    similar: None, run: Run, path: Path
) -> None:
    before = path.read_bytes()
    code, out, err = run("requeue", "other")
    assert (code, out) == (1, "")
    assert err.startswith("dbbasic-queue: invalid id 'other': to change a job, write at least 6 ")
    for command in ("requeue", "clear"):
        assert run(command, "abcde")[0] == 1
    assert path.read_bytes() == before
    assert run("requeue", "other-") == (0, "requeued\tother-1\n", "")
    assert run("requeue", "zz") == (0, "requeued\tzz\n", "")
    assert run("requeue", "abcdef") == (0, "requeued\tabcdef\n", "")


def test_an_ambiguous_prefix_changes_no_job(path: Path, run: Run) -> None:
    add_lines(path, line("abcdefgh", status="failed"), line("abcdefxy", status="failed"))
    before = path.read_bytes()
    for command in (("requeue",), ("clear",), ("requeue", "-n")):
        code, out, err = run(*command, "abcdef")
        assert (code, out) == (1, "")
        assert "ambiguous id 'abcdef'" in err
    assert path.read_bytes() == before


def test_each_of_several_ids_is_tried(similar: None, run: Run) -> None:
    code, out, err = run("requeue", "abcdefg", "zy", "zz", "abc")
    assert (code, out) == (1, "requeued\tabcdefgh\nrequeued\tzz\n")
    assert [text.split(":")[1].strip().split(" ")[0] for text in err.splitlines()] == [
        "zy",
        "invalid",
    ]


@pytest.mark.parametrize(
    "command",
    [
        ("show",),
        ("output",),
        ("output", "-f"),
        ("wait",),
        ("cancel",),
        ("stop",),
        ("run-now",),
        ("requeue",),
        ("clear",),
        ("edit",),
        ("history",),
    ],
)
@pytest.mark.parametrize("job_id", ["a b", "\udcff", "\x1b[31m", "", "é", "x" * 65])
def test_an_id_that_no_job_can_have_is_one_clear_line(
    similar: None, run: Run, path: Path, command: tuple[str, ...], job_id: str
) -> None:
    before = path.read_bytes()
    code, out, err = run(*command, job_id, *(["{}"] if command[0] == "edit" else []))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("dbbasic-queue: ") and (" no " in err or not job_id)
    if not job_id:
        assert err.endswith(
            "invalid id '': must be a job's id, or its beginning (`dbbasic-queue list` shows "
            "them)\n"
        )
    assert err.rstrip("\n").isprintable()
    assert path.read_bytes() == before


# -- changes by filters ------------------------------------------------------------------------


def statuses(path: Path) -> str:
    return " ".join(f"{job['id']}={job['status'][:4]}" for job in Queue(path).jobs())


@pytest.mark.parametrize(
    ("command", "printed", "after"),
    [
        ("cancel --type mail", "cancelled\t1\tmail=1", "a=canc b=fail c=comp d=fail e=pend f=canc"),
        (
            "cancel --all",
            "cancelled\t2\tmail=1 call=1",
            "a=canc b=fail c=comp d=fail e=canc f=canc",
        ),
        ("cancel --text nobody", "cancelled\t0\t-", "a=pend b=fail c=comp d=fail e=pend f=canc"),
        ("run-now --since now", "made due\t1\tcall=1", "a=pend b=fail c=comp d=fail e=pend f=canc"),
        (
            "requeue --failed",
            "requeued\t2\tsync=1 call=1",
            "a=pend b=pend c=comp d=pend e=pend f=canc",
        ),
        (
            "requeue --error SMTP",
            "requeued\t1\tsync=1",
            "a=pend b=pend c=comp d=fail e=pend f=canc",
        ),
        (
            "requeue --all",
            "requeued\t3\tsync=1 call=1 mail=1",
            "a=pend b=pend c=comp d=pend e=pend f=pend",
        ),
        ("stop --type call", "cancelled\t1\tcall=1", "a=pend b=fail c=comp d=fail e=canc f=canc"),
        ("stop --type none", "stopped\t0\t-", "a=pend b=fail c=comp d=fail e=pend f=canc"),
        (
            "purge --older-than 8.5d",
            "purged\t2\tsync=1 mail=1",
            "a=pend d=fail e=pend f=canc",
        ),
        (
            "purge --older-than 1d --status failed",
            "purged\t2\tsync=1 call=1",
            "a=pend c=comp e=pend f=canc",
        ),
        ("purge --older-than 1d --type mail", "purged\t2\tmail=2", "a=pend b=fail d=fail e=pend"),
        ("clear --status failed", "removed\t2\tsync=1 call=1", "a=pend c=comp e=pend f=canc"),
        ("clear --all", "removed\t6\tmail=3 call=2 sync=1", ""),
        ("clear a f", "removed\t2\tmail=2", "b=fail c=comp d=fail e=pend"),
    ],
)
def test_filters_choose_what_is_changed_and_a_dry_run_changes_nothing(
    jobs: None, run: Run, path: Path, command: str, printed: str, after: str
) -> None:
    before = path.read_bytes()
    dry = run(*command.split(), "--dry-run")
    planned = printed.replace("cancelled", "stopped") if "stop" in command else printed
    assert dry == (0, f"would be {planned}\n", "")
    assert path.read_bytes() == before
    assert run(*command.split()) == (0, f"{printed}\n", "")
    assert statuses(path) == after


def test_a_change_by_filters_leaves_the_running_jobs_that_they_do_not_choose(
    jobs: None, run: Run, path: Path
) -> None:
    add_lines(path, line("run", type="mail", status="processing", attempts=1))
    before = Queue(path).get_job("run")
    for command in ("cancel --all", "run-now --all", "requeue --all", "clear --type mail"):
        assert run(*command.split())[0] == 0
    assert run("stop", "--status", "pending")[0] == 0
    assert run("stop", "--type", "call")[0] == 0
    assert Queue(path).get_job("run") == before
    assert run("stop", "--type", "mail") == (0, "requested\t1\tmail=1\n", "")


def test_a_dry_run_with_ids_says_for_each_what_would_be_done(
    jobs: None, run: Run, path: Path
) -> None:
    before = path.read_bytes()
    assert run("cancel", "a", "b", "-n") == (
        1,
        "would be cancelled\ta\n",
        "dbbasic-queue: b was not cancelled: it is failed (only a pending job can be)\n",
    )
    assert run("stop", "a", "b", "x", "-n") == (
        1,
        "would be stopped\ta\n",
        "dbbasic-queue: b would not be stopped: it is failed\n"
        "dbbasic-queue: x would not be stopped: it is unknown\n",
    )
    assert path.read_bytes() == before


def test_removed_jobs_can_be_archived_and_a_bad_archive_removes_nothing(
    jobs: None, run: Run, path: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive.tsv"
    for bad in (str(path), str(path) + ".x", str(archive) + ".gz", str(tmp_path)):
        for dry in ([], ["--dry-run"]):
            code, out, err = run("clear", "--all", "--archive", bad, *dry)
            assert (code, out, err.count("\n")) == (1, "", 1)
    assert len(list(Queue(path).jobs())) == 6
    assert run("clear", "--type", "sync", "--archive", str(archive))[0] == 0
    assert [text.split("\t")[0] for text in archive.read_text().splitlines()] == ["id", "b"]


# -- what is printed ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "failed", "due"])
def test_json_has_one_job_per_line_with_the_columns_of_the_file(
    jobs: None, run: Run, path: Path, command: str
) -> None:
    code, out, err = run(command, "--json")
    assert (code, err) == (0, "")
    jobs_by_id = {job["id"]: job for job in Queue(path).jobs()}
    found = [json.loads(text) for text in out.splitlines()]
    assert found and all(job == jobs_by_id[job["id"]] for job in found)
    assert out.isascii()


def test_every_looking_command_has_json_without_jobs_too(path: Path, run: Run) -> None:
    Queue(path).cancel_job(Queue(path).enqueue("work", {}, job_id="a"))
    for command in (
        ["status"],
        ["show", "a"],
        ["running"],
        ["failed"],
        ["history"],
        ["stats"],
        ["schedules"],
        ["unreadable"],
    ):
        code, out, err = run(*command, "--json")
        assert (code, err) == (0, ""), command
        for text in out.splitlines():
            json.loads(text)
        assert run(*command)[0] == 0


def test_status_as_json_has_the_verdict_and_the_counts(jobs: None, run: Run, path: Path) -> None:
    found: dict[str, Any] = json.loads(run("status", "--json")[1])
    assert found["verdict"] == "stalled"
    assert found["jobs"] == {
        "pending": 2,
        "processing": 0,
        "completed": 1,
        "failed": 2,
        "cancelled": 1,
    }
    assert (found["due"], found["oldest_due"]["id"]) == (1, "a")
    assert (found["command"], found["last_pass"], found["moved_to"]) == (
        f"dbbasic-queue --file {path} crontab --help",
        None,
        None,
    )


def test_history_can_be_limited_by_id_type_outcome_time_and_number(path: Path, run: Run) -> None:
    with Queue(path, clock=lambda: time.time() - 7200) as then:
        then.enqueue("old", {}, job_id="old")
        then.process_jobs({"old": str})
    with Queue(path) as queue:
        for number in range(3):
            queue.enqueue("work", {}, job_id=f"job-{number}")
        queue.enqueue("bad", {}, job_id="bad")
        queue.process_jobs({"work": str, "bad": lambda _: 1 / 0})

    def ids(*options: str) -> str:
        code, out, err = run("history", *options)
        assert (code, err) == (0, "")
        return " ".join(text.split("\t")[0] for text in out.splitlines())

    assert ids() == "old job-0 job-1 job-2 bad"
    assert ids("job-1") == "job-1"
    assert ids("--type", "work") == "job-0 job-1 job-2"
    assert ids("--outcome", "retried") == "bad"
    assert ids("--since", "1h") == "job-0 job-1 job-2 bad"
    assert ids("--limit", "2") == "job-2 bad"
    assert ids("--type", "work", "--limit", "1") == "job-2"
    fields = run("history", "bad")[1].rstrip("\n").split("\t")
    assert fields[1:4] == ["bad", "1", "retried"]
    assert fields[7] == "ZeroDivisionError: division by zero"
    assert run("history", "--limit", "0")[0] == 2
    assert run("history", "--outcome", "fail")[0] == 2


def test_stats_count_attempts_by_type(path: Path, run: Run) -> None:
    with Queue(path) as queue:
        queue.enqueue_many("work", range(4))
        queue.enqueue("bad", {})
        queue.process_jobs({"work": str, "bad": lambda _: 1 / 0})
    code, out, err = run("stats", "--window", "1d")
    assert (code, err) == (0, "")
    fields = {text.split("\t")[0]: text.split("\t")[1:] for text in out.splitlines()}
    assert {name: found[:2] for name, found in fields.items()} == {
        "work": ["4", "0"],
        "bad": ["1", "1"],
    }
    assert all(len(found) == 9 for found in fields.values())
    assert float(fields["work"][6]) >= 0
    found = [json.loads(text) for text in run("stats", "--json")[1].splitlines()]
    assert {job["type"] for job in found} == {"work", "bad"}


def test_the_file_can_be_named_before_or_after_the_command(path: Path) -> None:
    Queue(path).enqueue("work", {})
    os.environ.pop("DBBASIC_QUEUE_FILE", None)
    assert main(["--file", str(path), "list"]) == 0
    assert main(["list", "--file", str(path)]) == 0
    assert main(["--file", "wrong", "list", "--file", str(path)]) == 0
    assert main(["--file", str(path)]) == 0
