"""The planted bugs: what each changes in the package, and which tests must catch it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KILL = "tests/crash/test_kill_sweep.py"
TORN_ROWS = KILL + "::test_a_row_torn_at_any_byte_neither_runs_early_nor_damages_the_next_one"
TORN_RECORDS = KILL + "::test_a_journal_record_torn_at_any_byte_is_applied_completely_or_not_at_all"
ERRORS = "tests/crash/test_errors.py"
FULL_DISK = (
    ERRORS + "::test_on_a_full_disk_no_job_is_started_and_all_run_once_there_is_space",
    ERRORS + "::test_a_disk_that_fills_up_inside_a_handler_has_space_for_the_outcome",
)
DESCRIPTORS = (
    ERRORS + "::test_a_job_that_uses_all_descriptors_is_recorded_even_if_another_process_has_folded"
)
POWER = "tests/crash/test_power_loss.py"
SCHEDULE_POWER = "tests/crash/test_schedule_power_loss.py"
SCHEDULED = "tests/passes/test_scheduled.py"
ITS_ROWS = "leaves_that_pass_its_rows"
STORE = "tests/store/test_textfile.py"
HISTORY = "tests/store/test_history.py"
OUTPUT_FILE = "tests/store/test_output_file.py"
WORKER = "tests/passes/test_passes.py"
OUTPUT = "tests/passes/test_output.py"
PROGRESS = "tests/passes/test_progress.py"
TIMEOUT = "tests/passes/test_time_limit.py"
NOT_STARTED = "test_a_job_whose_process_cannot_be_started_is_returned_with_its_attempt"
TRAPS = "tests/test_pitfalls.py"
ROWS = "tests/model/test_rows.py"
QUEUE = "tests/test_jobqueue.py"
CLI = "tests/cli/test_cli.py"
COMMANDS = "tests/test_commands.py"
PROGRAM = "tests/passes/test_program.py"
CONTENTION = "tests/store/test_contention.py"
FORKS = "tests/store/test_forks.py"
SIGNALS = "tests/passes/test_signals.py"
UPGRADE = "tests/system/test_upgrade.py"
STOPPING = "tests/passes/test_stopping.py"
PRIORITIES = "tests/passes/test_priorities.py"
CHOICE = "tests/store/test_choice.py"
WORKERS = "tests/passes/test_several_workers.py"
HOOKS = "tests/passes/test_hooks.py"
NOTIFY = "tests/test_notify.py"
NEVER_ANSWERS = "test_a_server_that_never_answers_delays_neither_an_outcome_nor_the_next_jobs"
UNIQUE = "tests/store/test_unique.py"
AT_MOST_ONE = "tests/contract/test_at_most_one.py"
EDIT = "tests/store/test_edit.py"
RQ = "tests/engines/test_rq_failures.py"
PROCRASTINATE = "tests/engines/test_procrastinate.py"
MOVING = "tests/test_moving.py"
MOVE_POWER = "tests/crash/test_move_power_loss.py"
ANY_STEP = "test_a_move_that_stops_before_or_after_any_step_loses_and_doubles_nothing"
KEEP = "tests/passes/test_keep.py"
VERDICT = "tests/monitoring/test_verdict.py"
FILTERS = "tests/cli/test_filters.py"
DRY_RUN = FILTERS + "::test_filters_choose_what_is_changed_and_a_dry_run_changes_nothing"
WAITING = "tests/test_waiting.py"
FLASK = "tests/test_flask.py"
SPANS = "tests/test_opentelemetry.py"
EDITOR = "tests/cli/test_edit_command.py"
DJANGO = "tests/django_backend/test_backend.py"
DJANGO_SCHEDULES = "tests/django_backend/test_schedules.py"
TRANSACTIONS = "tests/django_backend/test_transactions.py"
CONNECTIONS = "tests/django_backend/test_connections.py"
ADMIN = "tests/django_backend/test_admin.py"
FIRST_READING = "tests/web/test_first_reading.py"
ATTACKS = "tests/web/test_attacks.py"
ACTIONS = "tests/web/test_actions.py"
NEWEST = "tests/store/test_newest.py"
WATCH = "tests/cli/test_watch.py"
EXCHANGE = "tests/cli/test_exchange.py"
CRONTAB = "tests/cli/test_crontab.py"
LIVE = "tests/monitoring/test_live.py"
DOCTOR = "tests/cli/test_doctor.py"
RUN_JOB = "tests/cli/test_run_job.py"
QUESTIONS = "tests/cli/test_questions.py"
HOSTILE = QUESTIONS + "::test_text_from_jobs_and_arguments_never_controls_the_terminal"
LOOP = WORKERS + "::test_a_coroutine_that_disturbs_the_event_loop_does_not_affect_other_jobs"


def kill(workload: str) -> str:
    name = "test_a_kill_at_any_file_call_loses_no_job_and_runs_no_recorded_job_again"
    return f"{KILL}::{name}[{workload}]"


def meetings(workload: str) -> str:
    name = "test_changes_by_others_at_any_moment_without_the_lock_are_respected"
    return f"{KILL}::{name}[{workload}]"


def errors(workload: str) -> str:
    name = "test_a_failed_file_call_raises_and_changes_nothing_and_later_calls_work"
    return f"{ERRORS}::{name}[{workload}]"


def power(work: str, model: str) -> str:
    name = "test_a_power_loss_at_any_point_loses_nothing_that_was_promised"
    return f"{POWER}::{name}[{work}-{model}]"


def pairs(workload: str) -> str:
    name = "test_a_second_failed_call_in_the_repair_or_retry_also_raises_and_changes_nothing"
    return f"{ERRORS}::{name}[{workload}]"


@dataclass(frozen=True)
class Mutant:
    """Replaces `old`, which occurs in `file` exactly once, by `new`; `tests` must catch it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, package: Path) -> None:
        """Plant the bug. Raises ValueError unless `old` occurs exactly once."""
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.name}: its text occurs {count} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


