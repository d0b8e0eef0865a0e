"""The page in a real Chromium: its layout, its accessibility, and a click-through.

Needs Debian's `chromium` and the packages `playwright` and `axe-playwright-python`.
"""

from __future__ import annotations

import shutil
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from helpers import HEADER, Clock, add_lines, held, job, line, sibling, store_of, wait_for

from dbbasic_queue import Queue
from dbbasic_queue.web import Access, Page, first_reading, shared
from dbbasic_queue.web.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext
    from playwright.sync_api import Page as Tab

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("this machine has no chromium", allow_module_level=True)
for package in ("playwright", "axe_playwright_python"):
    if find_spec(package) is None:
        pytest.skip(f"the package {package} isn't installed", allow_module_level=True)

NOW = 1_800_000_000
WIDTHS = (360, 1280, 1920)
LARGE = 100_000
LONG = "a" * 90  # words that can't be broken must not widen the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(queue: Queue) -> Iterator[str]:
    """Serve the page of a queue; yield its address."""
    server = Server(0, 200_000)
    page = Page(queue, lambda _: Access("all", user="ada"), hosts=server.hosts)
    server.respond = page.respond
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    server.server_close()


@contextmanager
def opened(browser: Browser, **options: Any) -> Iterator[Tab]:
    """Open a tab. What it logs, such as a script that was blocked, fails the test."""
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(15_000)
    tab = context.new_page()
    problems: list[str] = []

    def noted(text: str) -> None:
        if not text.startswith("Failed to load"):  # so the browser calls a status such as 409
            problems.append(text)

    tab.on("console", lambda message: noted(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    yield tab
    context.close()
    assert problems == []


# -- every screen, at every width, light and dark --


def fill(path: Path, count: int) -> None:
    """Write a queue of that many jobs, with a history, if it isn't empty."""
    path.parent.mkdir(exist_ok=True)
    if not count:
        return
    statuses = ("completed", "completed", "failed", "pending", "cancelled")
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        for n in range(count):
            status = statuses[n % 5]
            at = NOW - 3000 + 3000 * n // count
            file.write(
                f"job-{n}\t{'send_email' if n % 3 else LONG}\t"
                f'{{"to": "{LONG}@example.org", "password": "s3cret"}}\t{status}\t{at}\t{at}\t1\t'
                f"{f'ValueError: {LONG}' if status == 'failed' else ''}\t\n"
            )
    add_lines(path, line("last", type=LONG, payload=f'{{"text": "{LONG * 3}"}}', error=LONG * 3))
    columns = "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
    ended = [
        f"job-{n}\t{LONG if n % 2 else 'send_email'}\t1\t{'failed' if n % 4 == 0 else 'completed'}"
        f"\t{NOW - 100 * n}\t{NOW - 90 * n}.5\t1.5\t{LONG if n % 4 == 0 else ''}"
        f"\t{'Traceback: ' + LONG * 3 if n % 4 == 0 else ''}\tweb.1\t\t\n"
        for n in range(10)
    ]
    ended.append(f"last\t{LONG}\t1\tfailed\t{NOW}\t{NOW}.1\t1.5\t{LONG}\t{LONG * 3}\tweb.1\t\t\n")
    sibling(path, "history").write_text(
        f"{columns}\tworker\texception\toutput_offset\n{''.join(reversed(ended))}"
    )
    sibling(path, "schedule").write_text(
        "name\tprogram\ttype\texpression\ttimezone\tlast\tnext\n"
        f"{'n' * 60}\t/srv/app.py\t{LONG}\t0 3 * * 1-5\tAmerica/Argentina/Buenos_Aires"
        f"\t{NOW - 60}\t{NOW + 60}\n"
    )


@pytest.fixture(scope="module", params=[0, 10, LARGE])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    count: int = request.param
    path = tmp_path_factory.mktemp("site") / "data" / "queue.tsv"
    fill(path, count)
    with Queue(path, clock=Clock(NOW)) as queue, served(queue) as address:
        wait_for(lambda: urllib.request.urlopen(address).status == 200, "the first reading")
        yield address, count


SCREENS = ("/", "/jobs", "/schedules", "/attempts")
WITH_JOBS = (
    "/job?id=last",
    "/job/edit?id=last",
    "/jobs/cancel",
    "/jobs?status=failed&text=Value",
    f"/schedules/run?name={'n' * 60}",
)


@pytest.mark.slow
def test_no_screen_is_wider_than_the_window_and_axe_finds_nothing_serious(
    browser: Browser, site: tuple[str, int]
) -> None:
    address, count = site
    screens = SCREENS + WITH_JOBS if count == 10 else SCREENS
    with opened(browser) as tab:
        for screen in screens:
            tab.goto(address + screen)
            assert tab.locator("h1").count() == 1
            schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
            for scheme, widths in zip(schemes, (WIDTHS, WIDTHS[::-1]), strict=True):
                tab.emulate_media(color_scheme=scheme)
                for width in widths:
                    tab.set_viewport_size({"width": width, "height": 800})
                    found = tab.evaluate("document.documentElement.scrollWidth")
                    assert found <= width, (screen, width)
                # axe takes a second of CPU: light and wide, dark and narrow.
                if count == 10 or (scheme == "dark" and (not count or screen == "/")):
                    check_accessibility(tab, f"{screen} with {count} jobs, {scheme}")


def check_accessibility(tab: Tab, where: str) -> None:
    import axe_playwright_python

    script = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    if tab.evaluate("typeof window.axe") == "undefined":
        tab.evaluate(script.read_text("utf-8"))
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == [], where


# -- a click-through, with and without the script --


@pytest.fixture(params=[True, False], ids=["script", "no script"])
def tab(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Tab]:
    with opened(browser, java_script_enabled=request.param) as tab:
        yield tab


def text_is_shown(tab: Tab, text: str) -> None:
    tab.get_by_text(text).first.wait_for()


def test_a_failed_job_is_found_and_run_again(tab: Tab, queue: Queue, path: Path) -> None:
    add_lines(path, line("broken", status="failed", error="ValueError: no", attempts=1))
    with served(queue) as address:
        tab.goto(address)
        tab.get_by_role("link", name="Failed").click()
        tab.get_by_role("link", name="broken").click()
        tab.get_by_role("button", name="Run again").click()
        text_is_shown(tab, "It will run again.")
    assert job(queue, "broken")["status"] == "pending"


def test_a_waiting_job_is_cancelled(tab: Tab, queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    with served(queue) as address:
        tab.goto(f"{address}/jobs")
        tab.get_by_label("Text").fill("mine")
        tab.get_by_role("button", name="Show").click()
        assert "text=mine" in tab.url
        tab.get_by_role("link", name="mine").click()
        tab.get_by_role("button", name="Cancel").click()
        text_is_shown(tab, "It was cancelled.")
    assert job(queue, "mine")["status"] == "cancelled"


def test_a_running_job_is_stopped_after_a_second_click(tab: Tab, queue: Queue, path: Path) -> None:
    add_lines(path, line("busy", status="processing", attempts=1))  # its worker has died
    with served(queue) as address:
        tab.goto(f"{address}/job?id=busy")
        assert not tab.get_by_role("button", name="Yes, stop it").is_visible()
        tab.get_by_text("Stop ...").click()
        tab.get_by_role("button", name="Yes, stop it").click()
        text_is_shown(tab, "It was asked to stop.")
    assert job(queue, "busy")["error"] == "Stop requested by user"


def test_many_jobs_are_cancelled_after_a_question(tab: Tab, queue: Queue) -> None:
    queue.enqueue_many("mail", range(60))
    queue.enqueue("other", {}, job_id="other")
    with served(queue) as address:
        tab.goto(f"{address}/jobs")
        tab.get_by_label("Type").fill("mail")
        tab.get_by_role("button", name="Show").click()
        tab.get_by_role("link", name="Older jobs").click()
        tab.get_by_role("link", name="Cancel ...").click()
        text_is_shown(tab, "60 jobs")
        tab.get_by_role("button", name="Cancel 60 jobs").click()
        text_is_shown(tab, "60 jobs cancelled.")
    assert job(queue, "other")["status"] == "pending"
    assert queue.counts()["cancelled"] == 60


def test_a_payload_is_edited(tab: Tab, queue: Queue) -> None:
    queue.enqueue("greet", {"to": "ada", "password": "s3cret"}, job_id="mine")
    with served(queue) as address:
        tab.goto(f"{address}/job?id=mine")
        tab.get_by_role("link", name="Edit the payload").click()
        area = tab.get_by_label("Payload, as JSON")
        assert "s3cret" not in tab.content()
        area.fill(area.input_value().replace("ada", "grace").removesuffix("}"))
        tab.get_by_role("button", name="Save").click()
        text_is_shown(tab, "this isn't a valid payload")
        area.fill(area.input_value() + "}")
        tab.get_by_role("button", name="Save").click()
        text_is_shown(tab, "The payload was changed.")
    assert job(queue, "mine")["payload"] == {"to": "grace", "password": "s3cret"}


def test_a_long_queue_appears_by_itself_when_it_was_read(
    tab: Tab, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LONG_BYTES", 1)
    monkeypatch.setattr(first_reading, "PATIENCE_SECONDS", 0.001)
    queue.enqueue("greet", {})
    with served(queue) as address:
        with held(store_of(queue).lock):
            tab.goto(f"{address}/jobs")
            text_is_shown(tab, "Reading a long queue for the first time")
        text_is_shown(tab, "The newest jobs")


# -- by keyboard, and what the script does --


def test_everything_can_be_reached_by_keyboard_and_the_focus_is_seen(
    browser: Browser, queue: Queue
) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    with served(queue) as address, opened(browser) as tab:
        tab.goto(f"{address}/job?id=mine")
        tab.keyboard.press("Tab")
        assert focused(tab) == "Skip to the content"
        tab.keyboard.press("Enter")
        names: list[str] = []
        while "Stop updating" not in names:
            assert len(names) < 30, names
            tab.keyboard.press("Tab")
            names.append(focused(tab))
            outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", names
        assert {"greet", "Run now", "Cancel", "Edit the payload"} <= set(names)


def focused(tab: Tab) -> str:
    text: str = tab.evaluate("document.activeElement.innerText || ''")
    return text.strip()


class Timed:
    """A tab whose clock only a test moves; it counts how often the script asks the server."""

    def __init__(self, tab: Tab, address: str) -> None:
        self._tab = tab
        self._count = 0
        tab.clock.install()
        tab.goto(address)
        tab.on("request", self._note)

    def _note(self, request: Any) -> None:
        self._count += request.resource_type == "fetch"

    def move(self, seconds: int) -> None:
        """Let time pass."""
        self._tab.clock.run_for(seconds * 1000)

    def asked(self, times: int) -> None:
        """Check that the script has asked this often since the last check, and not more often."""
        for _ in range(500):
            if self._count >= times:
                break
            self._tab.wait_for_timeout(10)
        self._tab.wait_for_timeout(50)
        assert self._count == times
        self._count = 0


@contextmanager
def timed(browser: Browser, address: str) -> Iterator[tuple[Tab, Timed]]:
    with opened(browser) as tab:
        yield tab, Timed(tab, address)


def test_the_script_updates_the_parts_in_place(browser: Browser, queue: Queue) -> None:
    queue.enqueue("greet", {}, job_id="mine")
    with served(queue) as address, timed(browser, f"{address}/jobs") as (tab, clock):
        tab.get_by_label("Text").fill("typed")
        tab.get_by_role("link", name="mine").focus()
        tab.evaluate("window.same = document.querySelector('header')")
        queue.cancel_job("mine")
        clock.move(6)
        clock.asked(1)
        tab.locator("td .badge", has_text="cancelled").wait_for()
        assert focused(tab) == "mine"
        assert tab.get_by_label("Text").input_value() == "typed"
        assert tab.evaluate("window.same === document.querySelector('header')")


def test_the_script_keeps_open_what_is_open_and_adds_and_removes_parts(
    browser: Browser, queue: Queue, path: Path
) -> None:
    add_lines(path, line("mine", status="failed", error="no", attempts=1))
    columns = "id\ttype\tattempt\toutcome\tdue_at\tended_at\tseconds\terror\ttraceback"
    sibling(path, "history").write_text(
        f"{columns}\tworker\texception\toutput_offset\n"
        f"mine\tgreet\t1\tfailed\t{NOW}\t{NOW}.5\t1.0\tno\tTraceback: here\tweb.1\t\t\n"
    )
    with served(queue) as address, timed(browser, f"{address}/job?id=mine") as (tab, clock):
        tab.get_by_text("Traceback", exact=True).click()
        tab.get_by_text("Remove ...").click()
        queue.requeue("mine")
        clock.move(4)
        tab.get_by_role("button", name="Run now").wait_for()
        assert tab.get_by_text("Traceback: here").is_visible()
        assert tab.get_by_text("Remove ...").count() == 0
        assert tab.get_by_text("Edit the payload").is_visible()


def test_the_script_rests_in_a_hidden_tab_and_after_a_click(browser: Browser, queue: Queue) -> None:
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with served(queue) as address, timed(browser, address) as (tab, clock):
        clock.move(4)
        clock.asked(1)
        tab.evaluate(hide, True)
        clock.move(60)
        clock.asked(0)
        tab.evaluate(hide, False)
        clock.asked(1)
        tab.get_by_role("button", name="Stop updating").click()
        clock.move(60)
        clock.asked(0)
        text_is_shown(tab, "Not updated.")
        tab.get_by_role("button", name="Update").click()
        clock.asked(1)


def test_the_script_says_when_the_page_is_no_longer_up_to_date(
    browser: Browser, queue: Queue
) -> None:
    with served(queue) as address, timed(browser, address) as (tab, clock):
        tab.route("**/*", lambda route: route.fulfill(status=503, body=""))
        clock.move(4)
        text_is_shown(tab, "Not up to date: no answer.")
        tab.unroute("**/*")
        tab.route("**/*", lambda route: route.fulfill(status=202, body=""))
        clock.move(10)
        text_is_shown(tab, "Not up to date: the queue is being read for the first time.")
        tab.unroute("**/*")
        clock.move(20)
        text_is_shown(tab, "Kept up to date.")
