"""`edit`: a payload, or the whole queue, in an editor; the editor is a script here."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import HEADER, NOW, Clock, Programs, add_lines, line, run_command, wait_for_notes

from dbbasic_queue import Queue

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Edit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    def edit(change: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `edit` with an editor that runs this code on `text`, and keeps a copy of it."""
        script = tmp_path / "editor.py"
        script.write_text(
            "import sys\n"
            "from pathlib import Path\n"
            "path = Path(sys.argv[1])\n"
            "text = path.read_text('utf-8')\n"
            "Path('seen').write_text(text, 'utf-8')\n"
            f"{textwrap.dedent(change)}\n"
            "path.write_text(text, 'utf-8')\n",
            "utf-8",
        )
        editor = f"{sys.executable} '{script}'"
        kept = tmp_path / "kept"
        kept.mkdir(exist_ok=True)
        more = {"EDITOR": editor, "VISUAL": "", "TMPDIR": str(kept)}
        return run_command("edit", *arguments, cwd=tmp_path, **more)

    return edit


@pytest.fixture
def jobs(path: Path) -> Queue:
    queue = Queue(path, clock=Clock())
    for number in range(1, 5):
        queue.enqueue("mail", {"to": number}, job_id=f"job-{number}")
    queue.cancel_job("job-4")
    return queue


def rows(queue: Queue) -> dict[str, tuple[object, str]]:
    return {job["id"]: (job["payload"], job["status"]) for job in queue.jobs()}


