"""`toolkit export --int4` makes a whole, checked folder or none."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import pipeline
from export.calibration.texts import CalibrationText
from export.checkpoint.source import float_model
from export.checkpoint.tensors import Checkpoint
from export.checks.parity import Bounds, check_parity, measure_parity
from export.pipeline import export_model
from export.presets import ExportConfig, int4_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.external_data import check_external_data
from toolkit.cli.main import main
from toolkit.errors import FolderConflict, GateFailed, InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import Example, read_records, write_records
from toolkit.runs import file_digest, file_facts, files_digest, folder_digest, read_manifest

WIDE = Bounds(max_mean_kl=0.5, min_top1=0.3)
"""A random model's logits are nearly flat: their KL is tiny, and which is largest hangs by a hair."""


@pytest.fixture(scope="module")
def config(tiny_student: Path, traces: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportConfig:
    out = tmp_path_factory.mktemp("exported") / "int4"
    return replace(int4_config(tiny_student, out, calibration=traces), bounds=WIDE)


@pytest.fixture(scope="module")
def manifest(config: ExportConfig) -> dict[str, Any]:
    return export_model(config)


def test_manifest_names_every_file_with_its_digest_and_the_parity(
    config: ExportConfig, manifest: dict[str, Any]
) -> None:
    names = {path.name for path in config.out.iterdir()}
    assert names == {*manifest["outputs"], "manifest.json", "README.md"}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    for name, facts in manifest["outputs"].items():
        assert facts["sha256"] == file_digest(config.out / name)
    parity = manifest["measured"]["parity"]
    assert parity["tokens"] > 50
    assert 0 <= parity["mean_kl"] <= parity["p99_kl"]
    assert len(parity["first_divergence"]) > 0
    assert manifest["measured"]["bytes_per_parameter"] > 0.5


def test_the_same_export_again_changes_nothing_and_another_is_refused(
    config: ExportConfig, manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (config.out / "model.onnx").stat().st_mtime_ns
    capsys.readouterr()
    assert export_model(config) == manifest
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"already done: {config.out} \(made 20\d\d-.*\); to make it anew, choose another --out", said[-1]
    )
    assert (config.out / "model.onnx").stat().st_mtime_ns == before
    with pytest.raises(FolderConflict, match=r"head_bits \(4\) must equal this run's \(8\)"):
        export_model(replace(config, head_bits=8))


def test_the_last_line_says_that_the_gate_passed_over_which_text_and_within_which_bounds(
    tiny_student: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(tiny_student), "--fp32", "--out", str(tmp_path / "whole")]
    assert main(words) == 0
    first = capsys.readouterr()
    assert re.search(
        r"\nthe gate passed: over \d+ tokens of the float model's own answers .* is the float model's at 100.0 % "
        r"\(at least 98.0 % passes\), .* a mean KL of 0.0000 \(0 is no difference; at most 0.001 passes\)\n$",
        first.out,
    )
    assert "--no-parity leaves it out" in first.err
    assert main(words) == 0
    assert capsys.readouterr().out == first.out
    assert main([*words[:-1], str(tmp_path / "on traces"), "--calibration", str(traces)]) == 0
    assert "tokens of held-out examples the likeliest" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "without"), "--no-parity"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no gate (--no-parity): ")


def test_what_the_gate_would_refuse_is_refused_before_the_work(
    config: ExportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _copy(config.source, tmp_path / "source")
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "added_tokens_decoder": []}')
    monkeypatch.setattr(pipeline, "_write_model", None)
    with pytest.raises(InputError, match=r"transformers cannot read the tokenizer in .*: AttributeError"):
        export_model(replace(config, source=source, out=tmp_path / "out"))


def test_a_configuration_that_asks_for_other_outputs_is_compared_all_the_same(
    tiny_student: Path, tmp_path: Path
) -> None:
    source = _copy(tiny_student, tmp_path / "source")
    _edit(source, return_dict=False, output_attentions=True)
    assert export_model(replace(int4_config(source, tmp_path / "out"), bounds=WIDE))["measured"]["parity"]


def test_a_source_that_was_changed_since_its_manifest_is_another_one(
    config: ExportConfig, manifest: dict[str, Any], tmp_path: Path
) -> None:
    """A student is a run folder; editing one of its files must not give the earlier export."""
    source = Path(shutil.copytree(config.source, tmp_path / "source"))
    outputs = {path.name: file_facts(path) for path in sorted(source.iterdir())}
    (source / "manifest.json").write_text(json.dumps({"outputs": outputs}))
    assert folder_digest(source) == files_digest(source)
    edited = replace(config, source=source, out=tmp_path / "out", bounds=None)
    export_model(edited)
    _edit(source, rms_norm_eps=1e-3)
    with pytest.raises(FolderConflict, match=r"inputs\.source"):
        export_model(edited)


