"""Commands for monitoring: check, metrics, plot, watch, web."""

from __future__ import annotations

from dbbasic_queue.cli.arguments import Commands, natural, port, seconds
from dbbasic_queue.cli.messages import INTERRUPTED
from dbbasic_queue.cli.queues import existing_queue
from dbbasic_queue.cli.terminal import Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    check = commands.add(
        "check",
        run_check,
        "check the queue for a monitoring system, as a Nagios plug-in does",
        more="Prints one line, and exits with 0 if nothing is wrong, 1 for a warning, 2 if "
        "something is wrong, 3 if the queue can't be read. A stalled queue is always wrong.",
    )
    check.add_argument(
        "--max-wait",
        type=seconds,
        metavar="DURATION",
        help="wrong if a job has been due for longer, such as 10m",
    )
    check.add_argument(
        "--max-failed", type=int, metavar="N", help="warn if more than N jobs are failed"
    )
    check.add_argument(
        "--max-age-of-last-pass",
        type=seconds,
        metavar="DURATION",
        help="wrong if no pass is running, and the last one ended longer ago",
    )
    metrics = commands.add(
        "metrics",
        run_metrics,
        "print metrics for Prometheus, or write them to a file for node_exporter",
    )
    metrics.add_argument(
        "path", metavar="FILE.prom", nargs="?", help="a file whose name ends in .prom"
    )
    metrics.add_argument(
        "--window",
        type=seconds,
        metavar="DURATION",
        default="1h",
        help="how far to look back, such as 15m or 24h (default: 1h)",
    )
    plot = commands.add(
        "plot",
        run_plot,
        "draw how many jobs ended, waited and failed, over the last hour, day or week",
        more="In a pipe: 60 lines, one for each interval: its start, attempts that ended, attempts "
        "that failed, due jobs that waited at its end, longest wait in seconds.",
    )
    plot.add_argument(
        "--window",
        type=seconds,
        metavar="DURATION",
        default="1h",
        help="how far to look back, such as 1h, 1d or 7d (default: 1h)",
    )
    plot.add_argument("--type", help="only jobs of this type")
    plot.add_argument("--out", metavar="FILE.svg", help="write the plot to an SVG file")
    watch = commands.add(
        "watch",
        run_watch,
        "watch the queue: a screen that is kept up to date; in a pipe, one line per change",
        more="Keys: q quit, arrows choose a job, Enter show it, / filter by text, r requeue, "
        "s stop, p pause or resume its type, f failed jobs, a all jobs.",
    )
    watch.add_argument(
        "--interval", type=seconds, metavar="DURATION", default="1s", help="(default: 1s)"
    )
    watch.add_argument("--count", type=natural, metavar="N", help="end after N refreshes")
    web = commands.add(
        "web",
        run_web,
        "show the queue in the browser: print an address on this machine that works once",
        more="Only this machine can reach it. Ctrl-C ends it.",
    )
    web.add_argument(
        "--port",
        type=port,
        metavar="N",
        default=0,
        help="listen on this port (default: a free one)",
    )
    web.add_argument(
        "--write", action="store_true", help="jobs can be changed, too (default: only looked at)"
    )


def run_check(arguments: Namespace) -> int:
    from dbbasic_queue.cli.check import run

    return run(arguments)


def run_plot(arguments: Namespace) -> int:
    from dbbasic_queue.cli.plot import run

    return run(arguments)


def run_watch(arguments: Namespace) -> int:
    from dbbasic_queue.cli.watch import Feed, print_changes

    interval = max(arguments.interval, 0.05)
    with existing_queue(arguments, even_if_moved=True) as queue:
        try:
            if Terminal().is_screen:
                from dbbasic_queue.cli.watch_screen import show

                show(Feed(queue), interval, arguments.count)
            else:
                print_changes(queue, interval, arguments.count)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def run_metrics(arguments: Namespace) -> int:
    from dbbasic_queue.monitoring import prometheus

    with existing_queue(arguments) as queue:
        if arguments.path is None:
            print(prometheus.to_text(queue.metrics(arguments.window)), end="")
        else:
            queue.write_metrics(arguments.path, arguments.window)
    return 0


def run_web(arguments: Namespace) -> int:
    from dbbasic_queue.cli.web import run

    return run(arguments)
