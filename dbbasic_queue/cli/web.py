"""`dbbasic-queue web`: the queue in the browser, for the user of this terminal only."""

from __future__ import annotations

import logging
import sys

from dbbasic_queue.cli.messages import INTERRUPTED
from dbbasic_queue.cli.queues import existing_queue

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
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            log.removeHandler(handler)
    return 0