def test_lines_can_be_changed_added_and_removed(jobs: Queue, edit: Edit, tmp_path: Path) -> None:
    done = edit(
        """
        text = text.replace('{"to": 1}', '{"to": "one"}')
        text = text.replace(LINE_2, "").replace("job-4\\tmail\\t{\\"to\\": 4}\\tcancelled",
                                                "job-4\\tmail\\t{\\"to\\": 4}\\tpending")
        text += "new-1\\tsync\\t[1]\\tpending\\t5\\t6\\t0\\t\\t\\n"
        """.replace("LINE_2", "[l for l in text.splitlines(True) if l[:6] == 'job-2\\t'][0]")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "added\t1\nchanged\t2\nremoved\t1\n"
    assert rows(jobs) == {
        "job-1": ({"to": "one"}, "pending"),
        "job-3": ({"to": 3}, "pending"),
        "job-4": ({"to": 4}, "pending"),
        "new-1": ([1], "pending"),
    }
    seen = (tmp_path / "seen").read_text("utf-8")
    assert seen.startswith(HEADER) and seen.count("\n") == 5


def test_nothing_is_written_if_nothing_was_changed(jobs: Queue, edit: Edit, path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    done = edit("")
    assert (done.returncode, done.stdout) == (0, "added\t0\nchanged\t0\nremoved\t0\n")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_payload_and_state_of_one_job_can_be_changed_together(jobs: Queue, edit: Edit) -> None:
    done = edit(f"""
        text = text.replace('job-1\\tmail\\t{{"to": 1}}\\tpending\\t{NOW}\\t{NOW}',
                            'job-1\\tmail\\t{{"to": 9}}\\tpending\\t{NOW}\\t{NOW + 60}')
        """)
    assert (done.returncode, done.stdout) == (0, "added\t0\nchanged\t1\nremoved\t0\n")
    found = jobs.get_job("job-1")
    assert found is not None
    assert (found["payload"], found["run_at"]) == ({"to": 9}, NOW + 60)


def test_what_others_did_in_the_meantime_is_kept(jobs: Queue, edit: Edit) -> None:
    done = edit("""
        from dbbasic_queue import Queue
        queue = Queue("data/queue.tsv")
        queue.enqueue("mail", "added by another", job_id="other")
        queue.edit_job("job-3", "edited by another")
        queue.cancel_job("job-2")
        text = text.replace('{"to": 1}', '"mine"').replace("job-2\\tmail", "job-x\\tmail")
        """)
    assert done.stdout == "added\t1\nchanged\t1\nremoved\t0\n"
    assert done.returncode == 1
    assert done.stderr == (
        "dbbasic-queue: 1 job was not removed, but changed by others in the meantime\n"
    )
    assert rows(jobs) == {
        "job-1": ("mine", "pending"),
        "job-2": ({"to": 2}, "cancelled"),
        "job-3": ("edited by another", "pending"),
        "job-4": ({"to": 4}, "cancelled"),
        "other": ("added by another", "pending"),
        "job-x": ({"to": 2}, "pending"),
    }


def test_a_job_that_changed_in_the_meantime_is_not_changed_again(jobs: Queue, edit: Edit) -> None:
    done = edit("""
        from dbbasic_queue import Queue
        queue = Queue("data/queue.tsv")
        queue.cancel_job("job-1")
        queue.enqueue("sync", 1, job_id="new-1")
        text = text.replace('{"to": 1}', '"mine"')
        text = text.replace('4}\\tcancelled', '4}\\tpending')
        text += "new-1\\tmail\\t{}\\tpending\\t5\\t5\\t0\\t\\t\\n"
        queue.requeue("job-4")
        queue.cancel_job("job-4")
        queue.requeue("job-4")
        """)
    assert (done.returncode, done.stdout) == (1, "added\t0\nchanged\t0\nremoved\t0\n")
    assert done.stderr.splitlines() == [
        "dbbasic-queue: job-1: its payload was not changed: only a pending job's can be",
        "dbbasic-queue: new-1 was not added: another job has this id",
        "dbbasic-queue: job-4 was not changed: it has changed in the meantime",
    ]
    found = jobs.get_job("new-1")
    assert found is not None and found["type"] == "sync"


def test_a_payload_that_another_has_edited_is_neither_overwritten_nor_removed(
    jobs: Queue, edit: Edit
) -> None:
    done = edit("""
        from dbbasic_queue import Queue
        queue = Queue("data/queue.tsv")
        queue.edit_job("job-1", "edited by another")
        queue.edit_job("job-2", "edited by another")
        text = text.replace('{"to": 1}', '"mine"')
        text = "".join(l for l in text.splitlines(True) if l[:6] != "job-2\\t")
        """)
    assert (done.returncode, done.stdout) == (1, "added\t0\nchanged\t0\nremoved\t0\n")
    assert done.stderr.splitlines() == [
        "dbbasic-queue: job-1 was not changed: it has changed in the meantime",
        "dbbasic-queue: 1 job was not removed, but changed by others in the meantime",
    ]
    assert [rows(jobs)[name][0] for name in ("job-1", "job-2")] == ["edited by another"] * 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("text = text[5:]", "invalid line 1: must be the header, as it was"),
        ("text = ''", "invalid line 1: must be the header, as it was"),
        ("text = text.replace('pending', 'waiting', 1)", "invalid line 2: 'job-1"),
        ("text = text.replace('\\t', '  ')", "invalid line 1"),
        (
            "text = text.replace('{\"to\": 2}', '{to: 2}')",
            "invalid line 3: its payload must be JSON",
        ),
        ("text = text.replace('job-2', 'job-1')", "invalid line 3: the id job-1 occurs twice"),
        ("text = text.replace('mail', 'post', 1)", "invalid type of job-1: a job's type can't be"),
        ("text += 'a b\\tx\\t1\\tpending\\t1\\t1\\t0\\t\\t\\n'", "invalid line 6"),
        ("text += '-a\\tx\\t1\\tpending\\t1\\t1\\t0\\t\\t\\n'", "invalid job_id '-a'"),
        ("text += 'a\\ta b\\t1\\tpending\\t1\\t1\\t0\\t\\t\\n'", "invalid job type 'a b'"),
        (
            "text += 'a\\tx\\t1\\tprocessing\\t1\\t1\\t0\\t\\t\\n'",
            "only a pass can make it processing",
        ),
        ("text = text.replace('pending', 'processing', 1)", "only a pass can make it processing"),
        ("text = text[:-6]", "invalid line 5"),
        ("path.write_bytes(b'\\xff'); sys.exit()", "invalid text: must be UTF-8"),
        ("sys.exit(3)", "ended with exit code 3: nothing was changed"),
        ("path.unlink(); sys.exit()", "has removed its file: nothing was changed"),
    ],
)
def test_an_invalid_edit_is_reported_and_changes_nothing(
    jobs: Queue, edit: Edit, path: Path, change: str, why: str
) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    done = edit(change)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert done.stderr.count("\n") <= 2
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_of_two_edits_of_a_payload_at_once_the_second_changes_nothing(
    jobs: Queue, edit: Edit, tmp_path: Path
) -> None:
    other = """
        from dbbasic_queue import Queue
        Queue("data/queue.tsv").edit_job("job-1", "theirs")
        text = text.replace('1', '9')
        """
    done = edit(other.replace("'1', '9'", "'{\"to\": 1}', '9'"))
    assert (done.returncode, done.stdout) == (1, "added\t0\nchanged\t0\nremoved\t0\n")
    assert done.stderr == ("dbbasic-queue: job-1 was not changed: it has changed in the meantime\n")
    assert rows(jobs)["job-1"] == ("theirs", "pending")
    done = edit(
        other.replace("theirs", "once more").replace("'1', '9'", "'theirs', 'mine'"), "job-1"
    )
    assert (done.returncode, done.stdout) == (1, "")
    (kept,) = (tmp_path / "kept").iterdir()
    assert done.stderr == (
        "dbbasic-queue: job-1 was not edited: its payload has changed in the meantime; your text "
        f"is in {kept}\n"
    )
    assert kept.read_text() == '"mine"\n'
    assert rows(jobs)["job-1"] == ("once more", "pending")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ("text += 'mine\\n'", b"mine\n"),
        ("path.write_text(text + 'mine'); sys.exit(1)", b"mine"),
        ("path.write_bytes(b'mine \\xff'); sys.exit()", b"mine \xff"),
        ("sys.exit(1)", None),  # nothing was written
    ],
)
def test_what_a_person_wrote_is_kept_if_it_cannot_be_used(
    jobs: Queue, edit: Edit, tmp_path: Path, change: str, kept: bytes | None
) -> None:
    done = edit(change)
    assert done.returncode == 1
    found = list((tmp_path / "kept").iterdir())
    if kept is None:
        assert not found and "your text" not in done.stderr
        return
    (path,) = found
    assert done.stderr.endswith(f"nothing was changed; your text is in {path}\n")
    assert path.read_bytes().endswith(kept)
    assert path.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_is_for_the_editor(jobs: Queue, edit: Edit) -> None:
    """A terminal sends SIGINT to all programs in the foreground; vi goes on after it."""
    done = edit(
        """
        import os, signal
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(1)
        text = text.replace('{"to": 1}', '"mine"')
        """.replace("time.sleep(1)", "import time; time.sleep(1)")
    )
    assert (done.returncode, done.stdout) == (0, "added\t0\nchanged\t1\nremoved\t0\n")


