"""Programs that use a queue and fork: with or without Python's hooks, in one thread or several."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import python, store_of

from dbbasic_queue import Queue

PRELUDE = """
import os, sys, threading, time, warnings
from dbbasic_queue import Queue
warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks

def c_fork():
    "Fork as uWSGI does it: Python's hooks do not run."
    import ctypes
    return ctypes.PyDLL(None).fork()

def child(fork, work):
    "Run `work` in a forked process; return its process id."
    pid = fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as e:
            print("in the child:", repr(e), flush=True)
        finally:
            os._exit(code)
    return pid

def succeeds(pid):
    "Return whether a child succeeds within ten seconds."
    end = time.monotonic() + 10
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return False
        time.sleep(.002)

def held(suffix):
    "Return how many writable descriptors of one of the queue's files this process has."
    "A pass's spare ones, which are for reading and never locked, don't count."
    import fcntl
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                found.append(os.readlink("/proc/self/fd/" + fd))
        except OSError:
            pass
    return sum(name.endswith("queue.tsv" + suffix) for name in found)
"""

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs /proc, and a fork of the C library"
)


def run(directory: Path, program: str) -> None:
    # Without `site`: modules that an environment loads at startup would hide our late imports.
    done = python(PRELUDE + textwrap.dedent(program), cwd=directory, flags=("-S",))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


BEFORE_IMPORT = """
import importlib.abc, importlib.machinery

class Before(importlib.abc.MetaPathFinder):
    "Calls a function when a module is half imported: right before its code runs."
    def __init__(self, module, act):
        self.module, self.act = module, act
    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        self.module = ""
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (self.act(), execute(module))
        return spec
"""


@pytest.mark.parametrize("module", ["dbbasic_queue.model.strict_json", "json", "json.decoder"])
def test_a_child_forked_while_another_thread_imports_works_without_waiting(
    tmp_path: Path, module: str
) -> None:
    """The child inherits the half-imported module and its import lock, which nobody releases."""
    run(
        tmp_path,
        BEFORE_IMPORT
        + f"""
started, go = threading.Event(), threading.Event()

def wait():
    started.set()
    assert go.wait(10)

sys.meta_path.insert(0, Before({module!r}, wait))
queue = Queue("queue.tsv", fsync=False)
thread = threading.Thread(target=queue.enqueue, args=("work", [1]))
thread.start()
assert started.wait(10)
assert succeeds(child(os.fork, lambda: queue.cancel_job(queue.enqueue("work", [2]))))
assert thread.is_alive()
go.set()
thread.join()
assert [job["status"] for job in queue.jobs()] == ["cancelled", "pending"]
""",
    )


@pytest.mark.parametrize("how", ["several workers", "timeout"])
def test_a_job_can_import_a_module_that_another_thread_was_importing_at_the_fork(
    tmp_path: Path, how: str
) -> None:
    run(
        tmp_path,
        BEFORE_IMPORT
        + f"""
import signal
from dbbasic_queue import Handler
started, go = threading.Event(), threading.Event()

def wait():
    started.set()
    assert go.wait(30)

def imports(_):
    signal.alarm(10)  # instead of waiting forever
    import colorsys
    signal.alarm(0)
    return colorsys.rgb_to_hsv(0, 0, 1)[2]

queue = Queue("queue.tsv", fsync=False)
queue.enqueue_many("work", [1, 2])
sys.meta_path.insert(0, Before("colorsys", wait))
thread = threading.Thread(target=lambda: __import__("colorsys"), daemon=True)
thread.start()
assert started.wait(10)
if {how!r} == "several workers":
    counts = queue.process_jobs({{"work": imports}}, workers=2)
else:
    counts = queue.process_jobs({{"work": Handler(imports, timeout=10)}})
