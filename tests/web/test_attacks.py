"""Attacks on the page: each is refused, or comes to nothing."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from helpers import NASTY, NOW, Clock, add_lines, job, join, line, raises, sibling
from visitor import ADA, HOST, Visitor, form_headers, new_log, text_of

from dbbasic_queue import Queue
from dbbasic_queue.web import Access, Page
from dbbasic_queue.web.application import SECURITY_HEADERS
from dbbasic_queue.web.door import ENTRY, Door
from dbbasic_queue.web.hiding import Hiding
from dbbasic_queue.web.requests import Request
from dbbasic_queue.web.server import MOST_CONNECTIONS, Server

PATHS = (
    "/",
    "/jobs",
    "/job",
    "/job/edit",
    "/schedules",
    "/schedules/run",
    "/attempts",
    "/jobs/requeue",
    "/jobs/cancel",
    "/jobs/stop",
    "/jobs/purge",
)
FORMS = (
    "/job/requeue",
    "/job/run_now",
    "/job/cancel",
    "/job/stop",
    "/job/purge",
    "/job/edit",
    "/jobs/requeue",
    "/jobs/cancel",
    "/jobs/stop",
    "/jobs/purge",
    "/types/pause",
    "/types/resume",
    "/schedules/run",
)


def is_unchanged(queue: Queue) -> bool:
    """Return whether the only job is pending, and nothing is paused."""
    statuses = [row.state.status for row in queue.store.rows()]
    return statuses == ["pending"] and not queue.paused()


@pytest.fixture
def victim(queue: Queue) -> Queue:
    """A queue with one pending job, "mine"."""
    queue.enqueue("greet", {"n": 1}, job_id="mine")
    return queue


# 1. The page was made without `allow`.


def test_without_allow_everything_is_refused_with_a_text_that_says_what_to_write(
    victim: Queue,
) -> None:
    page = Page(victim)
    for path in ("", *PATHS, *FORMS, "/static/page.css", "/nothing"):
        for method in ("GET", "HEAD", "POST"):
            response = page.respond(Request(method, path, "", {"host": HOST}))
            assert response.status == 403, (method, path)
            if method == "GET":
                assert b"page(queue, allow=allow)" in response.body
                assert b"mine" not in response.body
    assert is_unchanged(victim)


# 2. `allow` fails, or returns what it mustn't.


@pytest.mark.parametrize(
    "found",
    [
        True,
        1,
        "write",
        "",
        b"all",
        {"read"},
        {"cancel", "everything"},
        {"cancel": True},
        [None],
        lambda: "all",
        Access,
        0,
        False,
    ],
    ids=[f"value {n}" for n in range(13)],
)
def test_a_value_of_allow_that_means_nothing_opens_nothing(victim: Queue, found: Any) -> None:
    log, lines = new_log()
    visitor = Visitor(victim, found, log=log)
    assert {visitor.send("GET", path).status for path in PATHS} == {403}
    assert visitor.post("/jobs/cancel").status == 403
    assert is_unchanged(victim)
    assert "allow() failed" in lines[0]


@pytest.mark.parametrize("error", [KeyError("user"), SystemError("no database")])
def test_an_error_in_allow_opens_nothing(victim: Queue, error: Exception) -> None:
    log, lines = new_log()
    page = Page(victim, raises(error, error, error), log=log)
    for path in ("/", "/job"):
        response = page.respond(Request("GET", path, "", {"host": HOST}))
        assert response.status == 403 and b"user" not in response.body
    assert len(lines) == 2 and str(error) in lines[0]


def test_none_opens_nothing(victim: Queue) -> None:
    visitor = Visitor(victim, None)
    assert {visitor.send("GET", path).status for path in PATHS} == {403}


# 3. A page of another site sends a form.


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": f"http://{HOST}.evil.example"},
        {"origin": f"http://{HOST}:8080"},
        {"origin": f"http://evil.example/{HOST}"},
        {"origin": f"http://{HOST}@evil.example"},
        {"origin": f"http://[{HOST}"},
        {"origin": f"file://{HOST}"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": ""},
    ],
    ids=str,
)
def test_a_form_that_another_site_has_sent_is_refused(
    victim: Queue, headers: dict[str, str]
) -> None:
    visitor = Visitor(victim)
    token = visitor.token()  # even if it knew the token
    for path in FORMS:
        body = urlencode({"token": token, "id": "mine"}).encode()
        response = visitor.send("POST", path, body=body, **form_headers() | headers)
        assert response.status == 403, path
    assert is_unchanged(victim)


# 4. A form without the token, or with a wrong one.


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: {},
        lambda token: {"token": ""},
        lambda token: {"token": token[:-1]},
        lambda token: {"token": token + "0"},
        lambda token: {"token": token.upper() + "x"},
        lambda token: {"token": "0" * len(token)},
        lambda token: {"token": "ö" * len(token)},
    ],
)
def test_a_form_without_the_right_token_is_refused(victim: Queue, forge: Any) -> None:
    visitor = Visitor(victim)
    token = visitor.token()
    for path in FORMS:
        body = urlencode({**forge(token), "id": "mine"}).encode()
        assert visitor.send("POST", path, body=body, **form_headers()).status == 403, path
    assert is_unchanged(victim)


@pytest.mark.parametrize("cookie", ["", "x", "0" * 48, "dbbasic_queue_form=", "a=b; c"])
def test_a_token_without_its_cookie_is_refused(victim: Queue, cookie: str) -> None:
    visitor = Visitor(victim)
    token = visitor.token()
    body = urlencode({"token": token, "id": "mine"}).encode()
    response = visitor.send("POST", "/job/cancel", body=body, **form_headers(), cookie=cookie)
    assert response.status == 403 and is_unchanged(victim)


def test_two_cookies_of_the_same_name_are_not_believed(victim: Queue) -> None:
    visitor = Visitor(victim)
    token = visitor.token()
    forged = f"dbbasic_queue_form={'0' * 48}"
    body = urlencode({"token": "0" * 48, "id": "mine"}).encode()
    for cookie in (f"{forged}; dbbasic_queue_form={token}", f"{visitor.cookie}; {forged}"):
        response = visitor.send("POST", "/job/cancel", body=body, **form_headers(), cookie=cookie)
        assert response.status == 403
    assert is_unchanged(victim)


def test_the_cookie_is_for_this_site_only_and_no_script_can_read_it(victim: Queue) -> None:
    visitor = Visitor(victim)
    cookie = visitor.send("GET", "/").header("set-cookie") or ""
    assert re.fullmatch(
        r"dbbasic_queue_form=[0-9a-f]{48}; Path=/; HttpOnly; SameSite=Strict", cookie
    )
    visitor.cookie, visitor.scheme = "", "https"
    cookie = visitor.send("GET", "/").header("set-cookie") or ""
    assert cookie.startswith("__Host-dbbasic_queue_form=") and cookie.endswith("; Secure")
    assert "It was cancelled." in visitor.done("/job/cancel", id="mine")


# 5. A link, an image or a prefetch makes a change.


def test_no_get_and_no_head_changes_anything(victim: Queue) -> None:
    visitor = Visitor(victim)
    token = visitor.token()
    for path in FORMS:
        for method in ("GET", "HEAD"):
            visitor.send(method, path, urlencode({"token": token, "id": "mine", "payload": "1"}))
    assert is_unchanged(victim) and job(victim, "mine")["payload"] == {"n": 1}


# 6. A form of another kind, which a browser would send without asking.


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "", "a"])
def test_a_form_of_another_kind_is_refused(victim: Queue, kind: str) -> None:
    visitor = Visitor(victim)
    body = urlencode({"token": visitor.token(), "id": "mine"}).encode()
    headers = form_headers() | {"content_type": kind}
    assert visitor.send("POST", "/job/cancel", body=body, **headers).status == 415
    assert is_unchanged(victim)


# 7. DNS rebinding: another name suddenly means this server.


@pytest.mark.parametrize(
    "host", ["evil.example", f"{HOST}.evil.example", "", "127.0.0.1", f"evil@{HOST}", f"x{HOST}"]
)
def test_a_request_under_another_name_is_refused(victim: Queue, host: str) -> None:
    visitor = Visitor(victim, hosts=[HOST, "localhost"])
    assert visitor.send("GET", "/").status == 200
    assert visitor.send("GET", "/", host=HOST.upper() + ":8080").status == 200
    for path in PATHS:
        assert visitor.send("GET", path, host=host).status == 421
    body = urlencode({"token": visitor.token(), "id": "mine"}).encode()
    headers = form_headers() | {"host": host, "origin": f"http://{host}"}
    assert visitor.send("POST", "/job/cancel", body=body, **headers).status == 421
    assert is_unchanged(victim)


# 8. Framing, sniffing, inline scripts, other sites' scripts: the headers of every answer.


def test_every_answer_forbids_framing_inline_code_sniffing_and_caching(victim: Queue) -> None:
    visitor, closed = Visitor(victim), Visitor(victim, None)
    answers = [visitor.send("GET", path, "id=mine&name=x") for path in ("", *PATHS, "/nothing")]
    answers += [visitor.post(path, id="mine") for path in FORMS]
    answers += [
        closed.send("GET", "/"),
        visitor.send("PUT", "/"),
        visitor.send("GET", "/", "a=1&a=2"),
        visitor.send("POST", "/job/cancel"),
    ]
    assert {answer.status for answer in answers} >= {200, 303, 400, 403, 404, 405}
    for answer in answers:
        assert set(SECURITY_HEADERS) <= set(answer.headers)
        names = [name.lower() for name, _ in answer.headers]
        assert len(names) == len(set(names))
        assert answer.header("cache-control") == "no-store"
        assert "access-control-allow-origin" not in names
    policy = dict(SECURITY_HEADERS)["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy


# 9. Script in ids, types, payloads, results, errors, outputs, names of schedules.

SCRIPTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</textarea></title></style><svg/onload=alert(1)>",
    "javascript:alert(1)",
    "\u202e\u2066<b>\x1b[31m",
    "&lt;script&gt;&#0;",
)


class _Elements(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check_elements(page: str) -> None:
    """Check that a page has no element or attribute that it wasn't built with."""
    for name, attributes in _Elements(page).found:
        assert name not in ("img", "iframe", "style", "object", "base", "b", "embed"), page
        assert not any(key.startswith("on") or key == "style" for key in attributes), attributes
        for key in ("href", "src", "action"):
            address = attributes.get(key)
            assert address is None or re.match(r"/[^/\\]|/$|#", address), address
        if name == "script":
            assert set(attributes) == {"src", "defer"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_in_a_queue_is_only_text_on_every_screen(
    queue: Queue, path: Path, script: str
) -> None:
    text = json.dumps({script: [script, {script: script}]})
    one_line = script.encode("unicode_escape").decode()
    add_lines(
        path,
        line("bad", type=one_line, payload=text, status="failed", error=one_line, result=text),
        line("open", type=one_line, payload=text),
    )
    columns = "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
    sibling(path, "history").write_text(
        f"{columns}\tworker\texception\toutput_offset\n"
        f"bad\t{one_line}\t1\tfailed\t{NOW - 9}\t{NOW - 5}.000\t1.000000\t{one_line}\t"
        f"{one_line}\\n{one_line}\t{one_line}\t{one_line}\t0\n"
        f"open\t{one_line}\t1\t{one_line}\t{NOW - 9}\t{NOW - 4}.000\t1.000000\t{one_line}\t\t\t\t\n"
    )
    sibling(path, "output").write_text(
        f"id\ttype\tattempt\tended_at\tleft_out\toutput\nbad\tx\t1\t{NOW - 5}.000\t0\t{one_line}\n"
    )
    sibling(path, "schedule").write_text(
        "name\tprogram\ttype\texpression\ttimezone\tlast\tnext\n"
        f"nightly\t{one_line}\tgreet\t300s\t\t\t{NOW + 60}\n"
    )
    visitor = Visitor(queue, Access("all", user=script))
    fields = {"id": "bad", "name": "nightly"}
    for screen in PATHS:
        response = visitor.send("GET", screen, urlencode(fields))
        check_elements(response.body.decode())
    for screen in ("/jobs", "/jobs/purge", "/jobs/cancel"):
        for fields in ({"type": script}, {"text": script}):
            check_elements(visitor.get(screen, **fields))
    page = visitor.get("/job/edit", id="open")
    check_elements(page)
    check_elements(visitor.post("/job/edit", id="open", payload=script).body.decode())
    check_elements(visitor.get("/job", id="open", done=script, count=script))


def test_no_nasty_text_breaks_a_screen(queue: Queue) -> None:
    for number, text in enumerate(NASTY):
        if not any("\ud800" <= c <= "\udfff" for c in text):
            queue.enqueue("greet", {text: text}, job_id=f"job-{number}")
    visitor = Visitor(queue)
    check_elements(visitor.get("/jobs"))
    for row in queue.store.rows():
        check_elements(visitor.get("/job", id=row.id))


# 10. Tricks with the path.


@pytest.mark.parametrize(
    "trick",
    [
        "/../../etc/passwd",
        "/static/../application.py",
        "/static/page.css",
        "/static/..%2fapplication.py",
        "/static/",
        "//evil.example/",
        "/\\evil.example",
        "/jobs/",
        "/JOBS",
        "/jobs/requeue/..",
        "/job/requeue\0",
        "/%2e%2e/",
        "jobs",
        "/jobs;/x",
        "/ö",
    ],
)
def test_an_unknown_path_is_not_found(victim: Queue, trick: str) -> None:
    visitor = Visitor(victim)
    response = visitor.send("GET", trick)
    assert response.status == 404 and response.header("location") is None
    assert visitor.post(trick, id="mine").status == 404
    assert is_unchanged(victim)


# 11. Header injection.


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: x=1", "a\nb", "a\0b", "a\x1b[31m", "ä€"])
def test_no_field_gets_into_a_header_or_a_log_line(victim: Queue, text: str) -> None:
    log, lines = new_log()
    visitor = Visitor(victim, ADA, log=log)
    answers = [
        visitor.post("/jobs/cancel", status="failed", type=text, text=text),
        visitor.post("/job/cancel", id=text),
        visitor.post("/types/pause", type=text),
        visitor.post("/schedules/run", name=text, payload="1"),
        visitor.send("GET", "/jobs", urlencode({"text": text, "type": text})),
    ]
    for answer in answers:
        for name, value in answer.headers:
            assert value.isprintable() and value.isascii(), (name, value)
    assert all("\n" not in entry and "\r" not in entry and "\x1b" not in entry for entry in lines)
    assert is_unchanged(victim)


@pytest.mark.parametrize("prefix", ["//evil.example", "/\\evil.example", "https://evil.example"])
def test_a_prefix_cannot_lead_to_another_site(victim: Queue, prefix: str) -> None:
    page = Page(victim, lambda _: "all")
    for screen in ("", "/", "/jobs"):
        response = page.respond(Request("GET", screen, "", {"host": HOST}, prefix=prefix))
        assert re.match(r"/[^/\\]|$", response.header("location") or ""), response.headers
        check_elements(response.body.decode())


# 12. Huge and broken requests.


@pytest.mark.parametrize(
    "query",
    [
        "a=" + "x" * 5000,
        "&".join(f"f{n}=" for n in range(200)),
        "id=mine&id=other",
        "id=%ff",
        "id=%C3%28",
        "status=failed&status=",
    ],
    ids=lambda query: query[:20],
)
def test_a_huge_or_malformed_query_is_refused(victim: Queue, query: str) -> None:
    visitor = Visitor(victim)
    for path in PATHS:
        assert visitor.send("GET", path, query).status in (400, 414)
    if len(query) < 1000:
        body = f"token={visitor.token()}&{query}".encode()
        assert visitor.send("POST", "/job/cancel", body=body, **form_headers()).status == 400
    assert is_unchanged(victim)


@pytest.mark.parametrize("body", [b"\xff\xfe", b"id=%", b"\0", b"=", b"token"])
def test_a_malformed_form_is_refused(victim: Queue, body: bytes) -> None:
    visitor = Visitor(victim)
    visitor.token()
    assert visitor.send("POST", "/job/cancel", body=body, **form_headers()).status in (400, 403)
    assert is_unchanged(victim)


@pytest.mark.parametrize(
    "cursor", ["x", "1", "-1.a", f"1.{'a' * 65}", "9" * 13 + ".a", "1.", "٣.a"]
)
def test_an_invalid_page_is_refused(victim: Queue, cursor: str) -> None:
    assert Visitor(victim).send("GET", "/jobs", urlencode({"before": cursor})).status == 400


# 13. Odd methods, and HEAD.


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "", "X"])
def test_an_odd_method_is_refused(victim: Queue, method: str) -> None:
    for path in ("/", "/job/cancel"):
        response = Visitor(victim).send(method, path, "id=mine")
        assert response.status == 405
        assert response.header("allow") == "GET, HEAD, POST"
    assert is_unchanged(victim)


