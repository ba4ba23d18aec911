"""Measures the memory of a process that answers with an exported folder: `python -m benchmarks.export.running DIR`.

Everything resident but the cache counts: Python, onnxruntime, the graph, buffers for reading. The prompts are text,
Python's documentation, because an embedding is mapped and text touches few of its rows; random ids would touch nearly
all of them. Writes the block `running` of docs/explanation/running.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.export.documentation import documentation
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.formats.chat_format import ChatFormat

DOCUMENT = Path("docs/explanation/running.md")
PROMPTS = (512, 512, 2048, 512)
ANSWER_TOKENS = 24


class ResidentMemory(NamedTuple):
    """Resident memory without the cache: after the prompt is read, and after some tokens of the answer."""

    prompt_tokens: int
    read_bytes: int
    answering_bytes: int


def measure(folder: Path, prompts: Sequence[int] = PROMPTS) -> list[ResidentMemory]:
    """Read and answer prompts of these lengths, one after the other, in a separate process.

    Raises `InputError` if the documentation has too few tokens for them.
    """
    pieces = "\n".join(example.answer for example in documentation())
    ids = ChatFormat.from_folder(folder).encode(pieces)
    needed = sum(prompts) + len(prompts) * ANSWER_TOKENS
    if needed > len(ids):
        raise InputError(f"the prompts and answers ({needed} tokens) exceed the text ({len(ids)}); use shorter prompts")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_hold, folder, list(prompts), ids[:needed]).result()


def table(held: Sequence[ResidentMemory], weights_bytes: int) -> str:
    """Render the memory, as multiples of the weights' bytes, as Markdown."""
    rows = [
        (
            f"{number}: {each.prompt_tokens:,} tokens",
            *(f"{size / weights_bytes:.2f} ×" for size in (each.read_bytes, each.answering_bytes)),
        )
        for number, each in enumerate(held, 1)
    ]
    return markdown_table([("prompt", "read", "answering"), *rows])


def _hold(folder: Path, prompts: list[int], ids: list[int]) -> list[ResidentMemory]:
    decoder, process, held = OnnxDecoder(folder), psutil.Process(), []

    def resident() -> int:
        resident_bytes: int = process.memory_info().rss
        return resident_bytes - decoder.model.cache_bytes

    for prompt in prompts:
        decoder.start([ids[:prompt]])
        read_bytes = resident()
        for token in ids[prompt : prompt + ANSWER_TOKENS]:
            decoder.step(np.array([token]))
        held.append(ResidentMemory(prompt_tokens=prompt, read_bytes=read_bytes, answering_bytes=resident()))
        ids = ids[prompt + ANSWER_TOKENS :]
    return held


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export.running", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="an exported folder")
    options = parser.parse_args()
    try:
        held = measure(options.folder)
    except InputError as error:
        sys.exit(str(error))
    weights_bytes = sum(path.stat().st_size for path in options.folder.glob("*.data"))
    text = table(held, weights_bytes)
    print(text)
    fill_file(DOCUMENT, "running", text)


if __name__ == "__main__":
    main()
