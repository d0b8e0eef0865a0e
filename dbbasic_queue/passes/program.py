"""Runs the program of a command, in the process that an attempt with a time limit has for itself.

- The program inherits stdin, stdout and stderr, descriptor 3 for its progress, the environment and
  the working directory: no other descriptor, no ignored and no blocked signal.
- Its input is written, and its outputs are read, by one loop, so it can't block on a full pipe.
  What it writes to stdout and stderr is also written to this process's own.
- It has ended when its process has ended, whatever it has left running. The guardian kills that.
- This process ignores the signals of `guardian.END_SIGNALS`. They are sent to the program, too,
  which may clean up first. If one of them kills the program, it then kills this process: the pass
  has to learn that, because the signal may have been sent to every process of the service.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
from contextlib import suppress

from dbbasic_queue.errors import InvalidArgument
from dbbasic_queue.handlers import Fail
from dbbasic_queue.model.jsontext import decode_json, too_long
from dbbasic_queue.model.states import TEMPORARY
from dbbasic_queue.passes import forked, guardian
from dbbasic_queue.passes.attempt import Refused, ResultLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Receive = Callable[[bytes], object]

EX_DATAERR, EX_TEMPFAIL = 65, 75  # sysexits.h
_READ_BYTES = 1 << 20
"""at least what a pipe holds: one read gets all that a program has left in it"""
_LINE_BYTES = 4096
_MOST_DIGITS = 300
"""a number that is longer is too large in any case, and may be too long for an int"""
_ABOVE_STANDARD = 10
"""the lowest descriptor for the program's end of a pipe: not one that it is going to have"""
_MOST_DESCRIPTORS = 1024
_REFUSED = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""the errors of a system that has no room for a process now"""
_ADVICE = {
    errno.E2BIG: "pass long values on stdin, or in a file",
    errno.ENOEXEC: "does a script begin with a line such as #!/bin/sh?",
    errno.EACCES: "is it executable, and may this user read it? Try chmod +x",
}


def result_of(
    program: str,
    arguments: list[bytes],
    environment: Mapping[str, str],
    directory: str,
    payload: bytes | None,
    max_result: int,
    report: Callable[[float, float | None, str], object],
) -> Any:
    """Run a program to its end, and return its result, as its exit code and stdout tell it.

    `program` is a path, or a name that is looked up in PATH. `arguments` begin with its name.
    `payload` is written to its stdin; None means an empty stdin. The result is stdout's JSON or
    text, or None if it is empty. `report` gets the progress that it writes to descriptor 3.

    Raises Fail for EX_DATAERR, Exception for any other failure: the text is the job's error. Raises
    ResultLost if the program was successful, but has written more than `max_result` bytes.
    """
    result, last_line = _Limited(max_result), _LastLine()
    progress = _ProgressLines(report)
    outputs = {1: _passed_on(1, result.add), 2: _passed_on(2, last_line.add), 3: progress.add}
    try:
        os.chdir(directory)
    except OSError as e:
        raise Exception(f"could not start {program} in {directory}: {e.strerror}") from None
    code = _run(program, arguments, environment, payload, outputs)
    if code == 0:
        return result.value()
    if -code in guardian.END_SIGNALS:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    how = f"killed by {forked.signal_name(-code)}" if code < 0 else f"exit code {code}"
    error = ": ".join(filter(None, (TEMPORARY if code == EX_TEMPFAIL else how, last_line.text())))
    raise (Fail if code == EX_DATAERR else Exception)(error)


# -- the outputs -----------------------------------------------------------------------------------


class _Limited:
    """What a program has written to stdout, unless that is more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._content = bytearray()

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._most + len(b"\r\n"):
            self._content += part
        else:
            self._content.clear()

    def value(self) -> Any:
        """Return the JSON value; the text, without the last line's end, if it isn't JSON."""
        if self._size > self._most + len(b"\r\n"):
            raise ResultLost from too_long(self._size, self._most)
        text = self._content.decode("utf-8", "replace").rstrip("\r\n")
        if not text.strip():
            return None
        try:
            return decode_json(text)
        except ValueError:
            return text


class _LastLine:
    """The last line that isn't blank, of the last 4 KiB that were added."""

    def __init__(self) -> None:
        self._end = b""

    def add(self, part: bytes) -> None:
        self._end = (self._end + part)[-_LINE_BYTES:]

    def text(self) -> str:
        lines = self._end.decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class _ProgressLines:
    """The lines that a program writes to descriptor 3: `DONE [TOTAL] [NOTE...]`.

    The last valid line of each part is reported. Others are ignored, and so is a line that is too
    long, and a last one without an end.
    """

    def __init__(self, report: Callable[[float, float | None, str], object]) -> None:
        self._report = report
        self._rest = b""

    def add(self, part: bytes) -> None:
        *lines, rest = (self._rest + part).split(b"\n")
        self._rest = rest[:_LINE_BYTES]  # a line of that length isn't valid
        for line in reversed(lines):
            if self._is_reported(line):
                break

    def _is_reported(self, line: bytes) -> bool:
        """Report a line; return False if it isn't valid."""
        match = _PROGRESS.fullmatch(line) if len(line) < _LINE_BYTES else None
        if match is None:
            return False
        done, total, note = match.groups(b"")
        try:
            self._report(
                _number(done), _number(total) if total else None, note.decode("utf-8", "replace")
            )
        except InvalidArgument:  # too large, or a total of 0
            return False
        return True