def test_a_head_request_has_the_headers_of_a_get_and_no_content(victim: Queue) -> None:
    visitor = Visitor(victim)
    visitor.token()
    for path in PATHS:
        get = visitor.send("GET", path, "id=mine")
        head = visitor.send("HEAD", path, "id=mine")
        assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


# 14. Hidden members.

SECRET = "s3cret-value"


def test_hidden_members_are_never_in_an_answer(queue: Queue, clock: Clock) -> None:
    payload = {
        "to": "ada",
        "Password": SECRET,
        "smtp": {"auth-token": [SECRET], "hosts": [{"API Key": {"deep": SECRET}}]},
        "secret": {"to": SECRET},
        "pickle": SECRET,
    }
    pending = queue.enqueue("greet", payload, run_at=NOW + 60)
    done = queue.enqueue("done", payload)
    queue.process_jobs({"done": lambda _: {"session_token": SECRET, "n": 1}}, skip_unknown=True)
    visitor = Visitor(queue)
    answers = []
    for job_id in (pending, done):
        for path in PATHS:
            answers.append(visitor.send("GET", path, urlencode({"id": job_id})))
        answers.append(visitor.post("/job/edit", id=job_id, payload="{"))
        answers.append(visitor.post("/job/edit", id=job_id, payload="{}", before="x"))
    assert all(SECRET.encode() not in answer.body for answer in answers)
    assert '"Password": "hidden"' in text_of(visitor.get("/job", id=pending))


