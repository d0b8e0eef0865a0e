"""`open_queue`: the queue that a path or URL names."""

from __future__ import annotations

import os

from dbbasic_queue.jobqueue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def open_queue(path_or_url: str | os.PathLike[str], **options: Any) -> Queue:
    """Return the queue at a path or URL.

    A path or `file:PATH` is a text file, `memory:` and `memory:NAME` are in this process's memory.
    `options` are those of `Queue`. Raises NotAQueue for a URL of another kind.
    """
    return Queue(path_or_url, **options)
