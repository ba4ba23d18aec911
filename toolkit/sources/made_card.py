"""Writes the card of a model that a stage made: a README.md whose front matter the Hugging Face hub reads.

    ---
    license, base_model, base_model_relation, library_name, pipeline_tag, tags
    ---
    what it is · what it was made from, with digests · the settings · results, between marks · how it is used

The card is written once, beside a finished run and not into its manifest, so that whoever publishes the model may edit
it: a card that is there stays, and an evaluation only writes its row between the marks, if they are still there.
Source: the hub's model cards, https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES, Evaluation, sampling_text, score_text
from toolkit.figures.readme import fill
from toolkit.figures.tables import interval_text, markdown_table, percent
from toolkit.records import TRAIN, read_jsonl
from toolkit.runs import read_manifest, replace_text
from toolkit.sources.model_names import ADAPTER_CONFIG, KNOWN_MODELS
from toolkit.terminal import counted, say

CARD, RESULTS = "README.md", "results"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
UNKNOWN = "unknown"
"""The hub's name of a licence that nobody recorded."""
_FRONT = re.compile(r"\A---\n(.*?)^---$", re.DOTALL | re.MULTILINE)
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null|[yn])$)[a-z][\w./-]*", re.ASCII | re.IGNORECASE)
"""Texts that YAML reads as they are."""
_PAIR = re.compile(r"""(\w+):\s*(?:"([^"]+)"|'([^']+)'|([^\s"'#\[{|>].*?))\s*(?:\s\#.*)?$""")
"""A line of a card's front matter: a key and a plain value, in quotes or not."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FEW_TRACES = 10_000
"""Traces that are asked for their teacher."""
STUDENTS = ("distill", "distill.rl")
"""Stages that make students."""
TRACES_INPUT = "traces"
"""The input of a run that learned from traces that were there; then no teacher was asked."""
_ASKING = ("families", "per_family", "samples", "sampling", "batch_size")
"""Settings that only count where a teacher is asked."""
RUNS = "runs"
"""A folder of runs, whose name says nothing of any of them."""
_CALLED = {"student": "base"}
_HEAD = ["problems", "answers", "accuracy", "several samples", "thinking tokens", "truncated"]
_DATA = (PROBLEMS, TRACES, TRAIN, "validation.jsonl")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "model.onnx.data")


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a card says of the model from which another was made."""

    name: str
    """A hub id if there is one, else the name of its folder."""
    license: str
    has_text: bool
    """Whether the text of the licence is beside the card."""


def write_student_card(folder: Path, base: Path) -> None:
    """Write the card of a finished student, unless it has one; `base`: the folder of the model that it was."""
    _write(folder, base, _student_card)


def write_export_card(folder: Path, source: Path) -> None:
    """Write the card of a finished exported folder, unless it has one; `source`: the folder of its float model."""
    _write(folder, source, _export_card)


def note_result(folder: Path, evaluation: Evaluation) -> None:
    """Write an evaluation into the card of the model that was measured, in place of an earlier one of the same kind.

    A card without the marks, and everything outside them, is the user's.
    """
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    marked = re.search(rf"<!-- {RESULTS} -->\n(.*?)<!-- /{RESULTS} -->", text, re.DOTALL)
    if marked is None:
        return
    row = _result_row(evaluation)
    before = [line for line in marked[1].splitlines() if line.startswith("| ")][1:]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in before]
    rows = [each for each in rows if each[:2] != row[:2] and len(each) == len(_HEAD)]
    filled = fill(text, RESULTS, markdown_table([_HEAD, *rows, row]))
    try:
        replace_text(card, filled or text)
    except InputError as error:
        say(f"the result is not in the model's card: {error}")


def base_of(folder: Path, name: str) -> Base:
    """Find out what a model is called on the hub, and its licence: by its card, or by its known name."""
    front = front_matter(folder)
    made = read_manifest(folder) or {}
    if not front and made.get("stage") in (*STUDENTS, "pull"):  # by a version that wrote no cards, or without one
        name = _student_of(made) or made["config"].get("model") or name
    known = KNOWN_MODELS.get(name)
    license_name = front.get("license") or (known.license if known else "")
    has_text = any(path.is_file() for pattern in LICENCES for path in folder.glob(pattern))
    hub_id = known.hub_id if known else name if _HUB_ID.fullmatch(name) and not Path(name).exists() else ""
    return Base(
        name=hub_id or front.get("base_model", "") or Path(name).name,
        license=license_name or ("other" if has_text else UNKNOWN),
        has_text=has_text,
    )


def front_matter(folder: Path) -> dict[str, str]:
    """Return the plain values at the top of a folder's card."""
    card = folder / CARD
    found = _FRONT.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    lines = found[1].splitlines() if found else []
    pairs = (_PAIR.match(line) for line in lines)
    return {pair[1]: pair[2] or pair[3] or pair[4] for pair in pairs if pair}


