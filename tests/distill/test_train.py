"""The trainer computes transformers' loss, on the ids that inference renders, and resumes after an interrupt."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from distill.pipeline import demo
from distill.training import document_attention
from distill.training.completion_loss import IGNORED, LossForward, summed_loss
from distill.training.document_attention import Documents
from distill.training.journal import CHECKPOINTS, LOSS, SHARDS, TrainingJournal, check_shards
from distill.training.optimizers.master_adamw import MasterAdamW
from distill.training.packed_rows import collate, within
from distill.training.student import save_student
from distill.training.train import tokenize, train, trainer_arguments
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.records import Example
from toolkit.voice.student_format import write_student_format


def examples(count: int) -> list[Example]:
    """Make traces of unequal lengths: how often a letter occurs in a word."""
    made = []
    for i in range(count):
        word = ["letter", "appear", "times", "answer"][i % 4] * (1 + i % 3)
        made.append(
            Example(
                problem_id=f"{i:016x}",
                family="letter_counting",
                question=f'How many times does the letter "e" appear in "{word}"?',
                reasoning="\n".join(f"{letter}: {word[: j + 1].count('e')}" for j, letter in enumerate(word)),
                answer=str(word.count("e")),
                sample=0,
                teacher="program",
            )
        )
    return made


def tiny_recipe() -> TrainConfig:
    return replace(demo().train, learning_rate=3e-3, batch_examples=4, log_every=1)


def float_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / LOSS).read_text().splitlines()]


@pytest.fixture(scope="module")
def chat_format(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return write_student_format(tiny_student, tmp_path_factory.mktemp("format"))


def test_the_ids_trained_on_are_the_ids_that_inference_renders(chat_format: ChatFormat) -> None:
    made = examples(5)
    batch = collate(list(tokenize(made, chat_format)))
    starts = [*(batch["position_ids"][0] == 0).nonzero().squeeze(1).tolist(), batch["input_ids"].shape[1]]
    for example, start, end in zip(made, starts[:-1], starts[1:], strict=True):
        ids, labels = batch["input_ids"][0, start:end].tolist(), batch["labels"][0, start:end].tolist()
        prompt = chat_format.prompt_ids([{"role": "user", "content": example.question}])
        assert ids[: len(prompt)] == prompt
        assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
        assert ids[-1] in chat_format.stop_ids
        assert chat_format.decode(ids[len(prompt) :]) == completion_text(example.reasoning, example.answer)


def test_padding_free_completion_loss_equals_the_full_logits_path(tiny_student: Path, chat_format: ChatFormat) -> None:
    rows = list(tokenize(examples(7), chat_format))
    batch = collate(rows)

    ours = float_model(tiny_student)
    ours.set_attn_implementation(document_attention.NAME)
    hidden = ours.base_model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        use_cache=False,
        documents=batch["documents"],
    )[0]
    loss: Any = summed_loss(hidden[0], ours.get_output_embeddings().weight, batch["labels"][0])
    loss.backward()

    oracle = float_model(tiny_student)  # one example at a time, transformers' own forward and labels
    expected: Any = torch.zeros(())
    for row in rows:
        labels = torch.tensor([row["labels"]])
        mean = oracle(input_ids=torch.tensor([row["input_ids"]]), labels=labels, use_cache=False).loss
        expected = expected + mean * (labels != IGNORED).sum()
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for (name, parameter), other in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_padding_and_neighbours_do_not_change_a_document(tiny_student: Path) -> None:
    model = float_model(tiny_student)
    model.set_attn_implementation(document_attention.NAME)
    generator = torch.Generator().manual_seed(1)
    lengths = [31, 33, 64, 1, 32, 70]
    documents = [torch.randint(3, 320, (length,), generator=generator) for length in lengths]

    def hidden(chosen: list[int]) -> Any:
        return model.base_model(
            input_ids=torch.cat([documents[i] for i in chosen])[None],
            position_ids=torch.cat([torch.arange(lengths[i]) for i in chosen])[None],
            use_cache=False,
            documents=Documents([lengths[i] for i in chosen]),
        )[0][0]

    together = hidden([0, 1, 2, 3, 4, 5]).split(lengths)
    for i, states in enumerate(together):
        torch.testing.assert_close(states, hidden([i]), rtol=1e-5, atol=1e-5)


def test_where_there_is_a_gpu_its_attention_sees_the_same_documents(
    tiny_student: Path, chat_format: ChatFormat
) -> None:
    batch = collate(list(tokenize(examples(3), chat_format)))
    model = float_model(tiny_student)
    model.set_attn_implementation(document_attention.NAME)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    ours = model.base_model(**inputs, documents=batch["documents"])[0]
    model.set_attn_implementation("sdpa")  # on a GPU the positions alone tell the documents apart
    torch.testing.assert_close(ours, model.base_model(**inputs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("long", [document_attention.LONG, 16])
@pytest.mark.parametrize("window", [None, 1, 7, 33, 64])
def test_attention_of_documents_equals_a_block_diagonal_mask(
    window: int | None, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "LONG", long)
    lengths, heads, groups, width = [5, 40, 33, 32], 6, 2, 8
    count = sum(lengths)
    generator = torch.Generator().manual_seed(2)
    query, key, value = (
        torch.randn(1, n, count, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (heads, groups, groups)
    )
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = torch.ones(count, count).tril().triu(1 - (window or count)).bool()
    mask = (document[:, None] == document[None]) & seen
    ours, _ = document_attention.attend(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, documents=Documents(lengths), sliding_window=window
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_updates_below_a_weights_precision_add_up() -> None:
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # Adam moves by lr a step under a constant gradient; bf16 next to 1 is 0.0039 away, so one step alone is lost
    torch.testing.assert_close(optimizer.state[weight]["master"], torch.full((8,), 0.99), rtol=0, atol=1e-5)
    assert weight.detach().float().tolist() == [torch.tensor(0.99).bfloat16().item()] * 8


def test_the_master_optimizer_equals_adamw_and_survives_its_checkpoint() -> None:
    generator = torch.Generator().manual_seed(3)
    start, gradients = torch.randn(4, 3, generator=generator), torch.randn(6, 4, 3, generator=generator)
    plain = torch.nn.Parameter(start.clone())
    oracle = torch.optim.AdamW([plain], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    ours = torch.nn.Parameter(start.clone().bfloat16())
    plain.data.copy_(ours.data)
    optimizer = MasterAdamW([ours], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step, gradient in enumerate(gradients.bfloat16()):
        if step == 3:
            state, reloaded = optimizer.state_dict(), MasterAdamW([ours], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
            reloaded.load_state_dict(state)
            optimizer = reloaded
        ours.grad, plain.grad = gradient.clone(), gradient.float()
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(optimizer.state[ours]["master"], plain.detach(), rtol=1e-6, atol=1e-6)


def test_training_lowers_the_loss_and_leaves_a_plain_checkpoint(tiny_student: Path, tmp_path: Path) -> None:
    measured = train(tiny_student, examples(48), replace(tiny_recipe(), epochs=2), tmp_path)
    course = losses(tmp_path)
    assert len(course) == 24
    assert course[-1] < course[0] - 1.0
    assert measured["final_loss"] == course[-1]
    student = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert student.dtype == torch.bfloat16
    assert student.generation_config.eos_token_id in ChatFormat.from_folder(tmp_path).stop_ids


def test_the_first_logged_loss_is_the_mean_over_completion_tokens(tiny_student: Path, tmp_path: Path) -> None:
    made = examples(4)
    train(tiny_student, made, tiny_recipe(), tmp_path)  # logged before the first update
    total, count = 0.0, 0
    oracle = float_model(tiny_student)
    for row in tokenize(made, ChatFormat.from_folder(tmp_path)):
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            mean = oracle(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        trained = int((labels != IGNORED).sum())
        total, count = total + mean * trained, count + trained
    assert math.isclose(losses(tmp_path)[0], total / count, rel_tol=5e-3)  # bf16 where the machine has it


@pytest.mark.parametrize("made", [1, 3, 9, 10])
def test_what_is_told_of_a_training_is_of_its_last_update(made: int, tiny_student: Path, tmp_path: Path) -> None:
    rows = examples(made)
    measured = train(tiny_student, rows, replace(tiny_recipe(), batch_examples=1, log_every=5), tmp_path)
    tokens = sum(len(ids) for ids in tokenize(rows, ChatFormat.from_folder(tmp_path))["input_ids"])
    lines = [json.loads(line) for line in (tmp_path / LOSS).read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({1, *range(5, made, 5), made}), "the first, each fifth, the last"
    last = lines[-1]
    assert (last["step"], last["tokens"]) == (made, tokens)
    assert (measured["updates"], measured["chosen_update"], measured["tokens"]) == (made, made, tokens)
    assert measured["final_loss"] == last["loss"]


def test_adapters_are_merged_into_a_plain_checkpoint(tiny_student: Path, tmp_path: Path) -> None:
    recipe = replace(demo().train, lora_rank=32, learning_rate=1e-2, batch_examples=4, log_every=1)
    train(tiny_student, examples(32), recipe, tmp_path)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert not list(tmp_path.glob("adapter*"))
    before, after = float_model(tiny_student).state_dict(), float_model(tmp_path).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].bfloat16().float(), after[name])}
    assert changed and all(name.endswith("proj.weight") for name in changed)


@contextmanager
def interrupted_after(stop: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within this context a training hears Ctrl+C after so many updates."""
    on_step_end = TrainingJournal.on_step_end

    def interrupt(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == stop:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TrainingJournal, "on_step_end", interrupt)
        yield


