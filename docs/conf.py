"""The docs site, made of this directory's Markdown files: `sphinx-build -W docs build/site`.

The files stay as GitHub shows them. What only Sphinx needs is added here while it reads them: the
navigation, and the docstrings on the page `reference`.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from inspect import isroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

import dbbasic_queue

NAVIGATION = {
    "Start": ("tutorial", "comparison", "migrating"),
    "Writing jobs": (
        "handlers",
        "commands",
        "schedules",
        "notifications",
        "testing",
        "django",
        "frameworks",
    ),
    "Running them": ("workers", "deployment", "operations", "web", "engines", "moving"),
    "Reference": ("command-line", "api", "reference", "file-format", "glossary"),
    "How it works": ("internals", "performance", "BENCHMARKS"),
}
"""each page of this directory once, except `index`, which is the top"""

project = "dbbasic_queue"
copyright = "its authors; MIT licence"
version = release = dbbasic_queue.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
source_suffix = {".md": "markdown"}
myst_heading_anchors = 6
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "dbbasic_queue"
html_favicon = "../dbbasic_queue/web/static/icon.svg"
html_copy_source = False
smartquotes = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 88
suppress_warnings = ["misc.highlighting_failure"]
"""Pygments can't parse quotes across lines of a console, and colours the block anyway"""
linkcheck_ignore = [r"http://127\.0\.0\.1"]
linkcheck_timeout = 20

NOT_FOR_USERS = {
    "Command.enter_process",
    "Handler.enter_process",
    "Handler.longest_wait",
    "Handler.of",
    "Handler.shares_loop",
    "Handler.start",
    "Handler.wait",
    "Handlers.retired",
    "Mail.send",
    "Mail.title",
    "Queue.of_store",
    "Webhook.send",
    "Webhook.title",
    "Worker.run_until_stopped",
}
"""methods with a docstring that only other modules of this package call"""

_WITHOUT_LEXER = ("crontab", "tsv")
_NAME = re.compile(r"^- `([\w.]+)`$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add what is in the module's docstring."""
    from pygments.lexers.special import TextLexer

    for language in _WITHOUT_LEXER:
        app.add_lexer(language, TextLexer)
    app.connect("source-read", _complete)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _as_restructured_text)
    return {"parallel_read_safe": True}


def _complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what only Sphinx needs."""
    text = source[0].replace("](../README.md)", "](index.md)")
    text = text.replace("](../", "](path:../")  # a file to download
    if page == "index":
        for caption, pages in NAVIGATION.items():
            options = f":hidden:\n:caption: {caption}"
            text += "\n```{toctree}\n" + options + "\n\n" + "\n".join(pages) + "\n```\n"
    if page == "reference":
        text = _NAME.sub(_directive, text)
    source[0] = text


def _directive(match: re.Match[str]) -> str:
    """Return a block that shows the docstrings of a class and its methods, or of a function."""
    module, _, name = match[1].rpartition(".")
    found = getattr(import_module(module), name)
    kind = "function"
    if isinstance(found, type):
        kind = "exception" if issubclass(found, Exception) else "class"
    return f"```{{eval-rst}}\n.. auto{kind}:: {match[1]}\n```"


def _skip(_app: Sphinx, _what: str, _name: str, member: Any, skip: bool, _: object) -> bool:
    member = getattr(member, "fget", member)  # a property
    return skip or not isroutine(member) or member.__qualname__ in NOT_FOR_USERS


def _signature(
    _app: Sphinx, _what: str, name: str, _object: Any, _options: object, text: str | None, _: object
) -> tuple[str | None, object] | None:
    if name == "dbbasic_queue.Job":  # handlers and hooks get it; they don't make it
        return "", None
    if text is not None and "<built-in function time>" in text:
        return text.replace("<built-in function time>", "time.time"), _
    return None


def _as_restructured_text(
    _app: Sphinx, _what: str, _name: str, _object: Any, _options: object, lines: list[str]
) -> None:
    """Rewrite a docstring of this project: paragraphs, lists with "- ", `code`, doctests."""
    blocks = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(map(_block, blocks)).split("\n")


def _block(text: str) -> str:
    if text.lstrip().startswith(">>>"):
        return text
    if text.startswith("    "):
        return f"::\n\n{text}"
    parts = _CODE.split(text)
    parts[::2] = (re.sub(r"([\\*|])|(_)(?!\w)", r"\\\1\2", part) for part in parts[::2])
    parts[1::2] = (_code(" ".join(part.split())) for part in parts[1::2])
    return "".join(parts)


def _code(text: str) -> str:
    """Return code, which is a link if it is the name of something that the page has."""
    return f":py:obj:`{text}`" if re.fullmatch(r"[A-Za-z_][\w.]*", text) else f"``{text}``"
