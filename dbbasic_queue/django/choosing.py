"""The backend that a management command works on."""

from __future__ import annotations

from django.core.management.base import CommandError

from dbbasic_queue.django.backend import TextFileBackend
from dbbasic_queue.django.framework import task_backends


def choose(alias: str | None) -> TextFileBackend:
    """Return the backend with an alias; without one, the only one, or "default".

    Raises CommandError if there is none, or if it isn't clear which one is meant.
    """
    ours = {
        backend.alias: backend
        for backend in task_backends.all()
        if isinstance(backend, TextFileBackend)
    }
    if alias is None and len(ours) > 1 and "default" not in ours:
        raise CommandError(f"name one of the backends with --backend: {', '.join(ours)}")
    if alias is None:
        alias = "default" if "default" in ours else next(iter(ours), None)
    if alias not in ours:
        raise CommandError(
            f"TASKS has no backend {alias or ''!r} with dbbasic_queue.django.TextFileBackend"
        )
    return ours[alias]
