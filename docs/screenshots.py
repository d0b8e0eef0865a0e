"""Make the pictures in docs/images: `python docs/screenshots.py`, in an environment with `.[test]`.

They show a queue that real passes have filled, at times of the last day: the same jobs each time,
so that a picture changes only if the program does. Three things are made up: how long the handlers
took, when the running job started, and the name of the directory. Needs Debian's `chromium` and
`tmux`.
"""

from __future__ import annotations

import html
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = PROJECT / "docs/images"
sys.path.insert(0, str(PROJECT))

from dbbasic_queue import Fail, Handlers, Queue  # noqa: E402
from dbbasic_queue.testing import Clock  # noqa: E402

SHOWN_DIRECTORY = "/srv/app"
DAY = 86_400
BUSY_SECONDS = 2 * 3600
DEADLINE = 30.0
Style = set[int | str]
"""1 if text is bold, 2 if it is dim, and its colour"""
FAILED_ID = "7be31d4f0c92a856"
RUNNING_ID = "c41f0e8892d7b563"
SECONDS = {"send_email": 0.8, "resize_image": 2.5, "sync_crm": 1.4, "clean_up": 5.0}
"""job type -> how long its handler took, about"""
REPORT_SECONDS = 95
REPORT = """
import time
from dbbasic_queue import Queue

started = time.time() - SECONDS

def clock():
    return started if reports == 0 else time.time()

def report(payload, job):
    global reports
    job.progress(1, 100, "page 1")
    reports += 1
    time.sleep(1.1)  # a report is written if the last one is a second old
    job.progress(62, 100, "page 62")
    time.sleep(600)

reports = 0
Queue("data/queue.tsv", clock=clock).process_jobs({"report": report})
""".replace("SECONDS", str(REPORT_SECONDS))


# -- the queue --


def fill(path: Path, now: float) -> None:
    """Make a queue as it is after a day of passes: every ten minutes, lately every minute."""
    chance = random.Random(15)
    clock = Clock(now - DAY)
    jobs = Handlers(name=f"{SHOWN_DIRECTORY}/worker.py")

    @jobs.handler
    def send_email(payload: Any) -> dict[str, bool]:
        if payload["to"].endswith(".invalid"):
            raise Fail(f"the mail server refused {payload['to']}")
        return {"sent": True}

    @jobs.handler
    def resize_image(payload: Any) -> dict[str, int]:
        return {"width": 640}

    @jobs.handler
    def sync_crm(payload: Any) -> None:
        if chance.random() < 0.2:
            raise ConnectionRefusedError(111, "Connection refused")

    @jobs.handler(every="0 3 * * *", timezone="UTC")
    def clean_up(payload: Any) -> None:
        pass

    with Queue(path, fsync=False, clock=clock) as queue:

        def add(job_type: str, payload: Any, **more: Any) -> None:
            job_id = more.pop("job_id", None) or chance.randbytes(8).hex()
            queue.enqueue(job_type, payload, job_id=job_id, **more)

        passes = [*range(DAY, BUSY_SECONDS, -600), *range(BUSY_SECONDS, 0, -60)]
        for number, ago in enumerate(passes):
            clock.now = now - ago + chance.randint(2, 40)
            size = 4 if ago > BUSY_SECONDS else 1
            names = chance.choices(["ada", "bob", "grace", "linus"], k=chance.randint(0, 2 * size))
            for name in names:
                add("send_email", {"to": f"{name}@example.com", "template": "welcome"})
            for _ in range(chance.randint(0, size)):
                add("resize_image", {"file": f"uploads/{chance.randint(100, 999)}.jpg"})
            if number % 5 == 0:
                add("sync_crm", {"customer": chance.randint(1000, 9999)})
            if number == len(passes) - 4:
                add("send_email", {"to": "carol@example.invalid"}, job_id=FAILED_ID)
            clock.now = now - ago + 48
            queue.process_jobs(jobs)
        clock.now = now
        add("report", {"month": "2026-10"}, job_id=RUNNING_ID, run_at=now - REPORT_SECONDS)
        add("send_email", {"to": "dan@example.com"}, run_at=now + 1800)


