"""Four hosts and two crons share a queue on a server, and everything that can fail does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from helpers import alone
from hosts import Hosts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hosts import Server

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))
QUICK = 19_200 if LONG else 4_200
JOBS = {"quick": (QUICK, 0), "slow": (300, 300), "narrow": (300, 5), "own": (200, 50)}
"""type -> how many, and for how many milliseconds each sleeps: 20,000 in the long version"""


def postgres(address: str) -> Server:
    from postgres_server import PostgresServer

    return PostgresServer(fsync=True, address=address)


def valkey(address: str) -> Server:
    from valkey_server import ValkeyServer

    return ValkeyServer(appendfsync="always", address=address)


@pytest.mark.slow
@pytest.mark.parametrize("start", [postgres, valkey], ids=lambda start: start.__name__)
@pytest.mark.parametrize("seed", range(10 if LONG else 1))
def test_nothing_is_lost_or_run_again_whatever_fails_on_the_network(
    start: Callable[[str], Server], seed: int, tmp_path: Path
) -> None:
    with alone("hosts"), Hosts(start, "hosts", tmp_path, seed=seed) as hosts:
        hosts.enqueue(JOBS)
        for event in hosts.run(most_seconds=180, partition=True):
            print(event)
        print(hosts.check())
