"""Runs the fuzzer's targets on its seeds, and on inputs that Hypothesis builds from them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from fuzz_rows import SEEDS, TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LONG = bool(os.environ.get("DBBASIC_QUEUE_LONG"))

pieces = st.sampled_from(SEEDS) | st.binary(max_size=40)
pieces |= st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(str.encode)
pieces |= st.sampled_from(
    [b"\t", b"\r", b"\0", b'"', b"\\", b"\xff", b"\xed\xa0\x80", b"pending", b"processing", b"0"]
)
columns = st.lists(pieces, min_size=6, max_size=11).map(b"\t".join)
rows = st.builds(
    lambda status, rest, instants: b"\t".join([b"id", b"type", b"{}", status, *instants, *rest]),
    st.sampled_from([b"pending", b"processing", b"completed", b"failed", b"cancelled"]),
    st.lists(pieces, max_size=5),
    st.lists(st.from_regex(rb"\A[0-9]{1,13}(\.[0-9]{0,3})?\Z"), min_size=2, max_size=3),
)
data = st.lists(pieces, max_size=12).map(b"".join) | columns | rows


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_every_seed_is_read_or_rejected(target: Callable[[bytes], None]) -> None:
    for seed in SEEDS:
        target(seed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_any_bytes_are_read_or_rejected(target: Callable[[bytes], None]) -> None:
    @settings(
        max_examples=5_000 if LONG else 500,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data)
    def any_bytes(content: bytes) -> None:
        target(content)

    any_bytes()
