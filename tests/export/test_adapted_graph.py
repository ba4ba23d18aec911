"""A graph with adapters computes what PEFT does, each row by its own adapter, and leaves the folder alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.pipeline import export_model
from export.presets import nearest_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import Cache, chosen_cache, open_exported
from export.runtime.kernels.library import kernels_library
from export.runtime.rows.row_pool import LEAST_TAKEN_OVER, Row, RowPool
from tests.lora_adapter import write_adapter
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.generation.generate import GREEDY, Floats, complete
from toolkit.runs import folder_digest

needs_kernels = pytest.mark.skipif(not kernels_library(), reason="onnxruntime's kernels round a row by those beside it")
NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def exact(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student in float32."""
    return exported(tiny_student, tmp_path_factory.mktemp("exact") / "fp32")


@pytest.fixture(scope="module")
def adapters(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of the tiny student, of several ranks, targets and scales."""
    folder = tmp_path_factory.mktemp("adapters")
    settings: list[dict[str, Any]] = [
        {},
        {"r": 3, "target_modules": ["q_proj", "v_proj", "down_proj"], "seed": 6},
        {"r": 8, "use_rslora": True, "target_modules": r"model\.layers\.1\..*_proj", "seed": 7},
    ]
    return [write_adapter(tiny_student, folder / f"adapter{i}", **values) for i, values in enumerate(settings)]


def exported(source: Path, out: Path) -> Path:
    export_model(replace(nearest_config(source, out, "fp32"), bounds=None))
    return out


def prompts(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 320, length).tolist() for length in lengths]


def by_peft(base: Path, adapter: Path | None, prompt: Sequence[int]) -> Floats:
    """Return PEFT's logits_TV, of the adapter beside the base, not merged."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits_TV: Floats = model(torch.tensor([prompt])).logits[0].numpy()
    return logits_TV


@pytest.mark.parametrize("own_kernels", [pytest.param(True, marks=needs_kernels), False])
def test_logits_and_text_are_those_of_peft(
    own_kernels: bool, exact: Path, tiny_student: Path, adapters: list[Path]
) -> None:
    [prompt] = prompts(150)
    for adapter in adapters:
        decoder = OnnxDecoder(exact, adapter=adapter, own_kernels=own_kernels)
        theirs_TV = by_peft(tiny_student, adapter, prompt)
        np.testing.assert_allclose(decoder.score(prompt), theirs_TV, atol=1e-4)
        assert np.abs(theirs_TV - by_peft(tiny_student, None, prompt)).max() > 0.1
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_student), adapter)
        [ours] = complete(decoder, [prompt], replace(GREEDY, max_new_tokens=20), NO_STOP)
        theirs = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert ours.ids == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "checkpoint_folder",
    [
        "Llama with biases everywhere and linear positions",
        "Phi-3 with LongRoPE",
        "GLM",
        "ERNIE 4.5",
        "Gemma 3",
        "Granite 4, dense",
        "Qwen3 with YaRN",
    ],
    indirect=True,
)
def test_matrices_of_every_layout_are_found(checkpoint_folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(checkpoint_folder, tmp_path / "adapter", target_modules="all-linear")
    [prompt] = prompts(40)
    decoder = OnnxDecoder(exported(checkpoint_folder, tmp_path / "fp32"), adapter=adapter)
    np.testing.assert_allclose(decoder.score(prompt), by_peft(checkpoint_folder, adapter, prompt), atol=2e-3)


def test_a_tied_head_has_an_adapter_of_its_own(exact: Path, tiny_student: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny_student, tmp_path / "adapter", target_modules=["lm_head", "o_proj"])
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)
    [prompt] = prompts(30)
    found_TV = OnnxDecoder(exact, adapter=adapter).score(prompt)
    np.testing.assert_allclose(found_TV, by_peft(tiny_student, adapter, prompt), atol=1e-4)


@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_codes_are_no_farther_from_peft_with_an_adapter_than_without(
    cache: Cache, calibrated: Path, tiny_student: Path, adapters: list[Path]
) -> None:
    [prompt] = prompts(100)
    errors = []
    for adapter in (None, adapters[0]):
        decoder = OnnxDecoder(calibrated, cache=cache, adapter=adapter)
        errors.append(np.abs(decoder.score(prompt) - by_peft(tiny_student, adapter, prompt)).mean())
    assert errors[1] < 3 * errors[0]


def test_three_bits_take_an_adapter_too(fast: Path, wide_student: Path, tmp_path: Path) -> None:
    adapter = write_adapter(wide_student, tmp_path / "adapter")
    [prompt] = prompts(60)
    plain_TV, found_TV = (OnnxDecoder(fast, adapter=given).score(prompt) for given in (None, adapter))
    expected_TV = by_peft(wide_student, adapter, prompt) - by_peft(wide_student, None, prompt)
    assert np.corrcoef((found_TV - plain_TV).ravel(), expected_TV.ravel())[0, 1] > 0.8  # three bits change it too


