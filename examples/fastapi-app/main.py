"""Work on texts: a request adds a job, and a worker inside the app runs it."""

import hmac
import os
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from jobs import jobs, queue
from starlette.middleware.sessions import SessionMiddleware

from dbbasic_queue import JobNotFound, Worker
from dbbasic_queue.web import Access, page


@asynccontextmanager
async def lifespan(app):
    async with Worker(queue, jobs):  # when the server stops, running jobs are finished first
        yield


def allow(request):
    """Let someone who has signed in see and change the queue, below /queue."""
    is_admin = request.source["session"].get("is_admin")
    return Access("all", user="admin") if is_admin else None


app = FastAPI(lifespan=lifespan)
app.mount("/queue", page(queue, allow).asgi)
app.add_middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])


@app.post("/texts")
async def add(request: Request, background: BackgroundTasks):
    text = (await request.body()).decode(errors="replace")
    job_id = await queue.aenqueue("summarize", text)
    # After the response. If the server is killed before that, this job is missing.
    background.add_task(queue.aenqueue, "count", text)
    return {"id": job_id}


@app.get("/texts/{job_id}")
async def summary(job_id: str):
    try:
        job = await queue.await_job(job_id, timeout=10)
    except JobNotFound:
        raise HTTPException(404) from None
    return {"status": job["status"], "summary": job["result"]} if job else {"status": "pending"}


@app.post("/login")
async def login(request: Request):
    given = parse_qs((await request.body()).decode(errors="replace")).get("password", [""])[0]
    if not hmac.compare_digest(given.encode(), os.environ["ADMIN_PASSWORD"].encode()):
        raise HTTPException(403)
    request.session["is_admin"] = True
    return {"queue": "/queue/"}
