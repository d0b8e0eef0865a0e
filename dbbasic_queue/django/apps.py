"""The Django app: management commands, system checks, and the page in the admin."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from dbbasic_queue.django.checks import check_app


class QueueConfig(AppConfig):
    """The app `dbbasic_queue.django`."""

    name = "dbbasic_queue.django"
    label = "dbbasic_queue"
    verbose_name = "Job queue"
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        """Register the system check."""
        checks.register(check_app)