def make_up_attempts(history: Path) -> None:
    """Give the attempts in a history the durations of `SECONDS`, and the directory's name."""
    chance = random.Random(4)
    titles, *lines = history.read_text("utf-8").splitlines()
    names = titles.split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    for row in rows:
        row["seconds"] = f"{SECONDS[row['type']] * chance.lognormvariate(0, 0.4):.3f}"
        row["worker"] = "web1.4711"
        row["traceback"] = row["traceback"].replace(__file__, f"{SHOWN_DIRECTORY}/worker.py")
    text = "\n".join("\t".join(row[name] for name in names) for row in rows)
    history.write_text(f"{titles}\n{text}\n", "utf-8")


def make_up_start(path: Path, pid: int) -> None:
    """Let a pass have started `REPORT_SECONDS` ago, and its job as well."""
    for slot in path.parent.glob(f"{path.name}.pass.*"):
        head = slot.read_text("utf-8").partition("\n")[0]
        columns = head.split("\t")
        if columns[1:2] == [str(pid)]:
            started = int(time.time() - REPORT_SECONDS)
            with slot.open("r+", encoding="utf-8") as file:  # its lock is that of this file
                file.write("\t".join([*columns[:2], str(started), *columns[3:]]))
            os.utime(slot, (started, started))
            return
    raise AssertionError(f"process {pid} has no slot")


@contextmanager
def demo() -> Iterator[Path]:
    """Make the queue, and start a job in it; yield the directory that is called `/srv/app`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = place / "data/queue.tsv"
        fill(path, time.time())
        make_up_attempts(path.with_name("queue.tsv.history"))
        worker = subprocess.Popen([sys.executable, "-c", REPORT], cwd=place, env=environment())
        try:
            with Queue(path) as queue:
                wait_for(lambda: "page 62" in str(queue.progress(RUNNING_ID)))
            make_up_start(path, worker.pid)
            yield place
        finally:
            worker.kill()
            worker.wait()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PROJECT), "TZ": "UTC", "LC_ALL": "C.UTF-8"}


def wait_for(condition: Any) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.05)


# -- the terminal --

COLUMNS = 100
COLOURS = {
    30: "#6e7681",
    31: "#ff7b72",
    32: "#56d364",
    33: "#e3b341",
    34: "#79c0ff",
    35: "#d2a8ff",
    36: "#56d4dd",
}
LEVELS = (0, 95, 135, 175, 215, 255)
"""of red, green and blue in the colours from 16 to 231, of 256"""
PLAIN, DIM, GROUND = "#e6edf3", "#8b949e", "#000000"
LINE_HEIGHT, CHARACTER_WIDTH, MARGIN = 19, 8.4, 16


def terminal(place: Path, name: str, arguments: str, lines: int, until: str) -> None:
    """Run a command in tmux; when `until` is on its screen, write that to an SVG file."""
    server = ["tmux", "-L", f"screenshots-{os.getpid()}-{name}", "-f", "/dev/null"]
    command = f"TERM=screen-256color {sys.executable} -m dbbasic_queue {arguments}"
    prompt = f"printf '$ dbbasic-queue {arguments}\\n'; " if name != "watch" else ""
    size = ("-x", str(COLUMNS), "-y", str(lines))
    subprocess.run(
        [*server, "new-session", "-d", *size, "-c", place, f"{prompt}{command}; sleep 60"],
        env=environment(),
        check=True,
    )

    def screen() -> str:
        done = subprocess.run(
            [*server, "capture-pane", "-p", "-e"], capture_output=True, text=True, check=True
        )
        return done.stdout.replace(str(place), SHOWN_DIRECTORY)

    try:
        wait_for(lambda: re.search(until, re.sub(r"\x1b\[[\d;]*m", "", screen())))
        text = screen()
    finally:
        subprocess.run([*server, "kill-server"], check=True)
    (IMAGES / f"{name}.svg").write_text(svg(text.rstrip().split("\n"), arguments), "utf-8")


def svg(lines: list[str], title: str) -> str:
    """Return a picture of lines with escape sequences for colours."""
    width = round(COLUMNS * CHARACTER_WIDTH + 2 * MARGIN)
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN
    parts = []
    style: Style = set()
    for number, line in enumerate(lines):
        y = MARGIN + 14 + number * LINE_HEIGHT
        column = 0
        for codes, text in re.findall(r"(?:\x1b\[([\d;]*)m)?([^\x1b]*)", line):
            style = styled(style, [int(code) for code in codes.split(";")] if codes else [])
            for words in re.finditer(r"\S+(?: \S+)*", text):  # pictures lose repeated spaces
                x = MARGIN + (column + words.start()) * CHARACTER_WIDTH
                parts.append(run(words[0], x, y, style))
            column += len(text)
    body = "\n".join(parts)
    fonts = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" {size}>
<title>dbbasic-queue {html.escape(title)}</title>
<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>
<g font-family="{fonts}" font-size="14" fill="{PLAIN}">
{body}
</g>
</svg>
"""


