"""Measures the server under load: many streams for minutes, its memory meanwhile, and the time to a first token.

    python -m benchmarks.serving.load DIR [--minutes 10] [--streams 8]

The server is `toolkit serve` in a separate process; the clients, on the same machine, only read its events. Single
streams are measured in between, so that a slower machine slows both, and so is a second server with `--repeatable`. The
time to first token is compared with a second decoder of the same folder, which takes turns with the server. Writes a
block of docs/explanation/serving.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx2
import psutil

from export.runtime.decoder import OnnxDecoder
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.formats.chat_format import ChatFormat
from toolkit.progress import Progress
from toolkit.records import Message

DOCUMENT = Path("docs/explanation/serving.md")
ANSWER_TOKENS = 200
"""Most tokens of each answer."""
ALONE_S = 30.0
"""Time of each measurement of a single stream."""
WARM_S = 30.0
"""Warm-up, after which caches have their final size."""
SAMPLE_S = 2.0
TIMEOUT_S = 120.0
REST_S = 0.3
"""Pause after a first token, in which the server cancels the rest of the answer."""
PARTS = 5
"""Parts of the measured time, each after a single stream."""
PROMPTS, PROMPT_TOKENS = 12, 300


class Throughput(NamedTuple):
    """The joint result of a number of streams in some time."""

    tokens_per_s: float
    seconds: float
    errors: list[str]
    memory_bytes: list[int]
    """The server's memory, every `SAMPLE_S` seconds."""


@contextmanager
def running_server(folder: Path, streams: int, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run `toolkit serve` on a free port; yield its address and its process."""
    command = [
        sys.executable,
        "-m",
        "toolkit.cli.main",
        "serve",
        str(folder),
        "--port",
        "0",
        "--parallel",
        str(streams),
        *more,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            address = next(word.rstrip(":") for word in words if word.startswith("http://"))
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()


def measure_throughput(address: str, server: psutil.Process, *, streams: int, seconds: float) -> Throughput:
    """Let clients ask again and again until the time is over, then drop their streams."""
    errors: list[str] = []
    end = time.monotonic() + seconds

    def ask(client_number: int) -> None:
        with httpx2.Client(base_url=address, timeout=TIMEOUT_S) as client:
            asked = 0
            while time.monotonic() < end:
                asked += 1
                question = f"What is {asked} + {client_number} + {asked % 7} =?"
                body = {"messages": [{"role": "user", "content": question}], "temperature": 1.0}
                body |= {"max_tokens": ANSWER_TOKENS, "seed": 1000 * client_number + asked}
                try:
                    for _ in deltas(client, body):
                        if time.monotonic() > end:
                            break
                except (httpx2.HTTPError, ValueError) as error:
                    errors.append(str(error))

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(streams)]
    began, before, memory_bytes = time.monotonic(), generated_tokens(address), []
    for client in clients:
        client.start()
    while (left_s := end - time.monotonic()) > 0:
        memory_bytes.append(server.memory_info().rss)
        time.sleep(min(SAMPLE_S, left_s))
    tokens_per_s = (generated_tokens(address) - before) / (time.monotonic() - began)
    for client in clients:
        client.join()
    return Throughput(tokens_per_s=tokens_per_s, seconds=seconds, errors=errors, memory_bytes=memory_bytes)


def deltas(client: httpx2.Client, body: dict[str, Any]) -> Generator[str, None, None]:
    """Yield the events with text; raises `ValueError` if the stream does not end with [DONE]."""
    with client.stream("POST", "chat/completions", json={**body, "stream": True}) as response:
        response.raise_for_status()
        last = ""
        for line in response.iter_lines():
            last = line or last
            if line.startswith("data: {") and '"role"' not in line:
                yield line
        if last != "data: [DONE]":
            raise ValueError(f"the stream ended with {last[:80]!r}, not with [DONE]")


def generated_tokens(address: str) -> float:
    """Return the number of tokens that the server has generated since its start."""
    return metric(address, "toolkit_generated_tokens_total")


def metric(address: str, name: str) -> float:
    """Return one of the server's metrics; 0 if it is not there yet."""
    text = httpx2.get(address.removesuffix("v1") + "metrics").text
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)


class FirstTokens(NamedTuple):
    """Seconds to the first token of long questions."""

    served: list[float]
    """Measured by the client."""
    runner: list[float]
    """Seconds in which the runner itself reads the same tokens."""
    followed: list[float]
    """Seconds for a short question after each, in the same chat."""