def test_exports_of_the_same_inputs_are_equal_bytes(
    config: ExportConfig, manifest: dict[str, Any], tmp_path: Path
) -> None:
    export_model(replace(config, out=tmp_path / "again"))
    assert file_digest(tmp_path / "again" / "model.onnx.data") == file_digest(config.out / "model.onnx.data")
    assert file_digest(tmp_path / "again" / "model.onnx") == file_digest(config.out / "model.onnx")


def test_without_traces_the_default_rounds_to_nearest(tiny_student: Path, tmp_path: Path) -> None:
    plain = int4_config(tiny_student, tmp_path / "int4")
    assert plain.method == "nearest"
    manifest = export_model(replace(plain, bounds=WIDE))
    assert manifest["config"]["method"] == "nearest"
    with pytest.raises(InputError, match="gptq needs traces"):
        replace(plain, method="gptq")


def test_a_calibrated_head_lies_beside_the_embedding_that_it_is_tied_to(
    config: ExportConfig, manifest: dict[str, Any]
) -> None:
    entries = _external(config.out)
    assert config.has_own_head
    rows, codes = entries["model.embed_tokens.weight.rows"], entries["lm_head.weight.codes"]
    assert rows["length"] == codes["length"] and rows["offset"] != codes["offset"]
    assert "model.embed_tokens.weight.codes" not in entries
    size = manifest["measured"]["bytes"]
    assert manifest["measured"]["step_bytes"] < size - int(rows["length"]), "a step does not read the embedding"


def test_a_head_that_is_not_calibrated_shares_the_range_of_its_embedding(config: ExportConfig, tmp_path: Path) -> None:
    best = int4_config(config.source, tmp_path / "best", preset="best", calibration=config.calibration)
    export_model(replace(best, bounds=None))
    entries = _external(best.out)
    assert entries["model.embed_tokens.weight.rows"] == entries["model.embed_tokens.weight.codes"]
    assert {entry["location"] for entry in entries.values()} == {"model.onnx.data"}


