"""The jobs: one that prints what it does, and one that takes a while."""

import time

from dbbasic_queue import Handlers

jobs = Handlers()


@jobs.handler(max_attempts=5)
def greet(name):
    return f"Hello, {name}!"


@jobs.handler(timeout=600)
def count(number, job):
    """Run in a process of its own, which is ended after ten minutes."""
    for n in range(number):
        job.progress(n + 1, number)
        time.sleep(0.01)
    return number
