"""What must hold after an attack, judged only by the files and the log.

Each check returns a list of mistakes: sentences that start with the number of the broken promise
in the docs (P1 ...). If nothing is wrong, the list is empty.
"""

from __future__ import annotations

import re

from bench import MAX_ATTEMPTS, POLICIES
from disk import FINAL, Disk, Job
from promises import Promises

# How often a type's handler is entered if nothing goes wrong.
USUAL_STARTS = {"flaky": 2, "delays": 2, "bad": 3, "twice": 2, "often": 5}


def limit(job_type: str) -> int:
    """Return how many attempts a job of a type has."""
    return int(POLICIES.get(job_type, {}).get("max_attempts", MAX_ATTEMPTS))


def check_crashed(disk: Disk, promises: Promises, junk: int, torn: int) -> list[str]:
    """Check the files after `torn` kills and errors; `junk` lines were invalid from the start."""
    wrong = list(disk.wrong)
    if len(disk.junk) > junk + torn:
        wrong.append(f"P8: {len(disk.junk)} lines are not rows: {disk.junk}")
    keys = [job.key for job in disk.jobs]
    for key in promises.kept:
        if keys.count(key) != 1:
            wrong.append(f"P1: {key} was enqueued, and is in the queue {keys.count(key)} times")
    for key in keys:
        if key not in promises.called and not promises.may_be_scheduled(key):
            wrong.append(f"P1: {key} was never enqueued")
        if key in promises.removed:
            wrong.append(f"P2: the removal of {key} was acknowledged, but it is in the queue")
    for key in promises.scheduled() - promises.removed:
        if keys.count(key) != 1:
            wrong.append(f"P1: {key} was scheduled, and is in the queue {keys.count(key)} times")
    for key in promises.archived.difference(disk.archived):
        wrong.append(f"P1: {key} was archived, but is not in the archive")
    for job in disk.jobs:
        reported, attempt = promises.outcomes.get(job.id, ("", 0))
        if reported in FINAL and job.status != reported:
            wrong.append(f"P2: {job.key} was reported {reported}, but is {job.status}")
        if job.attempts < promises.started_at_least(job.key):
            wrong.append(f"P5: {job.key} was started {promises.started(job.key)} times: {job}")
        if job.type != "nobody" and job.attempts > promises.started(job.key) + torn:
            wrong.append(f"P5: {job.key} was started {promises.started(job.key)} times: {job}")
        if job.key in promises.cancelled and job.status != "cancelled":
            wrong.append(f"P2: the cancel of {job.key} was acknowledged, but it is {job.status}")
        if job.version not in promises.versions.get(job.key, {0}):
            wrong.append(f"P2: {job.key} has payload {job.version}, not {promises.versions}")
        if attempt > job.attempts:
            wrong.append(f"P5: {job.key} was reported in attempt {attempt}, but has {job.attempts}")
    return wrong


def check_recovered(
    before: Disk, after: Disk, crashed: Promises, run: set[str], alive: frozenset[str]
) -> list[str]:
    """Check that one pass has recovered the jobs of dead passes, and has run all other due jobs.

    `before` and `after` are the files before and after that pass, `crashed` the promises before it.
    `run` has the keys of the jobs that it has started, `alive` those of jobs that another live
    pass is running.
    """
    wrong = []
    old = {job.id: job for job in before.jobs}
    for job in after.jobs:
        was = old.get(job.id)
        if job.key in alive:
            if was and (job.status, job.attempts) != (was.status, was.attempts):
                wrong.append(f"P3: {job.key} was taken from a live pass: {was} -> {job}")
            continue
        if job.status == "processing":
            wrong.append(f"P3: {job.key} is still processing after the next pass")
        if was is None or was.status in FINAL or job.status == "cancelled":
            continue
        lost = was.status == "processing"
        if lost and was.error == _STOP_REQUESTED:
            wrong.append(f"P2: a stop was requested for {was}, and it became {job}")
        if lost and job.status == "pending" and job.key not in run:
            if job.attempts == was.attempts and not is_after_backoff(job, crashed.now):
                wrong.append(f"P3: {was} was recovered without a backoff: {job}")
            continue
        if lost and job.key in run and crashed.started_at_least(job.key) >= was.attempts:
            wrong.append(f"P3: {was} runs again without a backoff: {job}")
        if job.type in before.paused and job.key not in run:
            continue
        if not lost and was.run_at > crashed.now:
            continue
        # An attempt that was claimed but not started may count, or be returned.
        counted = {was.attempts}
        if lost and crashed.started_at_least(job.key) < was.attempts:
            counted.add(was.attempts - 1)
        most = limit(job.type)
        if lost and most in counted and job.status == "failed" and job.key not in run:
            if job.attempts != most or not job.error:
                wrong.append(f"P5: {was} was in its last attempt, and became {job}")
        elif job.type != "nobody" and job.key not in run:
            wrong.append(f"P3: {was} was not run by the next pass: {job}")
        elif job.type == "delays" and job.status == "pending":
            if job.attempts not in counted or job.run_at <= crashed.now:
                wrong.append(f"P5: {was} was delayed by the next pass, and became {job}")
        elif job.attempts - 1 not in counted or job.attempts > most:
            wrong.append(f"P5: {was} was run by the next pass, and became {job}")
    return wrong


