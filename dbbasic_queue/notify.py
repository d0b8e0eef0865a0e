"""Reports failed jobs by mail, or to a webhook: hooks for `Handlers.on_failure`.

    jobs.on_failure(Mail(to="ops@example.org"))

Each sends one digest per pass, after all outcomes are recorded. A long-running pass also sends when
failures are a minute old. A digest that can't be sent is logged as an error, and the next one has
its jobs as well. If the process ends before that, the digest is lost: the jobs are in the queue.
"""

from __future__ import annotations

import os

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.lazy import load
from dbbasic_queue.model.escaping import escape
from dbbasic_queue.passes import log_lines
from dbbasic_queue.passes.digests import Digest
from dbbasic_queue.passes.http import check_url, place_of, post_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import suppress
    from email.message import EmailMessage
    from types import ModuleType
    from typing import Any, Literal

    from dbbasic_queue.passes.digests import Failure

    Tls = Literal["starttls", "implicit", "none"]

__all__ = ["Mail", "Webhook"]

_SMTP_SECONDS = 10.0
"""how long each answer of the mail server may take"""
_IMPLICIT_TLS_PORT = 465
_NOT_IN_AN_ADDRESS = frozenset(' <>()[],;:\\"@')


class Mail(Digest):
    """An `on_failure` hook that mails which jobs have failed for good.

    - `to`: an address, or several.
    - `sender`: by default dbbasic-queue@HOST, with the name of this machine.
    - `server`, `port`: the mail server.
    - `user`, `password`: to log in.
    - `tls`: "starttls" (the default with a `user`), "implicit" (the default for port 465) or
      "none". The server's certificate is checked.

    Raises InvalidArgument for an invalid argument. The server isn't contacted before a job fails.
    """

    def __init__(
        self,
        to: str | Iterable[str],
        sender: str | None = None,
        server: str = "localhost",
        port: int = 25,
        user: str | None = None,
        password: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        is_one = isinstance(to, str) or not hasattr(to, "__iter__")
        self.to = [_address("to", address) for address in ([to] if is_one else to)]
        if not self.to:
            raise InvalidArgument("invalid to: must be an email address, or a list of them")
        self.sender = None if sender is None else _address("sender", sender)
        if not _is_plain(server, also=":"):
            raise InvalidArgument(f"invalid server {server!r}: must be the name of a mail server")
        self.server = server
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            raise InvalidArgument(f"invalid port {port!r}: must be a number from 1 to 65535")
        self.port = port
        if (user is None) != (password is None):
            raise InvalidArgument("invalid user or password: give both, or neither of them")
        self.user = user
        self.password = password
        if tls is None:
            tls = "starttls" if user is not None else "none"
            tls = "implicit" if port == _IMPLICIT_TLS_PORT else tls
        if tls not in ("starttls", "implicit", "none"):
            raise InvalidArgument(f'invalid tls {tls!r}: must be "starttls", "implicit" or "none"')
        self.tls = tls
        super().__init__()

    def __repr__(self) -> str:
        return f"<Mail to {', '.join(self.to)}, by {self.server}:{self.port}>"

    def title(self) -> str:
        """Return what is sent, and to which addresses."""
        return f"the mail to {', '.join(self.to)}"

    def send(self, queue: str, failed: list[Failure], count: int) -> None:
        """Send one mail. Raises an exception unless the server has accepted it.

        It is enough if the server accepts one of several addresses: the others are logged.
        """
        host = _host()
        sender = self.sender or f"dbbasic-queue@{host}"
        message = _message(sender, self.to, host, queue, failed, count)
        smtplib, suppress = load(_smtplib)
        how: dict[str, Any] = {"local_hostname": host, "timeout": _SMTP_SECONDS}
        if self.tls == "implicit":
            how["context"] = load(_ssl).create_default_context()
        server = (smtplib.SMTP_SSL if self.tls == "implicit" else smtplib.SMTP)(
            self.server, self.port, **how
        )
        try:
            if self.tls == "starttls":
                server.starttls(context=load(_ssl).create_default_context())
            if self.user is not None:
                server.login(self.user, self.password)
            refused = server.send_message(message, sender, self.to)
            with suppress(smtplib.SMTPException, OSError):
                server.quit()  # it has accepted the mail, which must not be sent again
        finally:
            server.close()
        if refused and (log := log_lines.logger()):
            log_lines.recipients_refused(log, sorted(refused))


class Webhook(Digest):
    """An `on_failure` hook that sends JSON about failed jobs to a URL, by POST.

        {"queue": PATH, "host": HOST, "count": 3,
         "failed": [{"id": ..., "type": ..., "attempts": ..., "error": ...}, ...]}

    `failed` has up to 20 jobs, `count` is how many there are. An answer other than 2xx within 10
    seconds counts as an error. Raises InvalidArgument for a URL that isn't http or https.
    """

    def __init__(self, url: str) -> None:
        self.url = check_url(url, "url")
        super().__init__()

    def __repr__(self) -> str:
        return f"<Webhook {place_of(self.url)}>"

    def title(self) -> str:
        """Return what is sent, and to which server."""
        return f"the webhook of {place_of(self.url)}"

    def send(self, queue: str, failed: list[Failure], count: int) -> None:
        """Send one request. Raises an exception unless the answer is 2xx."""
        import json

        digest = {"queue": queue, "host": _host(), "count": count, "failed": failed}
        post_json(self.url, json.dumps(digest).encode())


# -- the mail


def _address(name: str, text: object) -> str:
    """Return an address that can't add another one, or a header."""
    user, _, domain = text.partition("@") if isinstance(text, str) else ("", "", "")
    if not _is_plain(user) or not _is_plain(domain):
        raise InvalidArgument(
            f"invalid {name} {text!r}: must be an email address, such as ops@example.org"
        )
    return f"{user}@{domain}"


def _is_plain(text: object, *, also: str = "") -> bool:
    """Return whether it is printable ASCII without the characters that end an address.

    Those in `also` are allowed.
    """
    return (
        isinstance(text, str)
        and bool(text)
        and text.isascii()
        and text.isprintable()
        and not (_NOT_IN_AN_ADDRESS & {*text}) - {*also}
    )


def _host() -> str:
    from socket import gethostname

    return gethostname()


def _message(
    sender: str, to: list[str], host: str, queue: str, failed: list[Failure], count: int
) -> EmailMessage:
    policy, message_module, utils = load(_email)
    message: EmailMessage = message_module.EmailMessage(
        policy=policy.SMTP.clone(cte_type="7bit", max_line_length=998)
    )
    message["From"], message["To"] = sender, ", ".join(to)
    message["Subject"] = _subject(host, queue, count)
    message["Date"] = utils.localtime()
    message["Message-ID"] = utils.make_msgid(domain=sender.partition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(host, queue, failed, count))
    return message


def _subject(host: str, queue: str, count: int) -> str:
    """Return the subject: one line, in which nothing is decoded as another header."""
    jobs = "1 job" if count == 1 else f"{count:,} jobs"
    text = escape(f"{jobs} failed in {queue} on {host}" if queue else f"{jobs} failed on {host}")
    # The email package decodes encoded words ("=?utf-8?q?=0D=0ABcc:...?="), and older Pythons
    # (CVE-2024-6923) then write the line break unescaped.
    return text.replace("=?", "= ?")


def _text(host: str, queue: str, failed: list[Failure], count: int) -> str:
    lines = [f"{_subject(host, queue, count)}, for good: no further attempt is made.", ""]
    is_file = os.path.isabs(queue)
    if is_file:
        from shlex import quote

        path = escape(queue)
        lines += ["For the commands below:", f"    export DBBASIC_QUEUE_FILE={quote(path)}", ""]
    for job in failed:
        attempts = "1 attempt" if job["attempts"] == 1 else f"{job['attempts']} attempts"
        lines += [f"{escape(job['type'])}, job {job['id']}, {attempts}", f"    {_shown(job)}"]
        if is_file:
            job_id = job["id"] if job["id"][0] != "-" else f"-- {job['id']}"
            lines += [
                f"    look at it:   dbbasic-queue show {job_id}",
                f"    run it again: dbbasic-queue requeue {job_id}",
            ]
        lines += [""]
    if count > len(failed):
        lines += [f"and {count - len(failed):,} more", ""]
    if is_file:
        lines += [
            "All failed jobs:      dbbasic-queue list --status failed",
            "Run them all again:   dbbasic-queue requeue --failed",
        ]
    return "\n".join(lines) + "\n"


def _shown(job: Failure) -> str:
    return escape(job["error"]) or "(no error text)"


# -- imported when a mail is sent


def _smtplib() -> tuple[ModuleType, type[suppress]]:
    import smtplib
    from contextlib import suppress

    return smtplib, suppress


def _ssl() -> ModuleType:
    import ssl

    return ssl


def _email() -> tuple[ModuleType, ModuleType, ModuleType]:
    import email.message
    import email.policy
    import email.utils

    return email.policy, email.message, email.utils
