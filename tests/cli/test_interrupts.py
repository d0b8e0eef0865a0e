"""Ctrl-C while the program is still being loaded."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from helpers import Child, environment, wait_for

if TYPE_CHECKING:
    from pathlib import Path

SLOW = """
import pathlib, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "dbbasic_queue.MODULE":
            pathlib.Path("loading").touch()
            time.sleep(60)

sys.meta_path.insert(0, Slow())
"""
PROGRAM = "-c import~dbbasic_queue_program~as~program;program.run()"
CALLS = [("-m dbbasic_queue status", "cli.setup"), (PROGRAM, "jobqueue"), (PROGRAM, "cli.setup")]


@pytest.mark.parametrize(("call", "module"), CALLS)
def test_ctrl_c_while_the_program_is_loaded_prints_nothing(
    tmp_path: Path, call: str, module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW.replace("MODULE", module))
    known = environment()
    env = known | {"PYTHONPATH": f"{tmp_path}:{known['PYTHONPATH']}"}
    words = [word.replace("~", " ") for word in call.split()]
    child = Child([sys.executable, *words], tmp_path, "program", env)
    try:
        wait_for((tmp_path / "loading").exists, "the program")
        child.signal(signal.SIGINT)
        assert child.wait() == -signal.SIGINT  # a shell's $? is 130
        assert child.errors.read_text() == child.output.read_text() == ""
    finally:
        child.clean_up()


def test_a_background_job_goes_on_ignoring_ctrl_c(tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import dbbasic_queue.__main__ as program\n"
        "sys.argv = ['dbbasic-queue', '--version']\n"
        "try:\n    program.run()\nexcept SystemExit:\n    print(signal.getsignal(signal.SIGINT))\n"
    )
    child = Child([sys.executable, "-c", code], tmp_path, "program", environment())
    assert child.succeed().splitlines()[-1] == str(signal.SIG_IGN)
