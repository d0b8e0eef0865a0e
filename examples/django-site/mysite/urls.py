"""The pages of the example site."""

from django.contrib import admin
from django.urls import path
from shop import views

urlpatterns = [
    path("", views.place_order),
    path("async/", views.place_order_async),
    path("admin/", admin.site.urls),
]
