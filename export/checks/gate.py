"""Compares an exported folder with its float model before it ships: on the traces, and where faults hide
(`export.runtime.verify.probes`).

    traces, places ─ float model ─ distributions ───┐
              model.onnx ─ exact keys and values ───┼─ int8 stays if it falls little short of exact ─┐
              model.int8-cache.onnx ────────────────┘                                                │
                                        within the bounds ─ the record for `toolkit verify` ─────────┘

An int8 cache that falls short is removed, one line says why, and the folder keeps keys and values exactly: the weights,
which took the time, are still good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from export.calibration.odd_tokens import odd_texts
from export.calibration.texts import CalibrationText
from export.checkpoint.source import DecoderSizes, FloatSource
from export.checks.goldens import Chats, answered, expect, first_positions, greedy_texts, source_chats, write_goldens
from export.checks.layerwise import FloatModel, LayerwiseModel
from export.checks.parity import Bounds, check_context, check_parity, compare, measure_parity, parity_steps
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import INT8_CACHE_FILE, Cache
from export.runtime.verify.divergence import CoarseParity, Expected
from export.runtime.verify.probes import BATCH, LONG, LONG_POSITIONS, ODD, TURNS, int8_fault, measure_places
from toolkit.errors import GateFailed
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.precision import fp32_by_onednn
from toolkit.progress import Progress
from toolkit.terminal import say

COMPARED = 256
"""How many of the long text's last positions are compared."""
ROWS, TURN_COUNT, ANSWER_TOKENS = 4, 3, 32
FIRST_ROW_TOKENS = 500
"""Tokens before the text of the batch's longest row, so that rows are of very different lengths."""
ODD_TOKENS = 256
PLACE_FACTOR = 4.0
"""How many times the bound on the traces an export's KL may be at a place that nothing is calibrated on."""


def check_source(source: FloatSource) -> Chats:
    """Return the chats that the folder's record will hold; raises before all the work what the gate would raise."""
    check_context(source.chat_format, source.sizes.max_position_embeddings)
    return source_chats(source)


def leave_out_gate() -> dict[str, Any]:
    """Say that a folder is not compared; returns what its manifest then says."""
    say("export: not compared with the float model (--no-parity); its quality is unknown")
    return {"parity": None}


@fp32_by_onednn()
def pass_gate(
    source: FloatSource,
    folder: Path,
    cache: Cache,
    bounds: Bounds,
    held_out: Sequence[CalibrationText],
    chats: Chats,
    *,
    layerwise: LayerwiseModel | None = None,
) -> dict[str, Any]:
    """Compare an exported folder with the float model and write its record; returns the measurements for its manifest.

    `cache`: the configured one. `chats`: the `source_chats`. `layerwise`: the float model with one layer in memory at a
    time, whose greedy answers are not compared. Raises `GateFailed` if the folder is out of bounds.
    """
    model: FloatModel = layerwise or source.float_model
    chat_format, layers = source.chat_format, source.sizes.num_hidden_layers
    texts = held_out or answered(greedy_texts(OnnxDecoder(folder, cache="exact"), chat_format, ()))
    asked = place_texts(texts, chat_format, source.sizes)
    has_int8 = (folder / INT8_CACHE_FILE).is_file()
    compared = len(texts) + layers if layerwise else parity_steps(held_out)
    steps = sum(map(len, asked.values())) + len(asked) * (2 if has_int8 else 1) + compared + 1
    measured: dict[str, Any] = {}
    with Progress("gate", steps) as progress:
        if layerwise:
            progress.begin("float model, layer by layer")
            layerwise.prepare([*chain.from_iterable(asked.values()), *texts, *first_positions(texts)], progress.advance)
        progress.begin("float model where faults hide")
        places = {place: expect(model, there, progress.advance) for place, there in asked.items()}
        found = _measured(folder, "exact", places, progress)
        if has_int8:
            found_int8 = _measured(folder, "int8", places, progress)
            if fault := int8_fault(found, found_int8):
                (folder / INT8_CACHE_FILE).unlink()
                cache = "exact"
                measured["int8_cache_fault"] = fault
                say(f"export: keys and values are kept exactly: {fault}")
            elif cache == "int8":
                found = found_int8
        decoder = OnnxDecoder(folder, cache=cache)
        progress.begin("both models on the traces")
        if layerwise:
            report = compare(model, decoder, texts, (), progress.advance)
        else:
            report = measure_parity(source.float_model, chat_format, decoder, held_out, progress.advance)
        check_parity(report, bounds)
        check_places(found, bounds)
        progress.begin("record for toolkit verify")
        record = write_goldens(source, model, folder, decoder, held_out, places, chats)
        progress.advance()
    measured |= {"cache": cache, "parity": report.to_dict()}
    measured["places"] = {place: there.to_dict() for place, there in found.items()}
    return measured | record


