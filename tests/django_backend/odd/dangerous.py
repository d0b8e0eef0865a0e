"""Leaves a trace when it is imported, which no row in a queue may cause."""

from __future__ import annotations

import os
from pathlib import Path

Path(os.environ["TRACE_OF_IMPORT"]).touch()
