"""Each value of a recipe's section `train` reaches the training and means what the library that defines it means."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.optimization import Adafactor

from distill.tracking import event_file
from distill.tracking.trackers import EVENTS, check_trackers, reported_to
from distill.training.completion_loss import IGNORED, LossForward, noisy, spread_loss, summed_loss
from distill.training.journal import CHECKPOINTS
from distill.training.optimizers.mastered import Mastered
from distill.training.optimizers.muon import MuonAdamW
from distill.training.optimizers.not_adam import make_not_adam
from distill.training.student import check_student, load_student
from distill.training.train import tokenize, train, trainer_arguments
from distill.training.train_config import TrainConfig
from tests.distill.students.made_families import write_family
from tests.distill.test_train import examples, float_model, losses, rates, tiny_recipe
from toolkit.errors import InputError, MissingExtra
from toolkit.formats.chat_format import ChatFormat
from toolkit.sources.adapter_folder import Adapter, NeedsPeft
from toolkit.voice.student_format import write_student_format


def trained(student: Path, folder: Path, count: int = 16, **changes: Any) -> dict[str, Any]:
    """Train on so many examples in batches of 4, with these values of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = examples(count + 40)[count : count + changes.pop("held_out", 0)]
    return train(student, examples(count), replace(tiny_recipe(), **changes), folder, held_out)


def logged(folder: Path, name: str) -> list[Any]:
    lines = (folder / "loss.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines if name in json.loads(line)]


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "min_lr_share": 0.2}, [1, 0.8, 0.6, 0.4]),
        ({"min_lr_share": 0.5}, [1, 0.9268, 0.75, 0.5732]),
        ({"schedule": "constant", "warmup_share": 0.5}, [0.5, 1, 1, 1]),
        ({"schedule": "wsd", "decay_share": 0.25}, [1, 1, 1, 0.5]),
        ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_the_schedule_is_the_recipes(
    changes: dict[str, Any], shares: list[float], tiny_student: Path, tmp_path: Path
) -> None:
    trained(tiny_student, tmp_path, **changes)
    assert rates(tmp_path) == pytest.approx([3e-3 * share for share in shares], rel=1e-3)


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 3), (2, 3)])
def test_a_run_ends_after_its_updates_whatever_its_epochs(
    accumulation: int, updates: int, tiny_student: Path, tmp_path: Path
) -> None:
    measured = trained(tiny_student, tmp_path, max_updates=updates, epochs=7, accumulation_steps=accumulation)
    assert measured["updates"] == updates
    whole = sum(map(len, tokenize(examples(16), ChatFormat.from_folder(tmp_path))["input_ids"]))
    assert measured["tokens"] == round(whole * updates * accumulation / 4)


@pytest.mark.parametrize("name", ["adafactor", "muon", "sgd"])
def test_an_optimizer_updates_fp32_masters_as_its_library_does(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(6, 4), "norm": torch.nn.LayerNorm(4)}).bfloat16()
    oracle = torch.nn.ModuleDict({"layer": torch.nn.Linear(6, 4), "norm": torch.nn.LayerNorm(4)})
    oracle.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    decayed: dict[str, Any] = {"weight_decay": 0.1}

    def groups(of: torch.nn.Module) -> list[dict[str, Any]]:
        parameters = list(of.parameters())
        matrices, others = ([p for p in parameters if (p.dim() >= 2) is wanted] for wanted in (True, False))
        return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]

    def make(of: torch.nn.Module) -> torch.optim.Optimizer:
        return make_not_adam(name, of, groups(of), learning_rate=1e-2, betas=(0.9, 0.95), **decayed)

    expected: torch.optim.Optimizer
    if name == "adafactor":
        expected = Adafactor(groups(oracle), lr=1e-2, scale_parameter=False, relative_step=False, **decayed)
    elif name == "sgd":
        expected = torch.optim.SGD(groups(oracle), lr=1e-2, momentum=0.9, **decayed)
    else:
        first, second = (group["params"] for group in groups(oracle))
        expected = MuonAdamW(first, second, matrix_lr=1e-2, other_lr=1e-2, betas=(0.9, 0.95), **decayed)
    ours = make(model)
    for step in range(6):
        if step == 3:  # goes on from its checkpoint
            state, ours = ours.state_dict(), make(model)
            ours.load_state_dict(state)
        for group in (*ours.param_groups, *expected.param_groups):
            group["lr"] = 1e-2 / (1 + step)  # as a schedule does
        for parameter, other in zip(model.parameters(), oracle.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
            other.grad = parameter.grad.float()
        ours.step()
        expected.step()
    assert isinstance(ours, Mastered)
    masters = dict(ours._pairs())
    for parameter, other in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(masters[parameter], other.detach(), rtol=1e-5, atol=1e-6)
        assert torch.equal(parameter.detach(), masters[parameter].detach().bfloat16())


@pytest.mark.parametrize(("optimizer", "rate"), [("adafactor", 3e-3), ("muon", 3e-3), ("sgd", 0.3), ("adamw", 3e-3)])
def test_each_optimizer_teaches(optimizer: str, rate: float, tiny_student: Path, tmp_path: Path) -> None:
    trained(tiny_student, tmp_path, 24, optimizer=optimizer, learning_rate=rate, epochs=3)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0] - 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 1.0},
        {"beta1": 0.0},
        {"beta2": 0.5},
        {"weight_decay": 30.0},
        {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.1},
        {"accumulation_steps": 2},
        {"batch_examples": 2},
        {"label_smoothing": 0.5},
        {"neftune_noise": 300.0},
        {"loss_on": "all"},
        {"lora_rank": 8, "lora_dropout": 0.5},
        {"lora_rank": 8, "lora_alpha": 1},
        {"lora_rank": 8, "quantization": "nf4"},
        {"seed": 1},
    ],
    ids=str,
)
def test_each_value_changes_the_training(changes: dict[str, Any], tiny_student: Path, tmp_path: Path) -> None:
    trained(tiny_student, tmp_path / "usual", **{name: changes[name] for name in changes if name != [*changes][-1]})
    trained(tiny_student, tmp_path / "other", **changes)
    assert losses(tmp_path / "other") != losses(tmp_path / "usual")