def test_a_pickled_payload_is_hidden(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {"pickle": "gASVCg==", "signature": "ab"})
    visitor = Visitor(queue)
    assert "gASVCg" not in visitor.get("/jobs") + visitor.get("/job", id=job_id)
    assert "gASVCg" not in visitor.get("/job/edit", id=job_id)


def test_a_search_does_not_find_what_is_hidden(queue: Queue) -> None:
    queue.enqueue("greet", {"password": SECRET, "to": "ada"})
    visitor = Visitor(queue)
    assert "No job matches." in text_of(visitor.get("/jobs", text=SECRET[:4]))
    assert "No job matches." in text_of(visitor.get("/jobs", text=f'"password": "{SECRET[0]}'))
    assert "1 job" in text_of(visitor.get("/jobs/cancel", text="ada"))
    assert "None of these" in text_of(visitor.get("/jobs/cancel", text=SECRET))


def test_other_words_can_be_hidden(queue: Queue) -> None:
    job_id = queue.enqueue("greet", {"pin": SECRET, "password": "shown"})
    page = Visitor(queue, hide=["PIN"]).get("/job", id=job_id)
    assert SECRET not in page and "shown" in page
    with pytest.raises(ValueError, match="must be a tuple of words"):
        Hiding("password")


# 15. An action beyond the rights: see test_actions. Here, one that names no action.


