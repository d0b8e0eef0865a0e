"""Texts that break careless code: inputs for the tests of rows, and seeds for the fuzzer."""

from __future__ import annotations

NASTY = [
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\ufeff",
    "\U000e0001",
    "\ud800",
    "\udcff",
    "\\",
    "\\t",
    "\\x1b",
    "\\ud800",
    "\\U0010ffff",
    "\\U00110000",
    "=cmd()",
    '"',
]
NO_JSON = ["NaN", "[Infinity]", "-Infinity", "{", "", "'a'", '"\t"', "1 2", "\ufeff1", "01"]
BOMBS = ["[" * 101, "[" * 10**6, '{"a":' * 10**5, "9" * 5000]
"""JSON that must not be decoded: nested too deep, or a number that is too long."""
