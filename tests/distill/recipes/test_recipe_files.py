"""A recipe's file is read or refused in one line, and values come from the place that counts most."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from distill.logits.logits_config import USUAL
from distill.pipeline import _recipe_of, configured, distill
from distill.recipes.distill_recipe import KNOWN, recipe_text, resolve_recipe, shipped_recipe
from distill.recipes.field_values import annotations_of, assembled, flattened, refuse_unknown
from distill.recipes.other_names import OTHER_NAMES
from distill.recipes.yaml_file import MOST_BYTES, read_mapping
from tests.distill.test_pipeline import PROBLEMS, Reciter, no_decoder, recipe, write_problems
from tests.house.modules import ROOT
from tests.processes import modules_loaded_by
from toolkit.cli.main import main
from toolkit.errors import FolderConflict, InputError
from toolkit.field_types import Share

ELSEWHERE = {
    *("model", "base_model", "model_name_or_path", "teacher_model_name_or_path", "dataset", "datasets", "dataset_name"),
    *("max_seq_length", "max_completion_length", "num_generations", "batch_size", "lr", "r", "peft_type", "train_type"),
}
"""Names of models, data and sampling, and short or former names."""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_tokns: 512", r"mine\.yaml: max_tokns is unknown; did you mean max_tokens\?"),
        ("train: {learning_rte: 1.0}", r"train\.learning_rte is unknown; did you mean train\.learning_rate\?"),
        ("learning_rate: 1.0", r": learning_rate is unknown; did you mean train\.learning_rate\?"),
        ("train: {seed: 3}", r"train\.seed is unknown; did you mean seed\?"),
        ("train: {num_train_epochs: 3}", r"train\.num_train_epochs is unknown; here it is train\.epochs"),
        ("trian: {epochs: 3}", r"trian is unknown; did you mean train\?"),
        ("logit: {source: teacher}", r"logit is unknown; did you mean logits\?"),
        ("zzzz: 1", r"zzzz is unknown; leave it out; docs/reference/knobs.md lists all"),
        ("train: {learning_rate: 1e-5}", r"\('1e-5'\) must be a number; YAML 1\.1 reads 1e-5 as a text; write 1\.0e-5"),
        ("train: {learning_rate: 1e5}", r"write 1\.0e\+5"),
        ("train: {learning_rate: -1.0}", r"train\.learning_rate \(-1\.0\) must be a number above 0; change it"),
        ("train: {warmup_share: 1.5}", r"must be a number at least 0 and at most 1"),
        ("train: {learning_rate: .nan}", r"train\.learning_rate \(nan\) must be a number"),
        ("train: {epochs: 3.0}", r"train\.epochs \(3\.0\) must be a whole number; write 3"),
        ('train: {epochs: "3"}', r"\('3'\) must be a whole number; write it without quotes"),
        ("train: {epochs: true}", r"train\.epochs \(true\) must be a whole number"),
        ("train: {epochs: 0}", r"must be a whole number at least 1"),
        ("seed: 4294967296", r"must be a whole number at least 0 and below 4\.29497e\+09"),
        (
            "train: {quantization: no}",
            r"quantization \(false\) must be one of '', nf4; YAML 1\.1 takes yes, no",
        ),
        ("train: {schedule: cosin}", r"train\.schedule \('cosin'\) must be one of cosine, .*; did you mean cosine\?"),
        ("train: {lora_targets: q_proj}", r"train\.lora_targets \('q_proj'\) must be a list; write \[q_proj\]"),
        ("train: {trackers: [tensorbord]}", r"did you mean tensorboard\?"),
        ("seed: 010", r"line 1 is not YAML that is read here: 010 is a number in base 8; write it in decimals"),
        ("about: x\nmax_tokens: 1:30", r"line 2 is not YAML that is read here: 1:30 is a number in base 60"),
        ("train.epochs: 2\ntrain: {epochs: 3}", r"train\.epochs is given twice; leave one out"),
        ("rl: {}", r"rl \(an object of 0\) is a section; write its keys below it, indented, such as updates"),
        ("base: null", r"base \(None\) must be the name or the file of a recipe"),
        ("train: 5", r"train \(5\) is a section; write its keys below it, indented, such as learning_rate"),
        ("student: 2024-01-01", r"must be a text; put it into quotes"),
        ("student: null", r"student \(null\) must be a text"),
        ("seed: 1\nseed: 2", r"line 2 is not YAML that is read here: the key 'seed' stands twice"),
        ("no: 1", r"the key 'no' is not a text; put it into quotes"),
        ("a: &x 1\nb: *x", r"line 2 is not YAML that is read here: an alias \(\*x\) is not read"),
        ("a: [1", r"line \d is not YAML that is read here"),
        ("seed: 2026-13-45", r"is not YAML that is read here: month must be in 1\.\.12"),
        ("!!python/object:os.system x", r"could not determine a constructor for the tag"),
        ("- seed", r"holds no mapping of keys to values"),
        ("", r"holds no mapping of keys to values"),
        ("[" * 5000, r"is not YAML that is read here"),
        ("about: 5", r"about \(5\) must be a text; put it into quotes"),
        ("base: [a]", r"base \(\['a'\]\) must be the name or the file of a recipe"),
        ("base: demu", r"there is no recipe 'demu'; did you mean demo\?"),
        ("base: mine.yaml", r"builds on itself"),
        ("families: [gcdd]", r"families names 'gcdd', which there is not; did you mean gcd\?"),
        ("train: {lora_dora: true}", r"train\.lora_dora \(True\) has no effect without adapters; set train\.lora_rank"),
        ("train: {decay_share: 0.5}", r"has no effect without the schedule wsd"),
        ("train: {schedule: constant, min_lr_share: 0.1}", r"has no effect with the schedule constant"),
        ("train: {optimizer: sgd, epsilon: 1.0e-6}", r"has no effect with this optimizer"),
        (
            "train: {optimizer: sgd, beta2: 0.9}",
            r"train\.beta2 \(0\.9\) has no effect with the optimizer sgd; choose adamw",
        ),
        (
            "train: {optimizer: adafactor, beta1: 0.8}",
            r"train\.beta1 \(0\.8\) has no effect with the optimizer adafactor",
        ),
        ("train: {max_updates: 5, warmup_steps: 9}", r"warmup_steps \(9\) must be at most train\.max_updates \(5\)"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        configured(resolve_recipe(written(tmp_path, text)).recipe)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml is no file; give a file's path or a name"):
        resolve_recipe(str(tmp_path / "mine.yaml"))
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(InputError, match=r"more than 1,000,000 bytes"):
        resolve_recipe(str(big))
    big.write_bytes(b"about: \xff")
    with pytest.raises(InputError, match=r"is not UTF-8 at byte 7"):
        resolve_recipe(str(big))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.learning_rate", r"--set \('train\.learning_rate'\) must be KEY=VALUE"),
        ("train.learning=1", r"--set: train\.learning is unknown; did you mean train\.learning_rate\?"),
        ("lr=1e-4", r"--set: lr is unknown; here it is train\.learning_rate"),
        ("seed=010", r"--set seed, line 1 .* 010 is a number in base 8"),
        (
            "train=1",
            r"--set: train is a section; name one of its keys, such as train\.learning_rate",
        ),
        ("train.epochs=many", r"--set: train\.epochs \('many'\) must be a whole number"),
        ("train.epochs=", r"train\.epochs \(null\) must be a whole number"),
        ("train.epochs=[", r"--set train\.epochs, line 1 is not YAML"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        resolve_recipe("demo", [setting])
    assert "\n" not in str(caught.value)


def test_a_setting_is_read_as_it_is_meant() -> None:
    settings = ["train.learning_rate=1e-4", "train.lora_rank=8", "train.lora_targets=[q_proj, v_proj]"]
    settings += ["train.lora_dora=true", "student=owner/name", "train.trackers=[]", "temperature=1"]
    made = resolve_recipe("demo", settings).recipe
    assert (made.train.learning_rate, made.train.lora_rank, made.temperature) == (1e-4, 8, 1.0)
    assert (made.train.lora_targets, made.train.lora_dora, made.train.trackers) == (("q_proj", "v_proj"), True, ())
    assert made.student == "owner/name"
    texts = ["problems=a #1.jsonl", "student=no", "teacher=1:30", "train.quantization=", "traces='2024-01-01'"]
    made = resolve_recipe("demo", texts).recipe
    assert (made.problems, made.student, made.teacher, made.traces) == ("a #1.jsonl", "no", "1:30", "2024-01-01")
    assert made.train.quantization == ""


def test_an_option_wins_over_a_setting_over_the_file_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("base: full\nmax_tokens: 1\nsamples: 1\nper_problem: 1\nseed: 1\n")
    name = written(tmp_path, "base: below.yaml\nsamples: 2\nper_problem: 2\nseed: 2\n")
    found = resolve_recipe(name, ["per_problem=3", "seed=3"], {"seed": 4})
    made = found.recipe
    assert (made.per_family, made.max_tokens, made.samples, made.per_problem, made.seed) == (2400, 1, 2, 3, 4)
    assert made.train.seed == 4
    assert found.chosen == {"samples", "per_problem", "seed"}
    assert resolve_recipe("full").chosen == frozenset()


def test_adapters_want_five_times_the_rate_unless_one_is_given(tmp_path: Path) -> None:
    made = resolve_recipe("r1-distill-7b", lora=True).recipe.train
    assert made.lora_rank == 32 and made.learning_rate == pytest.approx(4e-4)
    assert resolve_recipe("demo", ["train.learning_rate=1e-3"], lora=True).recipe.train.learning_rate == 1e-3
    with pytest.raises(InputError, match=r"--lora trains adapters, and train\.lora_rank \(0\) none"):
        resolve_recipe("demo", ["train.lora_rank=0"], lora=True)
    kept = resolve_recipe("gpu-24gb", lora=True).recipe.train  # trains adapters already
    assert kept == shipped_recipe("gpu-24gb").train


@pytest.mark.parametrize("name", ["demo", "r1-distill-14b", "gpu-8gb"])
def test_a_complete_recipe_is_read_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    config = configured(shipped_recipe(name))
    config = replace(
        config, problems=Path("mine.jsonl"), train=replace(config.train, learning_rate=1e-05, optimizer="adafactor")
    )
    again = resolve_recipe(written(tmp_path, recipe_text(_recipe_of(config))))
    assert configured(again.recipe) == config
    assert again.chosen == {name for name in KNOWN if not name.startswith(("logits.", "rl."))}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section with defaults of its own, as the part of a program that needs one has it."""

    kind: Literal["near", "far"]
    share: Share

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Section:
        usual: dict[str, Any] = {"kind": "near", "share": 0.5}
        return cls(**(usual | dict(values)))


