"""Commands that set a queue up, or check it: init, crontab, doctor, demo, bench."""

from __future__ import annotations

from dbbasic_queue.cli.arguments import Commands, natural
from dbbasic_queue.cli.queues import named_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    init = commands.add(
        "init",
        run_init,
        "write a handlers.toml or a worker.py for this directory, and print its crontab line",
    )
    init.add_argument("--python", action="store_true", help="write a worker.py")
    crontab = commands.add(
        "crontab",
        run_crontab,
        "print the crontab line that runs the jobs, or install or remove it",
        more="Nothing else in the crontab is changed. With --systemd: print the units that do the "
        "same.",
    )
    crontab.add_argument(
        "handlers",
        metavar="HANDLERS",
        nargs="?",
        help="a handlers.toml, MODULE:NAME, or a Python program (default: the one in this "
        "directory)",
    )
    crontab.add_argument(
        "--schedule",
        metavar="FIELDS",
        default="* * * * *",
        help="five time fields, or a word such as @hourly (default: every minute)",
    )
    crontab.add_argument(
        "--log",
        metavar="FILE",
        help="where its output goes, besides cron's mail (default: worker.log in this directory)",
    )
    crontab.add_argument(
        "--no-log", action="store_true", help="write no log: output goes to cron's mail only"
    )
    what = crontab.add_mutually_exclusive_group()
    what.add_argument("--install", action="store_true", help="add the line to this user's crontab")
    what.add_argument(
        "--remove", action="store_true", help="remove the line from this user's crontab"
    )
    what.add_argument(
        "--systemd", action="store_true", help="print a service, a timer and a path unit"
    )
    crontab.add_argument("--out", metavar="DIRECTORY", help="with --systemd: write files there")
    doctor = commands.add(
        "doctor",
        run_doctor,
        "check permissions, locks, disk, clock, cron, mail and jobs; name the remedy",
        more="Exits with 1 if something is wrong. In a pipe: level (ok, note, warning, wrong), "
        "name, text, remedy.",
        json=True,
    )
    doctor.add_argument(
        "--user",
        action="append",
        metavar="NAME",
        help="check that this user can use the queue, too, such as www-data; may be repeated",
    )
    doctor.add_argument(
        "--repair", action="store_true", help="repair what is safe, after making a copy"
    )
    doctor.add_argument(
        "--send-test-mail", metavar="ADDRESS", help="send a mail to it, as cron would"
    )
    demo = commands.add(
        "demo",
        run_demo,
        "run real jobs through a queue in a fresh directory, and show the file",
        more="The directory is kept, so that you can look at it.",
        file=False,
    )
    demo.add_argument("--dir", help="an empty or new directory (default: a temporary one)")
    bench = commands.add(
        "bench",
        run_bench,
        "measure how fast a queue on this disk is",
        more="Uses a fresh directory, and removes it.",
        file=False,
    )
    bench.add_argument(
        "--dir", help="a directory on the disk to measure (default: the current directory)"
    )
    bench.add_argument("--jobs", type=natural, metavar="N", default=2000, help="(default: 2,000)")


def run_init(arguments: Namespace) -> int:
    from dbbasic_queue.cli import init

    with named_queue(arguments) as queue:
        return init.run(arguments, queue)


def run_crontab(arguments: Namespace) -> int:
    from dbbasic_queue.cli import crontab

    with named_queue(arguments) as queue:
        return crontab.run(arguments, queue)


def run_doctor(arguments: Namespace) -> int:
    from dbbasic_queue.cli.doctor import run

    return run.run(arguments)


def run_demo(arguments: Namespace) -> int:
    from dbbasic_queue.cli import demo

    return demo.run(arguments.dir)


def run_bench(arguments: Namespace) -> int:
    from dbbasic_queue.cli import bench

    return bench.run(arguments)
