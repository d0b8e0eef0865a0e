"""The queue and its jobs. Nothing here needs the web app, so cron or systemd can run them, too."""

import asyncio

from dbbasic_queue import Handlers, Queue

queue = Queue("data/queue.tsv")
jobs = Handlers(queue=queue)


@jobs.handler
async def summarize(text):
    """Jobs that are coroutine functions run next to each other."""
    await asyncio.sleep(0.1)  # as if a service were asked
    return " ".join(text.split()[:3]) + " ..."


@jobs.handler
def count(text):
    """Plain functions run one at a time. None of them holds up a request."""
    return len(text.split())
