"""`Queue.await_job`: many coroutines wait for jobs, and the event loop's threads stay free."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import job

from dbbasic_queue import JobNotFound, NotAQueue, Queue, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MANY = 1000


class Pool(ThreadPoolExecutor):
    """A thread pool with two threads that notes how much it was asked to do at a time."""

    def __init__(self) -> None:
        super().__init__(2)
        self.open = self.most = self.calls = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        self.open += 1
        self.most = max(self.most, self.open)
        future = super().submit(function, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: object) -> None:
        self.open -= 1


async def with_pool(main: Callable[[Pool], Coroutine[Any, Any, None]]) -> None:
    pool = Pool()
    asyncio.get_running_loop().set_default_executor(pool)
    await main(pool)
    assert waiting._watchers == {}


@pytest.fixture(params=["file", "memory"])
def any_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Queue:
    """A queue in a file, or in memory."""
    return Queue("memory:" if request.param == "memory" else tmp_path / "queue.tsv")


def test_a_thousand_coroutines_that_wait_need_one_thread_at_a_time(any_queue: Queue) -> None:
    async def main(pool: Pool) -> None:
        ids = any_queue.enqueue_many("double", range(MANY))
        tasks = [asyncio.ensure_future(any_queue.await_job(job_id, 60)) for job_id in ids]
        while pool.calls < 5:
            await asyncio.sleep(0.001)
        assert pool.most == 1
        # The second thread is free for others.
        assert await asyncio.to_thread(lambda: "at once") == "at once"
        await asyncio.to_thread(any_queue.process_jobs, {"double": lambda n: 2 * n})
        found = await asyncio.gather(*tasks)
        assert [row["result"] for row in found if row] == [2 * n for n in range(MANY)]
        assert pool.most == 2

    asyncio.run(with_pool(main))


def test_each_coroutine_has_its_own_timeout_and_its_own_copy(any_queue: Queue) -> None:
    async def main(pool: Pool) -> None:
        done, never = any_queue.enqueue("greet", {}), any_queue.enqueue("later", {})
        any_queue.process_jobs({"greet": str}, skip_unknown=True)
        found: list[Any] = await asyncio.gather(
            any_queue.await_job(never, 0),
            any_queue.await_job(never, 0.02),
            any_queue.await_job(done, 60),
            any_queue.await_job(done, -1),
            any_queue.await_job("unknown", 60),
            return_exceptions=True,
        )
        now, soon, first, second, left = found
        assert now is soon is None
        assert first == second == any_queue.get_job(done)
        assert first is not second
        assert isinstance(left, JobNotFound)

    asyncio.run(with_pool(main))


def test_who_stops_waiting_isnt_looked_for_any_more(any_queue: Queue) -> None:
    async def main(pool: Pool) -> None:
        job_id = any_queue.enqueue("greet", {})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(any_queue.await_job(job_id, 60), 0.02)
        calls = pool.calls
        await asyncio.sleep(0.02)
        assert pool.calls == calls

    asyncio.run(with_pool(main))


def test_an_error_of_the_queue_reaches_all_who_wait(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue.tsv")

    async def main(pool: Pool) -> None:
        ids = queue.enqueue_many("greet", range(3))
        tasks = [asyncio.ensure_future(queue.await_job(job_id, 60)) for job_id in ids]
        await asyncio.sleep(0)
        queue.close()
        (tmp_path / "queue.tsv").unlink()
        (tmp_path / "queue.tsv").write_text("another program's file\n")
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, NotAQueue)

    asyncio.run(with_pool(main))


def test_on_a_slow_server_a_finished_job_doesnt_wait_for_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each look for a job takes a while; the first ones get their jobs before the others."""
    queue = Queue("memory:")
    monkeypatch.setattr(waiting, "_LONGEST_LOOK_SECONDS", 0.0)

    async def main(pool: Pool) -> None:
        ids = queue.enqueue_many("greet", range(50))
        queue.process_jobs({"greet": str})
        tasks = [asyncio.ensure_future(queue.await_job(job_id, 60)) for job_id in ids]
        await tasks[0]
        assert sum(task.done() for task in tasks) < 5
        found = await asyncio.gather(*tasks)
        assert [row["result"] for row in found if row] == [str(n) for n in range(50)]
        assert (pool.calls, pool.most) == (50, 1)

    asyncio.run(with_pool(main))


def test_a_thread_pool_that_was_shut_down_is_an_error(any_queue: Queue) -> None:
    async def main(pool: Pool) -> None:
        job_id = any_queue.enqueue("greet", {})
        pool.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            await any_queue.await_job(job_id, 60)

    asyncio.run(with_pool(main))


def test_jobs_that_wait_in_one_pass_dont_disturb_each_other(any_queue: Queue) -> None:
    """A job may cancel all tasks that it sees; others still get what they wait for."""
    awaited = any_queue.enqueue("awaited", {}, 2_000_000_000)

    async def wait(_: object) -> str:
        found = await any_queue.await_job(awaited, 60)
        return str(found and found["status"])

    async def cancel(_: object) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(any_queue.await_job(awaited, 60), 0.02)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        any_queue.cancel_job(awaited)

    first, second = any_queue.enqueue("wait", {}), any_queue.enqueue("cancel", {})
    any_queue.process_jobs({"wait": wait, "cancel": cancel}, workers=2)
    assert job(any_queue, second)["status"] == "completed"
    assert (job(any_queue, first)["status"], job(any_queue, first)["result"]) == (
        "completed",
        "cancelled",
    )
