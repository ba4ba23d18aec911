"""The gate and `toolkit verify` look where short traces don't: long positions, turns, batches, odd tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.calibration.odd_tokens import LAST, odd_texts
from export.calibration.texts import CalibrationText, read_texts
from export.checkpoint.model_config import read_model_config
from export.checks.gate import ANSWER_TOKENS, ROWS, TURN_COUNT, check_places, place_texts
from export.checks.parity import Bounds
from export.runtime.decoder import OnnxDecoder
from export.runtime.verify.checks import verify
from export.runtime.verify.divergence import CoarseParity, agreement, read_expected
from export.runtime.verify.probes import BATCH, LONG, ODD, TURNS, int8_fault, measure_places, read_batch
from tests.export.conftest import BIASED_CONTEXT
from toolkit.errors import GateFailed
from toolkit.formats.chat_format import ChatFormat
from toolkit.runs import file_facts, read_manifest


@pytest.fixture
def copied(biased: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(biased, tmp_path / "copy"))


@pytest.fixture(scope="module")
def places(biased: Path, traces: Path) -> dict[str, list[CalibrationText]]:
    chat_format = ChatFormat.from_folder(biased)
    held_out = read_texts(traces, chat_format, tokens=4000, max_length=BIASED_CONTEXT).held_out
    return place_texts(held_out, chat_format, read_model_config(biased))


def found(*, mean_kl: float) -> dict[str, CoarseParity]:
    return {LONG: CoarseParity(positions=9, mean_kl=mean_kl, top1=1.0)}


def test_each_place_is_one_that_traces_are_not(biased: Path, places: dict[str, list[CalibrationText]]) -> None:
    assert list(places) == [LONG, TURNS, BATCH, ODD]
    assert [len(text.prompt) + len(text.completion) for text in places[LONG]] == [BIASED_CONTEXT], (
        "the context ends there"
    )
    others = places[TURNS][1:]
    assert len(others) == TURN_COUNT - 1
    for before, turn in zip(places[TURNS], others, strict=False):
        assert turn.prompt[: len(before.ids)] == before.ids
    lengths = [len(text.prompt) for text in places[BATCH]]
    assert len(lengths) == ROWS + 1 and max(lengths) > 3 * min(lengths)
    tokenizer = ChatFormat.from_folder(biased).tokenizer
    odd = {token for text in places[ODD] for token in text.ids}
    assert odd >= {319, 318, *tokenizer.get_added_tokens_decoder()}
    assert len({text.prompt[0] for text in places[ODD]}) == len(places[ODD]), "each begins with another token"


def test_odd_texts_hold_ids_that_the_tokenizer_does_not_know(biased: Path) -> None:
    texts = odd_texts(ChatFormat.from_folder(biased), 152_064, 256)
    ids = {token for text in texts for token in text}
    assert ids >= set(range(152_064 - LAST, 152_064)) and max(ids) < 152_064
    assert 200 < sum(map(len, texts)) < 300
    assert np.histogram(sorted(ids), bins=4)[0].min() > 30, "from all over the vocabulary"


def test_turns_and_rows_expect_what_a_text_alone_does(biased: Path) -> None:
    """The oracle reads each prompt at once and its answer token by token: onnxruntime's kernels see the new keys of a
    prompt before they become codes, those of a step after (`export.graph.attention_over_codes`)."""
    manifest = read_manifest(biased) or {}
    for cache in ("exact", "int8"):
        decoder = OnnxDecoder(biased, cache=cache, keeps_prefix=True)
        forgetful = OnnxDecoder(biased, cache=cache)
        for place in (TURNS, BATCH):
            there = read_expected(biased, place)
            alone = [logits_TV for passage in there.passages() for logits_TV in read_batch(forgetful, [passage])]
            assert [len(logits_TV) for logits_TV in alone] == there.positions.tolist()
            assert max(there.positions) == ANSWER_TOKENS
            read = measure_places(decoder, {place: there})[place]
            assert read.mean_kl == pytest.approx(agreement(alone, there).mean_kl, rel=0.02)
            if cache == manifest["measured"]["cache"]:
                assert read.to_dict() == manifest["measured"]["places"][place]


def test_int8_may_fall_short_by_half_of_what_exact_does() -> None:
    assert int8_fault(found(mean_kl=0.1), found(mean_kl=0.15)) == ""
    fault = int8_fault(found(mean_kl=0.1), found(mean_kl=0.17))
    assert fault == (
        "the int8 cache's mean KL to the float model at long positions (0.1700) must be at most 0.1550 "
        "(the exact cache's is 0.1000)"
    )
    assert "(nan)" in int8_fault(found(mean_kl=0.1), found(mean_kl=float("nan")))


def test_a_place_out_of_bounds_is_named() -> None:
    bounds = Bounds(max_mean_kl=0.1, min_top1=0.9)
    check_places(found(mean_kl=0.39), bounds)
    for mean_kl in (0.41, float("nan")):
        with pytest.raises(
            GateFailed, match=rf"mean KL to the float model at long positions \({mean_kl:.4f}\) must be"
        ):
            check_places(found(mean_kl=mean_kl), bounds)


def flip_last_rows(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    [rows] = [tensor for tensor in graph.initializer if tensor.name == "model.embed_tokens.weight.rows"]
    where = {entry.key: entry.value for entry in rows.external_data}
    data = bytearray((folder / "model.onnx.data").read_bytes())
    row_bytes = int(where["length"]) // 320
    end = int(where["offset"]) + int(where["length"])
    data[end - 4 * row_bytes : end] = bytes(byte ^ 0x88 for byte in data[end - 4 * row_bytes : end])
    (folder / "model.onnx.data").write_bytes(data)


def test_damage_to_the_last_tokens_is_found(copied: Path) -> None:
    flip_last_rows(copied)
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = {p.name: file_facts(p) for p in sorted(copied.iterdir()) if p.name != path.name}
    path.write_text(json.dumps(manifest))
    failed = {check.name: check.line for check in verify(copied, fast=False) if check.outcome == "failed"}
    assert list(failed) == ["divergence"]
    assert f" at {ODD} (" in failed["divergence"]
