"""`dbbasic-queue move`: to another queue, and back."""

from __future__ import annotations

import json
from pathlib import Path

from helpers import add_lines, line, run_command

from dbbasic_queue import Handlers, Queue


def move(directory: Path, *arguments: str, **more: str) -> tuple[int, str, str]:
    done = run_command("move", *arguments, cwd=directory, **more)
    return done.returncode, done.stdout, done.stderr


def test_a_queue_is_moved_and_later_rows_are_reported_and_moved_and_it_is_moved_back(
    tmp_path: Path,
) -> None:
    old, new = tmp_path / "data" / "queue.tsv", tmp_path / "new" / "queue.tsv"
    jobs = Handlers(name="program")
    jobs.every(3600, "work")
    with Queue(old) as queue:
        queue.enqueue("work", 1, job_id="done")
        queue.process_jobs({"work": lambda _: None})
        queue.process_jobs(jobs)
        queue.enqueue("work", 2, job_id="a")
    assert move(tmp_path, "--to", str(new)) == (0, "moved\t1\nschedules\t1\n", "")
    refused = run_command("enqueue", "work", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"dbbasic-queue: {old} was moved to {new}: nothing was done (use that path or URL)\n"
    )
    add_lines(old, line("late"))
    status = run_command("status", cwd=tmp_path).stdout.splitlines()
    assert status[0] == f"queue\t{old}"
    assert status[1] == (
        f"verdict\tmoved\tthis queue was moved to {new}, but not completely: 1 job is still "
        "pending here (run the move again)\t"
        f"dbbasic-queue move --to {new}"
    )
    assert status[2:4] == [f"moved\t{new}\t1", "pending\t1"]
    again = move(tmp_path, "--to", str(new), "--finished", "--history")
    assert again == (0, "moved\t1\nfinished\t1\nhistory\t1\n", "")
    listed = run_command("list", "--file", str(new), cwd=tmp_path).stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["a", "late", "done"]

    # And back: the source is the default queue, here by its URL.
    back = move(tmp_path, "--to", f"file:{old}", DBBASIC_QUEUE_URL=str(new))
    assert back == (0, "moved\t2\nschedules\t1\n", "")
    assert run_command("list", cwd=tmp_path).stdout.count("\n") == 2


def test_what_a_move_leaves_is_printed_and_the_exit_code_is_1(tmp_path: Path) -> None:
    old, new = tmp_path / "data" / "queue.tsv", tmp_path / "new.tsv"
    add_lines(old, line("taken", created_at=5))
    add_lines(new, line("taken", created_at=6))
    assert move(tmp_path, "--to", str(new)) == (
        1,
        "moved\t0\nconflict\ttaken\n",
        f"dbbasic-queue: 1 job stays in {old}: another job in {new} has its id (purge those there, "
        "or cancel these here, and move again)\n",
    )


def test_an_interrupted_move_is_named_by_each_command_that_looks(tmp_path: Path) -> None:
    old, new = tmp_path / "data" / "queue.tsv", tmp_path / "new.tsv"
    on_its_way = line("a", status="cancelled", error=f"Moving to {new}: no")
    add_lines(old, on_its_way, line("b", status="cancelled", error=f"Moved to {new}"))
    text = (
        f"a move to {new} isn't finished: 1 job is on its way, and not run until it is (if it was "
        "interrupted, run it again)"
    )
    again = f"dbbasic-queue move --to {new}"
    status = run_command("status", cwd=tmp_path).stdout.splitlines()
    assert status[1] == f"verdict\tidle\tnothing is due; but {text}\t{again}"
    assert status[2] == f"moving\t{new}\t1\t1"
    as_json = json.loads(run_command("status", "--json", cwd=tmp_path).stdout)
    assert as_json["moving"] == {"to": str(new), "on_the_way": 1, "arrived": 1}
    assert f"wrong\tmove-unfinished\t{text}\t{again}" in run_command("doctor", cwd=tmp_path).stdout
    check = run_command("check", cwd=tmp_path)
    assert (check.returncode, check.stdout.partition(" | ")[0]) == (1, f"WARNING: {text}")
    for job_id, why in (
        ("a", f"it is on its way to {new}, and that move isn't finished: if it was interrupted, "),
        ("b", f"it was moved to {new}, and is kept here until that move is finished"),
    ):
        shown = run_command("show", job_id, cwd=tmp_path).stdout
        assert f"\nwhy\tmoved\t{why}" in shown and f"\t{again}\n" in shown
        for verb in ("requeue", "cancel"):
            assert run_command(verb, job_id, cwd=tmp_path).stderr.endswith(
                f"it is being moved to {new} (to finish that: {again})\n"
            )
    assert move(tmp_path, "--to", str(new))[0] == 1  # b was never there
    status = run_command("status", cwd=tmp_path).stdout.splitlines()
    assert status[1] == (
        f"verdict\tmoved\tthis queue was moved to {new}, but not completely: 1 moved job is kept "
        f"here (run the move again)\t{again}"
    )


def test_a_dry_run_says_what_would_be_moved_and_changes_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "data" / "queue.tsv", tmp_path / "new" / "queue.tsv"
    jobs = Handlers(name="program")
    jobs.every(3600, "work")
    with Queue(old) as queue:
        queue.process_jobs(jobs)
        queue.enqueue("work", 1, job_id="done")
        queue.process_jobs({"work": lambda _: None})
        queue.enqueue_many("work", [2, 3])
    add_lines(old, line("taken", created_at=5), line("lost", status="processing", attempts=1))
    add_lines(new, line("taken", created_at=6))

    def content() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in tmp_path.glob("*/*")}

    before = content()
    plan = "would be moved\tpending\t2\nwould be moved\tprocessing\t1\n"
    rest = "would be moved\tschedules\t1\nconflict\ttaken\n"
    assert move(tmp_path, "--to", str(new), "--dry-run") == (1, plan + rest, "")
    finished = "would be moved\tcompleted\t1\n"
    assert move(tmp_path, "--to", str(new), "-n", "--finished") == (1, plan + finished + rest, "")
    assert content() == before
    empty = move(tmp_path, "--to", str(tmp_path / "x.tsv"), "-n", "--file", str(new))
    assert empty == (0, "would be moved\tpending\t1\n", "")
    code, _, error = move(tmp_path, "--to", str(old), "-n")
    assert (code, "can't be moved to itself" in error) == (1, True)
    assert content() == before


def test_a_queue_that_is_not_there_or_in_memory_is_refused(tmp_path: Path) -> None:
    code, _, error = move(tmp_path, "--to", "new.tsv")
    assert (code, "there is no queue" in error) == (1, True)
    add_lines(tmp_path / "data" / "queue.tsv", line("a"))
    code, _, error = move(tmp_path, "--to", "memory:")
    assert (code, "would end with this command" in error) == (2, True)
