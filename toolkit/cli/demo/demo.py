"""Runs the whole line once: measure → pull → distill → export → evaluate each stage → ledger and report.

    runs/demo/
    ├── recipe.json                         how the run was sized to this machine; fixed when it began
    ├── student/  int4/                     what was made
    ├── eval/{teacher,base,student,int4}/   each measured on the same held-out problems
    ├── ledger.json                         one row a stage
    └── report.html

Each step is a run folder, so what is complete is not done again: a second run ends in seconds, and an interrupted one
resumes where it stopped, with the recipe that it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distill.evaluation.evaluate import EvalConfig, evaluate_model
from distill.pipeline import DistillConfig, distill
from distill.problems.families import LEDGER_SEED, make_problems
from export.pipeline import export_model
from export.presets import int4_config
from toolkit.cli.demo.rehearsal import rehearse
from toolkit.cli.demo.sizing import ANSWERED_AT_ONCE, choose_recipe
from toolkit.errors import FolderConflict
from toolkit.figures.ledger import Ledger
from toolkit.figures.recipe import ROWS, Recipe, plan_text, read_recipe, write_recipe
from toolkit.figures.report import report_run
from toolkit.generation.generate import Decoder
from toolkit.progress import duration
from toolkit.runs import read_manifest
from toolkit.sources.model_names import missing_download, resolve
from toolkit.terminal import counted, say
from toolkit.timetable import Timetable, followed

STUDENT, INT4 = "student", "int4"
MINUTES, FULL_MINUTES = 20, 120


def demo(
    config: DistillConfig, out: Path, open_decoder: Callable[[Path], Decoder], *, minutes: int | None = None
) -> Ledger:
    """Run every step that `out` does not hold yet, and return the ledger of all stages.

    `minutes`: the time that a new run is sized to, `MINUTES` if None. Raises `InputError` if that is too little, and
    `FolderConflict` if `out` holds a run that was sized to another time.
    """
    recipe = _stored_recipe(out, minutes)
    is_new = recipe is None
    if recipe is None:
        recipe = _new_recipe(config, open_decoder, minutes or MINUTES)
        write_recipe(out, recipe)
    if recipe.taken_s is None:
        say(f"the plan, as measured on this machine ({recipe.rates.processor}):")
        for line in plan_text(recipe).splitlines():
            say(line)
    timetable = Timetable(recipe.planned_s)
    timetable.taken_s["measure"] = recipe.rates.measuring_s
    with followed(timetable):
        _run(config, recipe, out, open_decoder, timetable)
    if recipe.taken_s is None:
        recipe = _finished(recipe, out, timetable if is_new else None)
        write_recipe(out, recipe)
    return report_run(out)


def _stored_recipe(out: Path, minutes: int | None) -> Recipe | None:
    recipe = read_recipe(out)
    if recipe is None and (out / STUDENT).exists():
        raise FolderConflict(f"{out} holds a run without a recipe, which cannot be resumed; choose another --out")
    if recipe and minutes not in (None, recipe.minutes):
        raise FolderConflict(
            f"{out} holds a run that was sized to {counted(recipe.minutes, 'minute')}, not to --minutes ({minutes}); "
            "leave that out to resume it, or choose another --out"
        )
    return recipe


def _new_recipe(config: DistillConfig, open_decoder: Callable[[Path], Decoder], minutes: int) -> Recipe:
    for model in (config.teacher, config.student):
        if download := missing_download(model):
            say(f"{model} is downloaded once: {download}")
            resolve(model)
    say("measuring this machine: some seconds of each part")
    return choose_recipe(rehearse(config, open_decoder), minutes)


def _run(
    config: DistillConfig, recipe: Recipe, out: Path, open_decoder: Callable[[Path], Decoder], timetable: Timetable
) -> None:
    teacher, base = resolve(config.teacher), resolve(config.student)
    say(f"[1/3] {config.student} learns from the {config.teacher} teacher")
    timetable.begin("traces")  # until training's progress begins
    student = distill(sized(config, recipe), out / STUDENT, open_decoder)
    say("[2/3] the student becomes an int4 ONNX folder")
    timetable.begin("export")
    export_model(replace(int4_config(student, out / INT4), calibration_tokens=recipe.calibration_tokens))
    problems = make_problems("test", recipe.ledger_per_family, LEDGER_SEED)
    say(f"[3/3] every stage answers the same {len(problems)} held-out problems")
    for row, folder in zip(ROWS, (teacher, base, student, out / INT4), strict=True):
        timetable.begin(row)
        evaluate_model(folder, open_decoder, problems, EvalConfig(batch_size=ANSWERED_AT_ONCE), out / "eval" / row)


def sized(config: DistillConfig, recipe: Recipe) -> DistillConfig:
    """Return the configuration with the sizes that the recipe chose."""
    train = replace(
        config.train,
        epochs=recipe.epochs,
        batch_examples=recipe.batch_examples,
        max_minutes=(recipe.training_s or 0.0) / 60,
    )
    return replace(config, per_family=recipe.per_family, train=train)


def _finished(recipe: Recipe, out: Path, timetable: Timetable | None) -> Recipe:
    """Return the recipe with the tokens that were trained on, and the time taken if nothing interrupted the run."""
    measured = (read_manifest(out / STUDENT) or {})["measured"]
    recipe = replace(recipe, training_tokens=round(measured["train_tokens"]))
    if timetable is None:
        return recipe
    taken_s = {part: round(seconds, 1) for part, seconds in timetable.taken_s.items()}
    planned, taken = (duration(sum(times.values())) for times in (recipe.planned_s, taken_s))
    say(f"planned {planned}, taken {taken}")
    return replace(recipe, taken_s=taken_s)