_PROGRESS = re.compile(rb"\s*(\d+(?:\.\d+)?)(?:\s+(\d+(?:\.\d+)?))?(?:\s+(\S.*?))?\s*")


def _number(digits: bytes) -> float:
    return float(digits) if b"." in digits or len(digits) > _MOST_DIGITS else int(digits)


def _passed_on(fd: int, receive: Receive) -> Receive:
    """Return a function that receives a part, and writes it to a descriptor of this process."""

    def both(part: bytes) -> None:
        receive(part)
        with suppress(OSError):  # closed, or nobody reads it: that isn't the program's error
            guardian.write_all(fd, part)

    return both


# -- the process -----------------------------------------------------------------------------------


def _run(
    program: str,
    arguments: list[bytes],
    environment: Mapping[str, str],
    payload: bytes | None,
    outputs: Mapping[int, Receive],
) -> int:
    """Start the program, and attend to it until it has ended; return its exit code.

    `outputs` are the program's descriptors, each with the function that gets what it writes there.
    The code is negative if a signal has killed it, as that of `subprocess`.
    """
    for number in guardian.END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    spawn = os.posix_spawn if "/" in program else os.posix_spawnp
    pipes = _Pipes()
    try:
        _prepare_descriptors()
        wake = _wake_up_when_it_ends()
        pipes.feed(payload)
        for fd, receive in outputs.items():
            pipes.read(fd, receive)
        pid = spawn(
            program,
            arguments,
            environment,
            file_actions=pipes.actions,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, *guardian.END_SIGNALS),
        )
    except OSError as e:
        if e.errno in _REFUSED:
            raise Refused(f"the command {program}") from e
        raise Exception(_why_not_started(program, e)) from None
    pipes.close_theirs()
    return _attend(pid, wake, pipes)


class _Pipes:
    """The pipes to and from a program, before it is started."""

    def __init__(self) -> None:
        self.actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
        """what gives the program its descriptors: see `os.posix_spawn`"""
        self.writer: _Writer | None = None
        self.receivers: dict[int, Receive] = {}
        self._theirs: list[int] = []

    def feed(self, content: bytes | None) -> None:
        """Write the content to the program's stdin; if it is None, there is nothing to read."""
        if content is None:
            self.actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
        else:
            end, ours = os.pipe()
            self._becomes(end, 0)
            self.writer = _Writer(ours, content)

    def read(self, fd: int, receive: Receive) -> None:
        """Read what the program writes to its descriptor `fd`."""
        ours, end = os.pipe()
        os.set_blocking(ours, False)
        self._becomes(end, fd)
        self.receivers[ours] = receive

    def _becomes(self, end: int, fd: int) -> None:
        # Moved up, so that giving the program one descriptor doesn't close the end for another one.
        moved: int = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STANDARD)
        os.close(end)
        self._theirs.append(moved)
        self.actions.append((os.POSIX_SPAWN_DUP2, moved, fd))

    def close_theirs(self) -> None:
        """Close the program's ends, after it was started."""
        for end in self._theirs:
            os.close(end)


class _Writer:
    """What has yet to be written to the program's stdin, and where."""

    def __init__(self, fd: int, content: bytes) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._left = memoryview(content)

    def write(self) -> bool:
        """Write as much as the pipe takes; return whether anything is left.

        A program that doesn't want the rest closes its end.
        """
        try:
            self._left = self._left[os.write(self.fd, self._left) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return bool(self._left)


def _prepare_descriptors() -> None:
    """Make sure that 0 to 2 exist, and that the program inherits no other descriptor."""
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass  # the program that started this worker had closed it
    try:
        found = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # a container without /proc
        found = [*range(_MOST_DESCRIPTORS)]
    for fd in found:
        if fd > 2:
            with suppress(OSError):  # `listdir` has closed its own
                os.set_inheritable(fd, False)


def _wake_up_when_it_ends() -> int:
    """Return a descriptor that can be read when a child of this process has ended."""
    wake, end = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    return wake


def _why_not_started(program: str, error: OSError) -> str:
    advice = _ADVICE.get(error.errno or 0)
    if error.errno == errno.ENOENT and "/" not in program:
        advice = "it is in no directory of PATH"
    elif error.errno == errno.ENOENT and os.path.exists(program):
        advice = "is the interpreter installed that its first line names?"
    elif error.errno == errno.ENOENT:
        advice = f"in {os.getcwd()}"
    return f"could not start {program}: {error.strerror}" + (f" ({advice})" if advice else "")


def _attend(pid: int, wake: int, pipes: _Pipes) -> int:
    """Feed and read the program until its process has ended; return its exit code."""
    writer, receivers = pipes.writer, pipes.receivers
    poll = select.poll()
    for fd in (wake, *receivers):
        poll.register(fd, select.POLLIN)
    if writer is not None:
        poll.register(writer.fd, select.POLLOUT)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if writer is not None and writer.fd in ready and not writer.write():
            poll.unregister(writer.fd)
            os.close(writer.fd)
            writer = None
        for fd in ready & receivers.keys():
            if not _receive(fd, receivers[fd]):
                poll.unregister(fd)
        if wake in ready:
            os.read(wake, 512)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
    for fd, receive in receivers.items():  # not until their end: what it has started may hold them
        _receive(fd, receive)
    return os.waitstatus_to_exitcode(status)


def _receive(fd: int, receive: Receive) -> bool:
    """Read what is in the pipe, without waiting; return whether more may come."""
    try:
        part = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return True
    if part:
        receive(part)
    return bool(part)