def is_after_backoff(job: Job, now: float) -> bool:
    """Return whether a job that its dead pass had started runs again at the right time."""
    backoff = POLICIES.get(job.type, {}).get("backoff")
    seconds = backoff.seconds(job.attempts) if backoff else 60 * 2**job.attempts
    latest = now + seconds + 1
    earliest = now + seconds - (60 if seconds >= 60 else 0)
    return job.error.startswith("worker died in attempt") and earliest <= job.run_at <= latest


def check_settled(disk: Disk, promises: Promises, junk: int, kills: int) -> list[str]:
    """Check the end: all jobs are final, attempts match starts, and the file shows it.

    `junk` as in `check_crashed`; `kills` is how many kills and errors there were.
    """
    wrong = check_crashed(disk, promises, junk, kills) + promises.wrong
    if disk.records:
        wrong.append(f"P8: {disk.records} records are not folded after a whole pass")
    if disk.partial:
        wrong.append(f"P8: a torn line remains: {disk.partial!r}")
    ran = [job for job in disk.jobs if job.type != "nobody"]
    charged = {job.key: job.attempts - promises.started(job.key) for job in ran}
    if sum(charged.values()) > kills:
        not_started = {key: count for key, count in charged.items() if count}
        wrong.append(f"P5: {kills} kills cost more attempts that were never started: {not_started}")
    for job in disk.jobs:
        starts = promises.starts.get(job.key, 0)
        usual = USUAL_STARTS.get(job.type, 1) * (1 + promises.requeued.get(job.key, 0))
        if job.status not in FINAL:
            wrong.append(f"P3: {job.key} never becomes final: {job}")
        if starts > usual + kills:
            wrong.append(f"P2: {job.key} was started {starts} times with {kills} kills")
        if job.attempts > limit(job.type):
            wrong.append(f"P5: {job.key} has {job.attempts} attempts")
        if job.key in promises.stopping and job.status not in ("completed", "cancelled"):
            wrong.append(f"P2: a stop of {job.key} was acknowledged, but it is {job.status}")
        if job.status == "failed" and job.type in ("ok", "text") and kills < 2 and not job.error:
            wrong.append(f"P5: {job.key} failed without a reason")
        if promises.error_is_over and job.error == _NO_SPACE and not job.result:
            continue
        if job.status == "completed" and job.type in _RESULTS and job.result != _RESULTS[job.type]:
            wrong.append(f"P2: {job.key} has the result {job.result!r}")
        if job.status == "completed" and job.error and job.type != "odd":
            wrong.append(f"P2: {job.key} is completed, but has the error {job.error!r}")
    if disk.archive_is_torn:
        wrong.append("P8: the archive is torn after the next purge")
    twice = len(disk.archived) - len(set(disk.archived))
    if twice and not kills:
        wrong.append(f"P2: {twice} jobs are in the archive twice")
    return wrong


_STOP_REQUESTED = "Stop requested by user"
_NO_SPACE = "result not kept: the disk is full"
"""the error of a completed job whose result didn't fit on the disk, even after space was freed"""

_RESULTS = {
    "ok": "0",
    "text": '{"text": "tab\\t newline\\n \\u2028", "list": []}',
    "flaky": '""',
    "nest": "false",
    "odd": "",
}


_ADMITS_CHANGE = re.compile(
    r"were added and may run|may have been (added|made)|the change was made"
)
"""in the message of an exception whose change could not be undone"""


def check_errors(
    disk: Disk, promises: Promises, root: str, errors: tuple[int, ...], lasting: bool
) -> list[str]:
    """Check that each failed call raised a clear error, and changed only what its error admits.

    `errors` are the planned error numbers, `lasting` is whether they lasted. All files are below
    `root`.
    """
    wrong = []
    by_key = {job.key: job for job in disk.jobs}
    admitted: set[str] = set()
    """keys of jobs that an earlier call of the same kind may have changed"""
    for keys, operation, (name, number, file, known, text) in promises.raised:
        if _ADMITS_CHANGE.search(text):
            admitted.update(keys)
        if name == "DuplicateJob":
            continue
        if not known or number is None or not str(file).startswith(root):
            wrong.append(f"P6: {operation} raised {name}, file {file}, known {known}: {text}")
        elif errors and number not in errors:
            wrong.append(f"P6: {operation} met {errors}, but raised {number}: {text}")
        if operation.startswith("enqueue"):
            there = [key for key in keys if key in by_key and key not in promises.kept]
            if not admitted.issuperset(there):
                wrong.append(f"P6: {operation} raised, but {there} are in the queue: {text}")
        job = by_key.get(keys[0])
        edited = operation == "edit" and job and job.version != promises.edited.get(keys[0], 0)
        if edited and keys[0] not in admitted:
            wrong.append(f"P6: edit raised, but {keys[0]} is edited: {text}")
        changed = job is not None and (job.status == "cancelled" or job.error == _STOP_REQUESTED)
        acknowledged = keys[0] in promises.cancelled or keys[0] in promises.stopping
        if operation not in ("cancel", "stop") or not changed or acknowledged:
            continue
        if not _ADMITS_CHANGE.search(text):
            wrong.append(f"P6: {operation} raised, but {keys[0]} was changed: {job}: {text}")
    for operation, text in promises.made_despite_error:
        if not _ADMITS_CHANGE.search(text):
            wrong.append(f"P6: {operation} raised, but was made: {text}")
    if lasting and errors:
        for key, starts in promises.starts_under_error.items():
            if starts > 1:
                wrong.append(
                    f"P6: {key} was started {starts} times while nothing could be recorded"
                )
    return wrong
