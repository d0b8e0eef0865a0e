"""The page where one places an order."""

from asgiref.sync import sync_to_async
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.middleware.csrf import get_token

from shop.orders import place

FORM = """
<form method="post">
  <input type="hidden" name="csrfmiddlewaretoken" value="{token}">
  <label>E-mail: <input name="email" type="email"></label> <button>Order</button>
</form>
"""


def place_order(request):
    """Show the form, and place an order."""
    if request.method != "POST":
        return HttpResponse(FORM.format(token=get_token(request)))
    try:
        order = place(request.POST.get("email", ""))
    except ValidationError as e:
        return HttpResponse("\n".join(e.messages), status=400)
    return HttpResponse(f"Thank you for order {order.pk}.\n")


async def place_order_async(request):
    """Do the same in an async view: the transaction runs in a thread, as Django demands."""
    return await sync_to_async(place_order)(request)
