"""Exports in eight bits and floats take the same path and checks and are closer to the float model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.model import CHAT_DECODER, load_model
from export.checkpoint.model_config import read_model_config
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import WeightType, int4_config, nearest_config
from export.quantization.codes import dequantize, round_nearest
from export.quantization.layout import Layout, layouts
from export.runtime.decoder import OnnxDecoder
from export.runtime.rows.prefix import PROMPT_CHUNK
from export.runtime.verify.checks import verify
from toolkit.errors import FolderConflict
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.generate import GREEDY, complete
from toolkit.generation.speculation import SpeculativeDecoder

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
WEIGHT_TYPES: tuple[WeightType, ...] = ("int8", "fp16", "fp32")


@pytest.fixture(scope="module")
def exports(tiny_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The manifests of one model in every weight type; floats pass the gate that they have by default."""
    folder = tmp_path_factory.mktemp("exported")
    int4 = replace(int4_config(tiny_student, folder / "int4", calibration=traces), bounds=WIDE)
    int8 = replace(nearest_config(tiny_student, folder / "int8", "int8", calibration=traces), bounds=WIDE)
    floats = [nearest_config(tiny_student, folder / name, name, calibration=traces) for name in WEIGHT_TYPES[1:]]
    return {config.out.name: export_model(config) | {"folder": config.out} for config in (int4, int8, *floats)}


def test_more_bits_say_more_nearly_what_the_float_model_says(exports: dict[str, dict[str, Any]]) -> None:
    kl = {name: manifest["measured"]["parity"]["mean_kl"] for name, manifest in exports.items()}
    size = {name: manifest["measured"]["step_bytes"] for name, manifest in exports.items()}
    assert kl["int8"] < kl["int4"]
    assert kl["fp16"] < kl["int8"] / 10
    assert abs(kl["fp32"]) < 1e-7
    assert exports["fp32"]["measured"]["parity"]["top1"] == 1.0
    assert size["int4"] < size["int8"] < size["fp16"] == size["fp32"], "fp16 is float32 in memory"


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_a_folder_of_any_weight_type_is_verified(exports: dict[str, dict[str, Any]], name: str) -> None:
    checks = verify(exports[name]["folder"], fast=False)
    assert [check.line for check in checks if check.outcome != "ok"] == []


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_a_folder_of_any_weight_type_has_an_int8_cache(exports: dict[str, dict[str, Any]], name: str) -> None:
    exact, rounded = (OnnxDecoder(exports[name]["folder"], cache=cache) for cache in ("exact", "int8"))
    ids = np.random.default_rng(0).integers(0, 320, PROMPT_CHUNK + 90).tolist()
    exact_TV, rounded_TV = exact.score(ids), rounded.score(ids)
    assert np.corrcoef(exact_TV.ravel(), rounded_TV.ravel())[0, 1] > 0.999
    assert not np.array_equal(exact_TV, rounded_TV)


def test_a_tied_embedding_of_floats_is_in_the_file_once(exports: dict[str, dict[str, Any]], tiny_student: Path) -> None:
    from safetensors.torch import load_file

    matrices = [tensor for tensor in load_file(tiny_student / "model.safetensors").values() if tensor.dim() == 2]
    for name, size_bytes in (("fp16", 2), ("fp32", 4)):
        data = exports[name]["folder"] / "model.onnx.data"
        assert data.stat().st_size == size_bytes * sum(tensor.numel() for tensor in matrices)


@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_every_architecture_decodes_as_torch_does_with_the_same_floats(
    checkpoint_folder: Path, name: WeightType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export_model(replace(nearest_config(checkpoint_folder, tmp_path / name, name), bounds=None))
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32)
    if name == "fp16":
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.half().float()
    ids = np.random.default_rng(0).integers(0, 320, 40).tolist()
    expected_TV = model(torch.tensor([ids])).logits[0].detach().numpy()
    decoder = OnnxDecoder(tmp_path / name)
    scale = np.abs(expected_TV).max()
    np.testing.assert_allclose(decoder.score(ids) / scale, expected_TV / scale, atol=2e-6)
    stepped_TV = [decoder.start([ids[:20]])[0], *(decoder.step(np.array([i]))[0] for i in ids[20:])]
    np.testing.assert_allclose(np.array(stepped_TV) / scale, expected_TV[19:] / scale, atol=2e-6)
    [found] = complete(decoder, [ids[:20]], replace(GREEDY, max_new_tokens=12), frozenset())
    chosen_TV = model(torch.tensor([ids[:20] + found.ids])).logits[0, 19:-1].detach().numpy()
    missed_T = chosen_TV.max(axis=1) - chosen_TV[np.arange(12), found.ids]
    assert (missed_T <= 4e-6 * scale).all(), "greedy text is the likeliest, but for near ties"