MUTANTS = (
    Mutant(
        "an outcome is recorded though the job has changed since the claim (PostgreSQL)",
        "engines/procrastinate.sql",
        "        ELSIF _job.version <> _versions[i] THEN\n",
        "        ELSIF false THEN\n",
        (f"{PROCRASTINATE}::test_a_worker_that_counts_as_dead_records_nothing_and_starts_nothing",),
    ),
    Mutant(
        "an outcome is recorded though the job has changed since the claim (Redis)",
        "engines/rq.lua",
        "  if found[1] == version then\n",
        "  if found[1] then\n",
        (f"{RQ}::test_a_worker_that_counts_as_dead_records_nothing_after_a_recovery",),
    ),
    Mutant(
        "two workers count the jobs of a limited type at the same time (PostgreSQL)",
        "engines/procrastinate.sql",
        "        PERFORM pg_advisory_xact_lock(\n"
        "            hashtextextended(current_schema() || ' limit ' || _limited_type, 0)\n"
        "        );\n"
        "        _rooms[array_position(_types, _limited_type)] := least(_mine_now, _limit - (\n"
        "            SELECT count(*) FROM dbbasic_jobs WHERE type = _limited_type AND status = "
        "'processing'\n"
        "        ));\n",
        "        _rooms[array_position(_types, _limited_type)] := least(_mine_now, _limit - (\n"
        "            SELECT count(*) FROM dbbasic_jobs WHERE type = _limited_type AND status = "
        "'processing'\n"
        "        ));\n"
        "        PERFORM pg_sleep(0.05);\n",
        (f"{PROCRASTINATE}::test_four_processes_keep_a_limit_exactly",),
    ),
    Mutant(
        "a claim whose reply was lost is forgotten",
        "engines/claims.py",
        "                    return lost\n",
        "                    return []\n",
        (f"{PROCRASTINATE}::test_a_call_whose_reply_is_lost_is_made_once",),
    ),
    Mutant(
        "a repeated change isn't recognised (Redis)",
        "engines/rq.lua",
        "  if number == ARGV[2] then return result end\n",
        "",
        (f"{RQ}::test_a_change_whose_reply_is_lost_is_made_once",),
    ),
    Mutant(
        "all jobs of a dead worker count as started",
        "engines/rq.py",
        "found += [(self._row(row), at < parallel)",
        "found += [(self._row(row), True)",
        (f"{RQ}::test_the_jobs_of_a_dead_worker_that_were_not_started_are_not_counted",),
    ),
    Mutant(
        "a dead worker's jobs stay with it",
        "engines/claims.py",
        "            self._recover(now)\n",
        "            pass\n",
        (
            "tests/contract/test_sharing.py::TestDurability::"
            "test_a_job_whose_worker_was_killed_runs_again_and_the_attempt_counts",
        ),
    ),
    Mutant(
        "a job is added to a queue on a server that was moved",
        "engines/rq.lua",
        "  return anyway ~= '1' and",
        "  return false and",
        (f"{MOVING}::test_each_call_says_where_the_queue_is_until_it_is_moved_back",),
    ),
    Mutant(
        "a job of a transaction is committed at once",
        "engines/postgres_client.py",
        "        if self._transaction is not None:\n            return self._query_within",
        "        if False:\n            return self._query_within",
        (f"{PROCRASTINATE}::test_a_rollback_leaves_nothing",),
    ),
    Mutant(
        "a job is marked as moved before it is in the other queue",
        "moving.py",
        "        withdrawn = [row for row in found if row is not None]\n",
        "        withdrawn = [row for row in found if row is not None]\n"
        "        for row in withdrawn:\n"
        "            state = self._withdrawn(row.state)\n"
        "            end = states.end_move(state, self._address)\n"
        "            self._source.exchange([(Row(row.id, row.type, row.payload, state), end)])\n",
        (f"{MOVING}::{ANY_STEP}",),
    ),
    Mutant(
        "a job is in the other queue before it is withdrawn",
        "moving.py",
        "        found = self._source.exchange(",
        "        self._target.add_missing(rows)\n        found = self._source.exchange(",
        (f"{MOVING}::{ANY_STEP}",),
    ),
    Mutant(
        "an interrupted move is not resumed",
        "moving.py",
        "            and (row.state.status == states.PENDING or states.is_moving(row.state))\n",
        "            and row.state.status == states.PENDING\n",
        (f"{MOVING}::{ANY_STEP}",),
    ),
    Mutant(
        "a withdrawn job is not synced",
        "store/writing/moves.py",
        "        files.change(records)\n",
        "        for record in records:\n            files.journal.append_unsynced(*record)\n",
        (MOVE_POWER,),
    ),
    Mutant(
        "moved jobs are not synced in the other queue",
        "store/writing/moves.py",
        "    files.rows.sync_locked(file, size, content)\n",
        "",
        (MOVE_POWER,),
    ),
    Mutant(
        "a job is moved although it was claimed in the meantime",
        "store/writing/moves.py",
        "present is None or encode_state(present.state) != encode_state(row.state)",
        "present is None",
        (MOVING + "::test_a_job_that_others_change_in_the_meantime_is_moved_as_it_is_then",),
    ),
    Mutant(
        "a claim does not check whether the queue was moved",
        "store/claiming/claims.py",
        "        self.store.require_here()\n        claims =",
        "        claims =",
        (MOVING + "::test_a_pass_that_has_found_due_jobs_claims_none_once_the_queue_was_moved",),
    ),
    Mutant(
        "other processes cannot see that the queue was moved",
        "store/writing/moves.py",
        "        files.rejected += files.replace(journal)\n",
        "",
        (MOVING + "::test_each_call_says_where_the_queue_is_until_it_is_moved_back",),
    ),
    Mutant(
        "moved jobs are removed without a look into the other queue",
        "moving.py",
        "        missing = set(ids)\n",
        "        missing: set[str] = set()\n",
        (MOVING + "::test_a_moved_job_that_the_new_place_does_not_have_is_reported_and_kept",),
    ),
    Mutant(
        "a purge removes jobs that are being moved",
        "model/states.py",
        "state.status in FINISHED and not is_moving(state)",
        "state.status in FINISHED",
        (MOVING + "::test_a_withdrawn_job_is_neither_requeued_nor_removed",),
    ),
    Mutant(
        "a job with the id of another one is lost in a move",
        "moving.py",
        "row.id in there and not _is_same(row, self._target.find(row.id))",
        "False",
        (MOVING + "::test_a_job_whose_id_another_job_has_stays_pending_and_the_queue_stays_open",),
    ),
    Mutant(
        "no sync on enqueue",
        "store/textfile.py",
        "            self.files.rows.sync_added(file, size, content)\n",
        "            pass\n",
        (POWER,),
    ),
    Mutant(
        "no sync of the journal",
        "store/writing/appends.py",
        "        if self.fsync:\n            if last:\n",
        "        if False:\n            if last:\n",
        (POWER,),
    ),
    Mutant(
        "sys.exit in one coroutine's task ends the pass",
        "passes/concurrent.py",
        "        except (SystemExit, KeyboardInterrupt) as e:\n",
        "        except ZeroDivisionError as e:\n",
        (LOOP,),
    ),
    Mutant(
        "a coroutine that cancels all tasks cancels other jobs",
        "passes/concurrent.py",
        "        hide(task)\n",
        "",
        (LOOP,),
    ),
    Mutant(
        "a failed claim cancels the running coroutines",
        "passes/concurrent.py",
        "        return e\n",
        "        raise\n",
        (WORKERS + "::test_running_coroutines_finish_and_are_recorded_after_a_failed_claim",),
    ),
    Mutant(
        "a finished coroutine stays in the slot file",
        "passes/concurrent.py",
        "                self._claims.unclaim([])  # the list must match the running jobs\n",
        "                pass\n",
        (
            WORKERS
            + "::test_a_delayed_job_is_removed_from_the_slot_file_while_another_coroutine_runs",
        ),
    ),
    Mutant(
        "a second stop interrupts the job",
        "passes/signals.py",
        "        self.stopped = True\n",
        "        self.stopped = True\n        self.received.append(15)\n",
        (
            "tests/passes/test_long_running_worker.py::test_stop_interrupts_no_job_however_often_it_is_called",
        ),
    ),
    Mutant(
        "SIGTERM between two passes kills the worker",
        "worker.py",
        "            with Interrupts() as interrupts:  # also between the passes\n"
        "                on_start()\n"
        "                self._run()\n"
        "            interrupts.forward_signals()\n",
        "            on_start()\n            self._run()\n",
        (
            "tests/passes/test_long_running_worker.py::test_sigterm_between_two_passes_ends_the_worker_as_at_any_other_time",
        ),
    ),
    Mutant(
        "the program's own signal handler costs an attempt",
        "passes/signals.py",
        "any(error is raised for raised in self._raised)",
        "False",
        (WORKER,),
    ),
    Mutant(
        "no sync before the rename",
        "store/writing/fold.py",
        "            os.fsync(new.fd)  # not fdatasync",
        "            pass  # not fdatasync",
        (POWER,),
    ),
    Mutant(
        "no sync of the directory after a fold",
        "store/writing/fold.py",
        "            sync_directory(os.path.dirname(view.path))\n        if journal",
        "            pass\n        if journal",
        (POWER,),
    ),
    Mutant(
        "no sync of the directory at all",
        "store/disk/sync.py",
        "    try:\n        os.fsync(fd)\n    finally:",
        "    try:\n        pass\n    finally:",
        (POWER,),
    ),
    Mutant(
        "journal truncated before the rename",
        "store/writing/fold.py",
        "        os.rename(new.path, view.path)\n",
        "        if view.journal.file is not None:\n"
        "            os.ftruncate(view.journal.file.fd, 0)\n"
        "        os.rename(new.path, view.path)\n",
        (kill("passes"), POWER),
    ),
    Mutant(
        "journal not truncated after the rename",
        "store/writing/fold.py",
        "            os.ftruncate(journal.fd, 0)\n",
        "            pass\n",
        (kill("application"), STORE),
    ),
    Mutant(
        "file written in place, not renamed",
        "store/writing/fold.py",
        "        os.rename(new.path, view.path)\n",
        "        import pathlib\n"
        "        fd = os.open(view.path, os.O_WRONLY | os.O_TRUNC)\n"
        "        os.write(fd, pathlib.Path(new.path).read_bytes())\n"
        "        os.close(fd)\n"
        "        os.rename(new.path, view.path)\n",
        (kill("application"),),
    ),
    Mutant(
        "torn last line of the file not ended",
        "store/disk/files.py",
        '    append(file, size, b"\\n")\n    return size + 1\n',
        "    return size\n",
        (TORN_ROWS, kill("application")),
    ),
    Mutant(
        "torn last line of the journal not ended",
        "store/writing/appends.py",
        '            append(self.current(), journal.size(), b"\\n", "nothing was changed")\n',
        "            pass\n",
        (TORN_RECORDS, kill("overlapping")),
    ),
    Mutant(
        "torn row read with its run_at cut short",
        "model/rows.py",
        "len(columns) < 7",
        "len(columns) < 6",
        (TORN_ROWS,),
    ),
    Mutant(
        "journal checksum not checked",
        "model/records.py",
        '    if b"%08x" % crc32(body) != checksum or (',
        "    if len(checksum) > 8 or (",
        (TORN_RECORDS, ROWS),
    ),
    Mutant(
        "no recovery",
        "store/claiming/recovery.py",
        "        for row in rows.values():\n            claim = (row.id, row.state.attempts)\n",
        "        for row in ():\n            claim = (row.id, row.state.attempts)\n",
        (kill("passes"),),
    ),
    Mutant(
        "live passes are recovered, too",
        "store/claiming/recovery.py",
        "            if claim in survey.alive or row.id.encode() in held:\n",
        "            if row.id.encode() in held:\n",
        (kill("overlapping"),),
    ),
    Mutant(
        "recovery counts an attempt for jobs that were never started",
        "store/claiming/recovery.py",
        "            elif not was_started:\n",
        "            elif False:\n",
        ("tests/system/test_kill.py", WORKER),
    ),
    Mutant(
        "recovery counts no attempt for jobs that had started",
        "store/claiming/recovery.py",
        "            elif not was_started:\n",
        "            elif True:\n",
        (kill("passes"),),
    ),
    Mutant(
        "attempt not counted at the claim",
        "model/states.py",
        "    attempts = min(state.attempts + 1, HIGHEST_ATTEMPT)\n",
        "    attempts = state.attempts\n",
        (kill("passes"),),
    ),
    Mutant(
        "a returned job does not get its attempt back",
        "model/states.py",
        "    attempts = max(state.attempts - 1, 0)\n",
        "    attempts = state.attempts\n",
        ("tests/model/test_states.py", kill("slow")),
    ),
    Mutant(
        "jobs are claimed before they are listed in the slot file",
        "store/claiming/claims.py",
        "            self._list()\n"
        "            self.store.change([(c.key, c.state) for c in claims])\n",
        "            self.store.change([(c.key, c.state) for c in claims])\n"
        "            self._list()\n",
        (kill("passes"), kill("slow")),
    ),
    Mutant(
        "claims not listed in the slot file",
        "store/claiming/claims.py",
        "            self._list()\n"
        "            self.store.change([(c.key, c.state) for c in claims])\n",
        "            self.store.change([(c.key, c.state) for c in claims])\n",
        (kill("overlapping"),),
    ),
    Mutant(
        "slot lock not held",
        "store/claiming/slots.py",
        "            return Slot(file, parallel, types)\n",
        "            unlock(file)\n            return Slot(file, parallel, types)\n",
        (kill("overlapping"),),
    ),
    Mutant(
        "no disk space reserved for the outcome",
        "store/claiming/slots.py",
        "len(content) + reserved",
        "len(content)",
        FULL_DISK,
    ),
    Mutant(
        "no descriptors reserved for the outcome",
        "store/claiming/slots.py",
        "        if claims:\n            self._open_spare_descriptors()\n",
        "",
        (DESCRIPTORS,),
    ),
    Mutant(
        "fence removed",
        "store/claiming/claims.py",
        "        if present == claim.state:\n",
        "        if True:\n",
        (
            WORKER + "::test_the_outcome_of_an_outdated_attempt_is_not_recorded",
            TRAPS,
            CONTENTION,
        ),
    ),
    Mutant(
        "a claim not checked again under the lock",
        "store/claiming/due.py",
        "for c in candidates if self._is_due(c)]",
        "for c in candidates if self._is_due(c) or True]",
        (meetings("passes"), meetings("overlapping"), CONTENTION),
    ),
    Mutant(
        "new rows and records are not read before a change",
        "store/writing/queue_files.py",
        "        if (view.whole and view.journal.is_current()) or view.follow_journal():\n"
        "            return\n",
        "        return\n",
        (meetings("passes"), meetings("overlapping")),
    ),
    Mutant(
        "lock not taken",
        "store/disk/lock.py",
        "        fcntl.flock(fd, _LOCK_NOW)\n",
        "        pass\n",
        (CONTENTION,),
    ),
    Mutant(
        "lock file's inode not checked again",
        "store/disk/lock.py",
        "            is_there = file.is_at_path()\n",
        "            is_there = True\n",
        (STORE + "::test_a_directory_deleted_and_created_by_hand_is_used", STORE),
    ),
    Mutant(
        "a user with read permission only can't see what is running",
        "store/disk/lock.py",
        "        return os.O_RDONLY if may_only_read else os.O_RDWR\n",
        "        return os.O_RDWR\n",
        ("tests/system/test_only_reading.py",),
    ),
    Mutant(
        "a deleted lock file stays in use while it is open",
        "store/disk/openfile.py",
        "            status[_NAMES] == self._names\n"
        "            and status.st_ctime_ns == self._ctime_ns\n",
        "            True\n",
        ("tests/test_pitfalls.py",),
    ),
    Mutant(
        "a file in a new directory is opened under the old lock",
        "store/writing/appends.py",
        "        if not self.lock.path_checked:\n",
        "        if False:\n",
        ("tests/test_pitfalls.py",),
    ),
    Mutant(
        "another descriptor of the lock file is mistaken for the queue's",
        "store/disk/openfile.py",
        "            and _last_mark[self.fd] == self._mark\n",
        "",
        ("tests/test_pitfalls.py",),
    ),
    Mutant(
        "cached file's path not checked again",
        "store/disk/openfile.py",
        "            status = os.lstat(self.path)\n",
        "            status = os.fstat(self.fd)\n",
        (
            STORE + "::test_a_queue_notices_what_another_process_adds_changes_and_folds",
            kill("overlapping"),
        ),
    ),
    Mutant(
        "a pass of several jobs recovers its own jobs",
        "store/claiming/recovery.py",
        " or row.id.encode() in held:\n",
        ":\n",
        (
            "tests/passes/test_several_workers.py::test_a_lingering_pass_of_coroutines_does_not_recover_its_own_jobs",
        ),
    ),
    Mutant(
        "two rows with the same last bytes count as one",
        "store/reading/tail.py",
        "content[max(min(start, size - _ANCHOR_BYTES), size - _MAX_ANCHOR_BYTES, 0) :]",
        "content[max(size - _ANCHOR_BYTES, 0) :]",
        (STORE + "::test_a_job_enqueued_right_after_one_that_was_undone_is_seen_by_all",),
    ),
    Mutant(
        "a change that was undone is not forgotten",
        "store/reading/replaced.py",
        "        if before == after and not touched_here:\n",
        "        if before == after:\n",
        ("tests/store/test_view.py::test_a_change_that_was_undone_is_forgotten_after_a_fold",),
    ),
    Mutant(
        "an edit of the file before a fold is not noticed",
        "store/reading/replaced.py",
        " or not rows.is_as_read()",
        "",
        ("tests/store/test_view.py",),
    ),
    Mutant(
        "what was read is not compared with the file",
        "store/reading/tail.py",
        "            if not content.startswith(self.anchor):\n",
        "            if False:\n",
        (STORE + "::test_rows_deleted_by_hand_are_gone", CONTENTION),
    ),
    Mutant(
        "a forked child unlocks its parent's lock",
        "store/disk/openfile.py",
        "    for file in list(_to_close_after_fork):\n",
        "    for file in list(_to_close_after_fork):\n"
        "        if file.fd >= 0:\n            fcntl.flock(file.fd, fcntl.LOCK_UN)\n",
        (STORE + "::test_a_child_never_releases_its_parents_lock", CONTENTION),
    ),
    Mutant(
        "a forked child keeps the locks",
        "store/disk/openfile.py",
        "    for file in list(_to_close_after_fork):\n        file.close()\n",
        "    for file in list(_to_close_after_fork):\n        file.fd < 0 or os.dup(file.fd)\n",
        (
            STORE + "::test_a_child_that_outlives_its_pass_does_not_hold_a_slot",
            "tests/system/test_kill.py",
        ),
    ),
    Mutant(
        "a fork without hooks is not noticed",
        "forks.py",
        "    if os.getpid() != process:\n        with",
        "    if False:\n        with",
        (
            FORKS + "::test_a_process_forked_in_c_waits_while_another_one_holds_the_lock",
            FORKS + "::test_processes_forked_in_c_share_a_queue_lose_no_job_and_use_no_id_twice",
        ),
    ),
    Mutant(
        "a lock file is opened during a fork",
        "store/disk/openfile.py",
        "    return forks.while_opening(_open_and_register, path, flags)\n",
        "    return _open_and_register(path, flags)\n",
        (FORKS + "::test_a_fork_while_another_thread_opens_a_lock_file_gives_the_child_no_copy",),
    ),
    Mutant(
        "a slot is closed without being unlocked",
        "store/claiming/slots.py",
        "            unlock(self.file)\n            self.file.close()\n",
        "            self.file.close()\n",
        (FORKS + "::test_a_process_forked_in_c_keeps_no_slot_of_a_pass_that_has_ended",),
    ),
    Mutant(
        "a forked child keeps a half-imported module",
        "lazy.py",
        "forks.in_child(_forget_half_imported)\n",
        "",
        (FORKS + "::test_a_child_forked_while_another_thread_imports_works_without_waiting",),
    ),
    Mutant(
        "a forked child keeps a half-imported module of the program",
        "lazy.py",
        'getattr(lock, "owner", None) not in (None, me):',
        'getattr(lock, "owner", None) in _importing - {me}:',
        (FORKS + "::test_a_job_can_import_a_module_that_another_thread_was_importing_at_the_fork",),
    ),
    Mutant(
        "a forked process prints through its parent's buffers",
        "passes/forked.py",
        "            if has_threads:\n                _renew_output()\n",
        "",
        (FORKS + "::test_passes_that_are_forked_while_a_thread_prints_do_not_hang",),
    ),
    Mutant(
        "a descriptor is not checked before it is used",
        "store/disk/openfile.py",
        "            if os.lseek(self.fd, 0, _SEEK_CUR) == self.offset:\n",
        "            if True:\n",
        (FORKS + "::test_a_program_that_closes_all_descriptors_finds_no_rows_in_its_own_files",),
    ),
    Mutant(
        "a pass that has lost its slot goes on",
        "passes/executor.py",
        "        self._claims.check_slot()\n",
        "",
        (FORKS + "::test_a_pass_whose_slot_was_closed_records_that_job_and_starts_no_other",),
    ),
    Mutant(
        "an error of the pass is charged to the running job with a time limit",
        "passes/ticker.py",
        "            except OSError as e:\n",
        "            except ZeroDivisionError as e:\n",
        (
            TIMEOUT
            + "::test_an_error_when_other_jobs_are_unclaimed_is_not_charged_to_the_running_job",
        ),
    ),
    Mutant(
        "signals are not blocked during a fork",
        "passes/signals.py",
        "    if _receiving:\n        ours",
        "    if False:\n        ours",
        (SIGNALS + "::test_a_process_that_a_handler_has_just_forked_is_ended_by_sigterm",),
    ),
    Mutant(
        "a Python function unlocks",
        "store/disk/lock.py",
        "                            fcntl.flock(self._file.fd, fcntl.LOCK_UN)\n",
        "                            unlock(self._file)\n",
        (SIGNALS,),
    ),
    Mutant(
        "a call inside a call works on a half-made change",
        "store/disk/lock.py",
        "            raise _called_inside()\n        replaced",
        "            pass\n        replaced",
        (SIGNALS,),
    ),
    Mutant(
        "a move that only the journal shows is not named",
        "monitoring/moves.py",
        '_has_mark(store.path + ".journal") or ',
        "",
        (MOVING + "::test_a_move_is_seen_also_if_only_the_journal_shows_it",),
    ),
    Mutant(
        "watch and the page don't see a move that was interrupted",
        "store/reading/counts.py",
        "        if is_moving(state) or is_moved(state):\n",
        "        if is_moved(state):\n",
        (MOVING + "::test_an_interrupted_move_is_named_with_the_command_that_finishes_it",),
    ),
    Mutant(
        "an address that looks like an error is cut",
        "model/states.py",
        'return escape(text).replace(_BEFORE_ERROR, r":\\x20")',
        "return escape(text)",
        (MOVING + "::test_the_address_of_a_move_is_known_also_if_it_looks_like_an_error",),
    ),
    Mutant(
        "a full disk is not named",
        "monitoring/status.py",
        "if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:",
        "if space.f_bavail < 0:",
        (VERDICT + "::test_a_full_disk_is_named_before_and_after_the_queue_is_stalled",),
    ),
    Mutant(
        "flask queue suggests the commands of another program",
        "cli/messages.py",
        "        return program() + rest\n",
        "        return command\n",
        ("tests/test_flask.py::test_flask_queue_suggests_commands_that_work_here",),
    ),
    Mutant(
        "fold drops the rows added since",
        "store/writing/queue_files.py",
        "ends a torn last line\n        self.view.refresh()\n",
        "ends a torn last line\n        self.view.loaded or self.view.refresh()\n",
        (CONTENTION,),
    ),
    Mutant(
        "rows appended to a file while it is replaced are dropped",
        "store/writing/fold.py",
        "        for lines in added.new(_start_again):\n            write_all(new.fd, lines)\n",
        "",
        (UPGRADE,),
    ),
    Mutant(
        "rows appended to a file that was replaced are dropped",
        "store/writing/rescue.py",
        "            if replaced.size() > replaced.end:\n                found",
        "            if False:\n                found",
        (UPGRADE,),
    ),
    Mutant(
        "rows appended to a file that was replaced are added twice",
        "store/writing/rescue.py",
        "                    replaced.go_on_from(found)\n",
        "",
        (UPGRADE,),
    ),
    Mutant(
        "a failed write is not undone",
        "store/disk/files.py",
        "            os.ftruncate(file.fd, size)\n        except OSError:\n            consequence",
        "            pass\n        except OSError:\n            consequence",
        (STORE + "::test_jobs_that_only_partly_fit_on_the_disk_leave_no_rows",),
    ),
    Mutant(
        "a failed sync is not undone",
        "store/writing/appends.py",
        "        os.ftruncate(file.fd, start)\n        return True\n",
        "        return True\n",
        (errors("edit"), errors("requeue")),
    ),
    Mutant(
        "records written after a failed sync are cut off",
        "store/writing/appends.py",
        "        if not file.is_ours() or os.pread(file.fd, len(content) + 1, start) != content:\n",
        "        if False:\n",
        (
            CONTENTION
            + "::test_an_outcome_that_cannot_be_synced_stays_if_others_have_written_after_it",
        ),
    ),
    Mutant(
        "a failed fold makes the change fail",
        "store/writing/queue_files.py",
        "        except OSError as e:\n            return e\n        return None\n",
        "        except ValueError:\n            return None\n        return None\n",
        (errors("application"),),
    ),
    Mutant(
        "error text not escaped",
        "passes/attempt.py",
        "    return escape(message if type(error) in (Exception, Fail) else",
        "    return (message if type(error) in (Exception, Fail) else",
        (
            WORKER
            + "::test_any_exception_of_a_handler_is_one_line_in_the_file_and_the_pass_goes_on",
            kill("passes"),
        ),
    ),
    Mutant(
        "control characters from the files are printed as they are",
        "model/escaping.py",
        '    return "".join(c if c == "\\\\" else escape(c) for c in text)\n',
        "    return text\n",
        (CLI + "::test_no_command_prints_raw_control_characters_from_any_file",),
    ),
    Mutant(
        "an id that is an Enum is written by its name",
        "model/checks.py",
        "    return str.__str__(text)\n",
        "    return text\n",
        (QUEUE + "::test_every_call_accepts_a_str_enum",),
    ),
    Mutant(
        "result 0 dropped",
        "passes/attempt.py",
        "        if result is None:\n",
        "        if not result:\n",
        (kill("passes"),),
    ),
    Mutant(
        "a job whose result is not JSON runs again",
        "passes/attempt.py",
        '    return "completed", states.complete(state, "", reason), NO_DETAILS\n',
        '    return "retried", states.retry(state, reason, 0), NO_DETAILS\n',
        (
            WORKER + "::test_a_job_whose_result_is_not_json_is_completed_and_never_run_again",
            kill("passes"),
        ),
    ),
    Mutant(
        "a final status can change again",
        "model/states.py",
        "    if state.status != PENDING:\n        return None\n    return State(CANCELLED",
        "    return State(CANCELLED",
        ("tests/model/test_states.py", "tests/test_jobqueue.py"),
    ),
    Mutant(
        "a rewrite does not fold first",
        "store/writing/rewrites.py",
        "            self.files.fold_and_sync_cut()\n        except StoreError",
        "            pass\n        except StoreError",
        (kill("requeue"), kill("purge")),
    ),
    Mutant(
        "several jobs requeued by an append",
        "store/writing/rewrites.py",
        "            self.view.apply(key, state)\n        self.files.replace(None)\n",
        "            self.files.change([(key, state)])\n",
        (kill("requeue"),),
    ),
    Mutant(
        "a job that has changed since it was archived is removed",
        "store/writing/choice.py",
        "            self.picked.pop(number, None)\n            if add",
        "            if add",
        (CHOICE,),
    ),
    Mutant(
        "jobs chosen in an old file are removed from a new one",
        "store/writing/choice.py",
        "        if view.generation != self._view.generation:\n",
        "        if False:\n",
        (CHOICE,),
    ),
    Mutant(
        "jobs added while a purge reads are ignored",
        "store/writing/choice.py",
        "            if add and (row := view.row(number)) and has_json(row):\n",
        "            if False and (row := view.row(number)) and has_json(row):\n",
        (CHOICE,),
    ),
    Mutant(
        "a batch that may have been returned is started",
        "store/claiming/claims.py",
        "        return self.store.view.records.get(claim.key, claim.state) == claim.state\n",
        "        return True\n",
        (pairs("slow"),),
    ),
    Mutant(
        "the truncation after a purge is not synced",
        "store/writing/appends.py",
        "        if self.fsync and self.view.journal.file:\n",
        "        if False:\n",
        (power("purges", "free"),),
    ),
    Mutant(
        "purge removes running jobs",
        "store/writing/rewrites.py",
        "        if row.state.status == PROCESSING or not self.unwanted(row):\n",
        "        if not self.unwanted(row):\n",
        (kill("purge"),),
    ),
    Mutant(
        "rows are removed before they are archived",
        "store/writing/rewrites.py",
        "        self._archive(picked)\n\n"
        "    def apply(self, picked: dict[int, bytes]) -> None:\n"
        "        self._leave_out(picked, None)\n",
        "        pass\n\n"
        "    def apply(self, picked: dict[int, bytes]) -> None:\n"
        "        self._leave_out(picked, None)\n"
        "        self._archive(picked)\n",
        (kill("purge"),),
    ),
    Mutant(
        "archive not synced before its rows are removed",
        "store/writing/archive.py",
        "        os.fsync(file.fd)\n        sync_directory(os.path.dirname(path))\n    except",
        "        pass\n    except",
        (power("purges", "ordered"),),
    ),
    Mutant(
        "an archive with a torn header is refused",
        "store/writing/archive.py",
        "        byte in (0, whole) for byte",
        "        byte == whole for byte",
        ("tests/store/test_archive.py", power("purges", "ordered")),
    ),
    Mutant(
        "an archive's torn last line is not removed",
        "store/writing/archive.py",
        "    if cut < size:\n        os.ftruncate(file.fd, cut)\n    return cut\n",
        "    return size\n",
        (kill("purge"), power("purges", "ordered")),
    ),
    Mutant(
        "an archive's lock not taken",
        "store/writing/archive.py",
        "        while not lock_descriptor(lock.fd, blocking=False):\n",
        "        while False:\n",
        ("tests/store/test_archive.py",),
    ),
    Mutant(
        "a removal that was made is reported as not made",
        "store/writing/fold.py",
        'made if changes_rows else "nothing was lost"',
        '"nothing was lost"',
        (errors("purge"),),
    ),
    Mutant(
        "a half-finished read counts as complete",
        "store/reading/view.py",
        "        self.whole = False\n        try:\n            self._open()\n",
        "        try:\n            self._open()\n",
        (errors("requeue"), errors("purge"), "tests/passes/test_signals.py"),
    ),
    Mutant(
        "a partly added row is reported as not added",
        "store/disk/files.py",
        '"a part may have been added, and could not be cut off again"',
        '"nothing was added"',
        (pairs("application"),),
    ),
    Mutant(
        "a change that stays is reported as not made",
        "store/writing/appends.py",
        '"the change was made, but may not survive a power cut"',
        '"nothing was changed"',
        (pairs("application"),),
    ),
    Mutant(
        "a paused type is claimed",
        "store/claiming/due.py",
        "        return job_type in self._paused or ALL in self._paused\n",
        "        return False\n",
        (kill("policies"),),
    ),
    Mutant(
        "a pause is not synced",
        "store/paused.py",
        'ending=".new", fsync=fsync)\n',
        'ending=".new", fsync=False)\n',
        (power("policies", "ordered"),),
    ),
    Mutant(
        "a delay costs an attempt",
        "model/states.py",
        "run_at, max(state.attempts - 1, 0), error",
        "run_at, state.attempts, error",
        (kill("policies"),),
    ),
    Mutant(
        "recovery ignores a type's own limit",
        "passes/policies.py",
        "        return self.limit_of(self.handler(job_type))\n",
        "        return self._max_attempts\n",
        (kill("policies"),),
    ),
    Mutant(
        "a job that failed for good is retried",
        "passes/attempt.py",
        "        if isinstance(error, Fail):\n",
        "        if False:\n",
        (kill("policies"),),
    ),
    Mutant(
        "payloads that are not JSON fill a batch",
        "store/claiming/due.py",
        "            claim = self._candidate(number, remaining)\n",
        "            claim = self._candidate(number, remaining)\n"
        "            size += len(view.line(number))\n",
        (WORKER + "::test_payloads_that_are_not_json_leave_room_for_the_jobs_after_them",),
    ),
    Mutant(
        "an unclosed string is searched again from each quote",
        "model/strict_json.py",
        "\\\\?(?:\"|\\Z)')",
        "\"')",
        (ROWS + "::test_a_hostile_text_is_read_in_time_proportional_to_its_length",),
    ),
    Mutant(
        "a forged record is accepted",
        "model/records.py",
        " or (not body.isascii() and is_binary(body)):",
        ":",
        (STORE + "::test_records_that_dbbasic_queue_cannot_have_written_are_skipped_and_reported",),
    ),
    Mutant(
        "a job that has killed its pass runs first",
        "model/states.py",
        "    return state.error.startswith(DIED)\n",
        "    return False\n",
        ("tests/system/test_kill.py::test_a_job_that_has_killed_a_pass_runs_after_all_others",),
    ),
    Mutant(
        "a job that has killed its pass runs next to others",
        "store/claiming/due.py",
        "        if not found and self._suspects and not (held and self._parallel > 1):\n",
        "        if not found and self._suspects:\n",
        ("tests/system/test_kill.py::test_a_coroutine_that_has_killed_a_pass_runs_alone",),
    ),
    Mutant(
        "a job that has killed its pass runs before jobs that were returned",
        "store/claiming/due.py",
        "            if is_left:  #",
        "            if False:  #",
        (WORKER + "::test_a_job_that_has_killed_a_pass_runs_after_jobs_that_were_returned",),
    ),
    Mutant(
        "a hard link to another user's file is used",
        "store/disk/files.py",
        "        if status.st_nlink > 1 and _may_be_planted(status, path):\n",
        "        if False:\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "a fold loses the access list",
        "store/disk/access.py",
        "        _copy_attributes(old_fd, fd)\n",
        "        pass\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "a pass without its slot file goes on claiming",
        "store/claiming/slots.py",
        "        if not self.file.is_at_path():\n",
        "        if False:\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "a deleted directory is created again",
        "store/writing/queue_files.py",
        "    if known:\n",
        "    if False:\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "the outcome of a job whose directory was moved is dropped",
        "store/disk/lock.py",
        "            self.moved = not is_there",
        "            self.moved = False and not is_there",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "a file that is a mount point is used",
        "store/disk/files.py",
        "        is_mounted = _mount_id(file.fd) != _mount_id(directory)\n",
        "        is_mounted = False\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "another program's file gets a lock file",
        "store/disk/lock.py",
        "        self._check(self.directory is not None)\n",
        "        pass\n",
        ("tests/system/test_permissions.py",),
    ),
    Mutant(
        "a line that is too long hides the lines after it",
        "store/reading/tail.py",
        "                    size = _READ_BYTES\n                    too_long(length)\n",
        "                    return\n",
        (
            STORE
            + "::test_a_line_that_is_too_long_for_a_row_hides_no_job_and_is_not_loaded_into_memory",
        ),
    ),
    Mutant(
        "a row without a line end is not ended",
        "store/writing/queue_files.py",
        "        if self.view.has_torn_row():\n",
        "        if False:\n",
        (STORE + "::test_a_row_that_an_editor_saved_without_a_line_end_is_run",),
    ),
    Mutant(
        "two long rows with the same last bytes count as one",
        "store/reading/tail.py",
        "        if self._head and not self._begins_as_read():\n",
        "        if False:\n",
        (STORE + "::test_a_job_enqueued_right_after_one_that_was_undone_is_seen_by_all",),
    ),
    Mutant(
        "pipes left open in forked children",
        "passes/forked.py",
        '    for fd in _pipes.difference(getattr(_kept, "fds", ())):\n',
        "    for fd in ():\n",
        (TIMEOUT + "::test_a_process_that_the_program_forks_inherits_no_pipes_of_a_job",),
    ),
    Mutant(
        "a guardian does not hold the slot's lock",
        "passes/time_limit.py",
        "                keep=(leash, report, held),\n",
        "                keep=(leash, report),\n",
        (TIMEOUT + "::test_a_job_of_a_dead_pass_is_not_run_again_while_it_still_runs",),
    ),
    Mutant(
        "a guardian only checks its pipe",
        "passes/guardian.py",
        """        if asked == b"" or os.getppid() != this_pass:\n""",
        """        if asked == b"":\n""",
        (
            TIMEOUT
            + "::test_the_job_ends_with_its_pass_even_if_the_program_has_forked_other_processes",
        ),
    ),
    Mutant(
        "processes left by a killed guardian live on",
        "passes/time_limit.py",
        "        _kill_session(self.pid)\n",
        "        pass\n",
        (TIMEOUT + "::test_the_job_is_killed_with_its_guardian",),
    ),
    Mutant(
        "a failed fork costs an attempt",
        "passes/attempt.py",
        """self._not_started(row.state, "the job's process", e.__cause__ or e)\n""",
        "self.failed(handler, row.state, str(e))\n",
        (TIMEOUT + "::" + NOT_STARTED,),
    ),
    Mutant(
        "a signal to the whole service costs an attempt",
        "passes/attempt.py",
        "            if e.by_end_signal and self._is_asked_to_end_too():\n",
        "            if False:\n",
        (TIMEOUT + "::test_a_job_is_returned_if_sigterm_goes_to_all_processes_of_its_service",),
    ),
    Mutant(
        "a hook that raises ends the pass",
        "passes/hook_calls.py",
        "            except BaseException as e:  # noqa: BLE001 - sys.exit",
        "            except ZeroDivisionError as e:  # noqa: BLE001 - sys.exit",
        (HOOKS + "::test_a_hook_that_raises_is_logged_and_changes_nothing",),
    ),
    Mutant(
        "a hook is called before the outcome is recorded",
        "passes/executor.py",
        "        recorded = self._claims.record(claim, after)\n",
        "        if self._hook_calls is not None:\n"
        "            self._hook_calls.ended(outcome, claim.row, after)\n"
        "        recorded = self._claims.record(claim, after)\n",
        (HOOKS + "::test_a_hook_is_called_after_the_outcome_is_recorded_counted_and_logged",),
    ),
    Mutant(
        "a child that a hook has forked becomes a second worker",
        "passes/hook_calls.py",
        "            if os.getpid() != self._process:\n",
        "            if False:\n",
        (HOOKS + "::test_a_child_that_a_hook_forks_does_not_become_a_second_worker",),
    ),
    Mutant(
        "other jobs wait for a slow hook",
        "passes/executor.py",
        "                self._started_at = time.monotonic()  # others",
        "                self._started_at = math.inf  # others",
        (HOOKS + "::test_while_a_hook_takes_long_other_passes_can_run_the_rest",),
    ),
    Mutant(
        "an around hook turns an error into success",
        "passes/around.py",
        "        raise error  # the hook has swallowed it\n",
        "        return None\n",
        (HOOKS + "::test_it_cannot_hide_an_error_but_may_replace_it",),
    ),
    Mutant(
        "an around hook is left in a child that the handler has forked",
        "passes/attempt.py",
        "                if os.getpid() != self.process:  # it must not leave",
        "                if False:  # it must not leave",
        (HOOKS + "::test_it_is_not_left_in_a_child_that_the_handler_has_forked",),
    ),
    Mutant(
        "a digest is sent before the slot is released",
        "passes/base.py",
        "        fold_error = claims.finish()\n",
        "        self._flush_digests()\n        fold_error = claims.finish()\n",
        (NOTIFY + "::" + NEVER_ANSWERS,),
    ),
    Mutant(
        "a digest is sent while other jobs wait",
        "passes/digests.py",
        "                thread = threading.Thread(target=self._run",
        "                self.send(queue, first, count)\n"
        "                thread = threading.Thread(target=self._run",
        (NOTIFY + "::" + NEVER_ANSWERS,),
    ),
    Mutant(
        "each of several passes sends its own digest",
        "passes/digests.py",
        "        return pipe if pipe is not None and pipe.leads_to(self._number) else None\n",
        "        return None\n",
        (NOTIFY + "::test_a_pass_with_four_workers_sends_one_mail",),
    ),
    Mutant(
        "a digest lacks the failures of a killed pass",
        "passes/digests.py",
        "            if pipe is not None and pipe.write_now(self._number, queue, first, count):\n",
        "            if False:\n",
        (NOTIFY + "::test_no_failure_is_missing_in_the_mail_if_one_of_several_passes_is_killed",),
    ),
    Mutant(
        "a digest that could not be sent is forgotten",
        "passes/digests.py",
        "            self._collected = kept\n",
        "            pass\n",
        (NOTIFY + "::test_a_refused_connection_is_logged_and_the_next_digest_has_the_same_jobs",),
    ),
    Mutant(
        "a path can add a header to a mail",
        "notify.py",
        '    return text.replace("=?", "= ?")\n',
        "    return text\n",
        (NOTIFY + "::test_no_text_of_a_job_or_path_can_add_a_header_or_a_control_character",),
    ),
    Mutant(
        "a ping is sent although the pass raises",
        "jobqueue.py",
        '            load(_http).check_url(ping, "ping")\n',
        '            load(_http).check_url(ping, "ping")\n            load(_http).ping(ping)\n',
        (NOTIFY + "::test_a_pass_that_raises_sends_no_ping",),
    ),
    Mutant(
        "removed unreadable lines are not kept",
        "store/writing/rewrites.py",
        "        files.replace(None, found, keep=True)\n",
        "        files.replace(None, found)\n",
        (STORE + "::test_remove_unreadable_moves_invalid_lines_away_and_keeps_the_jobs",),
    ),
    Mutant(
        "a recovered job that had started is due at once",
        "store/claiming/recovery.py",
        "                retry_at = states.retry_at(now, seconds)\n",
        "                retry_at = int(now)\n",
        (kill("passes"),),
    ),
    Mutant(
        "a stopped job is retried",
        "store/claiming/claims.py",
        "        if state.status == states.COMPLETED:\n",
        "        if True:\n",
        (STOPPING + "::test_a_job_that_runs_in_the_pass_is_asked", kill("stop")),
    ),
    Mutant(
        "a job that has completed before it was stopped is cancelled",
        "store/claiming/claims.py",
        "        if state.status == states.COMPLETED:\n",
        "        if False:\n",
        (STOPPING + "::test_a_job_that_runs_in_the_pass_is_asked",),
    ),
    Mutant(
        "the outcome of a job that was to be stopped is dropped",
        "store/claiming/claims.py",
        "        if present != _marked(claim.row):\n",
        "        if True:\n",
        (STOPPING, kill("stop")),
    ),
    Mutant(
        "recovery ignores a request to stop",
        "store/claiming/recovery.py",
        "            if states.is_to_stop(row.state):\n",
        "            if False:\n",
        (STOPPING, kill("stop")),
    ),
    Mutant(
        "a claimed job starts although it was stopped",
        "passes/executor.py",
        "        if not self._claims.may_start(claim):\n",
        "        if False:\n",
        (STOPPING + "::test_a_claimed_job_that_has_not_started_never_starts",),
    ),
    Mutant(
        "an error that reads like a request to stop is one",
        "model/states.py",
        """    error = "" if state.error == STOP_REQUESTED else state.error""",
        """    error = state.error""",
        ("tests/model/test_states.py",),
    ),
    Mutant(
        "a guardian does not stop its job",
        "passes/guardian.py",
        "        if asked or time.monotonic() >= end:",
        "        if time.monotonic() >= end:",
        (STOPPING + "::test_a_job_in_a_process_of_its_own_is_stopped_within_a_second",),
    ),
    Mutant(
        "a newly due job of a higher priority waits for the next pass",
        "store/claiming/due.py",
        "            self._by_priority.add_newly_due(now, waiting)\n",
        "            pass\n",
        (PRIORITIES,),
    ),
    Mutant(
        "a newly due job waits for jobs that wait for their type's concurrency",
        "store/claiming/due.py",
        "            self._by_priority.add_newly_due(now, waiting)\n",
        "            self._by_priority.add_newly_due(now, ())\n",
        (PRIORITIES,),
    ),
    Mutant(
        "a newly due job of the same priority keeps a pass from ending",
        "store/claiming/priorities.py",
        "            if priority > lowest:\n",
        "            if priority >= lowest:\n",
        (PRIORITIES,),
    ),
    Mutant(
        "a job that becomes due by a change is not noticed",
        "store/reading/index.py",
        "        self._became_pending.append(number)\n",
        "        self._became_pending.append(0)\n",
        (PRIORITIES + "::test_a_job_that_someone_makes_due_is_taken",),
    ),
    Mutant(
        "output is written before the outcome is recorded",
        "passes/executor.py",
        "        recorded = self._claims.record(claim, after)\n",
        "        self._note(row, outcome, after.error, seconds, details)\n"
        "        recorded = self._claims.record(claim, after)\n",
        (OUTPUT + "::test_output_is_written_after_the_outcome_was_recorded",),
    ),
    Mutant(
        "the guardian keeps all output in memory",
        "passes/tail.py",
        "        del self.kept[:-KEPT_BYTES]\n",
        "",
        (OUTPUT + "::test_a_tail_reads_a_pipe_to_its_end_without_waiting",),
    ),
    Mutant(
        "the guardian polls a closed pipe all the time",
        "passes/guardian.py",
        "            poll.unregister(printed.fd)\n",
        "            pass\n",
        (OUTPUT + "::test_a_job_that_closes_its_stdout_goes_on",),
    ),
    Mutant(
        "the output of a job whose time was up is lost",
        "passes/time_limit.py",
        "        raise Died(_timed_out(timeout), printed)\n",
        "        raise Died(_timed_out(timeout), None)\n",
        (OUTPUT + "::test_output_is_kept_whatever_the_outcome",),
    ),
    Mutant(
        "lines stay in Python's buffer until the job ends",
        "passes/forked.py",
        "reconfigure(line_buffering=True)",
        "reconfigure(line_buffering=False)",
        (OUTPUT + "::test_what_print_has_written_before_a_kill_is_kept",),
    ),
    Mutant(
        "output is not escaped",
        "store/output.py",
        'escape_lines(printed.decode("utf-8", "surrogateescape"))',
        'printed.decode("utf-8", "replace")',
        (OUTPUT + "::test_no_output_can_add_a_row_or_a_column",),
    ),
    Mutant(
        "any row at the position counts as the attempt's output",
        "store/output.py",
        "            if output and _names(output) == (last.id, last.attempt, last.ended_at):\n",
        "            if output:\n",
        (OUTPUT_FILE + "::test_the_row_at_a_position_counts_only_if_it_is_that_attempts",),
    ),
    Mutant(
        "a position does not count what others append",
        "store/rotated.py",
        "        return os.lseek(file.fd, 0, os.SEEK_CUR) - len(rows)\n",
        "        return size\n",
        (OUTPUT_FILE + "::test_a_position_is_right_even_if_others_append_at_the_same_time",),
    ),
    Mutant(
        "a full history is rotated without the lock",
        "store/rotated.py",
        "self._lock.run(self._rotated)",
        "self._rotated()",
        (HISTORY + "::test_the_history_is_created_and_rotated_under_the_queues_lock",),
    ),
    Mutant(
        "progress of an earlier attempt is shown",
        "store/progress.py",
        "        return is_current and self.started_at >= state.run_at\n",
        "        return is_current\n",
        (PROGRESS + "::test_progress_of_an_earlier_attempt_is_not_shown",),
    ),
    Mutant(
        "a progress report that cannot be written fails the job",
        "passes/link.py",
        "        except QueueError:\n",
        "        except ZeroDivisionError:\n",
        (PROGRESS + "::test_a_report_by_a_signal_handler_inside_a_call_of_the_queue_is_dropped",),
    ),
    Mutant(
        "a payload becomes an option of a command",
        "commands.py",
        """            if name and not literal and text[:1] == b"-" and not after_dashes:\n""",
        "            if False:\n",
        (COMMANDS + "::test_an_argument_that_a_payload_makes_an_option_is_refused",),
    ),
    Mutant(
        "a payload becomes code of a shell",
        "commands.py",
        "        if any(takes_member[i] for i in _code(self.command)):\n",
        "        if False:\n",
        (COMMANDS + "::test_a_command_that_can_never_run_is_refused_where_it_is_declared",),
    ),
    Mutant(
        "a handlers.toml that any user can change is used",
        "toml_file.py",
        "        if is_world_writable(place):\n",
        "        if False:\n",
        ("tests/test_toml_file.py::test_the_rule_is_that_of_the_queues_directory",),
    ),
    Mutant(
        "the link to a program is not protected",
        "toml_file.py",
        "    for place in (target, os.path.dirname(target), os.path.dirname(path)):\n",
        "    for place in (target, os.path.dirname(target)):\n",
        ("tests/test_toml_file.py::test_a_link_is_followed_and_both_its_ends_are_checked",),
    ),
    Mutant(
        "a command waits for what it has left running",
        "passes/program.py",
        "            if ended:\n",
        "            if ended and not any([_receive(*pair) for pair in receivers.items()]):\n",
        (
            PROGRAM
            + "::test_a_program_that_leaves_a_child_with_its_pipes_ends_and_the_child_is_killed",
        ),
    ),
    Mutant(
        "a command ends with its pipes",
        "passes/program.py",
        "                poll.unregister(fd)\n",
        "                return 0\n",
        (PROGRAM + "::test_a_program_that_closes_its_outputs_early_is_waited_for",),
    ),
    Mutant(
        "a command whose result is too large runs again",
        "passes/attempt.py",
        "        if isinstance(error, ResultLost):\n",
        "        if False:\n",
        (PROGRAM + "::test_a_result_that_is_too_large_is_dropped_and_the_job_is_completed",),
    ),
    Mutant(
        "output that is too large stays in memory",
        "passes/program.py",
        "            self._content.clear()\n",
        "            self._content += part\n",
        (PROGRAM + "::test_huge_output_is_not_kept_in_memory",),
    ),
    Mutant(
        "a command whose time is up is killed without a warning",
        "passes/program.py",
        "        signal.signal(number, signal.SIG_IGN)\n",
        "        pass\n",
        (PROGRAM + "::test_a_command_whose_time_is_up_can_clean_up_first",),
    ),
    Mutant(
        "a signal to the whole service costs a command an attempt",
        "passes/program.py",
        "    if -code in guardian.END_SIGNALS:\n",
        "    if False:\n",
        (PROGRAM + "::test_a_command_is_returned_if_sigterm_goes_to_all_processes_of_its_service",),
    ),
    Mutant(
        "a program inherits open files",
        "passes/program.py",
        "                os.set_inheritable(fd, False)\n",
        "                pass\n",
        (PROGRAM + "::test_a_program_inherits_four_descriptors_and_no_signal_settings",),
    ),
    # -- at most one, edits, keep (see "Look up and append" in docs/internals.md)
    Mutant(
        "a unique job is looked up without the lock",
        "store/writing/once.py",
        "        find = self._append_or_find_payload\n"
        "        found, place = self._files.lock.run(find, content, job_type, payload)\n",
        "        lock, rows = self._files.lock, self._files.rows\n"
        "        lock.run(rows.current)\n"
        "        lock.run(self._read_payloads)\n"
        "        found = lock.read(self._pending.find, job_type, payload)\n"
        "        place = lock.run(rows.current) if found else lock.run(rows.append, content)\n",
        (UNIQUE,),
    ),
    Mutant(
        "new rows are not read before a unique job is looked up",
        "store/writing/once.py",
        "            files.read_new()\n            if ",
        "            if ",
        (UNIQUE,),
    ),
    Mutant(
        "a running job counts as a pending one",
        "store/reading/unique.py",
        "        row = self._view.row(number) if self._view.when[number] != NEVER else None\n"
        "        return row if row is not None and row.state.status == PENDING else None\n",
        "        return self._view.row(number)\n",
        (AT_MOST_ONE,),
    ),
    Mutant(
        "a requeued job is not found by its payload",
        "store/reading/index.py",
        "            self.note_pending(number)\n",
        "            pass\n",
        (AT_MOST_ONE, kill("unique")),
    ),
    Mutant(
        "a job that was found is not synced",
        "store/writing/once.py",
        "            self._files.rows.sync_found(file)\n",
        "            pass\n",
        (power("at_most_once", "ordered"), UNIQUE),
    ),
    Mutant(
        "a job that was found is cut off when its enqueue fails",
        "store/writing/once.py",
        "            files.journal.append_unsynced(key, encode_state(found.state))\n",
        "            pass\n",
        (UNIQUE,),
    ),
    Mutant(
        "an edited job is not found by its new payload",
        "store/writing/edit.py",
        "    view.note_pending(number)\n",
        "",
        ("tests/contract/test_editing.py",),
    ),
    Mutant(
        "an edit overwrites a payload that has changed since it was read",
        "store/writing/edit.py",
        "    if before is not None and row.payload != before:\n",
        "    if False:\n",
        ("tests/contract/test_editing.py", "tests/cli/test_edit_command.py"),
    ),
    Mutant(
        "another process's edit counts as a change of state",
        "store/reading/replaced.py",
        "        return line == with_state(was, record)\n",
        '        return line.split(b"\\t", 3)[3] == with_state(was, record).split(b"\\t", 3)[3]\n',
        (UNIQUE,),
    ),
    Mutant(
        "an edit overwrites the file in place",
        "store/writing/edit.py",
        "    files.rejected += files.replace(journal, payloads={number: payload})\n",
        "    import os\n"
        "    from dbbasic_queue.model.records import with_payload\n"
        "    assert journal is None or journal\n"
        "    file, _ = files.rows.current()\n"
        "    start = view.offsets.start(number)\n"
        '    line, _, rest = os.pread(file.fd, 1 << 20, start).partition(b"\\n")\n'
        "    os.ftruncate(file.fd, start)\n"
        '    os.write(file.fd, with_payload(line, payload) + b"\\n" + rest)\n'
        "    view.close()\n"
        "    view.refresh()\n",
        (kill("edit"),),
    ),
    Mutant(
        "an edit drops the state that the journal has",
        "store/writing/fold.py",
        "                if state is not None:\n",
        "                if state is not None and number not in payloads:\n",
        (EDIT, kill("edit")),
    ),
    Mutant(
        "a claimed job runs with its payload from before an edit",
        "store/claiming/due.py",
        "            if (row.type, row.payload) != (claim.row.type, claim.row.payload):\n",
        "            if row.type != claim.row.type:\n",
        (EDIT,),
    ),
    Mutant(
        "a running job is edited",
        "store/writing/edit.py",
        "    if row is None or row.state.status != PENDING:\n",
        "    if row is None or row.state.status == PENDING.upper():\n",
        ("tests/contract/test_editing.py",),
    ),
    Mutant(
        "keep removes jobs of other programs",
        "passes/keeping.py",
        " and policies.handler(row.type) is not None\n",
        "\n",
        (KEEP,),
    ),
    Mutant(
        "every pass removes old jobs",
        "store/purged.py",
        "    purged |= dict.fromkeys(types, int(now))\n",
        "",
        (KEEP,),
    ),
    Mutant(
        "an instant is recorded before its job is added",
        "store/schedule_file.py",
        "    if new:\n        content =",
        '    replace_file(files.path + ENDING, encode(rows.values()), "", ending=".", fsync=True)\n'
        "    if new:\n        content =",
        (kill("schedules"),),
    ),
    Mutant(
        "an instant whose job is in the queue is added again",
        "store/schedule_file.py",
        "            if find(own_id) is not None:\n",
        "            if False:\n",
        (kill("schedules"),),
    ),
    Mutant(
        "a purge removes a job whose instant is not recorded",
        "store/writing/rewrites.py",
        "        if row.id in self.unrecorded:\n",
        "        if False:\n",
        (errors("schedules"),),
    ),
    Mutant(
        "a purge does not look at the schedules again",
        "store/writing/rewrites.py",
        "        if schedule_file.read(self.files.path) != self.unrecorded.content:\n",
        "        if False:\n",
        (SCHEDULED + "::test_a_purge_that_has_chosen_its_jobs_before_a_pass_died_" + ITS_ROWS,),
    ),
    Mutant(
        "schedules that another pass has changed are written over",
        "store/schedule_file.py",
        "    if read(files.path) != seen:\n",
        "    if False:\n",
        (SCHEDULED + "::test_a_pass_that_meets_another_pass_plans_again",),
    ),
    Mutant(
        "a schedule that is changed after the clock was set back adds instants again",
        "schedules.py",
        "now if last is None else max(now, last)",
        "now",
        (SCHEDULED + "::test_a_clock_that_is_set_back_adds_nothing_twice_even_after_a_purge",),
    ),
    Mutant(
        "the job of an instant is not synced before that is recorded",
        "store/schedule_file.py",
        "        files.rows.sync_locked(file, size, content)\n",
        "",
        (SCHEDULE_POWER,),
    ),
    Mutant(
        "a job that a dead pass has added is not synced before its instant is recorded",
        "store/schedule_file.py",
        "    elif not are_new:",
        "    elif False:",
        (SCHEDULE_POWER,),
    ),
    Mutant(
        "the file of schedules is not synced",
        "store/schedule_file.py",
        'done, ending=".new", fsync=files.fsync',
        'done, ending=".new", fsync=False',
        (SCHEDULE_POWER,),
    ),
    Mutant(
        "a queue counts as stalled after the mean pause",
        "monitoring/pauses.py",
        "    return max(0.0, *pauses)\n",
        "    return max(0.0, sum(pauses) / len(pauses))\n",
        (VERDICT + "::test_a_queue_whose_cron_line_works_is_never_stalled",),
    ),
    Mutant(
        "a queue with a live pass counts as stalled",
        "monitoring/verdict.py",
        "    if live:\n        return _with_live_pass(",
        "    if False:\n        return _with_live_pass(",
        (VERDICT + "::test_a_worker_that_waits_for_jobs_is_idle",),
    ),
    Mutant(
        "a program that runs once an hour has no handlers between its passes",
        "monitoring/known_types.py",
        "        return until - ended[-1].ended_at <= patience(ended)\n",
        "        return ended[-1] is self._last\n",
        (VERDICT + "::test_a_program_that_runs_once_an_hour_has_handlers_between_its_passes",),
    ),
    Mutant(
        "the verdict promises that the next pass runs a job that no pass has a handler for",
        "monitoring/verdict.py",
        "    if left.is_all:\n",
        "    if False:\n",
        (VERDICT + "::test_a_job_that_no_pass_has_a_handler_for_is_not_said_to_be_run_next",),
    ),
    Mutant(
        "a job that has lost its pass does not count as waiting",
        "monitoring/verdict.py",
        "*filter(None, [summary.first_due]), *running]",
        "*filter(None, [summary.first_due])]",
        (VERDICT + "::test_a_job_whose_pass_died_counts_as_waiting",),
    ),
    Mutant(
        "an idle pass is not logged",
        "passes/base.py",
        "            if exists:\n                self._note_end(started_at)\n",
        "",
        (VERDICT + "::test_idle_passes_and_working_passes_are_logged",),
    ),
    Mutant(
        "a pass that raises is logged as ended",
        "passes/base.py",
        "            is_worker = self.linger == math.inf and not self._until_complete\n",
        "            self._note_end(started_at)\n"
        "            is_worker = self.linger == math.inf and not self._until_complete\n",
        (VERDICT + "::test_a_pass_that_raises_is_not_logged_as_ended",),
    ),
    Mutant(
        "an edit of the queue overwrites a payload that another has edited",
        "cli/editing.py",
        "            if store.edit(new.id, new.payload, old.payload):\n",
        "            if store.edit(new.id, new.payload):\n",
        (EDITOR + "::test_a_payload_that_another_has_edited_is_neither_overwritten_nor_removed",),
    ),
    Mutant(
        "an edit of the queue removes a job that has changed",
        "cli/editing.py",
        "lines.get(row.id) == _line(row))",
        "row.id in lines)",
        (EDITOR + "::test_what_others_did_in_the_meantime_is_kept",),
    ),
    Mutant(
        "an edit of the queue removes a job that was added in the meantime",
        "cli/editing.py",
        "lines.get(row.id) == _line(row)) if lines",
        "lines.get(row.id, _line(row)) == _line(row)) if lines",
        (EDITOR + "::test_what_others_did_in_the_meantime_is_kept",),
    ),
    Mutant(
        "Ctrl-C while the program is loaded prints a traceback",
        "__main__.py",
        "    signal.signal(signal.SIGINT, signal.SIG_DFL)\n",
        "    pass\n",
        ("tests/cli/test_interrupts.py",),
    ),
    Mutant(
        "a dry run moves the jobs",
        "cli/transfer.py",
        "            if arguments.dry_run:\n                return _print_preview(preview)\n",
        "            if arguments.dry_run:\n                _print_preview(preview)\n",
        ("tests/cli/test_move.py",),
    ),
    Mutant(
        "an import adds a job twice",
        "store/writing/moves.py",
        "    new = [row for row in rows if row.id.encode() not in view.index]\n",
        "    new = list(rows)\n",
        (EXCHANGE + "::test_a_queue_is_exported_to_a_file_and_imported_into_another",),
    ),
    Mutant(
        "a short prefix of an id changes a job",
        "monitoring/selecting.py",
        "    if len(text) < least:\n",
        "    if False:\n",
        (FILTERS + "::test_a_change_needs_six_characters_of_an_id_or_all_of_it",),
    ),
    Mutant(
        "the first job that an ambiguous prefix means is changed",
        "monitoring/selecting.py",
        "    if len(found) > 1:\n",
        "    if False:\n",
        (FILTERS + "::test_an_ambiguous_prefix_changes_no_job",),
    ),
    Mutant(
        "a dry run changes jobs",
        "cli/many.py",
        "        raise SystemExit(0)\n",
        "        return True\n",
        (DRY_RUN,),
    ),
    Mutant(
        "a job that one of several filters chooses is chosen",
        "monitoring/selecting.py",
        "            and (self._since is None or due_at(row) >= self._since)\n",
        "            or (self._since is not None and due_at(row) >= self._since)\n",
        (FILTERS + "::test_options_choose_and_sort_jobs",),
    ),
    Mutant(
        "removing a crontab line removes its neighbour",
        "cli/crontab.py",
        "text.rstrip().endswith(mark)]",
        'mark.partition(":")[0] in text]',
        (CRONTAB + "::test_the_lines_of_two_queues_do_not_disturb_each_other",),
    ),
    Mutant(
        "doctor repairs without a copy",
        "cli/doctor/run.py",
        "    if to_repair and os.path.isabs(queue.store.path):\n",
        "    if False:\n",
        (DOCTOR + "::test_repair_makes_a_copy_first_and_loses_nothing",),
    ),
    Mutant(
        "a job that another pass has claimed runs in the foreground",
        "store/claiming/due.py",
        "is not None else None\n        state = states.claim(row.state) if row else None\n",
        "is not None else None\n        if row:\n            row.state.status = 'pending'\n"
        "        state = states.claim(row.state) if row else None\n",
        (RUN_JOB + "::test_a_job_that_another_pass_claims_first_is_not_run",),
    ),
    Mutant(
        "a table on the screen shows control characters",
        "cli/terminal.py",
        "            text = _aligned(terminal, printable(column.text(row)), width, column)\n",
        "            text = _aligned(terminal, column.text(row), width, column)\n",
        (HOSTILE + "[list-80]",),
    ),
    Mutant(
        "control characters of a job are shown as they are",
        "cli/job_screen.py",
        '        yield f"{name}\\t{printable(text)}{when}"\n',
        '        yield f"{name}\\t{text}{when}"\n',
        (CLI + "::test_no_command_prints_raw_control_characters_from_any_file",),
    ),
    Mutant(
        "fields in a pipe show control characters",
        "cli/report.py",
        "printable(str(field)) for field in fields",
        "str(field) for field in fields",
        (WATCH + "::test_a_pipe_gets_no_control_characters",),
    ),
    Mutant(
        "a change in the journal isn't counted by a process that looks again and again",
        "store/reading/index.py",
        """            return
        if self.changed is not None:
            self._note_change(number)
        self.when[number] = NEVER
        if self.retrying:
""",
        """            return
        self.when[number] = NEVER
        if self.retrying:
""",
        (LIVE + "::test_a_change_in_the_journal_is_counted",),
    ),
    Mutant(
        "a change that another process has folded isn't counted by one that looks again and again",
        "store/reading/index.py",
        """its row has in a new file.\"\"\"
        if self.changed is not None:
            self._note_change(number)
""",
        """its row has in a new file.\"\"\"
""",
        (LIVE + "::test_a_change_that_was_folded_is_counted",),
    ),
    Mutant(
        "a process that looks again and again forgets the history when it is rotated",
        "store/attempts.py",
        "self._tails = [Tail(file) for file in files]",
        "self._tails = [Tail(file) for file in files[-1:]]",
        (LIVE + "::test_a_history_that_is_rotated_is_read_on",),
    ),
    Mutant(
        "jobs stay due when the clock is set back",
        "store/reading/counts.py",
        "        if now < self._now:\n",
        "        if False:\n",
        (LIVE + "::test_a_clock_that_is_set_back_makes_jobs_wait_again",),
    ),
    Mutant(
        "a job that has run again stays the oldest finished one",
        "store/reading/counts.py",
        "        elif code > _PROCESSING:\n"
        "            self._changed_blocks.add(number >> _BLOCK_BITS)\n"
        "        if number in self._not_json",
        "        if number in self._not_json",
        (LIVE + "::test_the_oldest_finished_job_is_found_again_when_it_has_run_again",),
    ),
    Mutant(
        "a line that isn't a job is counted as one",
        "store/reading/counts.py",
        "if self._may_be_unreadable(numbers) or not all_json(rows.payloads):",
        "if not all_json(rows.payloads):",
        (LIVE + "::test_a_line_that_nobody_would_write_counts_as_it_does_for_a_new_process",),
    ),
    Mutant(
        "a process that looks again and again misses an edit in place",
        "store/followed.py",
        "            self._view.close()\n",
        "            pass\n",
        (LIVE + "::test_an_edit_in_place_that_keeps_the_length_is_noticed",),
    ),
    Mutant(
        "the last errors are ordered by earlier failures of their jobs",
        "store/followed.py",
        "            for job_id in self._attempts.take_failed()\n",
        "            for job_id in ()\n",
        (LIVE + "::test_a_failure_of_a_job_that_was_known_already_is_the_last_error",),
    ),
    Mutant(
        "each look reads everything again",
        "store/reading/counts.py",
        "        if view.changed is None or self._numbering != view.numbering:\n",
        "        if True:\n",
        (LIVE + "::test_a_look_reads_only_what_is_new",),
    ),
    Mutant(
        "an interrupted look is taken for a complete one",
        "store/reading/counts.py",
        "        numbering, self._numbering = self._numbering, -1\n",
        "        numbering = self._numbering\n",
        (LIVE + "::test_an_exception_in_the_middle_of_a_look_loses_nothing",),
    ),
    Mutant(
        "a cell of a CSV file is a formula",
        "cli/exchange.py",
        "map(neutralize, _fields(row))",
        "_fields(row)",
        (EXCHANGE + "::test_no_cell_of_a_csv_file_is_a_formula",),
    ),
    Mutant(
        "an export loses the results",
        "cli/exchange.py",
        "*state, _safe(result)]",
        '*state, ""]',
        (EXCHANGE + "::test_an_export_to_stdout_is_tsv_unless_a_format_is_given",),
    ),
    Mutant(
        "a stop by filters stops running jobs that they do not choose",
        "operating/changes.py",
        "    for row in chosen.rows(queue.store):  # running, or started in the meantime\n",
        "    for row in queue.store.rows():\n",
        (FILTERS + "::test_a_change_by_filters_leaves_the_running_jobs_that_they_do_not_choose",),
    ),
    Mutant(
        "a job that is running is cancelled",
        "model/states.py",
        '    """Cancel a job that hasn\'t been started."""\n    if state.status != PENDING:\n',
        '    """Cancel a job that hasn\'t been started."""\n'
        "    if state.status not in (PENDING, PROCESSING):\n",
        (FILTERS + "::test_a_change_by_filters_leaves_the_running_jobs_that_they_do_not_choose",),
    ),
    Mutant(
        "each viewer of a long queue starts a thread that reads everything",
        "web/first_reading.py",
        "            running = self._running\n",
        "            running = None\n",
        (FIRST_READING + "::test_many_viewers_wait_for_one_thread",),
    ),
    Mutant(
        "a process that was forked during the first reading waits forever",
        "web/shared.py",
        "        if self._process != os.getpid():\n",
        "        if False:\n",
        (
            FIRST_READING + "::test_a_server_process_that_was_forked_during_the_first_reading_reads"
            "_by_itself",
        ),
    ),
    Mutant(
        "a payload that was written too late is lost",
        "web/job.py",
        "kept = None if text is None else payload_form.written(text)",
        "kept = None",
        (
            "tests/web/test_actions.py::"
            "test_a_payload_that_comes_too_late_can_be_copied_from_the_answer",
        ),
    ),
    Mutant(
        "the text of an edit is shown with escapes that JSON doesn't have",
        "web/payload_form.py",
        '"\\n" + _valid(text),',
        '"\\n" + text,',
        ("tests/web/test_actions.py::test_an_edit_keeps_characters_that_cannot_be_seen",),
    ),
    Mutant(
        "a job's attempt that lies across two pieces of the history isn't found",
        "store/rotated.py",
        "            content = content[-len(beginning) :]\n",
        '            content = b""\n',
        (HISTORY + "::test_a_search_for_the_rows_of_a_job_finds_the_lines_that_begin_with_its_id",),
    ),
    Mutant(
        "an error in allow opens the page",
        "web/access.py",
        '        raise Refused(403, "You may not see this page.") from None\n',
        '        found = Access("all")\n',
        (ATTACKS + "::test_an_error_in_allow_opens_nothing",),
    ),
    Mutant(
        "the page without allow can be read",
        "web/access.py",
        "        raise Refused(403, CLOSED)\n",
        '        return Access("read")\n',
        (
            ATTACKS
            + "::test_without_allow_everything_is_refused_with_a_text_that_says_what_to_write",
        ),
    ),
    Mutant(
        "a form of another site is accepted",
        "web/application.py",
        "        check_origin(request)\n",
        "",
        (ATTACKS + "::test_a_form_that_another_site_has_sent_is_refused",),
    ),
    Mutant(
        "a form without a token is accepted",
        "web/application.py",
        "        check_token(request, token)\n",
        "",
        (ATTACKS + "::test_a_form_without_the_right_token_is_refused",),
    ),
    Mutant(
        "a request under any name is answered",
        "web/application.py",
        "        check_host(request, self._hosts)\n",
        "",
        (ATTACKS + "::test_a_request_under_another_name_is_refused",),
    ),
    Mutant(
        "text in the page is HTML",
        "web/html.py",
        "    return text.translate(_ENTITIES)\n",
        "    return text\n",
        (ATTACKS + "::test_script_in_a_queue_is_only_text_on_every_screen",),
    ),
    Mutant(
        "a search finds what is hidden",
        "web/hiding.py",
        '        return text in (self.text(encoded) or "")\n',
        "        return True\n",
        (ATTACKS + "::test_a_search_does_not_find_what_is_hidden",),
    ),
    Mutant(
        "a right is not asked for",
        "web/actions.py",
        "    if not visit.access.may(action):\n",
        "    if not visit.access.rights:\n",
        (ACTIONS + "::test_each_right_allows_its_action_and_no_other",),
    ),
    Mutant(
        "the address of the page works twice",
        "web/door.py",
        "            self._is_used = True\n",
        "            pass\n",
        (ATTACKS + "::test_the_address_opens_the_page_once_and_for_one_browser_only",),
    ),
    Mutant(
        "a slow client keeps its connection",
        "web/server.py",
        "        self._connection.settimeout(left)\n",
        "        self._deadline += 60\n",
        (ATTACKS + "::test_a_slow_client_is_dropped_and_others_are_served",),
    ),
    Mutant(
        "Ctrl-C is lost while the thread of a request starts",
        "web/server.py",
        "        except Exception:  # not for Ctrl-C",
        "        except BaseException:  # not for Ctrl-C",
        (
            "tests/web/test_servers.py::test_ctrl_c_while_the_thread_of_a_request_starts_ends_the_server",
        ),
    ),
    Mutant(
        "an edit overwrites that of another user",
        "web/actions.py",
        '    if job.seen(visit, row) != visit.field("before"):\n',
        "    if False:\n",
        (ACTIONS + "::test_two_users_who_edit_at_once_do_not_overwrite_each_other",),
    ),
    Mutant(
        "the newest jobs of a status are those whose lines have it",
        "store/reading/newest.py",
        "        by_journal = set() if wanted is None else self._in_journal(statuses)\n",
        "        by_journal: set[int] = set()\n",
        (NEWEST + "::test_a_status_in_the_journal_counts_and_the_one_in_the_line_does_not",),
    ),
    Mutant(
        "a row imports the module that its type names (Django)",
        "django/backend.py",
        "        return self.tasks().get(path)\n",
        "        from django.utils.module_loading import import_string\n"
        "        return self.tasks().get(path) or import_string(path)\n",
        (DJANGO + "::test_a_row_can_neither_import_a_module_nor_call_a_function_that_isnt_a_task",),
    ),
    Mutant(
        "a job is added though its transaction is rolled back (Django)",
        "django/backend.py",
        "            transaction.on_commit(add, using=options.on_commit)\n",
        "            add()\n",
        (TRANSACTIONS + "::test_with_the_option_a_rollback_leaves_no_job",),
    ),
    Mutant(
        "an id of one's own is added twice (Django)",
        "django/backend.py",
        "            store.add(row, job_id if once else None)\n",
        "            store.add(row, None)\n",
        (TRANSACTIONS + "::test_what_a_killed_server_hasnt_enqueued_is_enqueued_once",),
    ),
    Mutant(
        "a task that no pass would find is enqueued (Django)",
        "django/backend.py",
        "        if not discovery.is_found(module, options.modules):\n",
        "        if False:\n",
        (DJANGO + "::test_a_task_that_no_pass_would_find_cant_be_enqueued",),
    ),
    Mutant(
        "work that is done runs again because its result isn't JSON (Django)",
        "django/handlers.py",
        "class UnsupportedResult(Fail):\n",
        "class UnsupportedResult(Exception):\n",
        (DJANGO + "::test_a_result_that_isnt_json_fails_the_task_which_doesnt_run_again",),
    ),
    Mutant(
        "cron mails each task that a pass starts (Django)",
        "django/management/commands/queue_pass.py",
        "        handler.setLevel(level)\n",
        "",
        (
            "tests/django_backend/test_commands.py"
            "::test_cron_runs_the_tasks_by_the_line_of_queue_crontab",
        ),
    ),
    Mutant(
        "two sites with one queue remove each other's schedules (Django)",
        "django/schedules.py",
        '    return f"django:{site}:{alias}"\n',
        '    return f"django:{alias}"\n',
        (DJANGO_SCHEDULES + "::test_two_sites_with_one_queue_leave_each_others_schedules_alone",),
    ),
    Mutant(
        "a schedule is in the time zone of the machine, not of the site (Django)",
        "django/schedules.py",
        '            timezone = getattr(settings, "TIME_ZONE", None) or LOCAL\n',
        "            timezone = LOCAL\n",
        (DJANGO_SCHEDULES + "::test_an_expression_is_in_the_time_zone_of_the_site",),
    ),
    Mutant(
        "a pass that forks keeps its connections (Django)",
        "django/connections.py",
        "    if every:\n",
        "    if False:\n",
        (CONNECTIONS + "::test_a_pass_that_forks_keeps_no_connection",),
    ),
    Mutant(
        "a forked process waits for a thread that only its parent has (Django)",
        "django/connections.py",
        "    SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)\n",
        "    ThreadPoolExecutor(max_workers=1)\n",
        (
            CONNECTIONS
            + "::test_a_coroutine_in_a_process_of_its_own_doesnt_wait_for_a_thread_of_the_parent",
        ),
    ),
    Mutant(
        "all of the staff can change jobs in the admin (Django)",
        "django/admin.py",
        "        if self.has_change_permission(source):\n",
        "        if True:\n",
        (ADMIN + "::test_users_who_can_view_see_the_page_and_no_buttons",),
    ),
    Mutant(
        "each coroutine that waits for a job takes a thread",
        "waiting.py",
        "    watcher = _watchers.get(key)\n",
        "    watcher = None\n",
        (WAITING + "::test_a_thousand_coroutines_that_wait_need_one_thread_at_a_time",),
    ),
    Mutant(
        "who has stopped waiting is looked for forever",
        "waiting.py",
        "            del self._waiting[waiting]\n",
        "            pass\n",
        (WAITING + "::test_who_stops_waiting_isnt_looked_for_any_more",),
    ),
    Mutant(
        "a job has no app context of its own (Flask)",
        "flask.py",
        "        with self._app().app_context():\n",
        "        if True:\n",
        (FLASK + "::test_each_job_has_an_app_context_of_its_own",),
    ),
    Mutant(
        "the crontab line runs the handlers without the app (Flask)",
        "flask.py",
        '"-m", "flask", *app, "queue", "run"',
        '"-m", "dbbasic_queue", "run"',
        (FLASK + "::test_cron_runs_the_line_of_flask_queue_crontab_with_the_app",),
    ),
    Mutant(
        "a view adds jobs to the queue of another app (Flask)",
        "flask.py",
        "        queue: Queue = self._app().extensions[NAME]\n",
        "        queue: Queue = list(self._apps)[0].extensions[NAME]\n",
        (FLASK + "::test_a_view_adds_jobs_to_the_queue_of_its_app",),
    ),
    Mutant(
        "the page is there under hosts that the app doesn't trust (Flask)",
        "flask.py",
        "                _ = request.host\n",
        "                pass\n",
        (FLASK + "::test_the_page_is_only_there_under_the_hosts_that_the_app_trusts",),
    ),
    Mutant(
        "the span of a job in a process of its own ends with that process",
        "opentelemetry.py",
        "            if os.getpid() != process and ",
        "            if False and ",
        (SPANS + "::test_spans_of_processes_that_end_with_their_job_are_exported_first",),
    ),
    Mutant(
        "a failed attempt's span looks like a completed one's",
        "opentelemetry.py",
        "        span.set_status(StatusCode.ERROR, type(e).__name__)\n",
        "",
        (SPANS + "::test_each_attempt_is_a_span_in_the_trace_of_its_job",),
    ),
)
