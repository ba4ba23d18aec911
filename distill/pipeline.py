"""The distill stage: problems → traces → verdicts → training set → student, in one run folder.

    out/
    ├── problems.jsonl  traces.jsonl  verdicts.jsonl     the questions, the teacher's answers, and which are right
    ├── train.jsonl                                      the examples that the student was trained on
    ├── validation.jsonl                                 examples whose loss is measured during training
    ├── trained_on.json                                  the training questions, which `eval` leaves out
    ├── dropped.jsonl  drops.json                        why each other trace was dropped, and the counts by reason
    ├── rl.jsonl                                        losses and rewards of reinforcement, if there was any
    ├── loss.jsonl  events.out.tfevents.student          the loss curve, for TensorBoard too
    ├── recipe.yaml                                      what the run was made with, to be read by --recipe
    ├── config.json  model.safetensors  tokenizer.json … the student
    └── manifest.json

If interrupted, the same command resumes: it collects the missing traces, repeats the cheap steps, and trains on from
the last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distill.curation.chosen import is_chosen
from distill.curation.curate import Curation, curate
from distill.curation.judged import check_judgeable, judged
from distill.curation.reasons import DROPPED, DROPS_FILE
from distill.given_traces import answers_to, traces_from_before
from distill.logits.logits_config import LogitsConfig
from distill.logits.logits_stage import ROOM, LogitsStage
from distill.problems.families import FAMILIES, make_problems
from distill.problems.own_form import ReadingOptions
from distill.problems.problem_set import problems_digest, read_problems
from distill.problems.splits import (
    FEW_HELD_OUT,
    HOLD_OUT_MORE,
    TRAINING_PER_VALIDATION,
    check_training_split,
    of_split,
    to_learn_from,
)
from distill.recipes.distill_recipe import RESOLVED, SAMPLING, DistillRecipe, recipe_text, shipped_recipe
from distill.reinforcement.rl_config import RlConfig
from distill.reinforcement.rl_stage import ROOM as RL_ROOM
from distill.reinforcement.rl_stage import RlStage
from distill.teachers.respondent import Respondent
from distill.teachers.trace_store import find_teacher, gather
from distill.trained_on import write_trained_on
from distill.training.journal import CHECKPOINTS
from distill.training.student import StudentFacts, check_lengths, check_room, check_student
from distill.training.train import Train, check_recipe, train
from distill.training.train_config import TrainConfig
from distill.training.validation import say_unwatched
from toolkit.errors import InputError
from toolkit.figures.ledger import FAILED, PROBLEMS, TRACES, VERDICTS
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Decoder, Sampling, check_samples
from toolkit.records import TRAIN, Example, Problem, Trace, Verdict, read_records, write_records
from toolkit.runs import (
    Stage,
    check_out,
    file_digest,
    finish,
    folder_digest,
    is_complete,
    partial_folder,
    replace_text,
    say_done,
)
from toolkit.sources.made_card import write_student_card
from toolkit.sources.model_names import resolve
from toolkit.terminal import counted, say
from toolkit.voice.student_format import write_student_format

VALIDATION = "validation.jsonl"
ENOUGH_TRACES = 24
"""From fewer right traces a student hardly learns anything."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The teacher, the student, the problems and the recipe of a run."""

    teacher: str
    student: str
    """Model folders, known names or hub ids; the teacher may be an endpoint."""
    problems: Path | None
    """A user's problems; None draws procedural ones."""
    reading: ReadingOptions
    """How to read the user's problems."""
    traces: Path | None
    """Existing traces, or the training set of a curation, with `problems.jsonl` beside them unless `problems` is given;
    None asks the teacher."""
    families: tuple[str, ...]
    per_family: int
    """Procedural training problems per family."""
    samples: int
    """Traces per problem."""
    sampling: Sampling
    batch_size: int
    max_tokens: int
    """Longest example, prompt included, in the student's tokens."""
    per_problem: int
    """Most examples per problem."""
    seed: int
    train: TrainConfig
    logits: LogitsConfig | None = None
    """How the student learns from the teacher's distribution; None: from its texts alone."""
    rl: RlConfig | None = None
    """How the student is reinforced after all else; None: it is not."""

    @property
    def later(self) -> list[str]:
        """The stages that go on from what the student has learned from the teacher's texts."""
        writes = self.logits is not None and self.logits.source == "on_policy"
        return ["on-policy distillation"] * writes + ["reinforcement"] * (self.rl is not None)


