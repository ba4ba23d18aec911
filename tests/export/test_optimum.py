"""Architectures that our own graph does not write, by way of optimum's exporter in its own environment.

These need that environment in the cache folder (`toolkit export MODEL --exporter optimum --install-optimum`); the
nightly tests make it. How its graph is turned into ours is tested everywhere: tests/export/test_foreign_graph.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from export.checkpoint.decoder_families import FAMILIES as OURS
from export.foreign.foreign_export import SCRATCH, export_foreign, foreign_config
from export.foreign.optimum_export import (
    PROGRAM,
    REQUIREMENTS,
    environment_folder,
    export_by_optimum,
    has_environment,
    older_config,
    optimum_python,
)
from export.runtime.decoder import OnnxDecoder
from export.runtime.verify.checks import verify
from tests.export.conftest import MIXED, TINY
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling, complete
from toolkit.machine.environment import python_of, ready_text
from toolkit.model.loading import load_whole

NIGHTLY = os.environ.get("TOOLKIT_NIGHTLY") == "1"
needs_optimum = pytest.mark.skipif(
    not (NIGHTLY or has_environment()), reason="needs optimum's environment: --install-optimum, or TOOLKIT_NIGHTLY=1"
)
GPT_2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 6, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", GPT_2),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {"rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.25}}),
    "Phi-2": (
        "PhiForCausalLM",
        {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "Gemma 2": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 6,
            "layer_types": MIXED,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {"head_dim": 16, "norm_topk_prob": True} | EXPERTS),
    "StableLM": ("StableLmForCausalLM", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    "Cohere": ("CohereForCausalLM", {"logit_scale": 0.25}),
    "Falcon": ("FalconForCausalLM", {"alibi": False, "multi_query": True}),
    "Bloom": ("BloomForCausalLM", {"n_layer": 2, "n_head": 4, "seq_length": 512}),
    "MPT": ("MptForCausalLM", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "OPT": ("OPTForCausalLM", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "GPT-J": ("GPTJForCausalLM", GPT_2 | {"rotary_dim": 8}),
    "CodeGen": ("CodeGenForCausalLM", GPT_2 | {"rotary_dim": 8}),
    "GPT-Neo": ("GPTNeoForCausalLM", {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]}),
    "SantaCoder": ("GPTBigCodeForCausalLM", GPT_2),
    "OLMo": ("OlmoForCausalLM", {}),
}
DEAR = [name for name in FAMILIES if name not in ("GPT-2", "Phi-2", "Gemma 2", "Qwen3-MoE")]
needs_sh = pytest.mark.skipif(os.name == "nt", reason="a script with #!/bin/sh stands for the Python of optimum")


@pytest.fixture
def may_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip make the environment, which tests/conftest.py forbids."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)


def write_python(path: Path, script: str) -> Path:
    """Write what is run as the Python of optimum's environment; its fourth argument is the graph's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_model(student: Path, folder: Path, architecture: str, facts: dict[str, Any]) -> Path:
    """Write a random model of an architecture with the tiny student's tokenizer."""
    folder.mkdir()
    for path in student.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder)
    torch.manual_seed(2)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**(TINY | facts)))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            multiplies = name.endswith("weight") and architecture != "Gemma2ForCausalLM"
            torch.nn.init.normal_(parameter, mean=float(multiplies), std=0.1)
        else:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@needs_optimum
@pytest.mark.usefixtures("may_fetch")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(name in DEAR and not NIGHTLY, reason="TOOLKIT_NIGHTLY=1"))
        for name in FAMILIES
    ],
)
def test_an_architecture_of_optimums_answers_as_transformers_does_and_opens_in_four_bits(
    name: str, tiny_student: Path, tmp_path: Path
) -> None:
    architecture, facts = FAMILIES[name]
    assert architecture not in OURS
    source = write_model(tiny_student, tmp_path / "source", architecture, facts)
    floats = export_foreign(foreign_config(source, tmp_path / "fp32", "fp32"), may_install=NIGHTLY)
    assert floats["measured"]["parity"]["mean_kl"] < 1e-5
    chat_format = ChatFormat.from_folder(tmp_path / "fp32")
    prompts = [
        chat_format.question_ids(question) for question in ("Why?", "What is the letter in 17 + 25 of the text?")
    ]
    greedy = Sampling(temperature=0.0, max_new_tokens=24, seed=0)
    found = complete(OnnxDecoder(tmp_path / "fp32"), prompts, greedy, chat_format.stop_ids)
    model: Any = load_whole(AutoModelForCausalLM, source, dtype=torch.float32)
    for prompt, answer in zip(prompts, found, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=0)
        assert [*prompt, *answer.ids] == expected[0].tolist()
    assert all(check.outcome == "ok" for check in verify(tmp_path / "fp32", fast=False))

    config = replace(foreign_config(source, tmp_path / "int4", "int4"), bounds=None)
    small = export_foreign(config, may_install=False)
    assert small["measured"]["bytes"] < 0.7 * floats["measured"]["bytes"]
    logits_BV = OnnxDecoder(tmp_path / "int4").start(prompts)
    assert np.isfinite(logits_BV).all()


