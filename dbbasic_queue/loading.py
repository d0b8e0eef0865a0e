"""What an idle pass does not need is loaded late: with its first use, and under one lock."""

from __future__ import annotations

import os
import threading

loading = threading.RLock()
"""Held while a module is loaded late, and across every fork: a child that is forked while another
thread imports would inherit that module's import lock, which nobody ever releases. A thread may
take it again: a signal handler may fork, or enqueue, while its thread loads."""

os.register_at_fork(
    before=loading.acquire, after_in_parent=loading.release, after_in_child=loading.release
)
