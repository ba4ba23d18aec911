"""Reading ahead takes the newest prompt, chunk by chunk, and never while a turn has the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from apps.read_ahead import ReadAhead
from toolkit.records import Message


class Chunks:
    """Records what a decoder would have read: numbers of prompts, three chunks of each."""

    def __init__(self, lock: threading.Lock) -> None:
        self.read: list[int] = []
        self._lock = lock

    def __call__(self, prompt: Sequence[int]) -> bool:
        assert self._lock.locked()
        self.read.append(prompt[0])
        return self.read.count(prompt[0]) < 3


def asked(number: int) -> list[Message]:
    return [{"role": "user", "content": str(number)}]


def prompt_ids(messages: Sequence[Message]) -> list[int]:
    return [int(message["content"]) for message in messages]


def wait_until_read(chunks: Chunks, expected: list[int]) -> None:
    for _ in range(6000):
        if chunks.read == expected:
            return
        time.sleep(0.01)
    raise AssertionError(f"{chunks.read} were read")


def test_the_newest_offer_is_read_to_its_end_and_no_other() -> None:
    lock = threading.Lock()
    chunks = Chunks(lock)
    ahead = ReadAhead(prompt_ids, chunks, lock)
    with lock:
        for prompt in range(5):
            ahead.offer(asked(prompt))
    wait_until_read(chunks, [4, 4, 4])
    ahead.offer(asked(7))
    wait_until_read(chunks, [4, 4, 4, 7, 7, 7])


def test_a_turn_gets_the_model_between_two_chunks_and_ends_the_reading() -> None:
    lock = threading.Lock()
    turn_has_it = threading.Event()

    def read(prompt: Sequence[int]) -> bool:
        started.set()
        time.sleep(0.02)
        assert not turn_has_it.is_set()
        return True

    started = threading.Event()
    ahead = ReadAhead(prompt_ids, read, lock)
    ahead.offer(asked(1))
    assert started.wait(60)
    assert lock.acquire(timeout=60), "an endless prompt must let a turn in"
    ahead.forget()
    turn_has_it.set()
    lock.release()
    time.sleep(0.1)
    assert not lock.locked()


def test_a_prompt_that_cannot_be_read_does_not_end_the_reader() -> None:
    lock = threading.Lock()
    chunks = Chunks(lock)

    def read(prompt: Sequence[int]) -> bool:
        chunks(prompt)
        if prompt[0] == 1:
            raise RuntimeError("out of memory")
        return False

    ahead = ReadAhead(prompt_ids, read, lock)
    ahead.offer(asked(1))
    wait_until_read(chunks, [1])
    ahead.offer(asked(2))
    wait_until_read(chunks, [1, 2])
