"""Payloads that are Python objects: pickled by cloudpickle, signed, and refused unsigned.

JSON is the default and the advice: `cat` shows it, another program can write it, an older worker
can read it, and no key has to be kept. This is for callers who must hand over an object all the
same. It needs the extra: `pip install 'dbbasic-queue[pickle]'`.

To unpickle is to run whatever the bytes say. So a payload carries an HMAC-SHA256 (RFC 2104) of the
job's type and the pickle, under a key that is kept away from the queue; and nothing is unpickled
unless that is right. Who may write the queue, but cannot read the key, can make no payload, alter
none, and move none to another type. He can enqueue a signed one again, as he can any job.

This is the only module of the package that unpickles, and no other one imports it.
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
_LONGEST_KEY = 4096
_PURPOSE = b"dbbasic_queue pickle 1"


class UnsafeKey(QueueError, ValueError):
    """Raised if a key file would not keep others from signing: a reader, a place, a short key."""


class Pickles:
    """Makes payloads of Python objects, and objects of payloads, under the key in a file.

    The file holds 32 bytes or more, all of which are the key. It is a regular file of this user or
    root, no link, that nobody else may read or write but its group may read it (mode 0600 or 0640);
    and it lies outside the directory of `queue`, by default of the default queue, and of those
    below: who may write there must not be able to replace it.

    Raises UnsafeKey where that is not so, OSError where the file cannot be read, and ImportError
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
        """Return the payload for a job of this type; it cannot be run as one of another.

        Raises InvalidJob if `job_type` can be no type, or the value cannot be pickled. A payload
        of over 1 MiB is refused by `enqueue`: base64 makes a pickle longer by a third.
        """
        check_type(job_type)
        try:
            pickle = b64encode(self._cloudpickle.dumps(value)).decode()
        except Exception as e:
            raise InvalidJob(
                f"the payload is refused: a {type(value).__name__} cannot be pickled "
                f"({type(e).__name__}: {e}); hand over what it is made of"
            ) from e
        return {"pickle": pickle, "signature": self._signature(job_type, pickle)}

    def load(self, job_type: str, payload: Any) -> Any:
        """Return the object that `payload` was called with for this type.

        Raises Fail, before anything is unpickled, if the payload is not signed so: to try it again
        would not help. What unpickling raises is an error like another.
        """
        if not isinstance(payload, dict) or payload.keys() != {"pickle", "signature"}:
            raise Fail("the payload is refused: it is no signed pickle")
        pickle, signature = payload["pickle"], payload["signature"]
        if not (isinstance(pickle, str) and isinstance(signature, str) and pickle.isascii()):
            raise Fail("the payload is refused: it is no signed pickle")
        expected = self._signature(job_type, pickle)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise Fail(
                f"the payload is refused: its signature is not that of this key for {job_type}"
            )
        return self._cloudpickle.loads(_decoded(pickle))

    def unpickled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a handler: it is called with the object in the place of the payload.

        It stands below `@jobs.handler(...)`; InvalidHandlers is raised where it stands above. The
        handler may take the `Job` as a second argument, and may be a coroutine function.
        """
        if isinstance(function, Handler):
            raise InvalidHandlers(
                "unpickled cannot decorate a handler that is registered already: put "
                "@pickles.unpickled below @jobs.handler"
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
        # A type has no NUL in it: what is signed can be divided in one way only.
        signed = b"\0".join((_PURPOSE, job_type.encode(), pickle.encode()))
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()


def _decoded(text: str) -> bytes:
    """Return the bytes of base64 as `payload` writes it: each has one text only.

    Raises Fail for any other text; since Python 3.14, b64decode accepts excess padding.
    """
    try:
        decoded = b64decode(text, validate=True)
    except ValueError:
        decoded = b""
    if b64encode(decoded).decode() != text:
        raise Fail("invalid payload: its pickle is not base64 as enqueued, without excess padding")
    return decoded


def _check_place(path: str, queue: str) -> None:
    if not os.path.isabs(queue):
        return  # it is in memory
    directory = os.path.dirname(os.path.realpath(queue))
    if os.path.commonpath([directory, os.path.realpath(path)]) == directory:
        raise UnsafeKey(
            f"the key {path} is refused: it lies in the queue's directory {directory}, and who may "
            "write there could replace it (keep it in a directory of its own, such as "
            "/etc/my-app)"
        )


def _read_key(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UnsafeKey(f"the key {path} is refused: it is a symbolic link") from e
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeKey(f"the key {path} is refused: it is no regular file")
        if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP):
            raise UnsafeKey(
                f"the key {path} is refused: its mode is {stat.S_IMODE(status.st_mode):o}, so "
                "others may use it (chmod 600, or 640 for a group that signs too)"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise UnsafeKey(
                f"the key {path} is refused: it belongs to the user {status.st_uid} "
                f"(chown it to root, or to {os.geteuid()}; a group may read it)"
            )
        key = os.read(fd, _LONGEST_KEY + 1)
    finally:
        os.close(fd)
    if not SHORTEST_KEY <= len(key) <= _LONGEST_KEY:
        raise UnsafeKey(
            f"the key {path} is refused: it is {len(key)} bytes long, and {SHORTEST_KEY} to "
            f"{_LONGEST_KEY} are allowed (head -c 32 /dev/urandom makes one)"
        )
    return key
