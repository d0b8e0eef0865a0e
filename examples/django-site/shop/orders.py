"""How orders are placed."""

from django.core.validators import validate_email
from django.db import transaction

from shop.models import Order
from shop.tasks import send_receipt


def place(email):
    """Place an order, and return it. Its receipt is enqueued when the transaction commits.

    Raises ValidationError for an invalid address: then the transaction is rolled back, and there is
    neither an order nor a job.
    """
    with transaction.atomic():
        order = Order.objects.create(email=email)
        enqueue_receipt(order)
        validate_email(email)
    return order


def enqueue_receipt(order):
    """Enqueue the receipt of an order, unless that was done."""
    send_receipt.enqueue_once(f"receipt-{order.pk}", order.pk)
