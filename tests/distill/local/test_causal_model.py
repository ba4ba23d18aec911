"""Opening a checkpoint as a teacher: in fewer bits for real, and what is refused before a weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, MambaConfig, T5Config

from distill.local import causal_model, needs
from distill.local.causal_model import open_causal_model
from distill.local.continuous import complete_each
from distill.local.needs import needs_of
from distill.local.own_sampling import in_words, own_sampling
from distill.local.room import rows_that_fit
from tests.distill.bigram import BigramDecoder
from tests.distill.local.test_continuous import questions
from toolkit.errors import InputError
from toolkit.generation.generate import Sampling
from toolkit.model.cache import position_bytes
from toolkit.model.decoder import TorchDecoder
from toolkit.model.loading import load_whole


@pytest.mark.parametrize(("load_in", "error"), [("8bit", 0.02), ("4bit", 0.2)])
@pytest.mark.parametrize("kind", ["qwen3", "deepseek_v3"])
def test_a_model_in_fewer_bits_says_nearly_the_same(
    load_in: Any, error: float, kind: str, tiny: Callable[[str], Path]
) -> None:
    prompts = [one.prompt for one in questions(6)]
    exact = open_causal_model(tiny(kind), torch.float32).start(prompts)
    decoder = open_causal_model(tiny(kind), torch.float32, load_in=load_in)
    found = decoder.start(prompts)
    assert 1e-4 < np.mean((found - exact) ** 2) / np.var(exact) ** 1 < error * 5
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 1 - error


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_in_fewer_bits_a_row_does_not_depend_on_the_rows_beside_it(load_in: Any, tiny: Callable[[str], Path]) -> None:
    decoder = open_causal_model(tiny("qwen3"), torch.float32, load_in=load_in)
    sampling, stops, asked = Sampling(max_new_tokens=20), frozenset(range(3, 13)), questions(8)
    alone, together = (
        {one.seed: row.ids for one, row in complete_each(decoder, asked, sampling, stops, rows=rows)} for rows in (1, 4)
    )
    assert together == alone


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_what_a_model_takes_is_known_before_it_is_loaded(load_in: Any, kind: str, tiny: Callable[[str], Path]) -> None:
    folder = tiny(kind)
    empty = load_whole(AutoModelForCausalLM, folder, device_map="meta")
    for bits in (None, load_in):
        decoder = open_causal_model(folder, torch.bfloat16, load_in=bits)
        weights = sum(one.numel() * one.element_size() for one in decoder.model.parameters())
        counted = needs_of(empty, folder, torch.bfloat16, bits).weights
        assert weights <= counted <= 1.1 * weights


@pytest.mark.parametrize("kind", ["llama", "qwen3", "deepseek_v2", "deepseek_v3"])
def test_the_bytes_of_a_position_are_those_that_a_step_writes(kind: str, tiny: Callable[[str], Path]) -> None:
    decoder = open_causal_model(tiny(kind), torch.float32)
    decoder.start([[5, 6, 7]])
    assert decoder._cache is not None
    written = sum(x.numel() * x.element_size() for layer in decoder._cache.layers for x in (layer.keys, layer.values))
    assert decoder.position_bytes == position_bytes(decoder.model, torch.float32) == written / 3


def test_a_model_that_does_not_fit_is_refused_before_a_weight_is_read(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("qwen3")
    monkeypatch.setattr(TorchDecoder, "__init__", None)
    monkeypatch.setattr(causal_model, "free_bytes", lambda: 150_000)
    with pytest.raises(
        InputError, match=r"take 0\.0 GB, but 0\.0 GB are free .*; use --load-in 8bit or 4bit, or a small"
    ):
        open_causal_model(folder, torch.float32)
    with pytest.raises(InputError, match=r"; use --load-in 4bit, or a smaller model"):
        needs.check_room(folder, needs.Needs(weights=200_000, cache_per_token=1), "8bit", 150_000)
    with pytest.raises(InputError, match=r"; use a smaller model, or a server"):
        needs.check_room(folder, needs.Needs(weights=200_000, cache_per_token=1), "4bit", 150_000)


def test_fewer_rows_run_where_more_would_not_fit(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = open_causal_model(tiny("llama"), torch.float32)
    monkeypatch.setattr(TorchDecoder, "free_bytes", lambda self: 10 * 100 * self.position_bytes)
    assert rows_that_fit(decoder, 64, 100) == 7
    assert "teacher: 7 answers at once instead of 64" in capsys.readouterr().err
    assert rows_that_fit(decoder, 3, 100) == 3 and rows_that_fit(BigramDecoder(320), 64, 100) == 64
    assert not capsys.readouterr().err
    with pytest.raises(InputError, match=r"one answer of up to 5000 tokens takes .* lower max_new_tokens"):
        rows_that_fit(decoder, 3, 5000)


def _config(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(architectures=["BertForMaskedLM"]), "is a BertForMaskedLM, which does not continue text"),
        (T5Config(architectures=["T5ForConditionalGeneration"]), "has the model_type 't5', which is no causal"),
    ],
)
def test_a_folder_that_is_no_causal_model_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        open_causal_model(tmp_path)


def test_layers_that_keep_no_tokens_are_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has linear_attention layers, whose state no row here can keep; serve it"):
        open_causal_model(tmp_path)


def test_a_quantized_checkpoint_is_not_loaded_in_fewer_bits_again(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "gptq")
    _config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        InputError, match=r"--load-in 4bit: .* is quantized already \(by gptq\); leave it out, or choose"
    ):
        open_causal_model(folder, load_in="4bit")


def test_a_missing_bitsandbytes_is_named_with_its_extra(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.local.quantized.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--load-in 8bit needs bitsandbytes, .*; pip install 'reasoning-edge\[scale\]'"
    ):
        open_causal_model(tiny("qwen3"), load_in="8bit")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, {}),
        ({"eos_token_id": [2, 0]}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0},
        ),
        (
            {"do_sample": True},
            {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        ),
        (
            {"repetition_penalty": 1.05, "temperature": None},
            {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.05},
        ),
    ],
)
def test_the_authors_sampling_is_read(values: Any, expected: Any, tmp_path: Path) -> None:
    if values is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert own_sampling(tmp_path) == expected


def test_the_authors_sampling_is_said_in_words() -> None:
    assert (
        in_words({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0})
        == "temperature 0.6, top_p 0.95, top_k 20"
    )
    assert in_words({"temperature": 1.0}) == "unchanged"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, "generation_config.json: temperature must be a number, but is 'hot'"),
        ({"top_k": 2.5}, "generation_config.json: top_k must be a number, but is 2.5"),
        ({"temperature": 20.0}, r"generation_config.json: temperature \(20.0\) must be between 0.0 and 10.0"),
    ],
)
def test_a_sampling_that_is_none_is_refused_by_its_file(values: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        own_sampling(tmp_path)