def configured(recipe: DistillRecipe) -> DistillConfig:
    """Return the configuration of a recipe; raises `InputError` for a family of problems that there is not."""
    for family in recipe.families:
        if family not in FAMILIES:
            near = get_close_matches(family, FAMILIES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FAMILIES)}"
            raise InputError(f"families names {family!r:.60}, which there is not; {hint}")
    return DistillConfig(
        teacher=recipe.teacher,
        student=recipe.student,
        problems=Path(recipe.problems) if recipe.problems else None,
        reading=ReadingOptions(**asdict(recipe.reading)),
        traces=Path(recipe.traces) if recipe.traces else None,
        families=recipe.families or FAMILIES,
        per_family=recipe.per_family,
        samples=recipe.samples,
        sampling=Sampling(**{name: getattr(recipe, name) for name in SAMPLING}, seed=recipe.seed),
        batch_size=recipe.batch_size,
        max_tokens=recipe.max_tokens,
        per_problem=recipe.per_problem,
        seed=recipe.seed,
        train=recipe.train,
        logits=recipe.logits,
        rl=recipe.rl,
    )


def _recipe_of(config: DistillConfig) -> dict[str, Any]:
    """Return the values of the recipe that makes a run of this configuration."""
    values: dict[str, Any] = asdict(config)
    sampling, train = values.pop("sampling"), values.pop("train")
    del sampling["seed"], train["seed"]
    values |= {name: str(values[name] or "") for name in ("problems", "traces")}
    values |= sampling
    return values | {"train": train}


def demo() -> DistillConfig:
    """Return the configuration of the recipe `demo`."""
    return configured(shipped_recipe())


def distill(
    config: DistillConfig,
    out: Path,
    open_decoder: Callable[[Path], Decoder],
    opened: str = "",
    *,
    retry_failed: bool = False,
    train: Train = train,
    check_memory: Callable[[Path], None] | None = None,
) -> Path:
    """Run the stage into `out`, or do nothing if `out` holds this run already; return `out`.

    `open_decoder` opens the teacher's folder; it is called only if a trace is missing. `opened` as for `ModelFolder`.
    `retry_failed`: whether requests with a recorded failure are sent again. `train` trains the student, in this process
    or in others (`distill.launching`); `check_memory` raises `InputError` if the machine is too small for the student.
    Raises `InputError` for wrong input before any long work starts.
    """
    check_samples(config.samples, config.sampling.temperature, config.sampling.top_k)
    check_recipe(config.train)
    check_out(out)
    known = traces_from_before(config.traces, config.problems)
    given = None if config.problems is None else read_problems(config.problems, config.reading)
    teacher = find_teacher(config.teacher, out, open_decoder, opened, answers=config.traces is None)
    student = resolve(config.student)
    stage = _stage(config, teacher, student, given)
    if is_complete(out, stage):
        if retry_failed and (out / FAILED).is_file() and (out / FAILED).stat().st_size:
            raise InputError(
                f"{out} is finished; use --retry-failed with another --out, which reuses the traces collected so far"
            )
        say_done(out)
        write_student_card(out, student)
        return out
    problems, test_problems = _problems(config, given)
    check_judgeable(problems)
    folder, student_format, facts = _begin(config, student, problems, out, stage, check_memory)
    rl = RlStage(config=config.rl, training=config.train, problems=of_split(problems, "train")) if config.rl else None
    rl = rl.check(student_format, facts.max_tokens) if rl else None
    logits = LogitsStage(config.logits, teacher, student_format, config.traces, known) if config.logits else None
    logits = logits.check([problem.messages for problem in problems], facts.max_tokens) if logits else None
    write_records(folder / PROBLEMS, problems)

    begun = time.monotonic()
    if known is None:
        traces = gather(
            teacher,
            problems,
            config.sampling,
            samples=config.samples,
            batch_size=config.batch_size,
            out=out,
            folder=folder,
            retry_failed=retry_failed,
        ).traces
    else:
        assert config.traces is not None
        traces = answers_to(problems, known, config.traces, config.problems)
        write_records(folder / TRACES, traces)
    traces_s = time.monotonic() - begun
    verdicts = judged(problems, traces, chosen=config.traces is not None and is_chosen(config.traces))
    write_records(folder / VERDICTS, verdicts)
    curation = _curate(config, problems, traces, verdicts, student_format)
    counts = {"problems_in_test_split": test_problems} | curation.counts()
    replace_text(folder / DROPS_FILE, json.dumps(counts, indent=1) + "\n")
    examples, validation = _write_training_set(curation, problems, student, folder, rl.problems if rl else ())

    measured = _train(config, train, logits, rl, student, examples, validation, traces, folder)
    finish(
        folder,
        out,
        stage,
        counts
        | {"trained_on": len(examples), "validation": len(validation)}
        | {"teacher_correct": sum(verdict.correct for verdict in verdicts), "traces_seconds": traces_s}
        | measured,
        scratch=(CHECKPOINTS, ROOM, RL_ROOM),
    )
    write_student_card(out, student)
    return out