@pytest.mark.parametrize(("stop", "rate", "lora"), [(3, 3e-3, 0), (3, 10.0, 0), (6, 10.0, 0), (3, 3e-3, 8)])
def test_training_goes_on_after_an_interrupt(
    stop: int, rate: float, lora: int, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that rises to 10 destroys the student: its validation loss is lowest early, and that student is
    saved."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    made = examples(40)
    made, held_out = made[:24], made[24:]
    recipe = replace(tiny_recipe(), learning_rate=rate, warmup_share=1.0, lora_rank=lora)
    expected = train(tiny_student, made, recipe, whole, held_out)
    assert (expected["chosen_update"] <= 3) is (rate == 10.0)

    with interrupted_after(stop, monkeypatch), pytest.raises(KeyboardInterrupt):
        train(tiny_student, made, recipe, broken, held_out)
    assert len(losses(broken)) == stop
    found = train(tiny_student, made, recipe, broken, held_out)
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    assert losses(broken) == losses(whole)
    assert rates(broken) == rates(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_nothing_is_reported_to_anyone(tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_arguments(demo().train, tmp_path).report_to == []
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)  # as where it was imported before us
    train(tiny_student, examples(4), tiny_recipe(), tmp_path)
    assert constants.HF_HUB_DISABLE_TELEMETRY


def test_a_saved_student_keeps_its_weights(tiny_student: Path, tmp_path: Path) -> None:
    model = float_model(tiny_student)
    save_student(model, tmp_path)
    before, after = float_model(tiny_student).state_dict(), float_model(tmp_path).state_dict()
    for name in before:
        torch.testing.assert_close(after[name], before[name].bfloat16().float())


def rates(folder: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (folder / LOSS).read_text().splitlines()]


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        (3, {}, [1.0]),
        (8, {}, [1.0, 0.5]),
        (6, {"batch_examples": 2, "accumulation_steps": 2, "epochs": 2}, [1.0, 0.8536, 0.5, 0.1464]),
    ],
)
def test_no_update_has_the_rate_zero_however_few_there_are(
    count: int, changes: dict[str, Any], expected: list[float], tiny_student: Path, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe(), **changes)
    measured = train(tiny_student, examples(count), recipe, tmp_path)
    assert rates(tmp_path) == pytest.approx([recipe.learning_rate * share for share in expected], rel=1e-3)
    assert measured["updates"] == len(expected)
    before, after = float_model(tiny_student).state_dict(), float_model(tmp_path).state_dict()
    changed = sum(not torch.equal(before[name].bfloat16().float(), after[name]) for name in before)
    assert changed >= measured["changed_tensors"] > 10  # the tied head counts once more in a state dict


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_changes_nothing_is_an_error_and_leaves_no_student(
    lora: bool, tiny_student: Path, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe(), learning_rate=1e-12, lora_rank=4 if lora else 0)
    with pytest.raises(InputError, match=r"training changed none of the student's .* raise --learning-rate"):
        train(tiny_student, examples(4), recipe, tmp_path)