assert thread.is_alive()
go.set()
thread.join()
assert counts["completed"] == 2, list(queue.jobs())
""",
    )


@pytest.mark.parametrize("how", ["several workers", "timeout"])
def test_passes_that_are_forked_while_a_thread_prints_do_not_hang(tmp_path: Path, how: str) -> None:
    """The thread holds the lock of the buffer of stdout while it waits for the slow reader."""
    run(
        tmp_path,
        f"""
import logging, signal, traceback
from dbbasic_queue import Handler
os.register_at_fork(after_in_child=lambda: signal.alarm(10))  # instead of waiting forever
reading, writing = os.pipe()
sys.stdout = open(writing, "w", buffering=1)
logging.basicConfig(stream=sys.stdout, level=logging.INFO)

def read_slowly():
    while os.read(reading, 4096):
        time.sleep(.02)

def print_all_the_time():
    while True:
        print("x" * 3000)

def prints(_):
    print("a job prints")
    logging.info("and logs")

code = 1
try:
    for target in (read_slowly, print_all_the_time):
        threading.Thread(target=target, daemon=True).start()
    queue = Queue("queue.tsv", fsync=False)
    for _ in range(5):
        queue.enqueue_many("work", [1, 2])
        if {how!r} == "several workers":
            counts = queue.process_jobs({{"work": prints}}, workers=2)
        else:
            counts = queue.process_jobs({{"work": Handler(prints, timeout=10)}})
        assert counts["completed"] == 2, list(queue.jobs())
    code = 0
except BaseException:
    traceback.print_exc()
finally:
    os._exit(code)
""",
    )


def test_a_signal_handler_may_fork_while_its_thread_imports(tmp_path: Path) -> None:
    run(
        tmp_path,
        BEFORE_IMPORT
        + """
import signal
pids, forked = [], threading.Event()

def fork(*_):
    pids.append(os.fork())
    forked.set()

def interrupt():
    os.kill(os.getpid(), signal.SIGUSR1)
    assert forked.wait(10)

signal.signal(signal.SIGUSR1, fork)
sys.meta_path.insert(0, Before("json", interrupt))
from dbbasic_queue.model.jsontext import encode_json
assert encode_json([1], 9) == "[1]"
if pids == [0]:
    os._exit(0)
