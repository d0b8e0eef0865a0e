"""A FastAPI app with a worker in its lifespan. One handler is a coroutine, one a function."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import PlainTextResponse
from helpers import QUEUE
from web_app import work

from dbbasic_queue import Job, Queue, Worker, aenqueue, enqueue

faulthandler.register(signal.SIGRTMIN, chain=False)


async def work_in_the_loop(payload: object, job: Job) -> None:
    await asyncio.sleep(0.001)
    work(payload, job)


HANDLERS = {"work": work, "work_in_the_loop": work_in_the_loop}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Queue(QUEUE) as queue:
        async with Worker(queue, HANDLERS, max_attempts=100):
            yield


app = FastAPI(lifespan=lifespan, default_response_class=PlainTextResponse)


@app.get("/coroutine/{n}")
async def in_a_coroutine(n: int) -> str:
    ids = await asyncio.gather(
        aenqueue("work_in_the_loop", f"coroutine {n}"), aenqueue("work", f"coroutine {n}, too")
    )
    return " ".join([str(os.getpid()), *ids])


@app.get("/function/{n}")
def in_a_thread(n: int) -> str:
    return f"{os.getpid()} {enqueue('work_in_the_loop', f'function {n}')}"


@app.get("/background/{n}")
async def in_the_background(n: int, tasks: BackgroundTasks) -> str:
    ids = [f"background-{n}", f"background-{n}-too"]
    tasks.add_task(aenqueue, "work", f"background {n}", job_id=ids[0])
    tasks.add_task(enqueue, "work", f"background {n}, too", job_id=ids[1])
    return " ".join([str(os.getpid()), *ids])