def styled(style: Style, codes: list[int]) -> Style:
    """Return a style after one more sequence of a terminal."""
    left = iter(codes)
    for code in left:
        if code == 38 and next(left) == 5:
            place = next(left) - 16
            rgb = (LEVELS[place // size % 6] for size in (36, 6, 1))
            style = {part for part in style if isinstance(part, int)} | {"#" + bytes(rgb).hex()}
        elif code == 0:
            style = set()
        elif code == 22:
            style = style - {1, 2}
        elif code in (1, 2):
            style = style | {code}
        elif 30 <= code <= 39:
            style = {part for part in style if isinstance(part, int)}
            style |= {COLOURS[code]} if code in COLOURS else set()
    return style


def run(text: str, x: float, y: int, style: Style) -> str:
    """Return text in one style, exactly as wide as its characters are on a terminal."""
    more = ""
    if colours := [part for part in style if isinstance(part, str)]:
        more += f' fill="{colours[0]}"'
    elif 2 in style:
        more += f' fill="{DIM}"'
    if 1 in style:
        more += ' font-weight="bold"'
    length = f"{len(text) * CHARACTER_WIDTH:.1f}"
    return f'<text x="{x:.1f}" y="{y}" textLength="{length}"{more}>{html.escape(text)}</text>'


# -- the page --

PAGES: list[tuple[str, str, int, Literal["light", "dark"]]] = [
    ("/", "page", 1280, "light"),
    ("/", "page", 1280, "dark"),
    ("/", "page", 360, "light"),
    (f"/job?id={FAILED_ID}", "job", 1280, "light"),
    ("/jobs", "jobs", 360, "dark"),
]


@contextmanager
def served(place: Path) -> Iterator[str]:
    """Start `dbbasic-queue web`; yield the address that it prints."""
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "dbbasic_queue", "web", "--write"],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert web.stdout is not None
    try:
        yield web.stdout.readline().strip()
    finally:
        web.terminate()
        web.wait()


def page(browser: Browser, place: Path) -> None:
    """Make the pictures of the page: wide and narrow, light and dark."""
    with served(place) as address:
        site = address.partition("/enter")[0]
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(address)
        for path, name, width, scheme in PAGES:
            tab.set_viewport_size({"width": width, "height": 1})
            tab.emulate_media(color_scheme=scheme)
            tab.goto(site + path)
            height = tab.evaluate("document.documentElement.scrollHeight")
            tab.set_viewport_size({"width": width, "height": min(height, 780)})
            tab.screenshot(path=IMAGES / f"{name}-{width}-{scheme}.png")


def main() -> None:
    for program in ("chromium", "tmux"):
        if shutil.which(program) is None:
            sys.exit(f"screenshots: this machine has no {program}")
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(exist_ok=True)
    with demo() as place:
        terminal(place, "status", "status", 40, r"--help")
        terminal(place, "watch", "watch", 24, r"(?s)report .*q quit")
        terminal(place, "show", f"show {FAILED_ID}", 40, r"attempt")
        terminal(place, "doctor", "doctor", 40, r"to look at")
        with sync_playwright() as playwright:
            found = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            page(browser, place)
            browser.close()
    for image in sorted(IMAGES.iterdir()):
        print(f"{image.stat().st_size:7} {image.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
