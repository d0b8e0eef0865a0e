"""The program `dbbasic-queue`, also as `python -m dbbasic_queue`.

Loading it takes a tenth of a second. Ctrl-C ends it quietly in that time, too: until everything is
loaded, the system's own action is set. The installed program has done that before it has loaded the
package. If SIGINT is ignored, as in a background job, it stays so.
"""

from __future__ import annotations

import signal
import sys

_is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
if not _is_ignored:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from dbbasic_queue.cli.main import main  # noqa: E402
from dbbasic_queue.cli.messages import INTERRUPTED  # noqa: E402


def run() -> int:
    """Run the command of the process's arguments; return its exit code."""
    try:
        if not _is_ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
