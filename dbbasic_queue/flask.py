"""Flask: a registry of handlers with `init_app`, `flask queue ...`, and the page below a path.

- The queue is that of the app's configuration, opened once per app and process; a fork is safe.
- Each job runs in an app context of its own, also in forked processes, and in the thread of a
  `Worker`.
- The page is mounted in front of the app's own views: no `before_request` function, and no check
  of the app's own forms, gets its requests. `allow` is called in a request context. The app's
  TRUSTED_HOSTS hold for the page, too.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from contextlib import contextmanager
from weakref import WeakSet

import click
from flask import Flask, current_app, request
from flask.cli import ScriptInfo, with_appcontext
from werkzeug.exceptions import SecurityError

from dbbasic_queue.cli.embedded import run
from dbbasic_queue.errors import InvalidArgument, InvalidHandlers, NotAQueue
from dbbasic_queue.opening import open_queue
from dbbasic_queue.registry import Handlers
from dbbasic_queue.store.location import path_of
from dbbasic_queue.web import page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta
    from typing import Any

    from dbbasic_queue.cli.crontab import Worker
    from dbbasic_queue.handlers import Job
    from dbbasic_queue.jobqueue import Queue
    from dbbasic_queue.web import Page
    from dbbasic_queue.web.application import Allowed

NAME = "dbbasic_queue"
"""the key in `app.extensions`; its value is the app's Queue"""
_DEFAULT_PATH = "queue.tsv"
_SETTINGS = ("FLASK_QUEUE_PATH", "FLASK_QUEUE_URL")
"""environment variables from which an app may have its queue, so that cron has to set them, too"""


class FlaskHandlers(Handlers):
    """A registry whose queue is that of the Flask app; an extension with `init_app`.

    Jobs run in an app context. `keep` and `name` are those of `Handlers`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        keep: float | timedelta | None = None,
        name: str | None = None,
    ) -> None:
        self._apps: WeakSet[Flask] = WeakSet()
        super().__init__(keep=keep, name=name)
        self.around(self._in_app_context)
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        *,
        allow: Callable[[Any], Allowed] | None = None,
        prefix: str = "/queue",
    ) -> None:
        """Open the app's queue, and add the command `flask queue`.

        The queue is `QUEUE_URL` of the configuration, or the file `QUEUE_PATH`, by default
        `queue.tsv`; a relative path is relative to the instance folder. With `allow`, as for
        `web.page`, the page is mounted below `prefix`; `session` and the like can be used in it.

        Raises NotAQueue for an invalid path or URL, and if both are set; ValueError for an invalid
        prefix.
        """
        queue = open_queue(_location(app))
        app.extensions[NAME] = queue
        app.cli.add_command(_command)
        self._apps.add(app)
        if allow is not None:
            if not prefix.startswith("/") or not prefix.strip("/"):
                raise ValueError(f'invalid prefix {prefix!r}: must be a path such as "/queue"')
            mounted = _Mounted(app, app.wsgi_app, page(queue, allow), prefix.rstrip("/"))
            app.wsgi_app = mounted  # type: ignore[method-assign]

    @property
    def queue(self) -> Queue:
        """The queue of the current app; outside of an app context, that of the only app.

        Raises InvalidHandlers if there is no such app.
        """
        queue: Queue = self._app().extensions[NAME]
        return queue

    @queue.setter
    def queue(self, queue: Queue | None) -> None:
        if queue is not None:
            raise InvalidHandlers("the queue is that of the app: set QUEUE_PATH or QUEUE_URL")

    def _app(self) -> Flask:
        if current_app:
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
            if app in self._apps:
                return app
            raise InvalidHandlers(f"{app.name!r} isn't an app of this registry: call init_app(app)")
        apps = list(self._apps)
        if len(apps) != 1:
            raise InvalidHandlers(
                f"{len(apps) or 'no'} apps have this registry, and none is the current one: call "
                "init_app(app), or use an app context (with app.app_context())"
            )
        return apps[0]

    @contextmanager
    def _in_app_context(self, job: Job) -> Iterator[None]:
        with self._app().app_context():
            yield


def _location(app: Flask) -> str:
    """Return the path or URL of the app's queue."""
    url, path = app.config.get("QUEUE_URL"), app.config.get("QUEUE_PATH")
    if url and path:
        raise NotAQueue("both QUEUE_URL and QUEUE_PATH are set: unset one of them")
    if url:
        return str(url)
    path = os.fspath(path_of(path or _DEFAULT_PATH, "QUEUE_PATH"))
    return os.path.abspath(os.path.join(app.instance_path, path))


