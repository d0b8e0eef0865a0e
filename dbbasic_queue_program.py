"""The installed program `dbbasic-queue`: Ctrl-C ends it quietly while the package is loaded, too.

It isn't in the package, because the package would be loaded first.
"""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from dbbasic_queue.__main__ import run

__all__ = ["run"]