def yaml_text(text: str) -> str:
    """Return a text as YAML reads it: in quotes, where it would be read as something else."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def base_lines(base: Base) -> list[str]:
    """Return the lines of a card's front matter that name the model that another was made from, and its licence."""
    lines = [f"license: {yaml_text(base.license)}"]
    if base.license == "other" and base.has_text:
        lines += ["license_name: as-the-base-model", "license_link: LICENSE"]
    return [*lines, f"base_model: {yaml_text(base.name)}"]


def license_sentence(base: Base) -> str:
    """Say under which licence a model is."""
    named = f"The licence of `{base.name}` holds for it too"
    if base.license == UNKNOWN:
        return f"{named}. It was not recorded beside its weights: look it up and name it above before you publish this."
    return f"{named}: {'its text is beside this card' if base.license == 'other' else base.license}."


def copy_licences(source: Path, folder: Path) -> None:
    """Copy the texts of licences and notices that a model brings."""
    for path in (path for pattern in LICENCES for path in sorted(source.glob(pattern))):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def results_block() -> str:
    """Return the place in a card where evaluations write."""
    return f"<!-- {RESULTS} -->\nNot measured yet; `toolkit eval` with this folder writes here.\n<!-- /{RESULTS} -->"


def _write(folder: Path, base: Path, card: Callable[[Path, Path, Mapping[str, Any]], str]) -> None:
    manifest = read_manifest(folder)
    if manifest is None or (folder / CARD).exists():
        return
    try:
        copy_licences(base, folder)
        replace_text(folder / CARD, card(folder, base, manifest))
    except (InputError, OSError) as error:
        say(f"no model card was written: {error}")


def _student_card(folder: Path, base_folder: Path, manifest: Mapping[str, Any]) -> str:
    config, measured = manifest["config"], manifest["measured"]
    base = base_of(base_folder, _student_of(manifest) or str(base_folder))
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    relation, library = ("adapter", "peft") if is_adapter else ("finetune", "transformers")
    front = [f"base_model_relation: {relation}", f"library_name: {library}"]
    made_from, tags, terms = {"student": f"`{base.name}`"}, ["reasoning"], ""
    how = "reinforced on problems whose answers are verified"
    if "teacher" in config:
        teachers = " and ".join(f"`{name}`" for name in _teachers(folder, config["teacher"]))
        how = f"taught to think before it answers by the reasoning of {teachers}"
        made_from, tags = {"teacher": teachers, **made_from}, ["reasoning", "distillation"]
        terms = " The terms of the teacher may say more of what it taught."
    if "rl_updates" in measured:
        tags.append("reinforcement-learning")
    about = f"`{base.name}`, {how}. It writes its thought between `<think>` and `</think>`, then the answer."
    sections = {
        f"# {_name(folder)}": [about],
        "## What it was made from": [*_learned(measured), _inputs(made_from, manifest)],
        "## Recipe": [
            "`toolkit distill` with these values; `recipe.yaml`, where it is beside this card, has all of them.",
            markdown_table([["setting", "value"], *_flat(_used(manifest))]),
        ],
        "## Results": [results_block()],
        "## Use": [_use(folder, is_adapter=is_adapter)],
        "## Licence": [license_sentence(base) + terms],
    }
    return _card([*base_lines(base), *front], tags, sections, manifest)


def _learned(measured: Mapping[str, Any]) -> Iterator[str]:
    """Yield a paragraph on each stage in which a student learned."""
    if "trained_on" in measured:
        yield (
            f"It learned from {measured['trained_on']:,} of {counted(measured.get('traces', 0), 'trace')}; "
            f"{measured.get('teacher_correct', 0):,} were right by each problem's own scorer, and `drops.json` counts "
            "why the others were left out. No problem of the test split is among them."
        )
    stages = {"train": "Training", "logits": "On policy, graded by the teacher", "rl": "Reinforcement"}
    for stage, title in stages.items():
        if f"{stage}_updates" in measured:
            updates, tokens = (measured[f"{stage}_{name}"] for name in ("updates", "tokens"))
            first, final = (measured.get(f"{stage}_{name}_loss") for name in ("first", "final"))
            loss = f", loss {first:.3f} → {final:.3f}" if stage != "rl" and first is not None else ""
            yield f"{title}: {counted(updates, 'update')} on {counted(round(tokens), 'token')}{loss}."


