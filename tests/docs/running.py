"""Runs the blocks of one page in a directory, as a reader would.

The directory has a `.venv`, as a reader's has. `/srv/app` stands for that directory, a port of this
machine that the page names for a free one, and the user `app` for www-data. Variables that a
console block exports are set in the blocks after it, and what it has started in the background ends
with it. If a block that is run, or a file, names a server of `servers.py`, that server is started.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from blocks import PROJECT, Block, commands_of
from compare import difference
from helpers import server_port
from servers import Servers

SECONDS = 60
OUTPUT_SECONDS = 10
_PORT = re.compile(r"(?:localhost:|127\.0\.0\.1:|PORT=|--port[ =])(\d{4,5})\b")
_BETWEEN = "\x1e"


class Page:
    """A page that is being run: its directory, and what its names stand for there."""

    def __init__(self, directory: Path, blocks: list[Block]) -> None:
        self.directory = directory
        self.ids: dict[str, str] = {}
        self.blocks = blocks
        ports = {port for block in blocks for port in _PORT.findall(block.code)}
        self.ports = {port: str(server_port()) for port in sorted(ports)}
        self._background: list[tuple[Block, subprocess.Popen[bytes], Path]] = []
        used = [block.code for block in blocks if block.is_run or block.file is not None]
        self._servers = Servers(used)
        directory.mkdir()
        (directory / ".venv").symlink_to(sys.prefix)
        self.environment = environment()

    def run(self) -> int:
        """Run the page's blocks; return how many were run."""
        ran = 0
        try:
            self._servers.start()
            self.environment["PATH"] = self._servers.programs + self.environment["PATH"]
            for block in sorted(self.blocks, key=lambda block: "last" in block.words):
                if block.file is not None:
                    self.write(block.file, block.code)
                if block.is_run:
                    self._run(block)
                    ran += 1
            self._compare_background()
        finally:
            for _, program, _ in self._background:
                _kill(program)
            self._servers.remove()
        return ran

    def _run(self, block: Block) -> None:
        if block.language == "python":
            name = block.file or "example.py"
            if block.file is None:
                self.write(name, block.code)
            is_test = Path(name).name.startswith("test_")
            how = ["-Werror", "-m", "pytest", "-q", "-p", "no:cacheprovider"] if is_test else []
            self._run_quietly(block, [sys.executable, *how, name])
            if block.file is None:
                (self.directory / name).unlink()
        elif block.language == "sh":
            self._run_quietly(block, ["bash", "-euo", "pipefail", "-c", self.here(block.code)])
        elif "background" in block.words:
            self._start(block)
        else:
            self._run_console(block)

    def _run_quietly(self, block: Block, command: list[str]) -> None:
        done = self._call(command, stderr=subprocess.PIPE)
        assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout}{done.stderr}"
        assert done.stderr == "", f"{block}\n{block.code}\n{done.stderr}"

    def _run_console(self, block: Block) -> None:
        with Shell(self.directory, self.environment) as shell:
            for command, expected in commands_of(block):
                output, code = shell.run(self.here(command))
                shown = f"{block}\n$ {command}\n"
                differs = difference(expected, self._there(output), self.ids)
                assert not differs, f"{shown}{differs}"
                assert code is not None, f"{shown}{output}\nended the shell early"
                assert code == "0" or expected, f"{shown}ended with exit code {code}"
            variables, _ = shell.run("env -0")
        self.environment = dict(v.split("=", 1) for v in variables.split("\0") if v)

    def _start(self, block: Block) -> None:
        ((command, _),) = commands_of(block)
        output = self.directory.with_name(f"{self.directory.name}.background-{block.line}")
        with output.open("wb") as file:
            program = subprocess.Popen(
                ["bash", "-c", self.here(command)],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background.append((block, program, output))
        for port in self.ports.values():
            if port in self.here(command):
                _wait_for_port(int(port), program, output)

    def _compare_background(self) -> None:
        """Compare the beginnings of what the programs print; the last of it may need a moment."""
        for block, program, output in self._background:
            ((command, expected),) = commands_of(block)
            end = time.monotonic() + OUTPUT_SECONDS
            while differs := difference(expected, self._there(_text(output)), self.ids, more=True):
                assert time.monotonic() < end, f"{block}\n$ {command}\n{differs}"
                time.sleep(0.05)
            assert program.poll() is None, f"{block}\n$ {command}\nhas ended"

    def _call(self, command: list[str], *, stderr: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )

    def write(self, name: str, code: str) -> None:
        file = self.directory / name.removeprefix("/srv/app/")
        assert file.is_relative_to(self.directory)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.here(code), encoding="utf-8")

    def adapt(self) -> None:
        """Make the files that are in the directory name it, instead of /srv/app."""
        for file in self.directory.iterdir():
            if file.is_file() and b"/srv/app" in (content := file.read_bytes()):
                file.write_text(content.decode().replace("/srv/app", str(self.directory)))

    def here(self, text: str) -> str:
        """Return what a command or file of the page means in this directory."""
        text = text.replace("/srv/app", str(self.directory))
        text = re.sub(r"(-[og] |chown |chgrp (?:-R )?|setfacl -m [ug]:)app\b", r"\1www-data", text)
        text = self._servers.here(text)
        return _replace_words(text, {**self.ports, **self.ids})

    def _there(self, text: str) -> str:
        """Return what an output is on the page."""
        text = self._servers.there(text.replace(str(self.directory), "/srv/app"))
        return _replace_words(text, {free: port for port, free in self.ports.items()})


class Shell:
    """A bash that runs one command after the other, with their output and errors in one stream."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._command = directory.with_name(f"{directory.name}.command")
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[str, str | None]:
        """Return what the command has printed, and its exit code; None if the shell has ended."""
        self._command.write_text(f"{command}\n", encoding="utf-8")
        assert self._bash.stdin is not None and self._bash.stdout is not None
        line = f". '{self._command}' </dev/null; printf '{_BETWEEN}%d{_BETWEEN}' $?\n"
        self._bash.stdin.write(line.encode())
        self._bash.stdin.flush()
        output = b""
        end = time.monotonic() + SECONDS
        while output.count(_BETWEEN.encode()) < 2:
            ready, _, _ = select.select([self._bash.stdout], [], [], max(end - time.monotonic(), 0))
            assert ready, f"$ {command}\ntakes over {SECONDS} seconds\n{output.decode()}"
            part = os.read(self._bash.stdout.fileno(), 65536)
            if not part:
                return output.decode(), None
            output += part
        text, code, _ = output.decode().split(_BETWEEN)
        return text, code

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        _kill(self._bash)
        for stream in (self._bash.stdin, self._bash.stdout):
            assert stream is not None
            stream.close()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _replace_words(text: str, words: dict[str, str]) -> str:
    if not words:
        return text
    pattern = "|".join(rf"\b{re.escape(word)}\b" for word in words)
    return re.sub(pattern, lambda match: words[match[0]], text)


def environment() -> dict[str, str]:
    """Return the environment of a reader, without what a test run has set for itself."""
    unset = ("DBBASIC_", "SMTP_", "QUEUE_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }


def _wait_for_port(port: int, program: subprocess.Popen[bytes], output: Path) -> None:
    end = time.monotonic() + 20
    while True:
        with suppress(OSError), socket.create_connection(("localhost", port)):
            return
        ended = program.poll() is not None or time.monotonic() > end
        assert not ended, _text(output)
        time.sleep(0.02)


def _kill(program: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait(SECONDS)
