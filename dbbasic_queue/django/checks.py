"""What Django's system checks report about the app."""

from __future__ import annotations

from django.core.checks import Warning

from dbbasic_queue.django.backend import TextFileBackend
from dbbasic_queue.django.framework import task_backends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check_app(app_configs: Any = None, **kwargs: Any) -> list[Any]:
    """Warn if the app is installed, and no backend uses it."""
    if any(isinstance(backend, TextFileBackend) for backend in task_backends.all()):
        return []
    return [
        Warning(
            "dbbasic_queue.django is in INSTALLED_APPS, and no backend in TASKS uses it",
            hint='Set TASKS = {"default": {"BACKEND": "dbbasic_queue.django.TextFileBackend"}}.',
            id="dbbasic_queue.W004",
        )
    ]