def opened(pool: RowPool, prompt: list[int], adapter: int) -> tuple[Row, Floats]:
    row = pool.open(prompt, adapter=adapter)
    return row, pool.read(row, prompt)


@needs_kernels
def test_rows_of_several_adapters_step_together_bit_for_bit_as_each_alone(
    calibrated: Path, adapters: list[Path]
) -> None:
    texts = prompts(40, 9, 150, 33, 20)
    numbers = [2, 0, 1, 3, 1]
    pool = RowPool(open_exported(calibrated, cache="int8", adapters=adapters))
    rows, read = zip(*(opened(pool, *pair) for pair in zip(texts, numbers, strict=True)), strict=True)
    stepped = [pool.step([rows[i] for i in order], [5 + i for i in order]) for order in ((4, 2, 0), (0, 1, 2, 3, 4))]
    for i, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        alone = OnnxDecoder(calibrated, cache="int8", adapter=adapters[number - 1] if number else None)
        np.testing.assert_array_equal(read[i], alone.start([text])[0])
        if i in (4, 2, 0):
            np.testing.assert_array_equal(stepped[0][(4, 2, 0).index(i)], alone.step(np.array([5 + i]))[0])
        np.testing.assert_array_equal(stepped[1][i], alone.step(np.array([5 + i]))[0])


def test_a_batch_of_several_adapters_equals_each_alone_with_onnxruntimes_kernels(
    exact: Path, adapters: list[Path]
) -> None:
    texts = prompts(40, 9, 50)
    pool = RowPool(open_exported(exact, adapters=adapters, own_kernels=False))
    rows = [opened(pool, text, number)[0] for text, number in zip(texts, (2, 0, 1), strict=True)]
    for found_V, text, adapter in zip(pool.step(rows, [5, 6, 7]), texts, (adapters[1], None, adapters[0]), strict=True):
        alone = OnnxDecoder(exact, adapter=adapter, own_kernels=False)
        alone.start([text])
        np.testing.assert_allclose(found_V, alone.step(np.array([5 + texts.index(text)]))[0], atol=1e-4)


def test_an_adapter_does_not_go_on_from_what_another_has_read(calibrated: Path, adapters: list[Path]) -> None:
    pool = RowPool(open_exported(calibrated, adapters=adapters))
    [shared, end] = prompts(LEAST_TAKEN_OVER + 100, 30)
    for row, _ in [opened(pool, shared, adapter) for adapter in (1, 2, 0)]:
        pool.close(row)
    for adapter in (0, 2, 1):
        row = pool.open(shared + end, adapter=adapter)
        assert row.prefix.length == len(shared) and row.prefix.adapter == adapter
        found_V = pool.read(row, (shared + end)[row.prefix.length :])
        alone = OnnxDecoder(calibrated, cache="exact", adapter=adapters[adapter - 1] if adapter else None)
        np.testing.assert_allclose(found_V, alone.start([shared + end])[0], atol=1e-4)
    assert pool.open(shared + end, adapter=3).prefix.length == 0


