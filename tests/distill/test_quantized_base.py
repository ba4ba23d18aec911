"""QLoRA: the base in NF4, adapters that train on it, and a saved student that is what was trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from distill.training.quantized_base import dequantized, is_quantized, load_nf4, merged
from distill.training.student import add_adapters, load_trainable, save_student
from distill.training.train import train
from distill.training.train_config import TrainConfig
from tests.distill.test_train import examples, float_model, losses, tiny_recipe
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.precision import compute_dtype

IDS = torch.tensor([[5, 9, 40, 101, 7, 33, 250, 12]])


def recipe(**changes: Any) -> TrainConfig:
    return replace(tiny_recipe(), lora_rank=8, quantization="nf4", learning_rate=1e-2, **changes)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits.float()
    return found


def test_linear_layers_are_kept_in_nf4_with_double_quantization(tiny_student: Path) -> None:
    student = load_nf4(tiny_student)
    plain = float_model(tiny_student)
    quantized = {name for name, parameter in student.named_parameters() if hasattr(parameter, "quant_state")}
    assert quantized == {name for name, _ in plain.named_parameters() if name.endswith("proj.weight")}
    for name in quantized:
        parameter: Any = student.get_parameter(name)
        assert parameter.quant_state.quant_type == "nf4" and parameter.quant_state.nested
        assert parameter.dtype == torch.uint8 and parameter.numel() == plain.get_parameter(name).numel() / 2
        error = (dequantized(parameter).float() - plain.get_parameter(name)).norm() / plain.get_parameter(name).norm()
        assert 0.02 < error < 0.12


def test_gradients_on_nf4_are_those_on_its_dequantized_values(tiny_student: Path) -> None:
    """The oracle has the dequantized values as ordinary weights."""
    found = []
    for dequantize in (False, True):
        student: Any = load_nf4(tiny_student)
        if dequantize:
            oracle: Any = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=compute_dtype())
            for name, parameter in student.named_parameters():
                oracle.get_parameter(name).data.copy_(dequantized(parameter))
            student = oracle
        model: Any = add_adapters(student, replace(tiny_recipe(), lora_rank=8))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        for training in (False, True):  # an evaluation first: it must not change how the base is laid out
            model.train(training)
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        found.append((loss.detach(), grads))
    (loss, grads), (expected, others) = found
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    assert grads.keys() == others.keys() and all("lora" in name for name in grads)
    for name, gradient in grads.items():
        difference = (gradient.float() - others[name].float()).norm()
        assert difference <= 0.05 * others[name].float().norm() + 1e-4, name


def test_what_is_saved_computes_what_was_trained(tiny_student: Path, tmp_path: Path) -> None:
    base = load_nf4(tiny_student)
    model: Any = add_adapters(base, replace(tiny_recipe(), lora_rank=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    trained = logits(model)
    save_student(model, tmp_path, tiny_student)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=compute_dtype())
    assert not is_quantized(saved)
    spread = float(trained.std())
    assert float((logits(saved) - trained).abs().mean()) < 0.02 * spread  # the sum is rounded to bf16
    # PEFT's own merge rounds the sum to NF4 again, and merging into the original weights undoes the base's rounding
    requantized = logits(model.merge_and_unload())
    assert float((requantized - trained).abs().mean()) > 2 * float((logits(saved) - trained).abs().mean())


def test_the_merge_is_pefts_own_on_the_dequantized_weights(tiny_student: Path) -> None:
    model: Any = add_adapters(load_nf4(tiny_student), replace(tiny_recipe(), lora_rank=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    adapters = get_peft_model_state_dict(model)
    scaling = 2.0  # alpha is twice the rank
    expected = {}
    for name, parameter in model.get_base_model().named_parameters():
        if hasattr(parameter, "quant_state"):
            plain = name.replace(".base_layer.weight", "")
            a, b = (adapters[f"base_model.model.{plain}.lora_{side}.weight"].float() for side in "AB")
            expected[f"{plain}.weight"] = (
                dequantize_4bit(parameter.detach(), parameter.quant_state).float() + scaling * b @ a
            )
    whole = merged(model, tiny_student)
    assert len(expected) == 14
    for name, value in expected.items():
        torch.testing.assert_close(whole.get_parameter(name).float(), value, rtol=1e-2, atol=1e-3)


def test_qlora_learns_and_saves_a_plain_student(tiny_student: Path, tmp_path: Path) -> None:
    measured = train(tiny_student, examples(48), recipe(epochs=2), tmp_path, examples(60)[48:])
    course = losses(tmp_path)
    assert course[-1] < course[0]
    assert measured["changed_tensors"] == 14, "each layer that has adapters"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.bfloat16 and not is_quantized(saved)
    stops = ChatFormat.from_folder(tmp_path).stop_ids
    assert saved.generation_config.eos_token_id in stops and saved.config.eos_token_id in stops


def test_a_qlora_run_that_changes_nothing_is_an_error(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training changed none of the student's"):
        train(tiny_student, examples(4), replace(recipe(), learning_rate=1e-12), tmp_path)


def test_a_student_whose_rows_are_no_whole_blocks_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "narrow"
    shutil.copytree(tiny_student, folder)
    config = LlamaConfig.from_pretrained(tiny_student)
    config.hidden_size, config.intermediate_size, config.head_dim = 48, 80, 12
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"no layer of .*narrow has rows of whole blocks of 64"):
        load_trainable(folder, "nf4")


def test_weights_in_nf4_without_adapters_are_refused() -> None:
    assert recipe().quantization == "nf4"
    with pytest.raises(InputError, match=r"\(nf4\) keeps weights that cannot be trained themselves; add adapters"):
        replace(tiny_recipe(), quantization="nf4")
