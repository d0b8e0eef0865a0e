"""The tests of the examples fail where they should: each of these pages has one mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks import PROJECT, blocks_of
from compare import difference
from running import Page


def run(text: str, directory: Path) -> int:
    blocks = blocks_of(PROJECT / "docs/page.md", text)
    for block in blocks:
        block.check()
    return Page(directory / "app", blocks).run()


def test_a_page_without_a_mistake_is_run_in_its_order(tmp_path: Path) -> None:
    page = """
# Title
```console last
$ cat name
ada
```
1. In a list:
   ```python file=greet.py
   open("name", "w").write("ada")
   ```
```console
$ export NAME=grace
$ echo "$NAME $(pwd)
> and so on" 1>&2
grace /srv/app
...
```
```sh
test "$NAME" = grace && test -f greet.py && test -x .venv/bin/python
```
```text
never run
```
```python norun file=other.py
raise SystemExit(1)
```
"""
    assert run(page, tmp_path) == 4


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```\nls\n```", "unknown language"),
        ("```bash\nls\n```", "unknown language"),
        ("```sh skip\nls\n```", "unknown words"),
        ("```sh background\nls\n```", "unknown words"),
        ("```sh\nls\n", "has no end"),
        ("> ```sh\n> ls\n> ```", "alone on its line"),
        ("- ```sh\n  ls\n  ```", "alone on its line"),
        ("```sh\npip install x\n```", "mark it norun"),
        ("```console\nls\n```", "must begin with a command"),
        ("```console background\n$ ls\n$ ls\n```", "must have one command"),
        ("```python\nraise SystemExit(1)\n```", "raise SystemExit"),
        ("```python\nimport sys\nprint('?', file=sys.stderr)\n```", "stderr"),
        ("```python file=test_x.py\ndef test_x():\n    assert 0\n```", "assert 0"),
        ("```python file=test_x.py\nx = 1\n```", "no tests ran"),
        ("```sh\nfalse | true\n```", "false"),
        ("```console\n$ false\n```", "exit code 1"),
        ("```console\n$ echo a\nb\n```", "- b"),
        ("```console\n$ echo a\n```", r"\+ a"),
        ("```console\n$ exit\n$ echo a\na\n```", "ended the shell early"),
        ("```console background\n$ echo a; sleep 60\nb\n```", "- b"),
        ("```console background\n$ true\n```\n```sh\nsleep 0.3\n```", "has ended"),
    ],
)
def test_a_mistake_fails_the_page(
    page: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("running.OUTPUT_SECONDS", 0.5)
    with pytest.raises(AssertionError, match=complaint):
        run(page, tmp_path)


ONE, TWO, THREE = "0123456789abcdef", "123456789abcdef0", "23456789abcdef01"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("a  b", "a\tb\n"),
        ("a ... d", "a b\nc d"),
        ("a\n...\nd", "a\nd"),
        ("a\n...\nd", "a\nb\nc\nd"),
        ("...\nd", "d"),
        ("a\n...", "a"),
        ("a\n...", "a\nb"),
        ("at 2026-11-26T08:55:29Z", "at 2031-01-02T03:04:05Z"),
        ("at 1795683329", "at 1800000000"),
        ("took 0.001", "took 12.345"),
        (f"{ONE} {TWO} {ONE}", f"{TWO} {THREE} {TWO}"),
    ],
)
def test_what_differs_at_each_run_may_differ(expected: str, actual: str) -> None:
    assert difference(expected, actual, {}) == ""


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ("a b", "a  b c"),
        ("a\nb", "a"),
        ("a ... d", "a b c"),
        ("a\n...\nd", "a\nb\ncd"),
        ("a\n...", "ab"),
        ("at 2026-11-26", "at 2031-01-02"),
        ("pending 1", "pending 2"),
        (f"{ONE} {ONE}", f"{TWO} {THREE}"),
        (f"{ONE} {TWO}", f"{THREE} {THREE}"),
    ],
)
def test_anything_else_is_a_difference(expected: str, actual: str) -> None:
    assert difference(expected, actual, {})


def test_the_servers_of_a_page_are_real_and_printed_as_on_the_page(tmp_path: Path) -> None:
    page = """
```console
$ export DBBASIC_QUEUE_URL=postgresql://app:secret@db.example.com/app
$ dbbasic-queue enqueue greet 1 --id one
one
$ dbbasic-queue status | head -n 1
queue postgresql://app@db.example.com:5432/app?queue=dbbasic_queue
$ psql "$DBBASIC_QUEUE_URL" -Atc 'SELECT id FROM dbbasic_queue.dbbasic_jobs'
one
```
```console
$ dbbasic-queue move --to redis://db.example.com:6379/0
moved 1
$ dbbasic-queue status | grep ^moved
moved redis://db.example.com:6379/0 0
```
"""
    assert run(page, tmp_path) == 2


def test_what_a_block_has_started_in_the_background_ends_with_it(tmp_path: Path) -> None:
    page = """
```console
$ sleep 60 & echo $! > started
```
```sh
test -z "$(tr -d '\\0' 2> /dev/null < /proc/$(cat started)/cmdline || true)"
```
"""
    assert run(page, tmp_path) == 2


def test_an_id_of_the_page_stands_for_the_same_job_from_then_on(tmp_path: Path) -> None:
    page = f"""
```sh
echo {TWO} > id
```
```console
$ cat id
{ONE}
$ test {ONE} = "$(cat id)" && echo {ONE}
{ONE}
```
```sh
test {ONE} = "$(cat id)"
```
"""
    assert run(page, tmp_path) == 3
