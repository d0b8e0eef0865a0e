"""What the commands' arguments have in common: their parser, and the kinds of values."""

from __future__ import annotations

import argparse
import re
import time

from dbbasic_queue.cli.messages import PROGRAM, VERBS, WRONG_USAGE, for_stderr, program
from dbbasic_queue.model.checks import parse_seconds
from dbbasic_queue.model.escaping import printable
from dbbasic_queue.model.states import LATEST, STATUSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

AN_ID = "a job's id, or its beginning if that is unique (write -- before one that starts with -)"
CHANGED_ID = f"{AN_ID[:-1]}; at least 6 characters of it)"
_DIGITS = 15
INSTANTS = "+5m, 2h (ago, or from now), @UNIX, or an ISO date such as 2027-01-15T08:00"


class Parser(argparse.ArgumentParser):
    """Prints errors without control characters. Options may stand before and after any argument."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # As in Python 3.14: the value of an option may begin with a minus and a digit.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Parse; end with wrong usage if an argument is left over.

        By default, only the program as a whole does that, and its --help doesn't help.
        """
        found, rest = super().parse_known_args(args, namespace)
        if left := self._without_later(found, rest):
            self.error(self._unknown(left[0]))
        return found, []

    def _without_later(self, found: Namespace, rest: list[str]) -> list[str]:
        """Give optional arguments that come after an option their values; return what is left.

        argparse gives all of them their defaults as soon as it has the first argument, so that the
        payload of `enqueue mail --in 5m PAYLOAD` would be left over.
        """
        place = rest.index("--") if "--" in rest else len(rest)
        values, literal = rest[:place], rest[place + 1 :]
        for number, value in enumerate(values):
            if value[:1] == "-" and value[1:2].strip("0123456789"):  # an unknown option
                return rest[number:]
        values += literal
        for action in self._actions:
            if action.option_strings or not values:
                continue
            if action.nargs == "?" and getattr(found, action.dest) is action.default:
                setattr(found, action.dest, values.pop(0))
            elif action.nargs == "*":
                setattr(found, action.dest, [*getattr(found, action.dest), *values])
                values = []
        return values

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            hint = " (write JSON in single quotes)" if set(argument) & set('{}[]"') else ""
            return f"unexpected argument {argument!r}{hint}"
        name = argument.partition("=")[0]
        return f"there is no option {name}{_close_to(name, list(self._option_string_actions))}"

    def error(self, message: str) -> NoReturn:
        """End with one line on stderr: what is wrong, and where to look."""
        what, is_choice, choices = message.partition(" (choose from ")
        if is_choice and what.startswith("argument COMMAND: invalid choice: "):
            name = what.rpartition(": ")[2]
            known = choices.rstrip(")").replace("'", "").split(", ")
            message = f"there is no command {name}{_close_to(name.strip(chr(39)), known)}"
        text = for_stderr(f"{self.prog}: {printable(message)} (see {self.prog} --help)")
        self.exit(WRONG_USAGE, f"{text}\n")