def check_places(found: Mapping[str, CoarseParity], bounds: Bounds) -> None:
    """Raise `GateFailed` if a place is out of its bounds. Odd tokens, which a model hardly knows, have none; only the
    caches, and `toolkit verify`, are compared at them."""
    for place, there in found.items():
        if place != ODD and not there.mean_kl <= PLACE_FACTOR * bounds.max_mean_kl:  # also where it is NaN
            raise GateFailed(
                f"mean KL to the float model at {place} ({there.mean_kl:.4f}) must be at most "
                f"{PLACE_FACTOR * bounds.max_mean_kl}; calibrate on longer traces "
                "with --calibration, or export with --best"
            )


def place_texts(
    texts: Sequence[CalibrationText], chat_format: ChatFormat, config: DecoderSizes
) -> dict[str, list[CalibrationText]]:
    """Make the texts of each place from texts of one turn."""
    room = min(LONG_POSITIONS, config.max_position_embeddings)
    endless = cycle(chain.from_iterable(text.ids for text in texts))
    long_ids = list(islice(endless, room))
    compared = min(COMPARED, room // 2)
    chosen = {
        LONG: [CalibrationText(prompt=long_ids[:-compared], completion=long_ids[-compared:])],
        TURNS: list(_turns(texts, room)),
        BATCH: _rows(texts, long_ids[: min(FIRST_ROW_TOKENS, room // 2)], room),
        ODD: [
            CalibrationText(prompt=ids[:1], completion=ids[1:])
            for ids in odd_texts(chat_format, config.vocab_size, ODD_TOKENS)
        ],
    }
    return {place: there for place, there in chosen.items() if there}


def _turns(texts: Sequence[CalibrationText], room: int) -> Iterator[CalibrationText]:
    """Chain texts as turns of one conversation, as far as the context allows."""
    said: list[int] = []
    for text in islice(cycle(texts), TURN_COUNT):
        prompt, completion = said + text.prompt, text.completion[:ANSWER_TOKENS]
        said = prompt + completion
        if len(said) > room:
            return
        yield CalibrationText(prompt=prompt, completion=completion)


def _rows(texts: Sequence[CalibrationText], before: list[int], room: int) -> list[CalibrationText]:
    """Make rows of different lengths, the longest completions first; the first text comes again after other tokens."""
    chosen = [CalibrationText(prompt=text.prompt, completion=text.completion[:ANSWER_TOKENS]) for text in texts[:ROWS]]
    first = CalibrationText(prompt=before + chosen[0].prompt, completion=chosen[0].completion)
    if len(first.prompt) + len(first.completion) <= room:
        chosen.append(first)
    return sorted(chosen, key=lambda text: -len(text.completion))


def _measured(
    folder: Path, cache: Cache, places: Mapping[str, Expected], progress: Progress
) -> dict[str, CoarseParity]:
    progress.begin(f"exported model there, {cache} cache")
    decoder = OnnxDecoder(folder, cache=cache, keeps_prefix=True)
    found: dict[str, CoarseParity] = {}
    for place, expected in places.items():
        found |= measure_places(decoder, {place: expected})
        progress.advance()
    return found
