"""Payloads that are Python objects: pickled by cloudpickle and signed; unsigned ones are refused.

Use JSON if you can: `cat` shows it, other programs can write it, older workers can read it, and
there is no key to keep. This module is for objects that can't be JSON. It needs an extra:
`pip install 'dbbasic-queue[pickle]'`.

Unpickling runs any code that the bytes contain. So each payload carries an HMAC-SHA256 (RFC 2104)
of the job's type and the pickle, made with a key that is kept away from the queue. The signature is
checked before anything is unpickled. Someone who can write to the queue but can't read the key
can't create or change a payload, or move one to another job type. They can still enqueue a signed
payload again.

This is the only module of the package that unpickles, and no other module imports it.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import hmac
import os
import stat
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from dbbasic_queue.errors import InvalidHandlers, InvalidJob, QueueError
from dbbasic_queue.handlers import Fail, Handler
from dbbasic_queue.model.checks import check_type
from dbbasic_queue.queue import default_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbbasic_queue.handlers import Job
    from dbbasic_queue.jobqueue import Queue

SHORTEST_KEY = 32
_LONGEST_KEY_BYTES = 4096
_PURPOSE = b"dbbasic_queue pickle 1"


class UnsafeKey(QueueError, ValueError):
    """Raised for a key file that others could read or replace, or whose length is invalid."""


class Pickles:
    """Turns Python objects into signed payloads and back, with the key in a file.

    All bytes of the file are the key, 32 to 4,096 of them. It must be a regular file, not a link,
    that belongs to this user or root. Others must have no access to it, and its group may at most
    read it (mode 0600 or 0640). It must not be in or below the directory of `queue` (by default the
    default queue): those who can write there could replace it.

    Raises UnsafeKey if one of these rules is broken, OSError if the file can't be read, ImportError
    without cloudpickle.
    """

    def __init__(self, key_file: str | os.PathLike[str], queue: Queue | None = None) -> None:
        try:
            import cloudpickle
        except ImportError as e:
            raise ImportError(
                "cloudpickle is not installed: pip install 'dbbasic-queue[pickle]'"
            ) from e
        self._cloudpickle = cloudpickle
        path = os.fspath(key_file)
        _check_place(path, (default_queue() if queue is None else queue).path)
        self._key = _read_key(path)
        self._key_file = path

    def __repr__(self) -> str:
        return f"<{type(self).__name__} under the key in {self._key_file}>"

    def payload(self, job_type: str, value: object) -> dict[str, str]:
        """Return the payload for a job of this type; a job of another type can't use it.

        Raises InvalidJob for an invalid type, and if the value can't be pickled. `enqueue` accepts
        payloads of up to 1 MiB; base64 makes a pickle a third longer.
        """
        check_type(job_type)
        try:
            pickle = b64encode(self._cloudpickle.dumps(value)).decode()
        except Exception as e:
            raise InvalidJob(
                f"invalid payload: a {type(value).__name__} can't be pickled "
                f"({type(e).__name__}: {e}; enqueue the values that it is made of)"
            ) from e
        return {"pickle": pickle, "signature": self._signature(job_type, pickle)}

    def load(self, job_type: str, payload: Any) -> Any:
        """Return the object that a payload was made from, by the method `payload` for this type.

        Raises Fail, before anything is unpickled, if it isn't signed or the signature is wrong:
        another attempt wouldn't help. An exception from unpickling is like any other error of a
        job.
        """
        if not isinstance(payload, dict) or payload.keys() != {"pickle", "signature"}:
            raise Fail("invalid payload: must be a signed pickle")
        pickle, signature = payload["pickle"], payload["signature"]
        if not (isinstance(pickle, str) and isinstance(signature, str) and pickle.isascii()):
            raise Fail("invalid payload: must be a signed pickle")
        expected = self._signature(job_type, pickle)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise Fail(f"invalid payload: it was not signed with this key for {job_type}")
        return self._cloudpickle.loads(_decoded(pickle))

    def unpickled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a handler, so that it is called with the object instead of the payload.

        Put it below `@jobs.handler(...)`; above, it raises InvalidHandlers. The handler may take
        the `Job` as a second argument, and may be a coroutine function.
        """
        if isinstance(function, Handler):
            raise InvalidHandlers(
                "invalid use of unpickled: this handler is registered already (put "
                "@pickles.unpickled below @jobs.handler)"
            )
        handler = Handler(function)

        @functools.wraps(function)
        def plain(payload: Any, job: Job) -> Any:
            value = self.load(job.type, payload)
            return handler.start(value, job)

        @functools.wraps(function)
        async def coroutine(payload: Any, job: Job) -> Any:
            return await plain(payload, job)

        return coroutine if handler.is_coroutine else plain

    def _signature(self, job_type: str, pickle: str) -> str:
        # A type contains no NUL, so the signed bytes can be split in only one way.
        signed = b"\0".join((_PURPOSE, job_type.encode(), pickle.encode()))
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()


def _decoded(text: str) -> bytes:
    """Return the bytes of base64 text as `payload` writes it, which is unique for each value.

    Raises Fail for any other text. Since Python 3.14, b64decode accepts excess padding.
    """
    try:
        decoded = b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if b64encode(decoded).decode() != text:
        raise Fail("invalid payload: its pickle isn't the base64 text that was enqueued")
    return decoded


def _check_place(path: str, queue: str) -> None:
    if not os.path.isabs(queue):
        return  # it is in memory
    directory = os.path.dirname(os.path.realpath(queue))
    if os.path.commonpath([directory, os.path.realpath(path)]) == directory:
        raise UnsafeKey(
            f"invalid key file {path}: it is in the queue's directory {directory}, so those who "
            "can write there could replace it (keep it in a directory of its own, such as "
            "/etc/my-app)"
        )


def _read_key(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UnsafeKey(f"invalid key file {path}: it is a symbolic link") from e
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeKey(f"invalid key file {path}: it isn't a regular file")
        if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP):
            raise UnsafeKey(
                f"invalid key file {path}: its mode is {stat.S_IMODE(status.st_mode):o}, so others "
                "can use it (chmod 600, or 640 for a group that signs, too)"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise UnsafeKey(
                f"invalid key file {path}: it belongs to user {status.st_uid} "
                f"(chown it to root, or to {os.geteuid()}; its group may read it)"
            )
        key = os.read(fd, _LONGEST_KEY_BYTES + 1)
    finally:
        os.close(fd)
    if not SHORTEST_KEY <= len(key) <= _LONGEST_KEY_BYTES:
        raise UnsafeKey(
            f"invalid key file {path}: it has {len(key)} bytes and must have {SHORTEST_KEY} to "
            f"{_LONGEST_KEY_BYTES} (head -c 32 /dev/urandom makes one)"
        )
    return key