@dataclass(frozen=True, kw_only=True)
class Whole:
    size: int
    part: Section | None = None


def test_a_part_of_the_program_reads_its_own_section() -> None:
    known = annotations_of(Whole)
    assert list(known) == ["size", "part.kind", "part.share"]
    assert assembled(Whole, flattened({"size": 3}, known, "here")) == Whole(size=3)
    flat = flattened({"size": 3, "part": {"kind": "far"}}, known, "here")
    assert assembled(Whole, flat) == Whole(size=3, part=Section(kind="far", share=0.5))
    with pytest.raises(InputError, match=r"here: part\.share \(2\) must be a number at least 0 and at most 1"):
        flattened({"size": 3, "part": {"share": 2}}, known, "here")


def test_what_others_call_our_keys_are_no_keys_of_ours() -> None:
    for name, ours in OTHER_NAMES.items():
        with pytest.raises(InputError, match="here it is"):
            refuse_unknown(f"train.{name}" if name in KNOWN else name, KNOWN, "here")
        key = ours.split(",")[0].split(";")[0].split(":")[0].split(" ")[0]
        assert key in KNOWN, ours


@pytest.mark.parametrize(("theirs", "ours"), [("adamw_torch", "adamw"), ("paged_adamw", "paged_adamw_32bit")])
def test_what_others_call_our_optimizers_is_told(theirs: str, ours: str) -> None:
    with pytest.raises(InputError, match=f"train.optimizer .'{theirs}'. must be one of adamw, .*; here it is {ours}$"):
        resolve_recipe("demo", [f"train.optimizer={theirs}"])