assert succeeds(pids[0])
""",
    )


@linux_only
def test_processes_forked_in_c_share_a_queue_lose_no_job_and_use_no_id_twice(
    tmp_path: Path,
) -> None:
    run(
        tmp_path,
        """
        queue = Queue("queue.tsv", fsync=False)
        queue.cancel_job(queue.enqueue("boot", {}))
        from dbbasic_queue import DuplicateJob

        def work():
            os.read(start, 1)
            for n in range(60):
                assert queue.cancel_job(queue.enqueue("work", n))
                os.sched_yield()  # so that the children take turns
                try:
                    queue.enqueue("once", n, job_id=f"once-{n}")
                    os.write(given, b"x")
                except DuplicateJob:
                    pass

        given = os.open("given", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        start, all_forked = os.pipe()
        children = [child(c_fork, work) for _ in range(3)]
        os.write(all_forked, b"xxx")
        assert all([succeeds(pid) for pid in children])
        counts = queue.counts()
        assert (counts["cancelled"], counts["pending"]) == (181, 60), counts
        assert os.path.getsize("given") == 60
        """,
    )


@linux_only
def test_a_process_forked_in_c_waits_while_another_one_holds_the_lock(tmp_path: Path) -> None:
    """Otherwise both have the parent's descriptor of the lock file, and so its lock."""
    run(
        tmp_path,
        """
        queue = Queue("queue.tsv", fsync=False)
        queue.cancel_job(queue.enqueue("boot", {}))
        entered, enter = os.pipe()
        leave, allow = os.pipe()

        def wait():
            os.write(enter, b"x")
            os.read(leave, 1)

        holding = child(c_fork, lambda: queue.store.lock.run(wait))
        os.read(entered, 1)
        adding = child(c_fork, lambda: queue.enqueue("work", 1))
        end = time.monotonic() + 0.5
        ended = 0
        while time.monotonic() < end and not ended:
            time.sleep(0.01)
            ended, _ = os.waitpid(adding, os.WNOHANG)
        os.write(allow, b"x")
        assert not ended, "it didn't wait"
        assert succeeds(holding) and succeeds(adding)
        assert queue.counts()["pending"] == 1
        """,
    )


@linux_only
@pytest.mark.parametrize("call", ["lock.run", "lock.read"])
def test_a_process_forked_in_c_while_a_thread_is_in_a_call_does_not_wait_for_that_thread(
    tmp_path: Path, call: str
) -> None:
    run(
        tmp_path,
        f"""
        queue = Queue("queue.tsv", fsync=False)
        job_id = queue.enqueue("work", 1)
        started, go = threading.Event(), threading.Event()
        def hold():
            started.set()
            assert go.wait(10)
        thread = threading.Thread(target=queue.store.{call}, args=(hold,))
        thread.start()
        assert started.wait(10)
        assert succeeds(child(c_fork, lambda: queue.get_job(job_id)["id"]))
        go.set()
        thread.join()
        """,
    )


@linux_only
def test_a_process_forked_in_c_keeps_no_slot_of_a_pass_that_has_ended(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import fcntl
        read, write = os.pipe()
        pids = []
        def fork(_):
            pids.append(child(c_fork, lambda: os.read(read, 1)))
        queue = Queue("queue.tsv", fsync=False)
        queue.enqueue("fork", {})
        assert queue.process_jobs({"fork": fork})["completed"] == 1
        with open("queue.tsv.pass.1") as slot:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(write, b"x")
        assert succeeds(pids[0])
        """,
    )


@linux_only
@pytest.mark.parametrize("suffix", [".lock", ".pass.1"])
def test_a_fork_while_another_thread_opens_a_lock_file_gives_the_child_no_copy(
    tmp_path: Path, suffix: str
) -> None:
    run(
        tmp_path,
        f"""
        opened, forking = threading.Event(), threading.Event()
        os.register_at_fork(before=forking.set)  # runs before the hooks that were there first
        real = os.open
        def open_slowly(path, *args, **kwargs):
            fd = real(path, *args, **kwargs)
            if str(path).endswith("queue.tsv{suffix}") and not opened.is_set():
                opened.set()
                assert forking.wait(10)
            return fd

        queue = Queue("queue.tsv", fsync=False)
        queue.enqueue("work", {{}})
        queue.close()
        from unittest.mock import patch
        with patch("os.open", open_slowly):
            args = {{"work": lambda _: None}},
            thread = threading.Thread(target=queue.process_jobs, args=args)
            thread.start()
            assert opened.wait(10)
            def look():
                assert held("{suffix}") == 0
            assert succeeds(child(os.fork, look))
            thread.join()
        assert queue.counts()["completed"] == 1
        """,
    )


def test_threads_can_fork_at_the_same_time_after_a_queue_was_used(
    tmp_path: Path,
) -> None:
    run(
        tmp_path,
        """
        queue = Queue("queue.tsv", fsync=False)
        queue.enqueue("work", {})
        ended = []
        def fork():
            for _ in range(40):
                ended.append(succeeds(child(os.fork, int)))
        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert ended == [True] * 120
        """,
    )


def test_a_dropped_queue_closes_its_files_without_a_garbage_collector(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import gc
        gc.disable()
        def use():
            queue = Queue("queue.tsv", fsync=False)
            queue.cancel_job(queue.enqueue("work", 1))
            queue.process_jobs({"work": str})
            lowest = os.open(".", os.O_RDONLY)
            os.close(lowest)
            return lowest
        use()
        first = os.open(".", os.O_RDONLY)
        os.close(first)
        for _ in range(5):
            use()
        last = os.open(".", os.O_RDONLY)
        assert last == first, (first, last)
        """,
    )


# -- descriptors that the program closes


CLOSE_ALL = """
def close_all():
    "Close all descriptors, as some daemon libraries do, and open files with the same numbers."
    os.closerange(3, 256)
    own = [os.open(f"own-{n}", os.O_RDWR | os.O_CREAT | os.O_APPEND) for n in range(12)]
    for fd in own:
        os.write(fd, b"of the program")

def check():
    for n in range(12):
        with open(f"own-{n}", "rb") as file:
            assert file.read() == b"of the program"
"""


@pytest.mark.parametrize("rows", [3, 900])
def test_a_program_that_closes_all_descriptors_finds_no_rows_in_its_own_files(
    tmp_path: Path, rows: int
) -> None:
    """Also with a long queue file, which is recognised by its last bytes."""
    run(
        tmp_path,
        CLOSE_ALL
        + f"""
queue = Queue("queue.tsv")
for n in range({rows}):
    first = queue.enqueue("work", {{"padding": "x" * 40}})
assert queue.cancel_job(first)
queue.get_job(first)
close_all()
second = queue.enqueue("work", 2)
assert queue.cancel_job(second)
assert queue.get_job(first)["status"] == queue.get_job(second)["status"] == "cancelled"
queue.close()
check()
assert queue.counts() | {{}} == {{**queue.counts(), "pending": {rows} - 1, "cancelled": 2}}
""",
    )


@pytest.mark.parametrize("closing", [0, 3])
def test_a_pass_whose_slot_was_closed_records_that_job_and_starts_no_other(
    tmp_path: Path, closing: int
) -> None:
    """Also in the middle of a batch: other passes assume that the rest is lost, and run it."""
    run(
        tmp_path,
        CLOSE_ALL
        + f"""
from dbbasic_queue import StoreError
calls = []
def work(n):
    calls.append(n)
    if n == {closing}:
        close_all()
queue = Queue("queue.tsv")
queue.enqueue_many("work", range(9))
try:
    queue.process_jobs({{"work": work}})
except StoreError as e:
    assert "the program has closed this file's descriptor: no further job is started" in str(e), e
else:
    raise AssertionError("the pass went on")
done = [*range({closing} + 1)]
assert calls == done
statuses = [job["status"] for job in queue.jobs()]
assert statuses[:len(done)] == ["completed"] * len(done)
assert "completed" not in statuses[len(done):]
# Others assume that the pass has died in the next job of the batch: that waits for its backoff.
counts = Queue("queue.tsv").process_jobs({{"work": calls.append}})
waiting = {{3: 1, 0: 0}}[{closing}]
assert counts["completed"] == 9 - len(done) - waiting, counts
later = Queue("queue.tsv", clock=lambda: time.time() + 121)
assert later.process_jobs({{"work": calls.append}})["completed"] == waiting
assert sorted(calls) == [*range(9)]
check()
""",
    )


def test_no_file_of_the_queue_is_opened_as_standard_input_or_output(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        for fd in (0, 1, 2):
            os.close(fd)
        queue = Queue("queue.tsv", fsync=False)
        queue.cancel_job(queue.enqueue("work", 1))
        queue.process_jobs({"work": str})
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                continue
            os._exit(1)
        os._exit(0)
        """,
    )


def test_two_queues_of_one_program_on_one_file_notice_that_a_lock_descriptor_was_closed(
    tmp_path: Path,
) -> None:
    """A closed number may come back as the other queue's descriptor of the same lock file."""
    queue, other = Queue(tmp_path / "queue.tsv"), Queue(tmp_path / "queue.tsv")
    queue.enqueue("work", 1)
    lock = store_of(queue).lock._file
    assert lock is not None
    os.close(lock.fd)
    other.enqueue("work", 2)
    again = store_of(other).lock._file
    assert again is not None
    if again.fd == lock.fd:
        assert again.is_ours()
        assert not lock.is_ours()
    queue.enqueue("work", 3)
    assert queue.counts()["pending"] == 3
