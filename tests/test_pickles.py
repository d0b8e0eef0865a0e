"""Payloads that are pickles: signed ones are unpickled, and all others are refused before that."""

from __future__ import annotations

import asyncio
import os
import pickle
import stat
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from helpers import NONE, Clock, job, python, row, sibling

from dbbasic_queue import (
    Fail,
    Handlers,
    InvalidHandlers,
    InvalidJob,
    Job,
    Queue,
    QueueError,
    open_queue,
)
from dbbasic_queue.pickles import Pickles, UnsafeKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "keys" / "key")


def make_key(path: Path, content: bytes = b"", mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content or os.urandom(32))
    path.chmod(mode)
    return path


@pytest.fixture
def pickles(key: Path, queue: Queue) -> Pickles:
    return Pickles(key, queue)


class Image:
    def __init__(self, name: str) -> None:
        self.name = name


class Bomb:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


# --- signed payloads


def test_an_object_comes_through_the_queue(queue: Queue, pickles: Pickles) -> None:
    def scaled(factor: int) -> Callable[[int], int]:
        return lambda n: n * factor  # only cloudpickle can pickle it

    @pickles.unpickled
    def resize(value: Any) -> Any:
        image, scale = value
        return [type(image).__name__, image.name, scale(7)]

    job_id = queue.enqueue("resize", pickles.payload("resize", (Image("cat"), scaled(3))))
    assert queue.process_jobs({"resize": resize}) == NONE | {"completed": 1}
    assert job(queue, job_id)["result"] == ["Image", "cat", 21]


def test_the_payload_in_the_file_is_json_with_the_pickle_and_its_signature(
    queue: Queue, pickles: Pickles, path: Path
) -> None:
    payload = pickles.payload("resize", {1, 2})
    job_id = queue.enqueue("resize", payload)
    assert payload.keys() == {"pickle", "signature"}
    assert len(bytes.fromhex(payload["signature"])) == 32
    assert payload["pickle"] in row(path, job_id)["payload"]


def test_a_program_can_use_an_object_whose_class_it_does_not_have(
    queue: Queue, key: Path, path: Path
) -> None:
    code = """
import sys
from dbbasic_queue import Queue
from dbbasic_queue.pickles import Pickles

class Image:
    def resize(self):
        return "small"

with Queue(sys.argv[1]) as queue:
    payload = Pickles(sys.argv[2], queue).payload("resize", Image())
    queue.enqueue("resize", payload, 1, job_id="x")
"""
    done = python(code, path, key)
    assert done.stderr == ""
    handler = Pickles(key, queue).unpickled(lambda image: image.resize())
    assert queue.process_jobs({"resize": handler}) == NONE | {"completed": 1}
    assert job(queue, "x")["result"] == "small"


def test_an_unpickled_handler_can_be_registered_receive_the_job_and_be_a_coroutine(
    queue: Queue, pickles: Pickles
) -> None:
    jobs = Handlers(queue=queue)

    @jobs.handler("plain", max_attempts=5)
    @pickles.unpickled
    def plain(value: Any, job: Job) -> Any:
        """What it does."""
        return [sorted(value), job.id, job.attempt]

    @jobs.handler
    @pickles.unpickled
    async def later(value: Any) -> Any:
        await asyncio.sleep(0)
        return sorted(value)

    one = plain.enqueue(pickles.payload("plain", {2, 1}))
    two = later.enqueue(pickles.payload("later", {4, 3}))
    assert queue.process_jobs(jobs) == NONE | {"completed": 2}
    assert job(queue, one)["result"] == [[1, 2], one, 1]
    assert job(queue, two)["result"] == [3, 4]
    assert (plain.max_attempts, plain.__name__, plain.__doc__) == (5, "plain", "What it does.")


def test_the_decorators_in_the_wrong_order_are_refused(pickles: Pickles) -> None:
    jobs = Handlers()
    with pytest.raises(InvalidHandlers, match=r"below @jobs\.handler"):
        pickles.unpickled(jobs.handler("greet")(str))


