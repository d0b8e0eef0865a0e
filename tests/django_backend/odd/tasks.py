"""Tasks for the tests. Not all functions here are tasks."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from dbbasic_queue import Delay, Fail
from dbbasic_queue.django import task


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task
async def add_later(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@task
def fail(text: str) -> None:
    raise ValueError(text)


@task
def refuse(text: str) -> None:
    raise Fail(text)


@task
def wait_a_day() -> None:
    raise Delay(86400, "not today")


@task(takes_context=True)
def succeed_at(context: Any, attempt: int) -> list[Any]:
    if context.attempt < attempt:
        raise ConnectionError(f"attempt {context.attempt}")
    return [context.attempt, context.task_result.id, len(context.task_result.worker_ids)]


@task
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@task
def die() -> None:
    os._exit(9)


@task
def touch(path: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("x")


@task
def return_a_set() -> Any:
    return {1, 2}


@task
def look_at_connection() -> list[Any]:
    """Return this process, whether a connection was open, and that one works now."""
    was_open = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return [os.getpid(), was_open, *cursor.fetchone()]


@task
def look_in_own_process() -> list[Any]:
    result: list[Any] = look_at_connection.func()
    return result


@task
async def look_from_coroutine() -> list[Any]:
    result: list[Any] = await sync_to_async(look_at_connection.func)()
    return result


@task
async def look_from_coroutine_in_own_process() -> list[Any]:
    result: list[Any] = await sync_to_async(look_at_connection.func)()
    return result


def not_a_task(path: str) -> None:
    """Would be called if a row could name any function."""
    Path(path).touch()
