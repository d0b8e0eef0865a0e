"""One request that was let in: what its screen and its forms need."""

from __future__ import annotations

from urllib.parse import urlencode

from dbbasic_queue.model.escaping import unescape
from dbbasic_queue.monitoring.durations import ago, instant, relative
from dbbasic_queue.web.html import join, tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.web.access import Access
    from dbbasic_queue.web.hiding import Hiding
    from dbbasic_queue.web.html import Content, Markup
    from dbbasic_queue.web.requests import Request
    from dbbasic_queue.web.shared import Shared

TOKEN_FIELD = "token"


class Visit:
    """A request, who sent it, and the queue.

    `fields` are those of the address, and of the form if one was sent. `now` is in Unix seconds.
    """

    def __init__(
        self,
        request: Request,
        access: Access,
        queue: Queue,
        shared: Shared,
        hiding: Hiding,
        token: str,
        fields: Mapping[str, str],
    ) -> None:
        self.request = request
        self.access = access
        self.queue = queue
        self.shared = shared
        self.hiding = hiding
        self.token = token
        self.fields = fields
        self.now = queue.now()

    def field(self, name: str) -> str:
        """Return a field, "" if it wasn't sent."""
        return self.fields.get(name, "")

    def address(self, path: str, **fields: str | int) -> str:
        """Return the address of another screen: below the prefix, with these fields."""
        given = {name: value for name, value in fields.items() if value != ""}
        query = f"?{urlencode(given)}" if given else ""
        return f"{self.request.prefix}{path}{query}"

    def job_address(self, job_id: str) -> str:
        """Return the address of a job's screen."""
        return self.address("/job", id=job_id)

    def job_link(self, job_id: str) -> Markup:
        """Return a link to a job."""
        return tag("a", job_id, href=self.job_address(job_id), class_="id")

    def time(self, at: float) -> Markup:
        """Return an instant, such as "4 s ago"; the date and time are its title."""
        return tag("time", relative(at, self.now), datetime=instant(at), title=_clock(at))

    def ago(self, at: float) -> str:
        """Return how long ago an instant was."""
        return ago(self.now - at)

    def form(
        self,
        action: str,
        path: str,
        label: Content,
        fields: Mapping[str, str] | None = None,
        *content: Content,
        kind: str = "",
        name: str | None = None,
    ) -> Markup | None:
        """Return a form with one button that makes a change; None if the user may not do that.

        `fields` are sent with it, as is what `content` has. `name` is the button's name for a
        screen reader, if its label says too little.
        """
        if not self.access.may(action):
            return None
        hidden = {TOKEN_FIELD: self.token} | dict(fields or {})
        return tag(
            "form",
            [tag("input", type="hidden", name=key, value=text) for key, text in hidden.items()],
            content,
            tag("button", label, type="submit", class_=kind or None, aria_label=name),
            method="post",
            action=self.address(path),
        )


def _clock(at: float) -> str:
    """Return date and time on the server's clock."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def plain_error(text: str) -> str:
    """Return an error as it was raised, without the escapes of the queue's files."""
    return unescape(text)


def scroll(label: str, *content: Content) -> Markup:
    """Return a part of the page that scrolls sideways on a narrow screen, also by keyboard."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def table(
    label: str, heads: list[Content | tuple[Content, str]], rows: list[list[Content]]
) -> Markup:
    """Return a table. A head with a class gives it to its column."""
    classes = [head[1] if isinstance(head, tuple) else None for head in heads]
    texts = [head[0] if isinstance(head, tuple) else head for head in heads]
    return scroll(
        label,
        tag(
            "table",
            tag(
                "thead",
                tag(
                    "tr",
                    [
                        tag("th", text, scope="col", class_=class_)
                        for text, class_ in zip(texts, classes, strict=True)
                    ],
                ),
            ),
            tag(
                "tbody",
                [
                    tag(
                        "tr",
                        [
                            tag("th", cell, scope="row", class_=class_)
                            if number == 0
                            else tag("td", cell, class_=class_)
                            for number, (cell, class_) in enumerate(zip(row, classes, strict=True))
                        ],
                    )
                    for row in rows
                ],
            ),
        ),
    )


def section(title: str, name: str, *content: Content, live: bool = True) -> Markup:
    """Return a part of a screen with a heading. A `live` one is kept up to date by the script."""
    return tag(
        "section",
        tag("h2", title, id=f"{name}-title"),
        content,
        id=name,
        aria_labelledby=f"{name}-title",
        data_live=live,
    )


def empty(text: str) -> Markup:
    """Return the words that stand for an empty table."""
    return tag("p", text, class_="empty")


def badge(word: str) -> Markup:
    """Return a status or an outcome as a label. The word says all; the colour only helps."""
    return tag("span", WORDS.get(word, word), class_=f"badge {_KINDS.get(word, 'quiet')}")


WORDS = {
    "pending": "waiting",
    "processing": "running",
    "completed": "done",
    "retried": "failed, tried again",
    "died": "worker died",
    "late": "too late",
    "delayed": "put off",
}
"""a status or an outcome -> what the page calls it"""
_KINDS = {
    "processing": "busy",
    "completed": "good",
    "failed": "bad",
    "retried": "warn",
    "died": "bad",
    "running": "busy",
    "idle": "good",
    "stalled": "bad",
    "moved": "warn",
}


def facts(*pairs: tuple[str, Content]) -> Markup:
    """Return a list of names and values; a value None is left out."""
    return tag(
        "dl",
        [join(tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None],
        class_="facts",
    )