def test_an_error_while_unpickling_a_signed_payload_is_retried(
    queue: Queue, pickles: Pickles, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    job_id = queue.enqueue("resize", pickles.payload("resize", Bomb(tmp_path / "there")))
    handler = pickles.unpickled(lambda _: None)
    assert queue.process_jobs({"resize": handler}) == NONE | {"retried": 1}
    assert job(queue, job_id)["error"].startswith("FileExistsError")


def test_an_unpicklable_value_or_an_invalid_type_is_refused(pickles: Pickles, key: Path) -> None:
    with key.open("rb") as file, pytest.raises(InvalidJob, match="a BufferedReader can't be pick"):
        pickles.payload("resize", file)
    with pytest.raises(InvalidJob, match="job type"):
        pickles.payload("a\0b", 1)


# --- payloads without a valid signature


@pytest.mark.parametrize(
    "forge",
    [
        lambda p, _: {"pickle": p["pickle"]},
        lambda p, _: p | {"signature": ""},
        lambda p, _: p | {"signature": "0" * 64},
        lambda p, _: p | {"signature": p["signature"].upper()},
        lambda p, _: p | {"signature": p["signature"] + "\n"},
        lambda p, _: p | {"signature": "é\ud800"},
        lambda p, _: p | {"signature": None},
        lambda p, _: p | {"signature": [p["signature"]]},
        lambda p, _: p | {"pickle": p["pickle"] + "="},
        lambda p, _: p | {"pickle": " " + p["pickle"]},
        lambda p, _: p | {"pickle": "é"},
        lambda p, _: p | {"pickle": 7},
        lambda p, _: p | {"type": "resize"},
        lambda p, bomb: p | {"pickle": b64encode(pickle.dumps(bomb, 2)).decode()},
        lambda p, _: {},
        lambda p, _: [p],
        lambda p, _: p["pickle"],
        lambda p, _: None,
    ],
)
def test_a_payload_without_a_valid_signature_fails_for_good_and_is_not_unpickled(
    queue: Queue, pickles: Pickles, tmp_path: Path, forge: Callable[..., Any]
) -> None:
    bomb = Bomb(tmp_path / "exploded")
    job_id = queue.enqueue("resize", forge(pickles.payload("resize", bomb), bomb))
    handler = pickles.unpickled(lambda _: None)
    assert queue.process_jobs({"resize": handler}, 5) == NONE | {"failed": 1}
    found = job(queue, job_id)
    assert found["attempts"] == 1
    assert found["error"] in (
        "invalid payload: must be a signed pickle",
        "invalid payload: it was not signed with this key for resize",
    )
    assert not bomb.path.exists()


def test_a_payload_that_is_moved_to_another_type_is_refused(
    queue: Queue, pickles: Pickles, tmp_path: Path
) -> None:
    bomb = Bomb(tmp_path / "exploded")
    job_id = queue.enqueue("delete", pickles.payload("resize", bomb))
    handler = pickles.unpickled(lambda _: None)
    assert queue.process_jobs({"delete": handler}) == NONE | {"failed": 1}
    assert "it was not signed with this key for delete" in job(queue, job_id)["error"]
    assert not bomb.path.exists()


def test_a_payload_signed_with_another_key_is_refused(
    queue: Queue, pickles: Pickles, tmp_path: Path
) -> None:
    other = Pickles(make_key(tmp_path / "keys" / "other"), queue)
    with pytest.raises(Fail, match="it was not signed with this key for resize"):
        pickles.load("resize", other.payload("resize", Bomb(tmp_path / "exploded")))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("excess", ["=", "====", "A", "\n", " "])
def test_signed_base64_with_extra_characters_is_refused(
    pickles: Pickles, tmp_path: Path, excess: str
) -> None:
    text = pickles.payload("resize", Bomb(tmp_path / "exploded"))["pickle"] + excess
    with pytest.raises(Fail, match="isn't the base64 text that was enqueued"):
        pickles.load("resize", {"pickle": text, "signature": pickles._signature("resize", text)})
    assert not (tmp_path / "exploded").exists()


def test_a_signed_bomb_does_explode(pickles: Pickles, tmp_path: Path) -> None:
    pickles.load("resize", pickles.payload("resize", Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").is_dir()


def test_signatures_are_compared_with_hmac_compare_digest(
    pickles: Pickles, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = pickles.payload("resize", 7) | {"signature": "0" * 64}
    with pytest.raises(Fail):
        pickles.load("resize", forged)
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: True)
    assert pickles.load("resize", forged) == 7


# --- the key


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_that_only_its_owner_and_group_can_read_is_accepted(
    tmp_path: Path, queue: Queue, mode: int
) -> None:
    Pickles(make_key(tmp_path / "key", mode=mode), queue)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o660, 0o620, 0o601, 0o610])
def test_a_key_with_wider_permissions_is_refused(tmp_path: Path, queue: Queue, mode: int) -> None:
    with pytest.raises(UnsafeKey, match=f"its mode is {mode:o}.*chmod 600"):
        Pickles(make_key(tmp_path / "key", mode=mode), queue)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_key_of_another_user_is_refused(key: Path, queue: Queue) -> None:
    os.chown(key, 12345, -1)
    with pytest.raises(UnsafeKey, match="belongs to user 12345"):
        Pickles(key, queue)


@pytest.mark.parametrize("length", [1, 31, 4097])
def test_a_key_of_another_length_is_refused(tmp_path: Path, queue: Queue, length: int) -> None:
    with pytest.raises(UnsafeKey, match=f"it has {length} bytes and must have 32 to 4096"):
        Pickles(make_key(tmp_path / "key", b"x" * length), queue)


def test_a_link_a_directory_and_a_fifo_are_refused_as_keys(
    tmp_path: Path, key: Path, queue: Queue
) -> None:
    (tmp_path / "link").symlink_to(key)
    with pytest.raises(UnsafeKey, match="symbolic link"):
        Pickles(tmp_path / "link", queue)
    with pytest.raises(UnsafeKey, match="it isn't a regular file"):
        Pickles(key.parent, queue)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(UnsafeKey, match="it isn't a regular file"):
        Pickles(tmp_path / "fifo", queue)
    with pytest.raises(FileNotFoundError):
        Pickles(tmp_path / "none", queue)


def test_a_key_in_the_queues_directory_is_refused_by_any_path(
    tmp_path: Path, path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue("greet", {})
    make_key(path.parent / "key")
    make_key(path.parent / "keys" / "key")
    (tmp_path / "alias").symlink_to(path.parent)
    for place in (path.parent / "key", path.parent / "keys" / "key", tmp_path / "alias" / "key"):
        with pytest.raises(UnsafeKey, match="it is in the queue's directory"):
            Pickles(place, queue)
    monkeypatch.setattr("dbbasic_queue.queue.QUEUE_FILE", str(path))
    with pytest.raises(UnsafeKey, match="it is in the queue's directory"):
        Pickles(path.parent / "key")
    assert issubclass(UnsafeKey, (QueueError, ValueError))


def test_a_key_next_to_the_queues_directory_is_accepted(tmp_path: Path, queue: Queue) -> None:
    Pickles(make_key(tmp_path / "data-key"), queue)
    Pickles(make_key(tmp_path / "key"), queue)


def test_a_queue_in_memory_accepts_a_key_in_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    queue: Any = open_queue("memory:", clock=Clock())
    pickles = Pickles(make_key(tmp_path / "key"), queue)
    queue.enqueue("greet", pickles.payload("greet", {1}))
    assert queue.process_jobs({"greet": pickles.unpickled(sorted)})["completed"] == 1


def test_the_key_is_in_no_file_of_the_queue_and_in_no_repr(
    queue: Queue, pickles: Pickles, key: Path, path: Path
) -> None:
    queue.enqueue("greet", pickles.payload("greet", 1))
    queue.enqueue("greet", pickles.payload("other", 1))
    queue.process_jobs({"greet": pickles.unpickled(str)})
    secret = key.read_bytes()
    for file in (path, sibling(path, "journal")):
        assert secret not in file.read_bytes() and secret.hex() not in file.read_text("utf-8")
    assert repr(secret) not in repr(pickles)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_without_cloudpickle_the_error_says_what_to_install(key: Path) -> None:
    code = """
import sys
sys.modules["cloudpickle"] = None
from dbbasic_queue.pickles import Pickles
try:
    Pickles(sys.argv[1])
except ImportError as e:
    print(e)
"""
    done = python(code, key)
    assert "pip install 'dbbasic-queue[pickle]'" in done.stdout