def first_tokens(folder: Path, address: str) -> FirstTokens:
    """Ask the server and the runner in turns; the first of each allocates buffers and does not count."""
    chat_format, decoder = ChatFormat.from_folder(folder), OnnxDecoder(folder)
    served, runner, followed = [], [], []
    with httpx2.Client(base_url=address, timeout=TIMEOUT_S) as client:
        for number in range(PROMPTS + 1):
            messages = long_question(chat_format, number)
            served.append(first_token_s(client, messages))
            prompt = chat_format.prompt_ids(messages)
            begun = time.perf_counter()
            decoder.start([prompt])
            runner.append(time.perf_counter() - begun)
            more: list[Message] = [
                {"role": "assistant", "content": "Yes."},
                {"role": "user", "content": "And 5 + 6 =?"},
            ]
            followed.append(first_token_s(client, [*messages, *more]))
    return FirstTokens(served=served[1:], runner=runner[1:], followed=followed[1:])


def first_token_s(client: httpx2.Client, messages: Sequence[Message]) -> float:
    begun = time.perf_counter()
    answer = deltas(client, {"messages": list(messages), "max_tokens": 16, "temperature": 0.0})
    next(answer)
    seconds = time.perf_counter() - begun
    answer.close()
    time.sleep(REST_S)
    return seconds


def long_question(chat_format: ChatFormat, number: int) -> list[Message]:
    """Write a question that makes a prompt of `PROMPT_TOKENS` tokens or slightly fewer, different for each number."""
    words = [f"{number}:", *(str((number * 37 + 13 * i) % 90 + 10) for i in range(PROMPT_TOKENS))]
    messages: list[Message] = []
    for count in range(len(words), 0, -1):
        messages = [{"role": "user", "content": " ".join(words[:count])}]
        if len(chat_format.prompt_ids(messages)) <= PROMPT_TOKENS:
            break
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.load", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    with (
        running_server(options.folder, options.streams) as (address, server),
        running_server(options.folder, options.streams, "--repeatable") as (repeatable_address, repeatable_server),
    ):
        measure_throughput(repeatable_address, repeatable_server, streams=options.streams, seconds=WARM_S)
        measure_throughput(address, server, streams=options.streams, seconds=WARM_S)
        began_bytes = server.memory_info().rss
        alone, together, repeatable = [], [], []
        with Progress("serve, parts", PARTS) as progress:
            for _ in range(PARTS):
                alone.append(measure_throughput(address, server, streams=1, seconds=ALONE_S))
                seconds = 60 * options.minutes / PARTS
                together.append(measure_throughput(address, server, streams=options.streams, seconds=seconds))
                repeatable.append(
                    measure_throughput(repeatable_address, repeatable_server, streams=options.streams, seconds=ALONE_S)
                )
                progress.advance()
        ended_bytes = server.memory_info().rss
        failed = metric(address, 'toolkit_rows_ended_total{outcome="failed"}')
        first = first_tokens(options.folder, address)
    errors = [error for load in [*alone, *together, *repeatable] for error in load.errors]
    ratios = [many.tokens_per_s / one.tokens_per_s for one, many in zip(alone, together, strict=True)]
    kept = [again.tokens_per_s / many.tokens_per_s for again, many in zip(repeatable, together, strict=True)]
    most_bytes = max(size for load in together for size in load.memory_bytes)
    rows = [
        ("streams at once", f"{options.streams} for {options.minutes:.0f} minutes"),
        ("tokens", f"{sum(load.tokens_per_s * load.seconds for load in together):,.0f}"),
        ("errors", f"{len(errors) + failed:.0f}"),
        ("all streams", f"{median(load.tokens_per_s for load in together):.0f} tokens/s"),
        ("one stream alone", f"{median(load.tokens_per_s for load in alone):.0f} tokens/s"),
        ("ratio: median (least, most)", f"{median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"),
        ("all streams with `--repeatable`", f"{median(load.tokens_per_s for load in repeatable):.0f} tokens/s"),
        ("its share: median (least, most)", f"{median(kept):.2f} ({min(kept):.2f}, {max(kept):.2f})"),
        ("memory once the caches are made", f"{began_bytes / 1e6:.0f} MB"),
        ("memory at the end (most)", f"{ended_bytes / 1e6:.0f} MB ({most_bytes / 1e6:.0f} MB)"),
        (f"first token of a {PROMPT_TOKENS}-token question", f"{median(first.served):.3f} s"),
        ("the runner's own reading of it", f"{median(first.runner):.3f} s"),
        ("ratio", f"{median(a / b for a, b in zip(first.served, first.runner, strict=True)):.2f}"),
        ("first token of the chat's next question", f"{median(first.followed):.3f} s"),
    ]
    text = markdown_table([["what", "figure"], *([name, value] for name, value in rows)])
    print(text, *errors[:5], sep="\n")
    fill_file(DOCUMENT, "serve", text)


if __name__ == "__main__":
    main()