def _external(folder: Path) -> dict[str, dict[str, str]]:
    """Return the place of each large initializer."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    return {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data}


@pytest.mark.parametrize("bounds", [Bounds(max_mean_kl=1e-9, min_top1=0.0), Bounds(max_mean_kl=9.0, min_top1=1.1)])
def test_parity_out_of_bounds_leaves_nothing(config: ExportConfig, bounds: Bounds, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match=r"(mean KL|top-1).* (1e-09|1\.1)"):
        export_model(replace(config, out=tmp_path / "int4", bounds=bounds))
    assert list(tmp_path.iterdir()) == []


def test_damaged_weights_fail_the_gate(config: ExportConfig, manifest: dict[str, Any], tmp_path: Path) -> None:
    damaged = tmp_path / "int4"
    shutil.copytree(config.out, damaged)
    data = bytearray((damaged / "model.onnx.data").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(byte ^ 0x88 for byte in data[middle : middle + 4096])
    (damaged / "model.onnx.data").write_bytes(data)
    questions = ChatFormat.from_folder(config.source)
    held_out = [
        CalibrationText(prompt=questions.question_ids(q), completion=questions.encode("The answer is 4.")) for q in "ab"
    ]
    model = float_model(Checkpoint(config.source))
    whole = measure_parity(model, questions, OnnxDecoder(config.out), held_out)
    check_parity(whole, Bounds(max_mean_kl=1.01 * whole.mean_kl, min_top1=0.0))
    with pytest.raises(GateFailed, match=r"mean KL to the float model \(\d\.\d+\) must be at most"):
        harmed = measure_parity(model, questions, OnnxDecoder(damaged), held_out)
        check_parity(harmed, Bounds(max_mean_kl=2 * whole.mean_kl, min_top1=0.0))


def _copy(tiny_student: Path, folder: Path) -> Path:
    shutil.copytree(tiny_student, folder)
    return folder


def _edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _rewrite(folder: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "model.safetensors")


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


UP_PROJ = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"is no model folder: .*config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json must be JSON"),
        (lambda f: (f / "model.safetensors").unlink(), r"holds neither model\.safetensors nor"),
        (_cut, r"model\.safetensors \(\d+ bytes\) must be a whole safetensors file"),
        (
            lambda f: _edit(f, architectures=["GPT2LMHeadModel"]),
            r"unknown architecture GPT2LMHeadModel in .*: expected one of .*LlamaForCausalLM, .*",
        ),
        (lambda f: _edit(f, rope_parameters={"rope_type": "yarn"}), r"transformers cannot build the model of .*factor"),
        (lambda f: _edit(f, mlp_bias=True), r"lacks the tensor model\.layers\.0\.mlp\.gate_proj\.bias"),
        (lambda f: _edit(f, hidden_size=96), r"has shape \(320, 64\) instead of \(320, 96\)"),
        (lambda f: _edit(f, num_hidden_layers=3), r"lacks the tensor model\.layers\.2\.input_layernorm\.weight"),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": 2}'),
            r"transformers cannot read the tokenizer in .*int",
        ),
        (
            lambda f: (f / "generation_config.json").write_text('{"max_new_tokens": 0}'),
            r"max_new_tokens. must be greater",
        ),
        (lambda f: _rewrite(f, UP_PROJ, float("nan")), rf"{UP_PROJ} .* holds 1 NaN or infinite"),
        (lambda f: _rewrite(f, UP_PROJ, 1e6), rf"{UP_PROJ} .* holds 1e\+06, more than fp16 can store \(65504\)"),
    ],
)
def test_a_source_that_cannot_be_exported_gets_one_line(
    tiny_student: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    source = _copy(tiny_student, tmp_path / "source")
    damage(source)
    with pytest.raises(InputError, match=message) as caught:
        export_model(int4_config(source, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_traces_file_that_is_none_is_refused_with_its_line(tiny_student: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"problem": 1}\n')
    with pytest.raises(InputError, match=r"line 1: Example has no key 'problem'; did you mean 'problem_id'"):
        export_model(int4_config(tiny_student, tmp_path / "out", calibration=traces))
    assert [path.name for path in tmp_path.iterdir()] == ["traces.jsonl"]


def test_a_file_that_is_none_of_examples_is_told_which_is(tiny_student: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"problem_id": "a", "finish_reason": "stop"}) + "\n")
    with pytest.raises(
        InputError, match=r"finish_reason.*; calibrate on examples, such as the train\.jsonl beside a student"
    ):
        export_model(int4_config(tiny_student, tmp_path / "out", calibration=path))


def test_quick_refuses_traces_that_it_would_not_look_at(tiny_student: Path, traces: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"--quick does not calibrate, but {traces} was given to calibrate on; leave out one"
    ):
        int4_config(tiny_student, tmp_path / "out", preset="quick", calibration=traces)


def test_examples_that_no_context_holds_are_counted(
    tiny_student: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = read_records(traces, Example)
    long = [replace(example, reasoning="so " * 600) for example in examples]
    write_records(tmp_path / "long.jsonl", long)
    with pytest.raises(InputError, match=r"\(0; 40 are longer than the context of 512 tokens\)"):
        export_model(int4_config(tiny_student, tmp_path / "out", calibration=tmp_path / "long.jsonl"))
    write_records(tmp_path / "some.jsonl", [*examples, *(replace(e, question=f"{e.question} Say.") for e in long)])
    config = int4_config(
        tiny_student, tmp_path / "out", preset="quick", method="nearest", calibration=tmp_path / "some.jsonl"
    )
    export_model(replace(config, bounds=None))
    assert "40 examples of" in capsys.readouterr().err


def test_every_architecture_decodes_as_its_dequantized_weights_do_in_torch(
    checkpoint_folder: Path, tmp_path: Path
) -> None:
    """The oracle is transformers with the very weights that the kernels see, so only int8 activations differ."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "int4"
    config = replace(int4_config(checkpoint_folder, out), block_size=128)  # rows of 64 then have blocks of 64
    export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32)
    _round_as_exported(model)
    ids = np.random.default_rng(0).integers(0, 320, 40).tolist()
    expected_TV = model(torch.tensor([ids])).logits[0].detach().numpy()
    decoder = OnnxDecoder(out)
    whole_TV = decoder.score(ids)
    stepped_TV = [decoder.start([ids[:20]])[0], *(decoder.step(np.array([i]))[0] for i in ids[20:])]
    scale = np.abs(expected_TV).max()
    # a layer that wrongly rotates or slides, or forgets to, errs by 0.14 and more in these models
    np.testing.assert_allclose(whole_TV / scale, expected_TV / scale, atol=0.04)  # int8 activations: up to 3 %
    np.testing.assert_allclose(np.array(stepped_TV) / scale, expected_TV[19:] / scale, atol=0.04)
    spread = np.abs(expected_TV[1:] - expected_TV[:-1]).max() / scale
    assert spread > 0.3, "the tolerance must be small beside what the model says"


def _round_as_exported(model: torch.nn.Module) -> None:
    """Round each matrix block by block in plain loops, as the format defines it."""
    tied = model.config.tie_word_embeddings  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            bits = 8 if "lm_head" in name or ("embed" in name and tied) else 4
            rows = [
                np.concatenate([_round_block(block, 2**bits - 1) for block in row.reshape(-1, min(128, len(row)))])
                for row in parameter.detach().numpy()
            ]
            parameter.data = torch.tensor(np.stack(rows))


def _round_block(block: np.ndarray[Any, Any], largest: int) -> np.ndarray[Any, Any]:
    low, high = min(float(block.min()), 0.0), max(float(block.max()), 0.0)
    scale = np.float32(np.float16((high - low) / largest))
    zero_point = round(-low / scale)
    codes = [min(max(round(float(w) / scale) + zero_point, 0), largest) for w in block]
    return np.array([(code - zero_point) * scale for code in codes], dtype=np.float32)


def test_exported_external_data_passes_the_check(config: ExportConfig, manifest: dict[str, Any]) -> None:
    check_external_data(config.out / "model.onnx")
    assert read_manifest(config.out) == manifest
