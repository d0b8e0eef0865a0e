"""A model without a table: it has the permissions for the page, and its place in the admin."""

from __future__ import annotations

from django.db import models


class Queue(models.Model):
    """Stands for the queues of all backends. It has no row in the database."""

    class Meta:
        """Two permissions: to look at the page, and to change jobs there."""

        managed = False
        default_permissions = ("view", "change")
        verbose_name = "job queue"
        verbose_name_plural = "job queues"