def test_a_run_whose_numbers_end_stops_there_and_keeps_its_checkpoint(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LossForward.__call__
    calls = 0

    def poisoned(self: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(self, **kwargs) * (math.nan if calls == 4 else 1.0)

    monkeypatch.setattr(LossForward, "__call__", poisoned)
    with pytest.raises(InputError, match=r"the loss of update 4 is nan; .* last good checkpoint is .*checkpoint-3$"):
        train(tiny_student, examples(24), replace(tiny_recipe(), checkpoint_every_s=0.0), tmp_path)
    assert len(losses(tmp_path)) == 3
    assert not (tmp_path / "model.safetensors").exists()
    kept = tmp_path / CHECKPOINTS / "checkpoint-3"
    assert all(torch.isfinite(tensor).all() for tensor in float_model(kept).state_dict().values())

    monkeypatch.setattr(LossForward, "__call__", forward)
    train(tiny_student, examples(24), tiny_recipe(), tmp_path)  # goes on from there
    assert len(losses(tmp_path)) == 6


def test_a_checkpoint_of_another_kind_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(), checkpoint_every_s=0.0)
    train(tiny_student, examples(8), recipe, tmp_path)
    (checkpoint,) = (tmp_path / CHECKPOINTS).glob("checkpoint-*")
    with pytest.raises(
        InputError, match=r"checkpoint-\d holds a whole student, and .* wants shards .*leave --fsdp out"
    ):
        check_shards(checkpoint, sharded=True)
    (checkpoint / SHARDS).mkdir()
    with pytest.raises(InputError, match=r"checkpoint-\d holds shards \(--fsdp\), and .* a whole student; add --fsdp"):
        train(tiny_student, examples(8), recipe, tmp_path)


def test_a_rate_that_tears_the_weights_apart_is_an_error(tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training diverged: .* update \d is .*; no checkpoint was written before"):
        train(tiny_student, examples(8), replace(tiny_recipe(), learning_rate=1e38), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_long_examples_go_through_the_student_in_rows_of_bounded_length(chat_format: ChatFormat) -> None:
    made = list(tokenize(examples(7), chat_format))
    lengths = [len(row["input_ids"]) for row in made]
    rows = within(made, max(lengths) * 2)
    assert 1 < len(rows) < 7
    assert all(row["input_ids"].numel() <= max(lengths) * 2 for row in rows)
    assert torch.cat([row["labels"] for row in rows], dim=1).tolist() == collate(made)["labels"].tolist()
    assert [row["input_ids"].numel() for row in within(made, 1)] == lengths  # one that is longer goes alone


def test_an_update_is_the_same_however_its_batch_is_cut(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    train(tiny_student, examples(8), tiny_recipe(), whole)
    train(tiny_student, examples(8), replace(tiny_recipe(), row_tokens=1), cut)
    assert losses(cut) == pytest.approx(losses(whole), rel=5e-3)
