"""The example of docs/web.md for Django: the page in front of a site, for staff who signed in."""

from __future__ import annotations

import sys
from http.cookies import SimpleCookie
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from helpers import PROJECT

from dbbasic_queue import Queue

sys.path.insert(0, str(PROJECT / "tests/docs"))
from blocks import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

(CODE,) = [
    block.code for block in blocks_of(PROJECT / "docs/web.md") if block.file == "mysite/wsgi.py"
]


class Answer(NamedTuple):
    """The site's answer to a request."""

    status: int
    headers: dict[str, str]
    text: str


class Site:
    """The WSGI application of the example, with the queue of the test."""

    def __init__(self, path: Path) -> None:
        names: dict[str, Any] = {"__name__": "mysite.wsgi"}
        exec(CODE.replace("/srv/app/data/queue.tsv", str(path)), names)
        self._application = names["application"]

    def request(self, path: str, cookies: dict[str, str], **form: str) -> Answer:
        """Send a GET, or a POST with a form of the page."""
        body = urlencode(form).encode()
        environ: dict[str, Any] = {"PATH_INFO": path, "HTTP_HOST": "localhost"}
        setup_testing_defaults(environ)
        environ["HTTP_COOKIE"] = "; ".join(f"{name}={text}" for name, text in cookies.items())
        if form:
            environ |= {"REQUEST_METHOD": "POST", "HTTP_ORIGIN": "http://localhost"}
            environ |= {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
            environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body)}
        started: list[Any] = []
        found = self._application(environ, lambda *given: started.append(given))
        text = b"".join(found).decode()
        if hasattr(found, "close"):
            found.close()
        ((status, headers, *_),) = started
        return Answer(int(status.split()[0]), {k.lower(): v for k, v in headers}, text)


@pytest.fixture
def site(path: Path) -> Site:
    return Site(path)


@pytest.fixture(autouse=True)
def no_users() -> Iterator[None]:
    """Removes the users of a test."""
    yield
    User.objects.all().delete()


def session_of(name: str, **user: Any) -> dict[str, str]:
    """Return the cookies of a new user who is signed in."""
    client = Client()
    client.force_login(User.objects.create_user(name, **user))
    return {settings.SESSION_COOKIE_NAME: client.cookies[settings.SESSION_COOKIE_NAME].value}


def test_the_page_is_for_staff_and_the_rest_of_the_site_for_all(site: Site) -> None:
    for cookies in ({}, {settings.SESSION_COOKIE_NAME: "made-up"}, session_of("eve")):
        assert site.request("/queue/", cookies).status == 403
    gone = session_of("bob", is_staff=True, is_active=False)
    assert site.request("/queue/", gone).status == 403
    staff = session_of("ada", is_staff=True)
    found = site.request("/queue/", staff)
    assert found.status == 200 and 'href="/queue/jobs"' in found.text
    assert site.request("/queue", staff).headers["location"] == "/queue/"
    assert "E-mail" in site.request("/", {}).text
    assert site.request("/queues/", staff).status == 404


def test_only_superusers_can_change_jobs(site: Site, path: Path) -> None:
    with Queue(path) as queue:
        job_id = queue.enqueue("greet", {})
        for user, status in (
            ({"is_staff": True}, "pending"),
            ({"is_superuser": True}, "cancelled"),
        ):
            cookies = session_of(f"{status}-user", **user)
            shown = site.request("/queue/", cookies)
            cookies |= {k: m.value for k, m in SimpleCookie(shown.headers["set-cookie"]).items()}
            token = cookies["dbbasic_queue_form"]
            site.request("/queue/job/cancel", cookies, token=token, id=job_id)
            job = queue.get_job(job_id)
            assert job is not None and job["status"] == status
