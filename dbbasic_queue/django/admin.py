"""The page of `dbbasic_queue.web` inside Django's admin.

Staff with the permission to view job queues can look. With the permission to change them, and as a
superuser, they can act. The page checks its own forms, with a token and the header Origin, so
Django's check of forms is left out for it.
"""

from __future__ import annotations

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from dbbasic_queue.django.backend import TextFileBackend
from dbbasic_queue.django.framework import task_backends
from dbbasic_queue.django.models import Queue
from dbbasic_queue.web import Access, Page
from dbbasic_queue.web.requests import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_pages: dict[str, Page] = {}
"""path or URL of a queue -> its page, which has what all viewers share"""
_INDEX = "admin:dbbasic_queue_queue_changelist"


@admin.register(Queue)
class QueueAdmin(admin.ModelAdmin):
    """Leads to the pages: `queue/` to the only one, or to a list; `queue/default/` is a page."""

    def has_add_permission(self, request: Any) -> bool:
        """Return False: queues are set up in TASKS."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Return False, as for adding."""
        return False

    def get_urls(self) -> list[Any]:
        """Return the addresses of the list, and of all that a page has below its own."""

        def show(request: Any, alias: str, rest: str = "") -> Any:
            return self._page(request, alias, rest)

        show.csrf_exempt = True  # type: ignore[attr-defined]
        view = self.admin_site.admin_view(show, cacheable=True)
        index = self.admin_site.admin_view(self.changelist_view)
        return [
            path("", index, name="dbbasic_queue_queue_changelist"),
            path("<slug:alias>/", view, name="dbbasic_queue_queue_page"),
            path("<slug:alias>/<path:rest>", view),
        ]

    def changelist_view(self, request: Any, extra_context: Any = None) -> Any:
        """Redirect to the only page, or list the pages."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        aliases = [b.alias for b in task_backends.all() if isinstance(b, TextFileBackend)]
        index = reverse(_INDEX, current_app=self.admin_site.name)
        if len(aliases) == 1:
            return HttpResponseRedirect(f"{index}{aliases[0]}/")
        context = {
            **self.admin_site.each_context(request),
            "title": "Job queues",
            "links": [(alias, f"{index}{alias}/") for alias in aliases],
        }
        return TemplateResponse(request, "dbbasic_queue/queues.html", context)

    def _page(self, request: Any, alias: str, rest: str) -> Any:
        """Answer with the page of a backend's queue."""
        backend = task_backends[alias] if alias in task_backends.settings else None
        if not isinstance(backend, TextFileBackend):
            raise Http404(f"TASKS has no such backend: {alias}")
        queue = backend.queue
        if (page := _pages.get(queue.path)) is None:
            page = _pages.setdefault(queue.path, Page(queue, self._allow))
        index = reverse(_INDEX, current_app=self.admin_site.name)
        response = page.respond(_translated(request, f"{index}{alias}", f"/{rest}", page))
        answer = HttpResponse(response.body, status=response.status)
        for name, text in response.headers:
            if name.lower() == "set-cookie":
                answer.cookies.load(text)
            else:
                answer[name] = text
        return answer

    def _allow(self, request: Request) -> Access | None:
        """Return what a user of the admin may do."""
        source = request.source
        name = source.user.get_username()
        if self.has_change_permission(source):
            return Access("all", user=name)
        return Access("read", user=name) if self.has_view_permission(source) else None


def _translated(request: Any, prefix: str, below: str, page: Page) -> Request:
    """Return Django's request as one for the page. Raises DisallowedHost for another host."""
    headers = {name.lower(): text for name, text in request.headers.items()}
    headers["host"] = request.get_host()
    is_too_large = int(request.META.get("CONTENT_LENGTH") or 0) > page.largest_body
    return Request(
        request.method,
        below,
        request.META.get("QUERY_STRING", ""),
        headers,
        None if is_too_large else request.body,
        prefix=prefix,
        scheme=request.scheme,
        peer=request.META.get("REMOTE_ADDR", ""),
        source=request,
    )