def _close_to(name: str, known: list[str]) -> str:
    """Return which command or option was probably meant, for the message about an unknown one."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1, cutoff=0.75)
    return f": did you mean {close[0]}?" if close else ""


class Commands:
    """The commands, to which each group adds its own."""

    def __init__(self, parser: Parser) -> None:
        self._subparsers = parser.add_subparsers(
            title="commands", metavar="COMMAND", parser_class=Parser
        )

    def add(
        self,
        name: str,
        run: Callable[[Namespace], int],
        text: str,
        *,
        more: str = "",
        file: bool = True,
        json: bool = False,
    ) -> ArgumentParser:
        """Add a command, and return its parser.

        `run` takes the parsed arguments and returns the exit code. `text` is its help, in
        imperative form, and `more` follows in its own --help. With `file` it has --file, with
        `json` it has --json.
        """
        VERBS.add(name)
        made = self._subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.{more and ' '}{more}"
        )
        made.set_defaults(run=run, wrong_usage=made.error, command=name, has_json=json)
        if file:
            add_file(made, default=argparse.SUPPRESS)  # the one before the command stays
        if json:
            add_json(made, default=argparse.SUPPRESS)
        return made


def add_json(parser: ArgumentParser, default: Any = False) -> None:
    """Add --json to a parser."""
    parser.add_argument(
        "--json", action="store_true", default=default, help="print JSON, one value per line"
    )


def add_file(parser: ArgumentParser, default: Any = None) -> None:
    """Add --file to a parser."""
    parser.add_argument(
        "--file",
        metavar="PATH",
        default=default,
        help="the queue's file (default: $DBBASIC_QUEUE_URL, $DBBASIC_QUEUE_FILE, or "
        "data/queue.tsv)",
    )


def program_parser(version: str) -> Parser:
    """Return the parser of the program, without its commands."""
    parser = Parser(
        prog=program(),
        description="A job queue in a plain text file. Without a command, show its status.",
        epilog="Exit codes: 0 done, 1 not done (one line on stderr says why), 2 wrong usage, "
        "3 a job failed, 4 it was cancelled, 5 timeout.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version}")
    add_file(parser)
    add_json(parser)
    return parser


def seconds(text: str) -> float:
    """Parse a duration with a unit; return its seconds. Raises ArgumentTypeError for other text."""
    try:
        return parse_seconds(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def past_instant(text: str) -> float:
    """Parse an instant; a duration without a sign means so long ago."""
    return _instant(text, -1)


def coming_instant(text: str) -> float:
    """Parse an instant; a duration without a sign means in that time."""
    return _instant(text, 1)


def _instant(text: str, direction: int) -> float:
    """Return Unix seconds. Raises ArgumentTypeError for text that isn't an instant."""
    from datetime import datetime

    now = time.time()
    try:
        if text == "now":
            return now
        if text[:1] == "@":
            at = float(text[1:])
        elif text[-1:] in ("s", "m", "h", "d"):
            sign = {"+": 1, "-": -1}.get(text[0], direction)
            at = now + sign * parse_seconds(text.lstrip("+-") if text[0] in "+-" else text)
        else:
            at = datetime.fromisoformat(text).timestamp()  # local time, unless it has an offset
    except (ValueError, OverflowError, OSError):
        at = -1
    if not 0 <= at <= LATEST:
        raise argparse.ArgumentTypeError(f"invalid instant {text!r}: must be {INSTANTS}")
    return at


def regex(text: str) -> Any:
    """Compile a regular expression. Raises ArgumentTypeError if it isn't valid."""
    import re

    try:
        return re.compile(text)
    except re.error as e:
        raise argparse.ArgumentTypeError(f"invalid regular expression {text!r}: {e}") from None


def natural(text: str) -> int:
    """Parse a whole number of 1 or more. Raises ArgumentTypeError for other text."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) > 0):
        raise argparse.ArgumentTypeError(
            f"invalid number {text[:30]!r}: must be 1 or more, with at most {_DIGITS} digits"
        )
    return int(text)


def port(text: str) -> int:
    """Parse the number of a port; 0 is any free one. Raises ArgumentTypeError for other text."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"invalid port {text[:30]!r}: must be 0 to 65535")
    return int(text)


def add_filters(parser: ArgumentParser, statuses: tuple[str, ...] = STATUSES) -> None:
    """Add the options that choose jobs; `selecting.Filter` applies them."""
    group = parser.add_argument_group("which jobs (all that are given must apply)")
    if len(statuses) > 1:
        group.add_argument(
            "--status",
            action="append",
            choices=statuses,
            help="with this status; may be repeated",
        )
    group.add_argument("--type", action="append", help="of this type; may be repeated")
    group.add_argument(
        "--error", type=regex, metavar="REGEX", help="whose error matches, such as SMTP"
    )
    group.add_argument("--text", help="with this text in id, payload, error or result")
    group.add_argument(
        "--since",
        type=past_instant,
        metavar="INSTANT",
        help=f"due at or after this instant: {INSTANTS}",
    )
    group.add_argument(
        "--until", type=past_instant, metavar="INSTANT", help="due before this instant"
    )


def add_order(parser: ArgumentParser) -> None:
    """Add the options that sort and cut a list."""
    parser.add_argument(
        "--sort",
        choices=("created", "due", "type", "status", "attempts", "id"),
        help="sort by this, in ascending order (default: the order of enqueueing)",
    )
    parser.add_argument("--reverse", action="store_true", help="print the last job first")
    parser.add_argument("--limit", type=natural, metavar="N", help="print at most N jobs")


def add_many(parser: ArgumentParser, statuses: tuple[str, ...]) -> None:
    """Add the arguments of a command that changes jobs: ids, or filters; --dry-run and --yes."""
    parser.add_argument("ids", metavar="ID", nargs="*", help=CHANGED_ID)
    add_filters(parser, statuses)
    parser.add_argument("--all", action="store_true", help="all jobs that the command can change")
    add_caution(parser)


def add_caution(parser: ArgumentParser, what: str = "how many jobs") -> None:
    """Add --dry-run, which prints `what`, and --yes."""
    parser.add_argument(
        "-n", "--dry-run", action="store_true", help=f"only print {what}; change nothing"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="don't ask first at a terminal")
