"""A task in a module that passes don't import unless OPTIONS names it."""

from __future__ import annotations

from dbbasic_queue.django import task


@task
def greet(name: str) -> str:
    return f"Hello {name}"
