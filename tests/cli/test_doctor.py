"""`dbbasic-queue doctor`: it finds planted problems, names the remedy, and gives no false alarm.

What concerns cron and mail is planted in mount and process namespaces of its own, so that it isn't
seen by anything else on the machine. That needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import (
    HEADER,
    Child,
    Programs,
    add_lines,
    environment,
    job,
    line,
    run_command,
    sibling,
    small_disk,
    wait_for,
)
from ordinary_user import User, ordinary_user, what_is_missing

from dbbasic_queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUR = 3600.0
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
needs_user = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


class Found(dict[str, dict[str, Any]]):
    """Findings by name; of several with one name, the worst one."""

    def __init__(self, output: str, code: int = 0) -> None:
        super().__init__()
        self.code = code
        self.order = []
        for text in output.splitlines():
            finding = json.loads(text)
            self.order.append(finding["level"])
            self.setdefault(finding["name"], finding)

    def alarms(self) -> set[str]:
        return {name for name, found in self.items() if found["level"] in ("warning", "wrong")}

    def has(self, name: str, level: str, text: str, remedy: str) -> bool:
        """Return whether there is this finding, with these parts of its text and its remedy."""
        found = self[name]
        assert found["level"] == level
        assert text in found["text"]
        assert remedy in (found["remedy"] or "")
        return True


def doctor(app: Path, *arguments: str, **more: str) -> Found:
    done = run_command("doctor", "--json", *arguments, cwd=app, **more)
    assert done.stderr == ""
    found = Found(done.stdout, done.returncode)
    assert done.returncode == int("wrong" in found.order)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data/queue.tsv"


@pytest.fixture
def queue(path: Path) -> Iterator[Queue]:
    """A queue in which a pass has just ended."""
    with Queue(path) as found:
        found.enqueue("greet", {}, job_id="done")
        found.process_jobs({"greet": str})
        yield found


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with ordinary_user() as found:
        yield found


@pytest.fixture
def users_queue(user: User) -> Iterator[Path]:
    """The queue of an ordinary user, in its app."""
    user.queue_command("enqueue", "greet")
    yield user.app / "data/queue.tsv"
    shutil.rmtree(user.app / "data")


def users_doctor(user: User, *arguments: str) -> Found:
    command = [str(user.python), "-m", "dbbasic_queue", "doctor", "--json", *arguments]
    done = user.run(*command)
    assert done.stderr == ""
    return Found(done.stdout, done.returncode)


# -- the files, and who may use them --


def test_a_healthy_queue_raises_no_alarm(queue: Queue, tmp_path: Path) -> None:
    found = doctor(tmp_path)
    assert found.alarms() <= {"volatile-file-system"}
    assert found.code == 0


def test_a_world_writable_directory(queue: Queue, path: Path, tmp_path: Path) -> None:
    path.parent.chmod(0o777)
    found = doctor(tmp_path)
    assert {"cron-down", "no-line"}.isdisjoint(found)  # a pass has just run
    assert found.has("world-writable", "wrong", "everyone can write to", f"chmod o-w {path.parent}")
    assert "unusable" not in found


@needs_user
def test_a_directory_and_files_that_belong_to_another_user(user: User, users_queue: Path) -> None:
    for place in (users_queue.parent, users_queue):
        os.chown(place, 0, 0)
    users_queue.parent.chmod(0o755)
    found = users_doctor(user)
    assert found.has("directory-access", "wrong", "can't write to", "run the command as root")
    assert found.has("file-access", "wrong", str(users_queue), "run the command as root")


@needs_user
def test_a_file_that_root_has_restored(user: User, users_queue: Path) -> None:
    os.chown(users_queue, 0, 0)
    users_queue.chmod(0o600)
    arguments = ("--file", str(users_queue))
    found = doctor(user.app, *arguments)
    remedy = f"sudo chown --reference={users_queue.parent} {users_queue}"
    assert found.has("file-owner", "wrong", f"{user.name}, to whom", remedy)
    doctor_repairs(user.app, *arguments)
    assert users_queue.stat().st_uid == user.entry.pw_uid
    assert "file-owner" not in doctor(user.app, *arguments)


@needs_user
def test_a_file_that_the_group_of_the_directory_cannot_use(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    os.chown(path.parent, -1, 100)
    path.parent.chmod(0o2770)
    found = doctor(tmp_path)
    assert found.has("file-group", "wrong", "is shared by the group users", "sudo chgrp users")
    (path.parent / "queue.tsv.bak").write_text("mine")
    (path.parent / "queue.tsv.bak").chmod(0o640)
    doctor_repairs(tmp_path)
    assert "file-group" not in doctor(tmp_path)
    assert path.stat().st_gid == 100
    assert (path.parent / "queue.tsv.bak").stat().st_mode & 0o777 == 0o640


@needs_user
def test_a_user_who_cannot_use_the_queue(user: User, users_queue: Path) -> None:
    arguments = ("--file", str(users_queue))
    found = doctor(user.app, *arguments, "--user", "nobody", "--user", user.name)
    assert found.has("user-access", "wrong", "nobody can't use", "sudo usermod -aG")
    user.app.chmod(0o700)
    try:
        found = doctor(user.app, *arguments, "--user", "nobody")
        assert found.has("user-access", "wrong", f"nobody can't use {user.app} (", "g+x")
    finally:
        user.app.chmod(0o755)
    assert doctor(user.app, *arguments, "--user", user.name)["user-access"]["level"] == "ok"
    assert doctor(user.app, *arguments, "--user", "no-one")["no-user"]["level"] == "wrong"
    assert users_doctor(user, "--user", "nobody")["user-access"]["level"] == "wrong"
    assert users_doctor(user, "--user", "root")["user-access"]["level"] == "ok"


def test_a_queue_that_is_a_link(queue: Queue, path: Path, tmp_path: Path) -> None:
    real = path.with_name("real.tsv")
    path.rename(real)
    path.symlink_to(real)
    found = doctor(tmp_path)
    assert found.has("link", "wrong", f"{path} is a link", f"--file {real}")
    assert not sibling(real, "lock").exists()


def test_a_header_that_is_gone(queue: Queue, path: Path, tmp_path: Path) -> None:
    path.write_text(path.read_text().removeprefix(HEADER))
    found = doctor(tmp_path)
    assert found.has("no-header", "wrong", "isn't the header", "sed -i '1i id\\ttype")
    command = found["no-header"]["remedy"].partition("   (")[0]
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert path.read_text().startswith(HEADER)
    assert doctor(tmp_path).alarms() <= {"volatile-file-system"}


@pytest.mark.parametrize("content", ["root:x:0:0:root:/root:/bin/sh\n", "\0\1"])
def test_nothing_is_created_or_changed_next_to_a_file_that_is_not_a_queue(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "passwd").write_text(content)
    for options in ([], ["--repair"]):
        done = run_command("doctor", "--file", "passwd", *options, cwd=tmp_path)
        assert done.returncode == 1
        assert "wrong\tno-header" in done.stdout
        assert [found.name for found in tmp_path.iterdir()] == ["passwd"]
    assert (tmp_path / "passwd").read_text() == content


@pytest.mark.parametrize("name", ["no-directory", "no-queue"])
def test_a_queue_that_is_not_there(tmp_path: Path, name: str) -> None:
    if name == "no-queue":
        (tmp_path / "data").mkdir()
    for options in ([], ["--repair"]):
        done = run_command("doctor", *options, cwd=tmp_path)
        assert done.returncode == 1
        assert f"wrong\t{name}\t" in done.stdout
        assert list(tmp_path.rglob("*")) == ([tmp_path / "data"] if name == "no-queue" else [])


def test_a_lock_that_another_process_holds(queue: Queue, path: Path, tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        programs.start(
            "import fcntl\nlock = open('data/queue.tsv.lock', 'rb+')\n"
            "fcntl.flock(lock, fcntl.LOCK_EX)\nnote('held', '1')\ntime.sleep(1000)"
        )
        wait_for((tmp_path / "held").exists, "the lock")
        found = doctor(tmp_path)
        pid = programs.children[0].process.pid
        assert found.has("lock-held", "wrong", f"process {pid}", "fuser -v")
        leftover(path)
        done = run_command("doctor", "--repair", cwd=tmp_path)
        assert "nothing was repaired" in done.stderr
        assert sibling(path, "fold").exists()
        assert list(path.parent.glob("*copy*")) == []


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_file_system_whose_locks_do_nothing(queue: Queue, tmp_path: Path) -> None:
    library = tmp_path / "flock.so"
    source = "int flock(int fd, int operation) { return 0; }"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"],
        input=source.encode(),
        check=True,
        timeout=60,
    )
    found = doctor(tmp_path, LD_PRELOAD=str(library))
    assert found.has("lock-broken", "wrong", "locks don't work", "move the queue to a local disk")


def leftover(path: Path) -> Path:
    file = sibling(path, "fold")
    file.write_text(HEADER)
    os.utime(file, (time.time() - 2 * HOUR,) * 2)
    return file


def test_a_file_that_a_killed_fold_has_left(queue: Queue, path: Path, tmp_path: Path) -> None:
    sibling(path, "fold").write_text(HEADER)
    assert "leftovers" not in doctor(tmp_path)  # a fold may be running
    file = leftover(path)
    found = doctor(tmp_path)
    assert found.has("leftovers", "warning", str(file), f"rm {file}")
    doctor_repairs(tmp_path)
    assert not file.exists()


# -- what the file contains --


def test_a_line_that_is_not_a_job(queue: Queue, path: Path, tmp_path: Path) -> None:
    add_lines(path, "no job\n", line("later", run_at=4_000_000_000))
    found = doctor(tmp_path)
    assert found.has("unreadable", "warning", "1 line of the file isn't a job: 3", "--remove")


def test_a_last_line_that_is_torn(queue: Queue, path: Path, tmp_path: Path) -> None:
    add_lines(path, line("torn")[:20])
    assert doctor(tmp_path)["torn"]["level"] == "note"  # a program may be writing it
    os.utime(path, (time.time() - HOUR,) * 2)
    assert doctor(tmp_path).has("unreadable", "warning", "isn't a job: 3", "unreadable --remove")
    doctor_repairs(tmp_path)
    assert sibling(path, "rejected").read_text() == line("torn")[:20] + "\n"


def test_a_damaged_record_of_the_journal(queue: Queue, path: Path, tmp_path: Path) -> None:
    queue.close()
    with sibling(path, "journal").open("ab") as journal:
        journal.write(b"x\tcancelled\t1800000000\t18\n")
    found = doctor(tmp_path)
    assert found.has("damaged-journal", "warning", "of the journal can't be read", "list --status")


def test_jobs_from_the_future_and_a_file_from_the_future(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    ahead = int(time.time()) + 9000
    add_lines(path, line("ahead", created_at=ahead, run_at=ahead))
    found = doctor(tmp_path)
    assert found.has("future-jobs", "wrong", "such as ahead in 2 h", "timedatectl")
    os.utime(path, (ahead, ahead))
    assert doctor(tmp_path).has("clock", "wrong", "in the future", "timedatectl")


# -- the jobs --


def test_jobs_of_a_pass_that_was_killed(queue: Queue, tmp_path: Path) -> None:
    queue.enqueue("greet", {}, job_id="lost")
    with Programs(tmp_path) as programs:
        worker = programs.start(
            "queue.process_jobs({'greet': lambda _: (note('on', '1'), time.sleep(1000))})"
        )
        wait_for((tmp_path / "on").exists, "the job")
        worker.kill()
    assert doctor(tmp_path).has("lost", "warning", "such as lost", "the next pass recovers")
    doctor_repairs(tmp_path)
    found = job(queue, "lost")
    assert (found["status"], found["attempts"]) == ("pending", 1)


def test_a_job_that_has_been_running_for_hours(queue: Queue, path: Path, tmp_path: Path) -> None:
    queue.enqueue("greet", {}, job_id="long")
    with Programs(tmp_path) as programs:
        programs.start(
            "queue.process_jobs({'greet': lambda _: (note('on', '1'), time.sleep(1000))})"
        )
        wait_for((tmp_path / "on").exists, "the job")
        assert "long-running" not in doctor(tmp_path)
        [slot] = [s for s in path.parent.glob("*.pass.*") if "long" in s.read_text()]
        os.utime(slot, (time.time() - 9 * HOUR,) * 2)
        found = doctor(tmp_path)
    assert found.has("long-running", "warning", "long (greet)", "dbbasic-queue stop long")


def test_everything_is_paused(queue: Queue, tmp_path: Path) -> None:
    queue.pause()
    assert "paused" not in doctor(tmp_path)  # nothing waits for it
    queue.enqueue("greet", {})
    assert doctor(tmp_path).has("paused", "warning", "everything is paused", "resume")


def test_a_type_without_a_handler(queue: Queue, path: Path, tmp_path: Path) -> None:
    queue.enqueue("gret", {}, job_id="typo")
    assert "no-handler" not in doctor(tmp_path)  # the next pass may have one
    add_lines(path, line("old", type="grete", created_at=1_700_000_000, run_at=1_700_000_000))
    assert doctor(tmp_path).has("no-handler", "wrong", "the type grete, for which", "add a handler")
    queue.process_jobs({"greet": str}, max_attempts=1)
    found = doctor(tmp_path)
    assert found.has("no-handler", "warning", "for which no pass", "requeue --type gret")
    queue.process_jobs({"greet": str, "gret": str, "grete": str})
    assert "no-handler" not in doctor(tmp_path)


def test_a_queue_that_was_moved_with_rows_left(queue: Queue, path: Path, tmp_path: Path) -> None:
    queue.store.set_moved("redis://127.0.0.1/0")
    assert doctor(tmp_path)["moved"]["level"] == "warning"
    add_lines(path, line("left"))
    found = doctor(tmp_path)
    remedy = "dbbasic-queue move --to redis://127.0.0.1/0"
    assert found.has("moved", "wrong", "1 job is still pending here", remedy)


def make_stalled(path: Path) -> None:
    """Let it look as if the last pass had ended three hours ago, and a job had been due since."""
    with Queue(path, clock=lambda: time.time() - 3 * HOUR) as past:
        past.enqueue("greet", {}, job_id="done")
        past.process_jobs({"greet": str})
        past.process_jobs({"greet": str})  # two: so the usual pause is known
        past.enqueue("greet", {}, job_id="due")


def test_a_stalled_queue(path: Path, tmp_path: Path) -> None:
    make_stalled(path)
    found = doctor(tmp_path)
    assert found.has("stalled", "wrong", "no pass has ended for 3 h", "the findings about cron")


# -- the disk --


def test_a_disk_that_is_almost_full_and_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk, Queue(disk / "queue.tsv") as queue:
        queue.enqueue("greet", {})
        found = doctor(tmp_path, "--file", str(disk / "queue.tsv"))
        assert found.has("disk-space", "wrong", "MiB left", "purge --older-than")
        assert found.has("volatile-file-system", "warning", "is in memory (tmpfs)", "on a disk")
        leftover(disk / "queue.tsv")
        (disk / "queue.tsv.history").write_bytes(b"x" * 1_200_000)
        done = run_command("doctor", "--repair", "--file", str(disk / "queue.tsv"), cwd=tmp_path)
        assert "nothing was repaired, because no copy could be made" in done.stderr
        assert not list(disk.glob("*copy*"))


def test_a_disk_without_inodes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        subprocess.run(["mount", "-o", "remount,nr_inodes=50", str(disk)], check=True, timeout=60)
        with Queue(disk / "queue.tsv") as queue:
            queue.enqueue("greet", {})
        found = doctor(tmp_path, "--file", str(disk / "queue.tsv"))
        assert found.has("inodes", "wrong", "inodes left", "du --inodes")


def test_the_layer_of_a_container(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "9m") as disk:
        for name in ("lower", "upper", "work", "žluť merged"):
            (disk / name).mkdir()
        options = f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
        merged = disk / "žluť merged"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount an overlay")
        try:
            with Queue(merged / "queue.tsv") as queue:
                queue.enqueue("greet", {})
            found = doctor(tmp_path, "--file", str(merged / "queue.tsv"))
            assert found.has("volatile-file-system", "warning", "own layer (overlay)", "a volume")
        finally:
            subprocess.run(["umount", "--lazy", str(merged)], check=True, timeout=60)


# -- repairing --


def doctor_repairs(app: Path, *arguments: str) -> list[list[str]]:
    """Run `doctor --repair`; return what it says about copies and repairs."""
    done = run_command("doctor", "--repair", *arguments, cwd=app)
    assert done.stderr == ""
    told = [text.split("\t") for text in done.stdout.splitlines()]
    return [fields for fields in told if fields[0] in ("copied", "repaired", "failed")]


def test_repair_makes_a_copy_first_and_loses_nothing(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    queue.enqueue_many("greet", range(50), run_at=4_000_000_000)
    queue.enqueue("greet", {}, job_id="lost")
    with Programs(tmp_path) as programs:
        worker = programs.start(
            "queue.process_jobs({'greet': lambda _: (note('on', '1'), time.sleep(1000))})"
        )
        wait_for((tmp_path / "on").exists, "the job")
        worker.kill()
    add_lines(path, "no job 1\n", "no job 2\n")
    leftover(path)
    rows = {found["id"]: found for found in queue.jobs()}
    queue.close()
    path.parent.chmod(0o757)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    told = doctor_repairs(tmp_path)
    [[_, copy], *repaired] = told
    assert [fields[:2] for fields in repaired] == [
        ["repaired", "world-writable"],
        ["repaired", "leftovers"],
        ["repaired", "lost"],  # these two only now: before, the queue refused that directory
        ["repaired", "unreadable"],
    ]
    del before["queue.tsv.fold"]
    assert {file.name: file.read_bytes() for file in Path(copy).iterdir()} == before
    assert Path(copy).stat().st_mode & 0o777 == 0o700
    after = {found["id"]: found for found in queue.jobs()}
    assert after.pop("lost")["status"] == "pending"
    assert rows.pop("lost")["status"] == "processing"
    assert after == rows
    assert sibling(path, "rejected").read_text() == "no job 1\nno job 2\n"
    assert doctor(tmp_path).alarms() <= {"volatile-file-system"}
    assert doctor_repairs(tmp_path) == []


def test_the_worst_findings_come_first_and_repairs_are_json_too(
    queue: Queue, path: Path, tmp_path: Path
) -> None:
    leftover(path)
    os.utime(path, (time.time() + 9000,) * 2)
    found = doctor(tmp_path)
    assert found.order == sorted(found.order, key=["wrong", "warning", "note", "ok"].index)
    assert {"wrong", "warning", "ok"} <= set(found.order)
    done = run_command("doctor", "--json", "--repair", cwd=tmp_path)
    told = [json.loads(text) for text in done.stdout.splitlines()]
    assert [row["level"] for row in told[-2:]] == ["copied", "repaired"]


# -- cron and mail, in namespaces of their own --


def lacks_namespaces() -> str:
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("unshare"):
        return "needs root on Linux, and unshare"
    done = subprocess.run([*UNSHARE, "true"], check=False)
    return "" if done.returncode == 0 else "needs namespaces"


class Machine:
    """A view of this machine with empty crontabs, no cron, and a sendmail program."""

    def __init__(self, app: Path) -> None:
        self.app = app
        self.setup = [
            "mount --make-rprivate /",
            "mount -t tmpfs tmpfs /var/spool",
            "mkdir -p /etc/cron.d && mount -t tmpfs tmpfs /etc/cron.d",
            f"mount --bind {shutil.which('true')} /usr/sbin/sendmail",
        ]

    def add(self, command: str) -> None:
        self.setup.append(command)

    def add_file(self, name: str, content: str) -> None:
        source = self.app / f"planted-{len(self.setup)}"
        source.write_text(content)
        self.add(f"cp {source} {name}")

    def add_line(self, command: str, name: str = "app") -> None:
        self.add_file(f"/etc/cron.d/{name}", f"* * * * * root {command}\n")

    def start_cron(self, name: str = "supercronic") -> None:
        """Start a program that is called like a cron; not cron, which other tests may start."""
        program = self.app / name
        shutil.copy(str(shutil.which("sleep")), program)
        self.add(f"{program} 1000 &")
        # Otherwise it has still the name of the shell that has forked it.
        self.add(f"until grep -qx {name} /proc/$!/comm; do :; done")

    def doctor(self, *arguments: str) -> Found:
        command = f"exec {sys.executable} -m dbbasic_queue doctor --json {' '.join(arguments)}"
        done = subprocess.run(
            [*UNSHARE, "--mount-proc", "sh", "-ec", "\n".join([*self.setup, command])],
            cwd=self.app,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return Found(done.stdout, done.returncode)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if why := lacks_namespaces():
        pytest.skip(why)
    if not Path("/usr/sbin/sendmail").exists():
        pytest.skip("needs a sendmail program, or a file to hide")
    return Machine(tmp_path)


def good_line(app: Path) -> str:
    return f"cd {app} && {sys.executable} -m dbbasic_queue run handlers.toml"


CRON = {"cron-down", "no-line"}
QUIET = {"volatile-file-system", "stalled"}


def test_no_cron_and_no_line(machine: Machine, path: Path) -> None:
    make_stalled(path)
    found = machine.doctor()
    assert found.has("cron-down", "wrong", "no cron runs", "systemctl enable --now cron")
    assert found.has("no-line", "wrong", "no crontab line or unit starts", "crontab --install")


def test_cron_runs_but_has_no_line(machine: Machine, path: Path) -> None:
    make_stalled(path)
    machine.start_cron()
    machine.add_line("cd / && tar czf /backup/app.tgz " + str(machine.app), "backup")
    machine.add_line(f"cd {machine.app} && dbbasic-queue purge --older-than 30d", "purge")
    machine.add_line(f"cd {machine.app}-2 && python3 worker.py", "other")
    found = machine.doctor()
    assert found["cron"]["level"] == "ok"
    assert found["no-line"]["level"] == "wrong"
    assert "line" not in found


def test_a_line_but_no_cron(machine: Machine, queue: Queue) -> None:
    machine.add_line(good_line(machine.app))
    assert machine.doctor().alarms() - QUIET == {"cron-down"}


def test_cron_and_a_line_are_enough(machine: Machine, path: Path) -> None:
    make_stalled(path)
    machine.start_cron()
    machine.add_line(good_line(machine.app))
    found = machine.doctor()
    assert found.alarms() - QUIET == set()
    assert found["mail"]["level"] == "ok"


@pytest.mark.parametrize(
    "command",
    [
        "cd {app} && ./bin/python worker.py",
        "cd {app}; LC_ALL=C.UTF-8 bin/python worker.py >> worker.log 2>&1",
        "cd {parent} && app/bin/python app/worker.py",
        "{app}/bin/python {app}/worker.py",
        "cd {app} && sh worker.sh",
        "cd / && DBBASIC_QUEUE_FILE={app}/data/queue.tsv {app}/bin/python /opt/worker.py",
        "cd {app} && bin/python -m dbbasic_queue --file data/queue.tsv run handlers.toml",
        "cd -- '{app}' && env TZ=UTC bin/python -c 'import worker' | tee -a \"100 \\%.log\"",
        "cd $HOME && python3 worker.py # dbbasic-queue: {app}/data/queue.tsv",
    ],
)
def test_a_line_is_recognized_however_it_names_the_app(
    machine: Machine, tmp_path: Path, command: str
) -> None:
    machine.app = tmp_path / "app"
    (machine.app / "bin").mkdir(parents=True)
    (machine.app / "bin/python").symlink_to(sys.executable)
    make_stalled(machine.app / "data/queue.tsv")
    machine.start_cron()
    machine.add_line(command.format(app=machine.app, parent=tmp_path))
    found = machine.doctor()
    assert found["line"]["level"] == "ok"
    # /usr/bin/python3 has no package here; the other interpreters have.
    assert found.alarms() - QUIET <= {"line-package"}


def test_a_container_without_cron_with_a_live_worker(machine: Machine, queue: Queue) -> None:
    (machine.app / "w.py").write_text("jobs = {'greet': str}\n")
    worker = Child([sys.executable, "-m", "dbbasic_queue", "worker", "w:jobs"], machine.app, "w")
    try:
        queue.enqueue("greet", {}, job_id="x")
        wait_for(lambda: job(queue, "x")["status"] == "completed", "the worker")
        assert machine.doctor().alarms() - QUIET == set()
    finally:
        worker.clean_up()


def test_passes_that_something_else_starts(machine: Machine, queue: Queue) -> None:
    found = machine.doctor()
    assert found.alarms() - QUIET == set()
    assert found["other-start"]["level"] == "note"


def test_busybox_is_not_always_cron(machine: Machine, path: Path) -> None:
    make_stalled(path)
    machine.start_cron("busybox")
    assert "cron-down" in machine.doctor()


def test_a_systemd_service_needs_no_cron(machine: Machine, path: Path) -> None:
    make_stalled(path)
    machine.add("mkdir -p /etc/systemd/system && mount -t tmpfs tmpfs /etc/systemd/system")
    web = (
        f"[Service]\nWorkingDirectory={machine.app}\nExecStart={machine.app}/bin/gunicorn app:app\n"
    )
    machine.add_file("/etc/systemd/system/web.service", web)
    assert "no-line" in machine.doctor()
    unit = (
        f"[Service]\nWorkingDirectory={machine.app}\nEnvironment=LC_ALL=C.UTF-8\n"
        f"ExecStart={sys.executable} -m dbbasic_queue \\\n  worker handlers.toml\n"
    )
    machine.add_file("/etc/systemd/system/app.service", unit)
    found = machine.doctor()
    assert found["line"]["level"] == "ok"
    assert found.alarms() - QUIET == set()


def test_a_line_with_a_percent_sign(machine: Machine, queue: Queue) -> None:
    machine.start_cron()
    machine.add_line(good_line(machine.app) + " >> log-$(date +%F)")
    assert machine.doctor().has("percent", "wrong", "cron cuts the line there", "\\%")


def test_a_line_whose_directory_is_gone(machine: Machine, queue: Queue) -> None:
    machine.start_cron()
    machine.add_line(f"cd {machine.app}/gone && {machine.app}/worker.py")
    found = machine.doctor()
    assert found.has("line-directory", "wrong", f"goes to {machine.app}/gone", "crontab -e")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("{app}/.venv/bin/python", "isn't there"),
        (".venv/bin/python", "isn't there"),
        ("python9", "isn't in cron's PATH"),
        ("./dbbasic-queue", "needs /gone/bin/python"),
    ],
)
def test_a_line_whose_interpreter_is_gone(
    machine: Machine, queue: Queue, program: str, told: str
) -> None:
    script = machine.app / "dbbasic-queue"
    script.write_text("#!/gone/bin/python\n")
    script.chmod(0o755)
    machine.start_cron()
    machine.add_line(f"cd {machine.app} && {program.format(app=machine.app)} run worker.py")
    assert machine.doctor().has("line-program", "wrong", told, "virtual environment")


def test_a_line_with_an_open_quote_and_a_file_that_debian_ignores(
    machine: Machine, queue: Queue
) -> None:
    machine.start_cron()
    machine.add_line(f"cd '{machine.app} && python3 worker.py")
    machine.add_line(good_line(machine.app), "app.cron")
    found = machine.doctor()
    assert found.has("quotes", "wrong", "a quote isn't closed", "crontab -e")
    if Path("/etc/debian_version").exists():
        remedy = "sudo mv /etc/cron.d/app.cron /etc/cron.d/app-cron"
        assert found.has("line-ignored", "wrong", "ignores /etc/cron.d/app.cron", remedy)


def environment_with(app: Path, version: str | None) -> Path:
    """Create a virtual environment with another version of the package, or without it."""
    venv.create(app / "env", symlinks=True)
    if version is not None:
        [packages] = (app / "env").glob("lib/python3*/site-packages")
        (packages / "dbbasic_queue.py").write_text(f"__version__ = {version!r}\n")
    return app / "env/bin/python"


def test_an_interpreter_without_the_package(machine: Machine, queue: Queue) -> None:
    python = environment_with(machine.app, None)
    machine.start_cron()
    machine.add_line(f"cd {machine.app} && {python} worker.py")
    found = machine.doctor()
    assert found.has("line-package", "wrong", "can't import dbbasic_queue", f"{python} -m pip")


def test_an_interpreter_with_another_version(machine: Machine, queue: Queue) -> None:
    python = environment_with(machine.app, "1.9.0")
    machine.start_cron()
    machine.add_line(f"cd {machine.app} && {python} worker.py")
    found = machine.doctor()
    assert found.has("mixed-versions", "wrong", "has version 1.9.0", "pip install dbbasic-queue==")


@needs_user
def test_another_user_s_program_is_not_started_as_root(
    machine: Machine, user: User, users_queue: Path
) -> None:
    """The planted interpreter reports who runs it."""
    machine.start_cron()
    python = user.app / "python3"
    python.write_text(f"#!/bin/sh\nid -un >> {user.app}/ran\necho 1.9.0\n")
    python.chmod(0o755)
    machine.add_file(
        "/etc/cron.d/app", f"* * * * * {user.name} cd {user.app} && {python} worker.py\n"
    )
    found = machine.doctor("--file", str(users_queue))
    assert found["mixed-versions"]["level"] == "wrong"
    assert (user.app / "ran").read_text() == f"{user.name}\n"


@needs_user
def test_the_user_of_a_line_must_be_able_to_use_the_queue(
    machine: Machine, user: User, queue: Queue, path: Path
) -> None:
    machine.start_cron()
    machine.add_file(
        "/etc/cron.d/app", f"* * * * * {user.name} cd {machine.app} && /usr/bin/python3 worker.py\n"
    )
    found = machine.doctor()
    assert found.has("user-access", "wrong", f"{user.name} can't use", "usermod")


def test_no_program_that_sends_mail(machine: Machine, queue: Queue) -> None:
    machine.start_cron()
    machine.add_line(good_line(machine.app))
    (machine.app / "empty").touch()
    machine.add(f"mount --bind {machine.app}/empty /usr/sbin/sendmail")
    machine.add(f"[ ! -e /usr/lib/sendmail ] || mount --bind {machine.app}/empty /usr/lib/sendmail")
    machine.add("PATH=/usr/bin:/bin")
    found = machine.doctor()
    assert found.has("no-sendmail", "warning", "there is no sendmail program", "msmtp-mta")


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_a_network_file_system(machine: Machine, queue: Queue, kind: str) -> None:
    """Only the kernel's list of mounts is planted: a real one would need a server."""
    mounts = machine.app / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {machine.app}/data {kind} rw 0 0\n")
    machine.add(f"mount --bind {mounts} /proc/1/mounts")
    found = machine.doctor()
    assert found.has("network-file-system", "wrong", kind, "move the queue to a local disk")