@click.command(
    "queue",
    short_help="Look at the queue, change it, run its jobs.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@with_appcontext
def _command(arguments: tuple[str, ...]) -> None:
    """The command line of dbbasic-queue, for the queue of the app."""
    sys.exit(run(current_app.extensions[NAME], arguments, _program(), _find_worker))


def _program() -> str:
    """Return what a person types before a command, such as `flask --app shop queue`."""
    context = click.get_current_context()
    info = context.find_object(ScriptInfo)
    app = None if info is None or info.create_app is not None else info.app_import_path
    if app is None or context.parent is None:
        return context.command_path
    return f"{context.parent.command_path} --app {shlex.quote(app)} {context.info_name}"


def _find_worker(handlers: str | None, queue: Queue) -> Worker:
    """Return what cron has to start. Raises InvalidArgument and InvalidHandlers."""
    from dbbasic_queue.cli.crontab import Worker, check_no_password
    from dbbasic_queue.cli.loading import load_handlers

    here = os.getcwd()
    info = click.get_current_context().find_object(ScriptInfo)
    if info is None or info.create_app is not None:
        raise InvalidArgument(
            "this app has a command line of its own, so write the line by hand: * * * * * "
            f"cd {shlex.quote(here)} && LC_ALL=C.UTF-8 PROGRAM queue run MODULE:NAME --linger 55s"
        )
    if handlers is None or handlers.endswith(".py"):
        raise InvalidArgument(
            "name the app's registry as MODULE:NAME, such as: flask queue crontab shop:jobs"
        )
    found, _ = load_handlers(Namespace(handlers=handlers, skip_unknown=False), queue)
    if isinstance(found, FlaskHandlers):
        _ = found.queue  # raises InvalidHandlers if it is the registry of another app
    elif not handlers.endswith(".toml"):
        raise InvalidArgument(
            f"{handlers} isn't a registry of this app, so its jobs would run without an app "
            "context (make it a FlaskHandlers, or print its line with python -m dbbasic_queue "
            "crontab)"
        )
    app = [] if info.app_import_path is None else ["--app", info.app_import_path]
    named = os.path.abspath(handlers) if handlers.endswith(".toml") else handlers
    if "FLASK_QUEUE_URL" in os.environ:
        check_no_password(queue, "FLASK_QUEUE_URL")
    return Worker(
        here,
        queue.path,
        [sys.executable, "-m", "flask", *app, "queue", "run", named],
        linger=("--linger", "55s"),
        environment={name: os.environ[name] for name in _SETTINGS if name in os.environ},
    )


class _Mounted:
    """The app, with the page below a path."""

    def __init__(self, app: Flask, inner: Any, mounted: Page, prefix: str) -> None:
        self._app = app
        self._inner = inner
        self._page = mounted
        self._prefix = prefix

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, prefix = environ.get("PATH_INFO", ""), self._prefix
        if path != prefix and not path.startswith(f"{prefix}/"):
            answer: Iterable[bytes] = self._inner(environ, start_response)
            return answer
        inside = {
            **environ,
            "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + prefix,
            "PATH_INFO": path[len(prefix) :],
        }
        with self._app.request_context(environ):  # for `allow`: session, current_user
            try:
                _ = request.host
            except SecurityError as error:  # another host than the app's own
                return error(environ, start_response)
            return self._page(inside, start_response)
