"""Reads a recipe: a shipped one by its name, or a file, laid over the recipe that it builds on.

    base: gpu-24gb                 # the recipe whose values hold where this file gives none; without it, demo
    about: One line for `toolkit recipes`.
    student: Qwen/Qwen2.5-7B-Instruct
    max_tokens: 16384
    train:
      learning_rate: 1.0e-5

A value comes from, the last one counting: the base, the file, `--set`, an option of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from distill.logits.logits_config import LogitsConfig
from distill.recipes.field_values import Flat, annotations_of, as_given, assembled, checked, flattened, refuse_unknown
from distill.recipes.yaml_file import read_mapping, text_of
from distill.reinforcement.rl_config import RlConfig
from distill.training.train_config import DEFAULTS, UNREAD, TrainConfig
from toolkit.errors import InputError
from toolkit.field_types import Count, CountOr0, Share, Within

SHIPPED = Path(__file__).with_name("shipped")
DEFAULT = "demo"
"""The recipe that others build on if they name none."""
BASE, ABOUT, SOURCE = "base", "about", "logits.source"
"""Keys of a file that are no values of a run."""
DEEPEST = 8
LORA_RANK = 32
LORA_FACTOR = 5
"""LoRA wants several times the learning rate of full tuning (Schulman et al. 2025)."""
RATES = ("train.learning_rate", "rl.learning_rate")
"""The learning rates of a recipe; that of distillation by logits is a share of the first."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
RESOLVED = "recipe.yaml"
"""The file of a run that holds what it was made with."""


