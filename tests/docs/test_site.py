"""The docs site has every page and every public name. `.ci/run` builds it."""

from __future__ import annotations

import re
import runpy
from importlib import import_module
from typing import Any
from xml.etree import ElementTree

import pytest
from blocks import PAGES, PROJECT

from dbbasic_queue.cli import watch_screen

DOCS = PROJECT / "docs"
LARGEST_IMAGE = 150_000
ONLY_FOR_TYPE_CHECKERS = {"dbbasic_queue.JobDict", "dbbasic_queue.Status"}


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "conf.py"))


def test_the_navigation_has_every_page_once(conf: dict[str, Any]) -> None:
    listed = ["index", *(page for pages in conf["NAVIGATION"].values() for page in pages)]
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.parent == DOCS)


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^- `([\w.]+)`$", (DOCS / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert len(named) == len(set(named))
    modules = ("dbbasic_queue", "dbbasic_queue.notify")
    public = {f"{name}.{word}" for name in modules for word in import_module(name).__all__}
    assert public - ONLY_FOR_TYPE_CHECKERS <= {*named}
    for name in named:
        module, _, word = name.rpartition(".")
        assert getattr(import_module(module), word).__doc__, name


def test_methods_that_the_reference_hides_exist(conf: dict[str, Any]) -> None:
    classes = {}
    for module in ("dbbasic_queue", "dbbasic_queue.notify"):
        for name in import_module(module).__all__:
            classes[name] = getattr(import_module(module), name)
    for method in conf["NOT_FOR_USERS"]:
        name, _, attribute = method.partition(".")
        assert hasattr(classes[name], attribute), method


def test_a_docstring_becomes_restructured_text(conf: dict[str, Any]) -> None:
    lines = [
        "Return `x | y` of *args, as `Queue.wait` and name_ do.",
        "",
        "- `first`: a `code",
        "  span` across lines",
        "",
        ">>> f(*`x`)",
        "1",
        "",
        '    {"id": `1`}',
    ]
    conf["_as_restructured_text"](None, "", "", None, None, lines)
    assert (
        "\n".join(lines)
        == r"""Return ``x | y`` of \*args, as :py:obj:`Queue.wait` and name\_ do.

- :py:obj:`first`: a ``code span`` across lines

>>> f(*`x`)
1

::

    {"id": `1`}"""
    )


def benchmark(measure: str) -> float:
    """Return the figure of this queue in a row of the benchmarks."""
    table = (DOCS / "BENCHMARKS.md").read_text("utf-8")
    found = re.search(rf"^\| {re.escape(measure)} \| ([\d.,]+) ", table, re.MULTILINE)
    assert found, measure
    return float(found[1].replace(",", ""))


def test_the_landing_page_has_the_figures_of_the_benchmarks() -> None:
    text = (DOCS / "index.md").read_text("utf-8")
    synced, unsynced = (benchmark(f"10,000 no-op jobs, fsync {word}") for word in ("on", "off"))
    assert f"{benchmark('enqueue, fsync on') / 1000:.2f} ms to add a job" in text
    assert f"{round(synced, -2):,.0f} jobs per second, {round(unsynced, -2):,.0f} without" in text
    assert f"{benchmark('an idle pass, on top of starting Python'):g} ms more than" in text


def test_every_image_is_shown_and_small() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for image in (DOCS / "images").iterdir():
        assert f"images/{image.name})" in text
        assert image.stat().st_size <= LARGEST_IMAGE


def terminal_picture(name: str) -> str:
    """Return what is on a picture of a terminal: its runs of text, with two spaces in between."""
    found = ElementTree.parse(DOCS / f"images/{name}.svg").iter("{http://www.w3.org/2000/svg}text")
    return "  ".join(element.text or "" for element in found)


def test_the_alternative_texts_say_what_is_in_the_pictures() -> None:
    pages = "".join(page.read_text("utf-8") for page in PAGES)
    alt: dict[str, str] = {}
    for text, name in re.findall(r"!\[([^\]]+)\]\(images/([\w-]+)\.(?:svg|png)\)", pages):
        alt[name] = f"{alt.get(name, '')} {text}"
    status = terminal_picture("status")
    number = re.search(r"one job is running, ([\d,]+) are completed, one has failed", alt["status"])
    assert number and f"processing 1  completed {number[1]}  failed 1" in status
    for name, words in {
        "status": ["last pass", "progress", "errors", "schedules"],
        "show": ["failed", "error", "payload", "attempts", "traceback"],
        "watch": ["running"],
        "doctor": ["note"],
    }.items():
        assert [w for w in words if w not in alt[name]] == [], alt[name]
        picture = terminal_picture(name).lower()
        assert [word for word in words if word not in picture] == [], picture
    assert "four checks that are ok" in alt["doctor"]
    assert terminal_picture("doctor").split("  ").count("ok") == 4
    assert "[####" in terminal_picture("watch") and "a bar" in alt["watch"]
    assert watch_screen._KEYS + "f failed" in terminal_picture("watch")  # not an old picture