@pytest.mark.parametrize("checkpoint_folder", ["Llama with heads of 20 that are filled up"], indirect=True)
def test_an_export_says_what_heads_cost_that_are_filled_up(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(replace(nearest_config(checkpoint_folder, tmp_path / "fp32", "fp32"), bounds=None))
    line = "zeros fill up heads of 20 channels to 32, which attention's kernels require; keys and values take 60 % more"
    assert line in capsys.readouterr().err
    assert {shape.head_dim for shape in [OnnxDecoder(tmp_path / "fp32").model.shape]} == {32}


@pytest.mark.parametrize("checkpoint_folder", ["Phi-3 with LongRoPE"], indirect=True)
def test_longrope_is_exact_up_to_the_context_that_is_left(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    export_model(replace(nearest_config(checkpoint_folder, tmp_path / "fp32", "fp32"), bounds=None))
    assert "it will read up to 200 tokens" in capsys.readouterr().err
    decoder = OnnxDecoder(tmp_path / "fp32")
    assert decoder.max_length == 200
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 320, 200).tolist()
    expected_TV = model(torch.tensor([ids])).logits[0].detach().numpy()
    np.testing.assert_allclose(decoder.start([ids])[0], expected_TV[-1], atol=2e-6 * np.abs(expected_TV).max())


def test_one_folder_holds_one_weight_type(exports: dict[str, dict[str, Any]], tiny_student: Path, traces: Path) -> None:
    other = nearest_config(tiny_student, exports["int8"]["folder"], "fp16", calibration=traces)
    with pytest.raises(FolderConflict, match=r"its config\.\w+ \(.*\) must equal this run's"):
        export_model(other)


def test_floats_need_no_blocks(tiny_student: Path) -> None:
    odd = replace(read_model_config(tiny_student), intermediate_size=1500)
    chosen = layouts(odd, bits=16, block_size=128, head_bits=16)
    assert set(chosen.values()) == {Layout(bits=16, block_size=0)}


def test_a_float_is_rounded_as_ieee_754_rounds() -> None:
    weight_NK = np.array([[1.0, 1.0 + 2**-11, 1.0 + 3 * 2**-11, 65504.0]], dtype=np.float32)
    halves = dequantize(round_nearest(weight_NK, bits=16, block_size=0))
    assert halves.tolist() == [[1.0, 1.0, 1.0 + 2**-9, 65504.0]]
    np.testing.assert_array_equal(dequantize(round_nearest(weight_NK, bits=32, block_size=0)), weight_NK)


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_the_chat_opens_every_weight_type(
    exports: dict[str, dict[str, Any]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    model = load_model(exports[name]["folder"], partial(CHAT_DECODER, prefix_bytes=10**6, prepacked=True))
    prompt = np.random.default_rng(0).integers(3, 320, 300).tolist()
    sampling = replace(GREEDY, max_new_tokens=30)
    chat_model = model.chat_model
    assert isinstance(chat_model, LocalChatModel) and isinstance(chat_model.decoder, SpeculativeDecoder)
    [found] = complete(chat_model.decoder, [prompt], sampling, frozenset())
    [expected] = complete(OnnxDecoder(exports[name]["folder"]), [prompt], sampling, frozenset())
    assert found.ids[:4] == expected.ids[:4], "behind them drafts are verified by several rows at once"
    assert {path.name for path in tmp_path.iterdir()} == {"prepacked", "prefixes", "tokenizers"}


def test_a_folder_weighs_what_lies_in_it(exports: dict[str, dict[str, Any]]) -> None:
    for manifest in exports.values():
        files = [path for path in manifest["folder"].iterdir() if path.name not in ("manifest.json", "README.md")]
        too_many = manifest["measured"]["bytes"] - sum(path.stat().st_size for path in files)
        assert 0 <= too_many < 1000, "the mark of a run in work is counted, and nothing else of it"