def _export_card(folder: Path, source: Path, manifest: Mapping[str, Any]) -> str:
    config, measured = manifest["config"], manifest["measured"]
    base = base_of(source, str(source))
    precision = f"int{config['bits']}" if config["bits"] <= 8 else f"fp{config['bits']}"
    front = ["base_model_relation: quantized", "library_name: onnxruntime"]
    about = (
        f"`{shown(str(source))}` as one ONNX graph, its weights in {precision}: "
        f"{measured['bytes'] / 1e6:,.1f} MB, {measured['bytes_per_parameter']:.3f} bytes a parameter."
    )
    parity = measured.get("parity")
    fidelity = (
        f"Over {counted(parity['tokens'], 'token')} that it was not calibrated on, its likeliest next token is the "
        f"float model's at {percent(parity['top1'])}, and the mean KL divergence from it is {parity['mean_kl']:.4f}."
        if parity
        else "It was not compared with the float model."
    )
    use = "```sh\ntoolkit verify FOLDER\ntoolkit chat FOLDER\ntoolkit serve FOLDER\n```"
    sections = {
        f"# {_name(folder)}": [about, fidelity],
        "## What it was made from": [_inputs({"source": f"`{shown(str(source))}`"}, manifest)],
        "## Recipe": [
            "`toolkit export` with these values.",
            markdown_table([["setting", "value"], *_flat({**config, "bounds": None, **_unlimited(config)})]),
        ],
        "## Results": [results_block()],
        "## Use": [use],
        "## Licence": [license_sentence(base)],
    }
    return _card([*base_lines(base), *front], ["reasoning", "onnx", precision], sections, manifest)


def _card(
    front: Sequence[str], tags: Sequence[str], sections: Mapping[str, Sequence[str]], manifest: Mapping[str, Any]
) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    head = ["---", *front, "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags), "---"]
    body = ["\n\n".join([title, *texts]) for title, texts in sections.items()]
    return "\n".join(head) + "\n" + "\n\n".join([*body, f"Made with {versions}."]) + "\n"


def _inputs(names: Mapping[str, str], manifest: Mapping[str, Any]) -> str:
    """Return a table of inputs and files with their digests. A teacher whose traces were given has none."""
    digests, outputs = manifest["inputs"], manifest["outputs"]
    known = {what: digest for what, digest in digests.items() if what != "teacher" or TRACES_INPUT not in digests}
    rows = [
        [_CALLED.get(what, what), names.get(what, ""), f"`{known[what]}`" if what in known else "–"]
        for what in dict.fromkeys([*names, *known])
    ]
    files = {name: outputs[name] for name in (*_DATA, *_WEIGHTS) if name in outputs}
    rows += [[f"`{name}`", f"{facts['bytes']:,} bytes", f"`{facts['sha256']}`"] for name, facts in files.items()]
    return markdown_table([["", "", "digest"], *rows])


def _student_of(manifest: Mapping[str, Any]) -> str:
    """Return what a person called the model that became a student; empty if a manifest does not say."""
    name: str = manifest.get("names", {}).get("student") or manifest["config"].get("student") or ""
    return name


def _teachers(folder: Path, named: str) -> list[str]:
    """Return who wrote the traces of a run, as the first of them say."""
    lines = islice(read_jsonl(folder / TRACES), FEW_TRACES) if (folder / TRACES).is_file() else ()
    return sorted({str(values["teacher"]).rpartition("@")[0] for _, values in lines}) or [shown(named)]


def _used(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a student's run, without those of asking a teacher if its traces were given."""
    return {
        name: value
        for name, value in manifest["config"].items()
        if TRACES_INPUT not in manifest["inputs"] or name not in _ASKING
    }


def _unlimited(config: Mapping[str, Any]) -> dict[str, None]:
    """Return the limits of an export that are 0, which means none, as values that are not shown."""
    return {name: None for name in ("max_bytes", "bits_per_weight") if not config.get(name)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Yield each setting with its value; teachers and students are named elsewhere, and empty values mean nothing."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", [], {}) and name not in ("teacher", "student"):
            yield [f"`{prefix}{name}`", f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")]


def _result_row(evaluation: Evaluation) -> list[str]:
    samples = evaluation.protocol["samples"]
    mean = "" if samples == 1 else f"avg@{samples} "
    how = sampling_text(evaluation.protocol)
    opened = evaluation.model_digest.partition(" ")[2]
    thinking = evaluation.mean_reasoning_tokens
    return [
        f"{evaluation.problems} (digest {evaluation.problems_digest})",
        f"{how} {opened}".rstrip(),
        f"{mean}{percent(evaluation.accuracy)} [{interval_text(evaluation.interval)}]",
        ", ".join(f"{name} {score_text(score)}" for name, score in evaluation.at_k.items()) or "–",
        "–" if thinking is None else f"{thinking:.0f}",
        percent(evaluation.truncation_rate),
    ]


def _use(folder: Path, *, is_adapter: bool) -> str:
    if is_adapter:
        return "The adapters need their base: `toolkit export FOLDER --int4 --out DIR` merges and quantizes both."
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n\n'
        "For a laptop: `toolkit export FOLDER --int4 --out DIR`, then `toolkit chat DIR`."
    )


def shown(name: str) -> str:
    """Name a model without the folders that it lies in, which are its maker's own."""
    return Path(name).name if Path(name).exists() else name


def _name(folder: Path) -> str:
    return " ".join(part for part in folder.resolve().parts[-2:] if part != RUNS)