@pytest.mark.parametrize("tokens", [1, 200, 8192])
def test_a_batch_goes_through_the_student_in_rows_of_the_recipes_length(
    tokens: int, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    forward = LossForward.__call__

    def watched(self: Any, **batch: Any) -> Any:
        lengths.append(batch["labels"].numel())  # what examples begin with may be computed once for several
        return forward(self, **batch)

    monkeypatch.setattr(LossForward, "__call__", watched)
    trained(tiny_student, tmp_path, 8, row_tokens=tokens)
    each = list(map(len, tokenize(examples(8), ChatFormat.from_folder(tmp_path))["input_ids"]))
    assert sum(lengths) == sum(each) and max(lengths) <= max(tokens, max(each))
    assert {1: len(lengths) == 8, 200: 2 < len(lengths) < 8, 8192: len(lengths) == 2}[tokens]


def test_label_smoothing_is_torchs(tiny_student: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(90, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels = torch.randint(0, 20, (90,), generator=generator)
    labels[:30] = IGNORED
    parts = [states.requires_grad_() for states in (hidden, weight)]
    ours = 0.7 * summed_loss(hidden, weight, labels) + 0.3 * spread_loss(hidden, weight, labels)
    found = torch.autograd.grad(ours, parts)
    logits = hidden[:-1] @ weight.T
    expected = functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, label_smoothing=0.3, reduction="sum")
    torch.testing.assert_close(ours, expected)
    for mine, other in zip(found, torch.autograd.grad(expected, parts), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_noise_of_an_example_is_transformers_of_its_length_alone() -> None:
    torch.manual_seed(7)
    lengths, width, alpha = [5, 200], 64, 5.0
    row = noisy(torch.zeros(1, sum(lengths), width), lengths, alpha)
    module: Any = torch.nn.Module().train()
    module.neftune_noise_alpha = alpha
    for part, length in zip(row.split(lengths, dim=1), lengths, strict=True):
        theirs = neftune_post_forward_hook(module, None, torch.zeros(1, length, width))
        most = alpha / math.sqrt(length * width)
        assert part.abs().max() <= most and theirs.abs().max() <= most
        assert part.std() == pytest.approx(float(theirs.std()), rel=0.15)


def test_the_loss_on_all_tokens_is_transformers(tiny_student: Path, tmp_path: Path) -> None:
    trained(tiny_student, tmp_path, 4, loss_on="all")
    oracle, total, count = float_model(tiny_student), 0.0, 0
    for row in tokenize(examples(4), ChatFormat.from_folder(tmp_path)):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            total += oracle(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert losses(tmp_path)[0] == pytest.approx(total / count, rel=5e-3)


LORA: dict[str, Any] = {"lora_rank": 8, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("changes", "written"),
    [
        ({}, {"r": 8, "lora_alpha": 16, "use_rslora": False, "use_dora": False, "bias": "none", "lora_dropout": 0.0}),
        ({"lora_alpha": 4}, {"lora_alpha": 4}),
        ({"lora_rslora": True}, {"use_rslora": True}),
        ({"lora_dora": True}, {"use_dora": True}),
        ({"lora_dropout": 0.3}, {"lora_dropout": 0.3}),
        ({"lora_bias": "all"}, {"bias": "all"}),
        ({"lora_targets": ("q_proj", "down_proj")}, {"target_modules": ["down_proj", "q_proj"]}),
    ],
    ids=str,
)
def test_adapters_kept_apart_are_pefts_and_merge_to_the_same_student(
    changes: dict[str, Any], written: dict[str, Any], tiny_student: Path, tmp_path: Path
) -> None:
    measured = [
        trained(tiny_student, tmp_path / name, **LORA, **changes, lora_kept_apart=name == "apart")
        for name in ("apart", "merged")
    ]
    assert measured[0]["changed_tensors"] == measured[1]["changed_tensors"] > 0
    apart = tmp_path / "apart"
    settings = json.loads((apart / "adapter_config.json").read_text())
    settings["target_modules"] = sorted(settings["target_modules"])
    assert settings.items() >= written.items()
    assert not list(apart.glob("model*.safetensors")) and not (apart / "README.md").exists()
    base = load_student(tiny_student, ChatFormat.from_folder(apart))
    whole: Any = PeftModel.from_pretrained(base, str(apart), autocast_adapter_dtype=False)
    whole = whole.merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, whole[name].bfloat16().float(), rtol=0, atol=0, msg=name)
    if changes.get("lora_dora"):
        with pytest.raises(NeedsPeft, match="use_dora"):
            Adapter(apart)
    elif changes.get("lora_bias") != "all":  # our own reader merges it while it exports
        reader, before = Adapter(apart), float_model(tiny_student).state_dict()
        name = min(reader.targets)
        down_LK, up_NL = (torch.from_numpy(factor) for factor in reader.factors(name))
        ours = before[name].bfloat16().float() + up_NL @ down_LK
        torch.testing.assert_close(ours, whole[name].float(), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("q_prj", r"did you mean q_proj\?"),
        ("layers.9.q_proj", r"did you mean q_proj\?"),  # PEFT would leave it out beside one that there is
        ("proj", r"did you mean .*_proj\?|it has down_proj, "),
        ("lm_head", r"adapters on it would not be trained; leave it out"),
        ("embed_tokens", r"it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
    ],
)
def test_a_target_that_the_student_does_not_have_is_refused_before_anything_slow(
    target: str, said: str, tiny_student: Path
) -> None:
    with pytest.raises(InputError, match=rf"lora_targets names '{target}', .* ({said})"):
        check_student(tiny_student, targets=["v_proj", target])
    check_student(tiny_student, targets=["v_proj", "layers.1.self_attn.q_proj"])


@pytest.mark.parametrize(("biases", "changed"), [("none", False), ("all", True), ("lora_only", True)])
@pytest.mark.parametrize("quantization", ["", "nf4"])
def test_biases_are_trained_beside_adapters_as_the_recipe_says(
    biases: str, changed: bool, quantization: str, tiny_student: Path, tmp_path: Path
) -> None:
    student = write_family("Qwen2.5", tmp_path / "student")
    check_student(student, biases=biases)
    trained(student, tmp_path / "out", **LORA, lora_bias=biases, quantization=quantization)
    before, after = float_model(student).state_dict(), float_model(tmp_path / "out").state_dict()
    differ = [not torch.equal(before[name].bfloat16().float(), after[name]) for name in before if "bias" in name]
    assert differ and any(differ) is changed
    for name in ("all", "lora_only"):
        with pytest.raises(InputError, match=rf"lora_bias \({name}\) has no effect, since the student has no biases"):
            check_student(tiny_student, biases=name)
    with pytest.raises(InputError, match=r"has no biases in the layers that have adapters; leave it out"):
        check_student(student, targets=["o_proj"], biases="lora_only")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, [1, 2, 3, 4]), ({"evaluations": 2}, [2, 4]), ({"evaluate_every": 3}, [3, 4]), ({"evaluate_every": 9}, [4])],
    ids=str,
)
def test_held_out_examples_are_measured_when_the_recipe_says(
    changes: dict[str, Any], steps: list[int], tiny_student: Path, tmp_path: Path
) -> None:
    trained(tiny_student, tmp_path, held_out=4, **changes)
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == steps


