"""The page inside the admin: permissions to look and to act, and that other sites can't."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client, override_settings
from odd import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dbbasic_queue.django import TextFileBackend

PAGE = "/admin/dbbasic_queue/queue/default/"
INDEX = "/admin/dbbasic_queue/queue/"


@pytest.fixture
def log_in() -> Iterator[Callable[..., Client]]:
    """Logs a member of the staff in who has these permissions; forms are checked."""
    names = iter(("ada", "bob", "eve"))

    def client_of(*permissions: str, **user: Any) -> Client:
        made = User.objects.create_user(next(names), is_staff=True, **user)
        for name in permissions:
            made.user_permissions.add(Permission.objects.get(codename=name))
        client = Client(enforce_csrf_checks=True)
        client.force_login(made)
        return client

    yield client_of
    User.objects.all().delete()


def press(client: Client, address: str, button: str, **headers: str) -> Any:
    """Send the form on a screen that has this button."""
    text = client.get(address).content.decode()
    for form in re.findall(r"<form.*?</form>", text, re.DOTALL):
        if f">{button}</button>" in form:
            action = re.search(r'action="([^"]*)"', form)
            assert action is not None
            fields = dict(re.findall(r'name="([^"]*)" value="([^"]*)"', form))
            fields |= {k: v for v, k in re.findall(r'value="([^"]*)" name="([^"]*)"', form)}
            body = "&".join(f"{name}={value}" for name, value in fields.items())
            kind = "application/x-www-form-urlencoded"
            return client.post(action[1], body, content_type=kind, headers=headers)
    raise AssertionError(f"no button {button!r} in {re.findall(r'<button.*?</button>', text)}")


def test_users_who_can_view_see_the_page_and_no_buttons(
    log_in: Callable[..., Client],
) -> None:
    result = tasks.add.enqueue(1)
    client = log_in("view_queue")
    assert client.get("/admin/").content.count(f'href="{INDEX}"'.encode()) >= 1
    assert client.get(INDEX).headers["Location"] == PAGE
    now = client.get(PAGE)
    assert now.status_code == 200
    assert b"odd.tasks.add" in now.content
    job = client.get(f"{PAGE}job?id={result.id}").content.decode()
    assert result.id in job
    assert "<form" not in job
    sheet = re.search(r'href="([^"]*\.css)"', now.content.decode())
    assert sheet is not None
    assert sheet[1].startswith(PAGE)
    assert client.get(sheet[1]).headers["Content-Type"].startswith("text/css")


def test_users_who_can_change_can_act_and_the_log_has_their_name(
    log_in: Callable[..., Client], backend: TextFileBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbbasic_queue.web")
    result = tasks.add.enqueue(1)
    client = log_in("change_queue")
    done = press(client, f"{PAGE}job?id={result.id}", "Cancel")
    assert done.status_code == 303, done.content
    assert backend.get_result(result.id).status == "FAILED"
    assert "ada" in caplog.text
    superuser = log_in(is_superuser=True)
    assert press(superuser, f"{PAGE}job?id={result.id}", "Run again").status_code == 303
    assert backend.get_result(result.id).status == "READY"


def test_a_form_of_another_site_does_nothing(
    log_in: Callable[..., Client], backend: TextFileBackend
) -> None:
    result = tasks.add.enqueue(1)
    client = log_in("change_queue")
    screen = f"{PAGE}job?id={result.id}"
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert press(client, screen, "Cancel", **headers).status_code == 403
    body, kind = f"id={result.id}&token=", "application/x-www-form-urlencoded"
    assert client.post(f"{PAGE}cancel", body, content_type=kind).status_code in (403, 404)
    assert backend.get_result(result.id).status == "READY"


def test_others_dont_see_the_page(log_in: Callable[..., Client]) -> None:
    tasks.add.enqueue(1)
    staff = log_in()
    assert staff.get(PAGE).status_code == 403
    assert staff.get(INDEX).status_code == 403
    assert INDEX.encode() not in staff.get("/admin/").content
    for client in (Client(), log_in("change_queue", is_active=False)):
        answer = client.get(PAGE)
        assert (answer.status_code, "/login/" in answer.headers["Location"]) == (302, True)
    assert staff.get("/admin/dbbasic_queue/queue/nothing/").status_code == 404


def test_the_host_must_be_one_of_the_sites_own(log_in: Callable[..., Client]) -> None:
    client = log_in("view_queue")
    assert client.get(PAGE, headers={"host": "evil.example"}).status_code == 400


def test_several_queues_are_listed(log_in: Callable[..., Client], path: Path) -> None:
    one = {"BACKEND": "dbbasic_queue.django.TextFileBackend", "OPTIONS": {"PATH": path}}
    client = log_in("view_queue")
    with override_settings(TASKS={"default": one, "mail": one}):
        listed = client.get(INDEX).content.decode()
        assert f'href="{PAGE}"' in listed
        assert f'href="{INDEX}mail/"' in listed
    with override_settings(TASKS={}):
        assert "No backend" in client.get(INDEX).content.decode()
