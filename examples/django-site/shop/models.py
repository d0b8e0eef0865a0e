"""Orders."""

from django.db import models


class Order(models.Model):
    """An order, and when its receipt was sent."""

    email = models.EmailField()
    mailed_at = models.DateTimeField(null=True, blank=True)

    def __str__(self):
        return f"order {self.pk} of {self.email}"
