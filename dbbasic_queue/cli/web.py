"""`dbbasic-queue web`: the queue in the browser, for the user of this terminal only."""

from __future__ import annotations

import logging
import os
import sys

from dbbasic_queue.cli.messages import INTERRUPTED, tell
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.model.escaping import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    """Serve the page until Ctrl-C; return the exit code."""
    from dbbasic_queue.web.application import LOGGER, Page
    from dbbasic_queue.web.door import ENTRY, Door
    from dbbasic_queue.web.server import HOST, Server

    with existing_queue(arguments) as queue, Server(arguments.port, 0) as server:
        door = Door(server.port, "all" if arguments.write else "read")
        page = Page(queue, door.allow, hosts=server.hosts)
        server.largest_body = page.largest_body
        server.respond = lambda request: door.respond(page, request)
        log = logging.getLogger(LOGGER)
        log.setLevel(logging.INFO)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        print(f"http://{HOST}:{server.port}{ENTRY}?token={door.token}", flush=True)
        what = "may change jobs" if arguments.write else "is read-only (--write changes that)"
        print(f"The address works once, and {what}. Ctrl-C ends it.", file=sys.stderr, flush=True)
        if os.environ.get("SSH_CONNECTION"):
            tunnel = f"ssh -L {server.port}:{HOST}:{server.port}"
            tell(f"To open it on your own machine, run this there first: {tunnel} {_this_host()}")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            log.removeHandler(handler)
    return 0


def _this_host() -> str:
    """Return the address at which ssh has reached this machine: the third word of the variable."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return printable(words[2]) if len(words) > 2 else "HOST"