@needs_optimum
@pytest.mark.usefixtures("may_fetch")
def test_what_optimum_does_not_export_is_named_with_its_architecture(tiny_student: Path, tmp_path: Path) -> None:
    source = write_model(tiny_student, tmp_path / "source", "MixtralForCausalLM", {"num_local_experts": 4})
    message = r"cannot export MixtralForCausalLM of .*: it generates text with .*gpt2.*, and not with mixtral; choose"
    with pytest.raises(InputError, match=message) as caught:
        export_foreign(foreign_config(source, tmp_path / "out", "fp32"), may_install=NIGHTLY)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@needs_sh
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", r"was ended by signal 9 .*; close programs and run the same command again"),
        ("echo 'MemoryError: no' >&2; kill -6 $$", r"memory is too small for this step \(MemoryError: no\); close"),
        (
            "echo 'OSError: [Errno 28] No space left on device' >&2; echo at the end >&2; exit 1",
            "the disk is full while writing the output folder; free space",
        ),
        (
            "echo first >&2; echo 'KeyError: x' >&2; exit 1",
            r"cannot export Llama\w+ of .*: KeyError: x; choose",
        ),
    ],
)
def test_what_stops_optimum_is_said_with_its_own_remedy(
    script: str, message: str, tiny_student: Path, tmp_path: Path
) -> None:
    python = write_python(tmp_path / "python", script)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        export_by_optimum(python, tiny_student, tmp_path / "scratch")
    assert "\n" not in str(caught.value)


@needs_sh
def test_nothing_of_a_graph_stays_after_a_failure_however_it_failed(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    home = environment_folder()
    write_python(python_of(home), 'mkdir "$4"; echo weights > "$4/model.onnx.data"')
    (home / "ready").write_text(ready_text(REQUIREMENTS))
    config = replace(foreign_config(tiny_student, tmp_path / "out" / "model", "fp32"), bounds=None)
    with pytest.raises(InputError, match="cannot be written: No such file"):
        export_foreign(config, may_install=False)
    assert not list((tmp_path / "out").rglob(SCRATCH)) and not list((tmp_path / "out").rglob("model.onnx*"))
    [unfinished] = (tmp_path / "out").iterdir()
    (unfinished / SCRATCH / "killed").mkdir(parents=True)
    write_python(python_of(home), "exit 1")
    with pytest.raises(InputError, match="it does not say why"):
        export_foreign(config, may_install=False)
    assert not list((tmp_path / "out").rglob(SCRATCH))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its caller")
def test_the_program_of_optimum_does_not_outlive_its_caller(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-I", PROGRAM, tmp_path, tmp_path / "graph"]
    done = subprocess.run([*command, "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "the process 1, which it was to end with, has ended\n"
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_nothing_is_fetched_where_that_is_forbidden(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InputError, match=r"is not in .* yet, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids"):
        optimum_python(may_install=True)
    assert not (tmp_path / "home").exists()


def test_without_its_environment_the_export_says_what_would_be_installed(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    command = ["export", str(tiny_student), "--exporter", "optimum", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "needs optimum-onnx 0.1.0 in an environment of its own" in line
    assert "--install-optimum to have pip install optimum-onnx==0.1.0, transformers==4.57.6, torch==" in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "home" / "environments").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fast"], "--fast does not go with --exporter optimum, which calibrates nothing"),
        (["--method", "gptq"], "--method gptq does not go with --exporter optimum"),
        (["--size", "90MB"], "--size does not go with --exporter optimum"),
        (["--plan"], "--plan does not go with --exporter optimum"),
    ],
)
def test_what_only_our_graph_can_have_is_refused(
    options: list[str], message: str, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(tiny_student), "--exporter", "optimum", "--out", str(tmp_path / "out"), *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_consent_alone_installs_nothing(tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_student), "--install-optimum", "--out", str(tmp_path / "out")]) == 2
    assert "--install-optimum needs --exporter optimum" in capsys.readouterr().err


def test_a_configuration_is_written_as_older_libraries_read_it_and_names_no_code() -> None:
    ours = {"model_type": "phi", "auto_map": {"AutoConfig": "code.py"}}
    rope = {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2.0}
    assert older_config(ours | {"rope_parameters": rope}) == {
        "model_type": "phi",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    neox = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 5e3, "rope_type": "default"}}
    assert older_config(neox) == {"model_type": "gpt_neox", "rotary_emb_base": 5e3}
    assert older_config(json.loads('{"model_type": "gpt2"}')) == {"model_type": "gpt2"}


def test_rotations_of_each_kind_of_layer_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"of each kind of layer \(full_attention\) cannot be exported by optimum-onnx"
    ):
        older_config({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})