def test_the_best_student_is_kept_unless_the_recipe_wants_the_last(tiny_student: Path, tmp_path: Path) -> None:
    breaking = {"learning_rate": 10.0, "warmup_share": 1.0, "held_out": 20, "count": 24}
    best = trained(tiny_student, tmp_path / "best", **breaking)  # type: ignore[arg-type]
    last = trained(tiny_student, tmp_path / "last", **breaking, keep_best=False)  # type: ignore[arg-type]
    assert best["chosen_update"] < last["chosen_update"] == 6
    assert last["chosen_by"] == "the last, as the recipe wants"
    few = trained(tiny_student, tmp_path / "few", 8, held_out=20, validation_examples=5)
    many = trained(tiny_student, tmp_path / "many", 8, held_out=20)
    assert few["validation_loss"] != many["validation_loss"]


def test_checkpoints_come_by_updates_and_so_many_are_kept(tiny_student: Path, tmp_path: Path) -> None:
    trained(tiny_student, tmp_path, 24, checkpoint_every_updates=2, checkpoints_kept=2, checkpoint_every_s=1e6)
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]


def test_a_students_context_can_be_set(tiny_student: Path, tmp_path: Path) -> None:
    assert check_student(tiny_student).max_tokens < 4096
    assert check_student(tiny_student, context_tokens=4096).max_tokens == 4096
    trained(tiny_student, tmp_path, 4, context_tokens=4096)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 4096


