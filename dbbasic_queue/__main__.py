"""`python -m dbbasic_queue` is the command `dbbasic-queue`."""

from __future__ import annotations

import sys

from dbbasic_queue.cli.main import main

sys.exit(main())
