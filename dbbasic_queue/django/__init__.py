"""Django's tasks in a dbbasic_queue: a backend for TASKS, management commands and system checks."""

from __future__ import annotations

from dbbasic_queue.django.backend import TextFileBackend
from dbbasic_queue.django.framework import task

__all__ = ["TextFileBackend", "task"]