def _begin(
    config: DistillConfig,
    student: Path,
    problems: Sequence[Problem],
    out: Path,
    stage: Stage,
    check_memory: Callable[[Path], None] | None,
) -> tuple[Path, ChatFormat, StudentFacts]:
    """Check the student, and the room for it; return the folder of the run, and the student's chat format and facts."""
    if config.later and config.train.lora_kept_apart:
        alone = ", or reinforce the student in a run of its own (--stage rl)" if config.rl else ""
        raise InputError(
            f"train.lora_kept_apart keeps what the student learned from traces apart, and {config.later[0]} goes on "
            f"from a whole student; leave it out{alone}"
        )
    say(f"distill: checking the student {config.student}")
    recipe = config.train
    facts = check_student(
        student, context_tokens=recipe.context_tokens, targets=recipe.lora_targets, biases=recipe.lora_bias
    )
    if check_memory:
        check_memory(student)
    folder = partial_folder(out, stage)
    replace_text(folder / RESOLVED, recipe_text(_recipe_of(config)))
    check_room(facts, folder, recipe, stages=1 + len(config.later))
    student_format = write_student_format(student, folder)
    asked_tokens = config.sampling.max_new_tokens if config.traces is None else 0
    check_lengths(facts, student_format, problems, max_tokens=config.max_tokens, asked_tokens=asked_tokens)
    return folder, student_format, facts


def _train(
    config: DistillConfig,
    supervised: Train,
    logits: LogitsStage | None,
    rl: RlStage | None,
    student: Path,
    examples: Sequence[Example],
    validation: Sequence[Example],
    traces: Sequence[Trace],
    folder: Path,
) -> dict[str, Any]:
    """Train the student on the examples, on the teacher's distribution, or on one after the other, and reinforce it;
    return what was measured."""
    say_unwatched(config.train.evaluate_every, validation)
    say(f"train: preparing {counted(len(examples), 'trace')} and the student")
    measured: dict[str, Any] = {}
    if not logits or not logits.replaces_supervised:
        learned = supervised(student, examples, config.train, folder, validation)
        measured = {f"train_{name}": value for name, value in learned.items()}
    if logits:
        hashes = {(trace.problem_id, trace.sample): trace.request_hash for trace in traces}
        learned = logits.run(student, examples, hashes, config.train, folder, validation)
        prefix = "train" if logits.replaces_supervised else ROOM
        measured |= {f"{prefix}_{name}": value for name, value in learned.items()}
    if rl:
        measured |= {f"rl_{name}": value for name, value in rl.run(folder, folder).items()}
    return measured