def varint(data: bytes) -> tuple[int, bytes]:
    number = shift = 0
    while True:
        byte, data = data[0], data[1:]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, data


def fields(data: bytes) -> dict[int, list[Any]]:
    """Parse a message of protobuf's wire format."""
    found: dict[int, list[Any]] = {}
    while data:
        key, data = varint(data)
        value: Any
        match key & 7:
            case 0:
                value, data = varint(data)
            case 1:
                value, data = data[:8], data[8:]
            case 5:
                value, data = torch.frombuffer(bytearray(data[:4]), dtype=torch.float32).item(), data[4:]
            case _:
                length, data = varint(data)
                value, data = data[:length], data[length:]
        found.setdefault(key >> 3, []).append(value)
    return found


def events(data: bytes) -> list[dict[int, list[Any]]]:
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = data[12 : 12 + length]
        assert data[8:12] == event_file._checksum(data[:8])
        assert data[12 + length : 16 + length] == event_file._checksum(event)
        found.append(fields(event))
        data = data[16 + length :]
    return found


def test_the_event_file_repeats_the_loss_curve(tiny_student: Path, tmp_path: Path) -> None:
    crc = (int.from_bytes(event_file._checksum(b"123456789"), "little") - event_file.MASK) & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283  # the check value of CRC-32C
    trained(tiny_student, tmp_path, held_out=4)
    first, *others = events((tmp_path / EVENTS).read_bytes())
    assert first[3] == [b"brain.Event:2"]
    assert [event[2] for event in others] == [[1], [2], [3], [4]]
    curve = []
    for event in others:
        scalars = [fields(value) for value in fields(event[5][0])[1]]
        curve.append({scalar[1][0].decode(): scalar[2][0] for scalar in scalars})
    assert [scalars["train/loss"] for scalars in curve] == pytest.approx(losses(tmp_path))
    assert "train/validation_loss" in curve[0]
    trained(tiny_student, tmp_path / "none", trackers=())
    assert not (tmp_path / "none" / EVENTS).exists()


def test_nothing_leaves_the_machine_unless_the_user_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert reported_to(("tensorboard", "trackio", "wandb"), tmp_path) == ["trackio", "wandb"]
    import os

    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("offline", str(tmp_path))
    assert trainer_arguments(tiny_recipe(), tmp_path).trackio_space_id is None
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x")
    reported_to(("wandb",), tmp_path)
    assert "WANDB_MODE" not in os.environ
    with pytest.raises(MissingExtra, match=r"'wandb_of_nobody' is not installed; .*reasoning-edge\[track\]"):
        check_trackers(("tensorboard", "wandb_of_nobody"))


def test_every_value_has_its_place_here_or_in_the_tests_of_its_room(tmp_path: Path, tiny_student: Path) -> None:
    write_student_format(tiny_student, tmp_path)
    arguments = trainer_arguments(replace(tiny_recipe(), epochs=3, checkpoints_kept=5, log_every=7), tmp_path)
    assert (arguments.num_train_epochs, arguments.save_total_limit, arguments.logging_steps) == (3, 5, 7)
    assert isinstance(tiny_recipe(), TrainConfig)
