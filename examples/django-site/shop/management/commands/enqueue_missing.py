"""`manage.py enqueue_missing`: enqueues the receipts that a killed server hasn't enqueued."""

from django.core.management.base import BaseCommand

from shop.models import Order
from shop.orders import enqueue_receipt


class Command(BaseCommand):
    """Enqueues what is missing."""

    help = "Enqueue the receipts of orders whose server died between commit and enqueue."

    def handle(self, *args, **options):
        """Enqueue a receipt for each order without one, unless its job is there already."""
        for order in Order.objects.filter(mailed_at=None).iterator():
            enqueue_receipt(order)
