"""What the site does after its answer to a request."""

from django.core.mail import send_mail
from django.utils import timezone

from dbbasic_queue.django import task
from shop.models import Order


@task
def send_receipt(order_id):
    """Send a receipt by mail, unless an earlier attempt has done it."""
    order = Order.objects.get(pk=order_id)
    if order.mailed_at is not None:
        return "sent before"
    send_mail("Your order", f"Thank you for order {order.pk}.", "shop@localhost", [order.email])
    order.mailed_at = timezone.now()
    order.save(update_fields=["mailed_at"])
    return "sent"