def test_rights_that_name_no_action_are_an_error() -> None:
    for rights in ("write", {"fly"}, None, 7):
        with pytest.raises(ValueError, match="invalid rights"):
            Access(rights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="invalid user"):
        Access("all", user=7)  # type: ignore[arg-type]


# -- the server on this machine: slow clients, broken HTTP, the one-time address --


class Local:
    """The server of `dbbasic-queue web`, in this process."""

    def __init__(self, queue: Queue, seconds: float) -> None:
        self.server = Server(0, 200_000, seconds)
        self.door = Door(self.server.port, "all")
        self.page = Page(queue, self.door.allow, hosts=self.server.hosts)
        self.server.respond = lambda request: self.door.respond(self.page, request)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def raw(self, request: bytes) -> bytes:
        """Send bytes; return all that comes back until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response


@pytest.fixture
def local(victim: Queue) -> Iterator[Local]:
    local = Local(victim, seconds=0.5)
    yield local
    local.server.shutdown()
    local.server.server_close()


# 16. The one-time address.


def test_the_address_opens_the_page_once_and_for_one_browser_only(local: Local) -> None:
    assert local.get("/").status == 403
    assert local.get(f"{ENTRY}?token=wrong").status == 403
    assert local.get(ENTRY).status == 403
    entered = local.get(f"{ENTRY}?token={local.door.token}")
    assert (entered.status, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    cookie = cookie.partition(";")[0]
    assert local.door.token not in cookie
    assert local.get("/", cookie=cookie).status == 200
    assert local.get(f"{ENTRY}?token={local.door.token}").status == 403  # replayed
    assert local.get(f"{ENTRY}?token={local.door.token}", cookie=cookie).status == 303
    assert local.get("/", cookie=cookie[:-1]).status == 403
    assert local.get("/", cookie=f"{cookie}; {cookie}").status == 403


def test_only_one_of_many_that_use_the_address_at_once_gets_in(victim: Queue) -> None:
    door = Door(1, "read")
    page = Page(victim, door.allow)
    statuses: list[int] = []

    def enter() -> None:
        request = Request("GET", ENTRY, f"token={door.token}", {"host": HOST})
        statuses.append(door.respond(page, request).status)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, "an answer")
    assert sorted(statuses) == [303] + [403] * 7


def test_the_local_server_refuses_other_names(local: Local) -> None:
    token = local.door.token
    for host in ("evil.example", f"evil.example:{local.server.port}", "127.0.0.1", "localhost:1"):
        assert local.get(f"{ENTRY}?token={token}", Host=host).status == 421
    assert local.get(f"{ENTRY}?token={token}", Host=f"localhost:{local.server.port}").status == 303


# 17. Slow clients.


def test_a_slow_client_is_dropped_and_others_are_served(local: Local) -> None:
    slow = [local.connect() for _ in range(8)]
    for connection in slow:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            for connection in slow:
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert local.get("/").status == 403  # served in the meantime
        for connection in slow:
            connection.settimeout(5)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
    finally:
        stop.set()
        join(dripping, "the slow clients")
        for connection in slow:
            connection.close()


def test_a_form_that_never_ends_is_dropped(local: Local) -> None:
    host = f"Host: 127.0.0.1:{local.server.port}\r\n".encode()
    started = time.monotonic()
    answer = local.raw(
        b"POST /job/cancel HTTP/1.1\r\n" + host + b"Content-Length: 1000\r\n\r\nid=mine"
    )
    assert answer == b"" and time.monotonic() - started < 10


def test_more_clients_than_the_server_takes_are_turned_away(victim: Queue) -> None:
    local = Local(victim, seconds=20)
    waiting = [local.connect() for _ in range(MOST_CONNECTIONS + 8)]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        local.get("/")
    for connection in waiting:
        connection.close()
    end = time.monotonic() + 20
    while True:  # and it recovers
        try:
            assert local.get("/").status == 403
            break
        except (http.client.RemoteDisconnected, ConnectionError):
            assert time.monotonic() < end
    local.server.shutdown()
    local.server.server_close()


# 18. Broken HTTP, and requests that two servers could read in two ways.


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /\xff HTTP/1.1\r\n{host}\r\n",
        b"GET /%ff HTTP/1.1\r\n{host}\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\n{host}\r\n",
        b"GET evil HTTP/1.1\r\n{host}\r\n",
        b"GET / HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n",
        b"POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\n{host}Content-Length: 1e3\r\n\r\n",
        b"GET / HTTP/9.9\r\n{host}\r\n",
        b"GET / nonsense HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n{host}\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"<script>alert(1)</script> / HTTP/1.1\r\n{host}\r\n",
    ],
    ids=lambda request: request[:40].decode("latin-1"),
)
def test_a_broken_request_gets_an_answer_that_repeats_nothing(
    local: Local, victim: Queue, request_: bytes
) -> None:
    host = f"Host: 127.0.0.1:{local.server.port}\r\n".encode()
    answer = local.raw(request_.replace(b"{host}", host))
    status = answer.split(b" ", 2)[1:2]
    assert status and status[0][:1] in (b"4", b"5"), answer[:200]
    assert b"evil" not in answer and b"<script>" not in answer
    assert b"Server:" not in answer and b"text/html" not in answer
    assert is_unchanged(victim)


# 19. A form that is too large.


def test_a_form_that_is_too_large_is_refused_unread(local: Local, victim: Queue) -> None:
    entered = local.get(f"{ENTRY}?token={local.door.token}").headers["set-cookie"].partition(";")[0]
    port = local.server.port
    answer = local.raw(
        f"POST /job/cancel HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {entered}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {10**9}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 413 ") and is_unchanged(victim)


# 20. Reached from another machine.


def test_the_local_server_listens_on_loopback_only(local: Local) -> None:
    assert local.server.server_address[0] == "127.0.0.1"