def _stage(config: DistillConfig, teacher: Respondent, student: Path, given: Sequence[Problem] | None) -> Stage:
    """Describe the run. Inputs count by their content: moved files, or the same problems in another form, are the same
    run."""
    values: dict[str, Any] = asdict(config) | {"train": config.train.given()}
    for name in ("problems", "reading", "traces"):
        del values[name]
    for name in ("logits", "rl"):
        if values[name] is None:  # runs of versions without it stay what they are
            del values[name]
    inputs = {"teacher": teacher.digest, "student": folder_digest(student)}
    names = {"teacher": teacher.name, "student": config.student}
    if given is not None:
        inputs["problems"], names["problems"] = problems_digest(given), str(config.problems)
    if config.traces is not None:
        inputs["traces"], names["traces"] = file_digest(config.traces), str(config.traces)
    return Stage(name="distill", config=values, inputs=inputs, names=names)


def _problems(config: DistillConfig, given: list[Problem] | None) -> tuple[list[Problem], int]:
    """Choose the problems to ask, some of the validation split among them, and count those kept back for testing."""
    if given is None and config.traces is not None:
        beside = config.traces.with_name(PROBLEMS)
        given = read_records(beside, Problem) if is_chosen(config.traces) else read_problems(beside)
    if given is None:
        drawn = make_problems("train", config.per_family, config.seed, config.families)
        watching = -(-config.per_family // TRAINING_PER_VALIDATION)
        return drawn + make_problems("validation", watching, config.seed, config.families), 0
    test_problems = len(of_split(given, "test"))
    if config.problems is not None and test_problems < FEW_HELD_OUT:
        say(
            f"problems: only {test_problems} of {len(given)} in the test split, too few to measure the student by; "
            f"to hold out more, {HOLD_OUT_MORE}"
        )
    if config.traces is not None:
        return given, test_problems  # curation drops their traces
    check_training_split(given, config.problems)
    return to_learn_from(given), test_problems


def _curate(
    config: DistillConfig,
    problems: Sequence[Problem],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    student_format: ChatFormat,
) -> Curation:
    def count_tokens(example: Example) -> int:
        return len(student_format.training_ids(example.messages, example.reasoning, example.answer)[0])

    return curate(
        problems,
        traces,
        verdicts,
        count_tokens=count_tokens,
        max_tokens=config.max_tokens,
        per_problem=len(traces) if config.traces and is_chosen(config.traces) else config.per_problem,
        test_ids={problem.id for problem in of_split(problems, "test")},
    )


def _write_training_set(
    curation: Curation, problems: Sequence[Problem], student: Path, folder: Path, also: Sequence[Problem]
) -> tuple[list[Example], list[Example]]:
    """Write and return the training and the validation examples; raises `InputError` if there is none to train on.

    `also`: problems that are learned from in another way.
    """
    held_out = {problem.id for problem in of_split(problems, "validation")}
    examples = [example for example in curation.examples if example.problem_id not in held_out]
    validation = [example for example in curation.examples if example.problem_id in held_out]
    write_records(folder / TRAIN, examples)
    write_records(folder / VALIDATION, validation)
    write_trained_on(folder, [*examples, *validation, *also], student)
    write_records(folder / DROPPED, curation.dropped)
    say(curation.summary())
    if validation:
        say(
            f"curation: {len(examples)} of those kept are trained on; {len(validation)} of the validation split watch "
            "the training"
        )
    if not curation.examples:
        raise InputError(curation.nothing_left())
    if not examples:
        raise InputError(
            f"all of the {counted(len(validation), 'trace')} kept fall into the validation split; give more problems"
        )
    if len(examples) < ENOUGH_TRACES:
        say(
            f"curation: only {counted(len(examples), 'trace')} to train on; a student needs at least some dozens to "
            "learn from: give more problems or more samples of each"
        )
    return examples, validation
