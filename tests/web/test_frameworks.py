"""The examples of docs/web.md: the page inside Flask and FastAPI, and by itself."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from helpers import PROJECT

sys.path.insert(0, str(PROJECT / "tests/docs"))
from blocks import blocks_of

EXAMPLES = {block.file: block.code for block in blocks_of(PROJECT / "docs/web.md") if block.file}


def example(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an example in a directory; return its names."""
    monkeypatch.chdir(directory)
    names: dict[str, Any] = {"__name__": name.removesuffix(".py"), "__file__": name}
    exec(EXAMPLES[name], names)
    return names


def test_the_page_in_flask_is_for_admins_who_are_signed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask")
    app = example("flask_app.py", tmp_path, monkeypatch)["app"]
    client = app.test_client()
    assert client.get("/queue/").status_code == 403
    with client.session_transaction() as session:
        session |= {"is_admin": True, "name": "ada"}
    page = client.get("/queue/")
    assert page.status_code == 200
    assert b"Signed in as ada. You may make changes." in page.data
    assert b'href="/queue/jobs"' in page.data
    assert client.get("/queue").headers["location"] == "/queue/"
    token = client.get_cookie("dbbasic_queue_form").value
    headers = {"Origin": "http://localhost"}
    paused = client.post("/queue/types/pause", data={"token": token}, headers=headers)
    assert paused.headers["location"] == "/queue/?done=paused-all"
    assert client.post("/queue/types/pause", data={"token": "x"}).status_code == 403


def test_the_page_in_fastapi_is_for_admins_who_are_signed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    signer = pytest.importorskip("itsdangerous").TimestampSigner("change this")
    app = example("fastapi_app.py", tmp_path, monkeypatch)["app"]

    def get(path: str, *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": b""}
        scope |= {"raw_path": path.encode(), "headers": [(b"host", b"x"), *headers]}
        asyncio.run(app(scope, receive, send))
        return sent[0]["status"], sent[1]["body"]

    assert get("/queue/")[0] == 403
    session = signer.sign(b64encode(json.dumps({"is_admin": 1, "name": "ada"}).encode())).decode()
    status, body = get("/queue/jobs", (b"cookie", f"session={session}".encode()))
    assert status == 200 and b"Signed in as ada" in body and b'href="/queue/"' in body


def test_the_page_by_itself_believes_its_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbbasic_queue.web.requests import Request

    page = example("queue_page.py", tmp_path, monkeypatch)["application"]
    headers = {"host": "queue.example.org"}
    assert page.respond(Request("GET", "/", "", headers)).status == 403
    assert page.respond(Request("GET", "/", "", headers | {"x-remote-user": "a"})).status == 200
    assert page.respond(Request("GET", "/", "", {"x-remote-user": "a"})).status == 421