@dataclass(frozen=True, kw_only=True)
class ReadingValues:
    """How the problems are read, as the options of these names."""

    question_field: str = ""
    answer_field: str = ""
    conflicts: Literal["refuse", "leave-out"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class DistillRecipe:
    """All values of a run of `toolkit distill`; a section of it is a field that is a dataclass, or one or None."""

    student: str
    teacher: str
    """Empty where the user must name one, or traces."""
    problems: str = ""
    """Data to ask the teacher; empty for procedural problems."""
    traces: str = ""
    """Traces to learn from instead of asking the teacher."""
    reading: ReadingValues = field(default_factory=ReadingValues)
    families: tuple[str, ...] = ()
    """Procedural families; none: all."""
    per_family: Count
    """Procedural training problems of each family."""
    samples: Count
    """Answers to each problem."""
    temperature: Annotated[float, Within(least=0, most=10)]
    top_p: Share
    top_k: CountOr0 = 0
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Within(least=0.1, most=10)] = 1.0
    max_new_tokens: Count
    """Most tokens of a teacher's answer."""
    batch_size: Count
    """Answers that a teacher on this machine writes at once."""
    max_tokens: Count
    """Most tokens of a training example, prompt included; longer ones are left out."""
    per_problem: Count
    """Most training examples of one problem."""
    seed: Annotated[int, Within(least=0, below=2**32)]
    train: TrainConfig
    logits: LogitsConfig | None = None
    """How the student learns from the teacher's distribution; none: from its texts alone."""
    rl: RlConfig | None = None
    """How the student is reinforced on verified answers after all else; none: it is not."""

    def __post_init__(self) -> None:
        if self.logits is None or self.logits.source == "on_policy":  # which follows supervised training
            return
        for name in ("label_smoothing", "loss_on"):
            if (value := getattr(self.train, name)) != DEFAULTS[name]:
                raise InputError(
                    f"train.{name} ({value}) has no effect with logits.source {self.logits.source}, whose loss takes "
                    "the place of that on texts; leave one of them out"
                )


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A recipe, and which of its values someone chose for this run: those that no shipped recipe gave."""

    recipe: DistillRecipe
    chosen: frozenset[str]


KNOWN: Mapping[str, Any] = {
    name: annotation for name, annotation in annotations_of(DistillRecipe).items() if name != "train.seed"
}
"""The annotation of each key; the seed of the training is that of the run."""


def names() -> list[str]:
    """Return the names of the shipped recipes, the default first, those of more GPUs by all their memory."""

    def order(name: str) -> tuple[bool, list[Any]]:
        summed = re.sub(r"(\d+)x(\d+)", lambda found: str(int(found[1]) * int(found[2])), name)
        return name != DEFAULT, [_number(part) for part in re.split(r"([\d.]+)", summed)]

    return sorted((path.stem for path in SHIPPED.glob("*.yaml")), key=order)


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe, or the file that is named; raises `InputError` if there is none."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise InputError(f"the recipe {name} is no file; give a file's path or a name that toolkit recipes lists")
        return path
    if name in names():
        return SHIPPED / f"{name}.yaml"
    near = get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else "toolkit recipes lists those that are shipped"
    raise InputError(f"there is no recipe {name!r:.60}; {hint}")


def resolve_recipe(
    name: str,
    settings: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    *,
    lora: bool = False,
    reinforced: bool = False,
) -> Resolved:
    """Return the recipe of a name or file with `settings` (`key=value`) and then `options` (by dotted names) over it.

    `lora`: train adapters, at higher learning rates, if the recipe trains all weights. `reinforced`: have a section
    `rl`, of its usual values where the recipe has none. Raises `InputError` for a
    value that is not known, of another type or out of range.
    """
    path = recipe_path(name)
    values, chosen = _layered(path, ()), set()
    if path.parent != SHIPPED:
        chosen |= set(_own_values(path))
    over: Flat = {}
    for setting in settings:
        key, value = _setting(setting)
        over[key] = value
    over |= options or {}
    if over.get(SOURCE, values.get(SOURCE)) != values.get(SOURCE):  # what the recipe says of one source fits no other
        values = {key: value for key, value in values.items() if not key.startswith("logits.")}
    if reinforced or any(key.startswith("rl.") for key in values | over):
        values = {f"rl.{key}": value for key, value in vars(RlConfig()).items()} | values
    of_a_run = {key for key in KNOWN if key.startswith("train.")} <= chosen  # it has all values, used or not
    _check_use(values | over, set(over) if of_a_run else chosen | set(over), lora)
    if lora and not (values | over)["train.lora_rank"]:
        values |= {"train.lora_rank": LORA_RANK}
        values |= {key: LORA_FACTOR * values[key] for key in RATES if key in values}
    return Resolved(recipe=_built(values | over), chosen=frozenset(chosen | set(over)))


def _check_use(values: Flat, chosen: Collection[str], lora: bool) -> None:
    """Refuse what was chosen and would have no effect."""
    if lora and "train.lora_rank" in chosen and values["train.lora_rank"] == 0:
        raise InputError("--lora trains adapters, and train.lora_rank (0) none; leave one of them out")
    optimizer = values.get("train.optimizer")
    for name in UNREAD.get(str(optimizer), ()):
        value = values[f"train.{name}"]
        if f"train.{name}" in chosen:
            raise InputError(
                f"train.{name} ({value}) has no effect with the optimizer {optimizer}; choose adamw, or leave it out"
            )


@cache
def shipped_recipe(name: str = DEFAULT) -> DistillRecipe:
    return resolve_recipe(name).recipe


def about(name: str) -> str:
    """Return what a shipped recipe is for, in one line."""
    return str(read_mapping(SHIPPED / f"{name}.yaml").get(ABOUT, ""))


def base_of(path: Path) -> str | None:
    """Return the name of the recipe that a file builds on; None for the default, which builds on none."""
    if path == SHIPPED / f"{DEFAULT}.yaml":
        return None
    base = read_mapping(path).get(BASE, DEFAULT)
    if not isinstance(base, str):
        raise InputError(f"{path}: base ({base!r:.40}) must be the name or the file of a recipe; change it")
    return base


def recipe_text(values: Mapping[str, Any], options: str = "") -> str:
    """Return a complete recipe, given as nested values, as the text of a file.

    `options`: those of the command that makes the run, besides the recipe.
    """
    head = f"# What this run was made with; toolkit distill{options} --recipe with this file makes it again.\n"
    return head + text_of(_plain(values))


def _number(part: str) -> tuple[float, str]:
    """Return what a part of a name is sorted by: 7b comes before 14b."""
    return (float(part), "") if part.strip(".").replace(".", "", 1).isdigit() else (0.0, part)


def below(path: Path) -> Path | None:
    """Return the file of the recipe that a file builds on; None for the default."""
    base = base_of(path)
    if base is None:
        return None
    beside = path.parent / base
    return beside if beside.is_file() else recipe_path(base)


def _own_values(path: Path) -> Flat:
    values = read_mapping(path)
    checked(values.get(ABOUT, ""), str, ABOUT, str(path))
    return flattened({key: values[key] for key in values if key not in (BASE, ABOUT)}, KNOWN, str(path))


def _layered(path: Path, above: tuple[Path, ...]) -> Flat:
    """Return the values of a file over those of the recipes that it builds on."""
    if path.resolve() in above or len(above) > DEEPEST:
        raise InputError(f"{path} builds on itself; change base")
    base = below(path)
    return (_layered(base, (*above, path.resolve())) if base else {}) | _own_values(path)


def _setting(text: str) -> tuple[str, Any]:
    """Parse one `--set key=value`."""
    key, equals, value = text.partition("=")
    key, source = key.strip(), "--set"
    if not equals:
        raise InputError(f"--set ({text!r:.60}) must be KEY=VALUE, such as train.learning_rate=1e-4")
    refuse_unknown(key, KNOWN, source)
    return key, checked(as_given(value, KNOWN[key], f"{source} {key}"), KNOWN[key], key, source)


def _built(flat: Flat) -> DistillRecipe:
    recipe: DistillRecipe = assembled(DistillRecipe, flat | {"train.seed": flat["seed"]})
    return recipe


def _plain(value: Any) -> Any:
    """Return values as YAML has them: tuples are lists, and a section that is not there is left out."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
