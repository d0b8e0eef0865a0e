"""The style sheet, the script and the icon: a part of their address changes with their content."""

from __future__ import annotations

import hashlib
import os

from dbbasic_queue.web.requests import Response

_FOLDER = os.path.join(os.path.dirname(__file__), "static")
_KINDS = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FOREVER = "private, max-age=31536000, immutable"


def _read(name: str) -> bytes:
    with open(os.path.join(_FOLDER, name), "rb") as file:
        return file.read()


_CONTENT = {name: _read(name) for name in _KINDS}


def path(name: str) -> str:
    """Return the path of a file below the prefix."""
    return _PATHS[name]


def _path(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f"/static/{stem}.{hashlib.sha256(_CONTENT[name]).hexdigest()[:16]}.{ending}"


_PATHS = {name: _path(name) for name in _KINDS}
_NAMES = {path: name for name, path in _PATHS.items()}


def respond(path: str) -> Response | None:
    """Return the file at a path below the prefix; None if there is none."""
    name = _NAMES.get(path)
    if name is None:
        return None
    headers = [("Content-Type", _KINDS[name]), ("Cache-Control", _FOREVER)]
    return Response(200, _CONTENT[name], headers)