def test_lines_that_are_not_jobs_are_kept(jobs: Queue, edit: Edit, path: Path) -> None:
    add_lines(path, "not a job\n", line("bad", payload="{"))
    done = edit("text = text.replace('{\"to\": 1}', '1')")
    assert (done.returncode, done.stderr) == (0, "")
    assert "not a job\n" in path.read_text("utf-8")
    assert line("bad", payload="{") in path.read_text("utf-8")


def test_a_running_job_cannot_be_changed_or_removed(
    now_queue: Queue, programs: Programs, edit: Edit, tmp_path: Path
) -> None:
    now_queue.enqueue("slow", {}, job_id="a")
    programs.start(
        """
        def slow(_):
            note("running", "x")
            time.sleep(600)
        queue.process_jobs({"slow": slow})
        """
    )
    wait_for_notes(tmp_path / "running", 1)
    for change in (
        "text = text.splitlines(True)[0]",
        "text = text.replace('processing', 'failed')",
    ):
        done = edit(change)
        assert (done.returncode, done.stdout) == (1, "")
        assert "invalid change of a: it is running (dbbasic-queue stop a)" in done.stderr


def test_the_payload_of_one_job_is_edited_as_indented_json(
    jobs: Queue, edit: Edit, tmp_path: Path
) -> None:
    done = edit("text = text.replace('1', '\"\u00e9\"')", "job-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "edited\tjob-1\n", "")
    assert (tmp_path / "seen").read_text("utf-8") == '{\n  "to": 1\n}\n'
    assert rows(jobs)["job-1"] == ({"to": "\u00e9"}, "pending")
    done = edit("text = '{'", "job-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dbbasic-queue: invalid payload: ")
    _, where = done.stderr.split(": job-1 was not changed; your text is in ")
    kept = Path(where.removesuffix("\n"))
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == ("{", 0o600)
    kept.unlink()
    done = edit("", "job-4")
    assert (
        "job-4 was not edited: it is cancelled (only a pending job can be; first: " in done.stderr
    )


@pytest.mark.parametrize("editor", ["", "no-such-editor", "   "])
def test_without_an_editor_and_a_terminal_nothing_waits(
    jobs: Queue, tmp_path: Path, editor: str
) -> None:
    done = run_command("edit", "job-1", cwd=tmp_path, EDITOR=editor, VISUAL=editor)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dbbasic-queue: there is no editor: set $EDITOR, such as EDITOR=nano\n"