def test_a_run_keeps_what_it_was_made_with_and_is_made_again_from_it(tiny_student: Path, tmp_path: Path) -> None:
    config = recipe(tiny_student, write_problems(tmp_path / "problems.jsonl"))
    out = tmp_path / "student"
    distill(config, out, lambda folder: Reciter(folder, PROBLEMS))
    again = configured(resolve_recipe(str(out / "recipe.yaml")).recipe)
    assert again == config
    distill(again, out, no_decoder)  # the same run: nothing to do
    other = configured(resolve_recipe(str(out / "recipe.yaml"), ["train.beta2=0.9", "train.lora_rank=4"]).recipe)
    said = r"its config\.train\.beta2 \(0\.95\) must .* \(0\.9\), and config\.train\.lora_rank differs too"
    with pytest.raises(FolderConflict, match=said):
        distill(other, out, no_decoder)
    values: dict[str, Any] = read_mapping(out / "recipe.yaml")
    assert values["train"]["optimizer"] == "adamw" and "seed" not in values["train"]


def test_a_recipe_without_a_teacher_wants_one_or_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["distill", "--recipe", "gpu-8gb", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "the recipe gpu-8gb names no teacher; give --teacher, or --traces" in capsys.readouterr().err
    assert main([*arguments, "--traces", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_a_wrong_recipe_is_refused_before_torch_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = written(tmp_path, "train: {epoch: 1}")
    arguments = ["distill", "--recipe", name, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "train.epoch is unknown; did you mean train.epochs?" in capsys.readouterr().err
    loaded = modules_loaded_by(f"from toolkit.cli.main import main; assert main({arguments!r}) == 2")
    assert not {"torch", "transformers", "datasets"} & loaded


def test_the_document_has_a_row_for_each_value_and_the_names_that_others_have() -> None:
    text = (ROOT / "docs/reference/knobs.md").read_text(encoding="utf-8")
    for name in KNOWN:
        key = name if name.startswith("train.") else name.partition(".")[0]
        assert f"`{key}`" in text, name
    for name in OTHER_NAMES:
        assert name in text or name in ELSEWHERE, name


def test_each_row_of_the_document_names_a_test_that_there_is() -> None:
    text = (ROOT / "docs/reference/knobs.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| `train.")]
    assert {key for row in rows for key in re.findall(r"`train\.(\w+)`", row.split("|")[1])} == {
        name.removeprefix("train.") for name in KNOWN if name.startswith("train.")
    }
    named = [re.findall(r"`([\w/]+\.py)::(test_\w+)`", row) for row in rows]
    assert all(named)
    for file, test in {*re.findall(r"`([\w/]+\.py)::(test_\w+)`", text)}:
        assert f"\ndef {test}(" in (ROOT / "tests/distill" / file).read_text(encoding="utf-8"), (file, test)


def test_a_source_of_logits_takes_its_usual_values_and_those_that_are_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("logits:\n  source: teacher\n  weight: 0.9\n  temperature: 2.0\n")
    option = {"logits.source": "on_policy"}
    logits = resolve_recipe(str(path), ["logits.rollouts=16"], option).recipe.logits
    assert logits is not None
    assert logits == replace(USUAL["on_policy"], rollouts=16)
    same = resolve_recipe(str(path), ["logits.weight=0.8"], {"logits.source": "teacher"}).recipe.logits
    assert same is not None
    assert (same.weight, same.temperature) == (0.8, 2.0)