def test_prefixes_on_disk_belong_to_an_adapter(
    calibrated: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    [prompt] = prompts(300)
    for adapter in (None, adapters[0], adapters[1]):
        kept = OnnxDecoder(calibrated, adapter=adapter, prefix_bytes=10**7).start([prompt])
        again = OnnxDecoder(calibrated, adapter=adapter, prefix_bytes=10**7).start([prompt])
        plain = OnnxDecoder(calibrated, adapter=adapter).start([prompt])
        np.testing.assert_array_equal(again, plain)
        np.testing.assert_array_equal(kept, plain)
    assert len(list((tmp_path / "prefixes").glob("*/*"))) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mapped files")
def test_weights_stay_mapped_and_the_folder_stays_as_it_is(calibrated: Path, adapters: list[Path]) -> None:
    before = folder_digest(calibrated)
    decoder = OnnxDecoder(calibrated, adapter=adapters[0])
    assert str(calibrated / "model.onnx.data") in Path("/proc/self/maps").read_text()
    decoder.start(prompts(5))
    assert folder_digest(calibrated) == before


def edited(adapter: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"use_dora": True},
            r"use_dora \(True\) of .* is not off, which only a merge can add; merge it: toolkit export",
        ),
        ({"peft_type": "IA3"}, r"peft_type \(IA3\) of .* is not LORA, which only a merge"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern .* only a merge"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save .* only a merge"),
        ({"r": 8}, r"r \(8\) in .* must equal the rank of .* \(4\)"),
        ({"lora_alpha": 0}, r"lora_alpha \(0\) in .* must be a number above 0"),
        ({"target_modules": ["q_proj"]}, r"target_modules of .* differ in .*down_proj.*, which only a merge"),
    ],
)
def test_what_only_a_merge_can_add_is_refused(
    values: dict[str, Any], message: str, exact: Path, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        OnnxDecoder(exact, adapter=edited(adapters[0], tmp_path / "adapter", **values))


def test_another_model_s_adapter_is_refused(
    exact: Path, wide_student: Path, tiny_student: Path, adapters: list[Path], tmp_path: Path
) -> None:
    wide = write_adapter(wide_student, tmp_path / "wide")
    with pytest.raises(InputError, match=r"changes model\.layers\.0\.mlp\.down_proj\.weight .* give the base"):
        OnnxDecoder(exact, adapter=wide)
    deeper = edited(adapters[0], tmp_path / "deeper")
    tensors = load_file(deeper / "adapter_model.safetensors")
    moved = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(moved, deeper / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"changes model\.layers\.7\..*, which is no matrix of .*; give the exported"):
        OnnxDecoder(exact, adapter=deeper)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file(tensors | {name: tensors[name] * float("nan")}, deeper / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"changes model\.layers\.0\.self_attn.q_proj\.weight by NaN"):
        OnnxDecoder(exact, adapter=deeper)
    with pytest.raises(InputError, match=r"--prepacked packs .* without its 1 adapter; leave it out"):
        OnnxDecoder(exact, adapter=adapters[0], prepacked=True)


def test_an_adapter_counts_once(
    tiny_student: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    export_model(replace(nearest_config(tiny_student, merged, "fp32"), bounds=None, adapter=adapters[0]))
    with pytest.raises(InputError, match=r"adapter0 is merged into .*merged and would count twice; leave"):
        OnnxDecoder(merged, adapter=adapters[0])
    OnnxDecoder(merged, adapter=adapters[1])
    assert "has another adapter merged into it, and" in capsys.readouterr().err


def test_the_cache_is_exact_beside_an_adapter(calibrated: Path, adapters: list[Path]) -> None:
    assert chosen_cache(calibrated) == "int8"
    assert OnnxDecoder(calibrated, adapter=adapters[0]).model.shape.dtype == np.float32
    assert OnnxDecoder(calibrated, adapter=adapters[0], cache="int8").model.shape.dtype == np.int8


@pytest.mark.parametrize("checkpoint_folder", ["Llama with heads of 20 that are filled up"], indirect=True)
def test_attention_whose_heads_are_filled_up_takes_merged_adapters_only(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    folder = exported(checkpoint_folder, tmp_path / "fp32")
    everywhere = write_adapter(checkpoint_folder, tmp_path / "everywhere")
    with pytest.raises(InputError, match=r"changes attention, whose heads of 20 channels .* has in 32, which only a m"):
        OnnxDecoder(folder, adapter=everywhere)
    OnnxDecoder(folder, adapter=write_adapter(checkpoint_folder, tmp_path / "mlp", target_modules=["down_proj"]))


@pytest.mark.parametrize("named", [["InternLM3ForCausalLM"], ["GPT2LMHeadModel"], [], {"a": 1}])
def test_an_architecture_is_known_by_its_other_names(
    named: object, exact: Path, adapters: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(exact, tmp_path / "renamed")
    path = tmp_path / "renamed" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": named}))
    if named == ["InternLM3ForCausalLM"]:
        OnnxDecoder(path.parent, adapter=adapters[0])
    else:
        with pytest.raises(
            InputError, match=r"whose architecture \((GPT2LMHeadModel|none is named)\) our graphs don't"
        ):
            OnnxDecoder(path.parent, adapter=adapters[0])


def test_factors_in_half_precision_are_read(
    exact: Path, tiny_student: Path, adapters: list[Path], tmp_path: Path
) -> None:
    [prompt] = prompts(20)
    for dtype in (torch.bfloat16, torch.float16):
        folder = edited(adapters[0], tmp_path / str(dtype))
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        found_TV = OnnxDecoder(exact, adapter=folder).score(prompt)
        np.testing.assert_allclose(found_TV, by_peft(tiny_student, folder, prompt), atol=1e-4)


def test_the_commands_refuse_in_one_line(
    exact: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, adapter = str(exact), str(adapters[0])
    for words, message in (
        (["bench", folder, "--adapter", str(tmp_path)], "is no adapter folder: adapter_config.json is missing"),
        (["chat", folder, "--adapter", str(tmp_path / "none"), "--data", str(tmp_path)], "is no adapter folder"),
        (["chat", "--endpoint", "http://127.0.0.1:9/v1", "--adapter", adapter], "needs a folder"),
        (["serve", folder, "--adapter", adapter], "must be a printable name and a folder: NAME=DIR"),
        (["serve", folder, "--adapter", f"a={adapter}", "--adapter", f"a={adapter}"], "--adapter names 'a' twice"),
        (["serve", folder, "--port", "0", "--adapter", f"fp32={adapter}"], "is named 'fp32', as the model itself"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