def test_a_mail_queue_that_grows(machine: Machine, queue: Queue) -> None:
    machine.start_cron()
    machine.add_line(good_line(machine.app))
    machine.add("mkdir -p /var/spool/postfix/deferred/A")
    machine.add(
        "for n in $(seq 30); do touch -d '2 hours ago' /var/spool/postfix/deferred/A/$n; done"
    )
    found = machine.doctor()
    assert found.has("mail-stuck", "warning", "30 mails wait in /var/spool/postfix", "mailq")


def test_a_test_mail(machine: Machine, queue: Queue) -> None:
    sent = machine.app / "sent"
    machine.add_file("/etc/cron.d/sendmail", f"#!/bin/sh\necho $* > {sent}\ncat >> {sent}\n")
    machine.add("chmod +x /etc/cron.d/sendmail")
    machine.add("mount --bind /etc/cron.d/sendmail /usr/sbin/sendmail")
    found = machine.doctor("--send-test-mail", "ada@example.com")
    assert found["test-mail"]["level"] == "ok"
    assert sent.read_text().startswith("-i -- ada@example.com\nTo: ada@example.com\n")
    machine.add(f"mount --bind {shutil.which('false')} /usr/sbin/sendmail")
    found = machine.doctor("--send-test-mail", "ada@example.com")
    assert found["test-mail"]["level"] == "wrong"
