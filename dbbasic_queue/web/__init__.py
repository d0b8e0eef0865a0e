"""The page: a queue in the browser, as a WSGI and ASGI application.

`application` answers a request. The screens are `now`, `jobs`, `job`, `schedules` and `attempts`;
`actions` changes jobs. `wsgi` and `asgi` translate for a web server, and `server` is one for this
machine only.
"""

from __future__ import annotations

from dbbasic_queue.web.access import Access
from dbbasic_queue.web.application import Page, page

__all__ = ["Access", "Page", "page"]
