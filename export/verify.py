"""`toolkit verify DIR`: whether a folder is still what was exported, and says here what it said there.

    files ─ external data ─ tokenizer ─ template ─ end of text ─ greedy tokens ─ divergence
    └──────── fast: without large files' digests and the vocabulary ────────┘

Needs the light installation only: no torch, no transformers, no onnx. It finds damage and drift (a cut file, another
release of a library, another kind of CPU); it is no signature: who may rewrite a folder may rewrite its record too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.coarse_parity import CoarseParity, Expected, measure_coarsely, read_expected
from export.external_data import check_external_data
from export.golden_record import (
    RECORD_DAY,
    RECORD_FILE,
    VOCABULARY_RUN,
    GoldenRecord,
    RenderedChat,
    end_of_text_ids,
    read_record,
    text_digests,
    vocabulary_digests,
)
from export.places import LONG, int8_fault, measure_places
from export.session import INT8_CACHE_FILE, MODEL_FILE, Cache, OnnxDecoder, chosen_cache
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.json_files import check_regular
from toolkit.models import check_exported
from toolkit.records import Record
from toolkit.runs import MANIFEST, file_digest, read_manifest
from toolkit.stores import LFS_POINTER, LFS_REMEDY, check_inside
from toolkit.terminal import visible

SMALL_BYTES = 32 * 2**20
"""Files up to this size are hashed in the fast part: all but the weights of a real model."""
CARDS = ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "citation")
TEXT_SUFFIXES = (".txt", ".rst", ".cff", ".pdf", ".html")
CARD_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
"""A card with its pictures, a licence and the like."""
LEFT_BY_DESKTOPS = ("desktop.ini", "thumbs.db", "icon\r")


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One named check and what it found."""

    name: str
    outcome: Literal["ok", "failed", "not run"]
    line: str


def verify(folder: Path, *, fast: bool) -> list[Check]:
    """Run every check, or the fast ones; what needs the weights is not run where their files are not as they were.

    Raises `InputError` where the folder holds nothing to check against.
    """
    check_exported(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder / MANIFEST} must exist to verify {folder}; export again")
    if not _has_record(folder, manifest):
        check_files(folder, manifest, fast=fast)
        raise InputError(f"{folder} must hold {RECORD_FILE}, and {why_no_record(folder)}")
    record = cache(lambda: read_record(folder))
    chat_format = cache(lambda: ChatFormat.from_folder(folder, clock=lambda: RECORD_DAY))
    checks = [
        _run("files", lambda: check_files(folder, manifest, fast=fast)),
        _run("external data", lambda: _check_external_data(folder)),
    ]
    is_whole = all(check.outcome == "ok" for check in checks)
    checks += [
        _run("tokenizer", lambda: check_tokenizer(record(), chat_format(), fast=fast)),
        _run("template", lambda: check_template(record().chats, chat_format())),
        _run("end of text", lambda: check_end_of_text(record(), folder, chat_format())),
    ]
    if fast or not is_whole:
        why = "left out of the fast part" if fast else "the weights are not what was exported"
        checks += [Check(name=name, outcome="not run", line=why) for name in ("greedy tokens", "divergence")]
    else:
        decoder = cache(lambda: OnnxDecoder(folder))
        checks += [
            _run("greedy tokens", lambda: check_greedy(record(), decoder())),
            _run("divergence", lambda: check_everywhere(folder, manifest, decoder())),
        ]
    if line := outgrown(folder):
        checks[-1] = Check(name="divergence", outcome="failed", line=line)
    return checks


def check_start(folder: Path) -> bool:
    """The fast part, before a chat opens a folder.

    Returns False where nothing says what the folder should say (`why_no_record`), and then only the files were checked
    that its manifest names. Raises `InputError` with the first line that failed, but where that is `outgrown`, which is
    the caller's to say: short chats are as good as ever.
    """
    check_exported(folder)
    manifest = read_manifest(folder)
    if not _has_record(folder, manifest or {}):
        if manifest is not None:
            check_files(folder, manifest, fast=True)
        return False
    for check in verify(folder, fast=True):
        if check.outcome == "failed" and check.line != outgrown(folder):
            raise InputError(check.line)
    return True


def outgrown(folder: Path) -> str:
    """One line where a folder keeps keys and values in int8 by steps that long texts outgrow, as it was exported before
    the gate looked at long positions; else empty."""
    manifest = read_manifest(folder) or {}
    if (
        RECORD_FILE not in manifest.get("outputs", {})
        or "places" in manifest.get("measured", {})
        or chosen_cache(folder) == "exact"
    ):
        return ""
    return f"{folder} keeps keys and values in int8 by steps that long texts outgrow; export again, or run it with --cache exact"


def check_files(folder: Path, manifest: Mapping[str, Any], *, fast: bool) -> str:
    """Every file is a regular one with the size and the digest that the manifest names; no other file, none missing.

    A link is followed inside the folder's own store (`toolkit.stores`). What nobody reads or runs may lie beside: cards
    and licences, and what a desktop or a version control leaves.
    """
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict):
        raise InputError(f"{folder / MANIFEST} must name the files of the folder, and names none; export again")
    found = _files(folder, outputs)
    for name in sorted(outputs.keys() - found.keys()):
        raise InputError(f"{folder / name} must exist, because the manifest names it; export again or copy it again")
    for name in sorted(found.keys() - outputs.keys()):
        raise InputError(f"{folder / name} must be named by the manifest, and is not; move it away")
    hashed = 0
    for name, path in found.items():
        size_bytes, expected_bytes, expected = path.stat().st_size, outputs[name]["bytes"], outputs[name]["sha256"]
        if size_bytes != expected_bytes:
            remedy = _remedy(path, expected)
            raise InputError(f"{path} ({size_bytes} bytes) must have {expected_bytes} bytes; {remedy}")
        if fast and size_bytes > SMALL_BYTES:
            continue
        digest = file_digest(path)
        if digest != expected:
            raise InputError(f"{path} has sha256 {digest}, which must equal {expected}; export again or copy it again")
        hashed += 1
    return f"{len(found)} files are there, {hashed} of them with the manifest's digest and the others with its size"


def _files(folder: Path, outputs: Collection[str]) -> dict[str, Path]:
    """The folder's files by their names, without its manifest and what may lie beside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or (name not in outputs and _may_lie_beside(path.relative_to(folder))):
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        check_inside(path, folder)
        check_regular(path)
        found[name] = path
    return found


def _may_lie_beside(name: Path) -> bool:
    """Whether no program looks for a file of this name: no loader of models, and not we."""
    if any(part.startswith(".") for part in name.parts) or name.name.lower() in LEFT_BY_DESKTOPS:
        return True
    suffix = name.suffix.lower()
    first_word = re.split(r"[^a-z]", name.name.lower())[0]
    return suffix in CARD_SUFFIXES or (first_word in CARDS and suffix in ("", *TEXT_SUFFIXES))


def _remedy(path: Path, expected: str) -> str:
    """What mends a file of another size than the manifest's."""
    if path.stat().st_size > SMALL_BYTES:
        return "export again or copy it again"
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        return LFS_REMEDY
    if hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == expected:
        return "git changed its line ends: run git config core.autocrlf false there, and check the files out again"
    return "export again or copy it again"


def check_tokenizer(record: GoldenRecord, chat_format: ChatFormat, *, fast: bool) -> str:
    """Every text of the corpus gives the ids that the source's tokenizer gave; the full check asks every token too."""
    for text, found, expected in zip(
        record.texts, text_digests(chat_format, record.texts), record.text_digests, strict=True
    ):
        if found != expected:
            raise InputError(
                f"the ids of {text!r} (digest {found}) must equal the original tokenizer's ({expected}); export again"
            )
    asked = f"{len(record.texts)} texts"
    if fast:
        return f"{asked} give the original's ids"
    sweep = vocabulary_digests(chat_format)
    if len(sweep) != len(record.vocabulary_digests):
        raise InputError(
            f"the vocabulary ({chat_format.tokenizer.get_vocab_size()} tokens) must have "
            f"{len(record.vocabulary_digests)} runs of {VOCABULARY_RUN}; export again"
        )
    for run, (found, expected) in enumerate(zip(sweep, record.vocabulary_digests, strict=True)):
        if found != expected:
            first = run * VOCABULARY_RUN
            raise InputError(
                f"the ids of the texts of tokens {first} to {first + VOCABULARY_RUN - 1} (digest {found}) must equal "
                f"the original tokenizer's ({expected}); export again"
            )
    return f"{asked} and {chat_format.tokenizer.get_vocab_size()} tokens give the original's ids"


def check_template(chats: Sequence[RenderedChat], chat_format: ChatFormat) -> str:
    """Every message list is rendered as transformers rendered it, or refused as it was."""
    for number, chat in enumerate(chats, start=1):
        try:
            found: str | None = chat_format.render(chat.messages)
        except InputError:
            found = None
        if found != chat.text:
            shown = _first_difference(found or "", chat.text or "")
            raise InputError(
                f"chat {number} of {RECORD_FILE} must be rendered as by transformers, and differs {shown}; export again"
            )
    return f"{len(chats)} chats are rendered as transformers does"


def check_end_of_text(record: GoldenRecord, folder: Path, chat_format: ChatFormat) -> str:
    """The files agree where a text ends, with each other and with what they said when they were exported."""
    found = end_of_text_ids(folder, chat_format)
    for name, ids in found.items():
        if ids != record.end_of_text.get(name):
            raise InputError(
                f"the end-of-text ids of {name} ({ids}) must equal the exported ones ({record.end_of_text.get(name)}); "
                "export again"
            )
    if found["genai_config.json"] != found["chat"]:
        raise InputError(
            f"the end-of-text ids of genai_config.json ({found['genai_config.json']}) must equal those that the other "
            f"files name ({found['chat']}); export again"
        )
    return f"all files end a text with {found['chat']}"


MARGIN_TOLERANCE = 1.0
"""Logits. Below it another CPU's rounding may choose another token: without any int8 activations (the farthest that a
CPU can be from this one) the margins of a distilled 135M student moved by 0.1 on average and by 0.57 at most."""


def check_greedy(record: GoldenRecord, decoder: OnnxDecoder) -> str:
    """Decoding goes as it went; each step goes on from the golden token, so one divergence hides none behind it.

    A token whose logit led by less than `MARGIN_TOLERANCE` may differ, and the line counts those that do.
    """
    accepted, total = [], 0
    for number, text in enumerate(record.greedy, start=1):
        ids = text.prompt + text.tokens
        if min(ids) < 0 or max(ids) >= decoder.config.vocab_size or len(ids) > decoder.max_length:
            raise InputError(
                f"prompt {number} of {RECORD_FILE} must be ids that fit the model, and is not; export again"
            )
        logits_V = decoder.start([text.prompt])[0]
        for index, (token, margin) in enumerate(zip(text.tokens, text.margins, strict=True)):
            found = int(logits_V.argmax())
            if found != token and margin >= MARGIN_TOLERANCE:
                raise InputError(
                    f"greedy token {index} of prompt {number} ({found}) must equal the exported one ({token}), which "
                    f"led by {margin:.2f} logits (up to {MARGIN_TOLERANCE} may differ); copy the folder again"
                )
            if found != token:
                accepted.append(margin)
            logits_V = decoder.step(np.array([token]))[0]
        total += len(text.tokens)
    differing = f"; {len(accepted)} differ, which led by at most {max(accepted):.2f} logits" if accepted else ""
    return f"{total - len(accepted)} of {total} greedy tokens are the exported ones{differing}"


KL_FACTOR, KL_SLACK, TOP1_SLACK = 1.5, 0.001, 0.03
"""How far another CPU may be from the export machine: measured × factor + slack (nats), measured - slack. Without int8
activations the mean KL of a distilled 135M student changed by a seventh, and its top-1 not at all."""
PLACE_TOP1_SLACK = 0.1
"""Of a place: a hundred positions, at some of which no token leads by much."""


def check_everywhere(folder: Path, manifest: Mapping[str, Any], decoder: OnnxDecoder) -> str:
    """KL and top-1 to the float model's coarsened distributions are what they were, on the traces and at each place; and an
    int8 cache, chosen or not, says nearly what the exact one says."""
    on_traces, *at_places = _recorded(manifest)
    line = check_divergence(on_traces[1], measure_coarsely(decoder, read_expected(folder)))
    expected = {place: read_expected(folder, place) for place, _ in at_places}
    chosen = chosen_cache(folder)
    found = {chosen: _measure_places(folder, chosen, expected)}
    for place, recorded in at_places:
        check_divergence(recorded, found[chosen][place], f" at {place}")
    if (folder / INT8_CACHE_FILE).is_file() and LONG in expected:
        other: Cache = "exact" if chosen == "int8" else "int8"
        found[other] = _measure_places(folder, other, {LONG: expected[LONG]})
        at_long = {cache: {LONG: there[LONG]} for cache, there in found.items()}
        if fault := int8_fault(at_long["exact"], at_long["int8"]):
            raise InputError(f"{fault}; export again, or run it with --cache exact")
    return f"{line}; as when exported at {', '.join(expected)}" if expected else line


def check_divergence(recorded: CoarseParity, found: CoarseParity, where: str = "") -> str:
    """KL and top-1 to the float model's coarsened distributions are what they were, within the tolerances above."""
    most_kl = recorded.mean_kl * KL_FACTOR + KL_SLACK
    least_top1 = recorded.top1 - (PLACE_TOP1_SLACK if where else TOP1_SLACK)
    if not found.mean_kl <= most_kl:  # also where it is NaN
        raise InputError(
            f"mean KL to the float model{where} ({found.mean_kl:.4f}) must be at most {most_kl:.4f} "
            f"({recorded.mean_kl:.4f} when exported); copy the folder again"
        )
    if not found.top1 >= least_top1:
        raise InputError(
            f"top-1 agreement with the float model{where} ({found.top1:.4f}) must be at least {least_top1:.4f} "
            f"({recorded.top1:.4f} when exported); copy the folder again"
        )
    return (
        f"mean KL {found.mean_kl:.4f} ({recorded.mean_kl:.4f} when exported), top-1 {found.top1:.1%} "
        f"({recorded.top1:.1%}) over {found.positions} positions"
    )


def table(checks: list[Check]) -> str:
    """One line a check, for a terminal."""
    return "\n".join(f"{check.outcome:7}  {check.name:13}  {visible(check.line)}" for check in checks)


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, outcome="ok", line=check())
    except InputError as error:
        return Check(name=name, outcome="failed", line=str(error))


def _check_external_data(folder: Path) -> str:
    if not (folder / MODEL_FILE).is_file():
        raise InputError(f"{folder / MODEL_FILE} must exist; export again")
    for graph in sorted(folder.glob("*.onnx")):
        check_external_data(graph)
    return "every range lies in a file of the folder that has one name, or the manifest's digest"


def _recorded(manifest: Mapping[str, Any]) -> list[tuple[str, CoarseParity]]:
    """What was measured on the traces, and then at each place; folders of before have none."""
    try:
        measured = manifest["measured"]
        named = {"": measured["coarse_parity"], **measured.get("places", {})}
        check_type(named, dict[str, dict[str, float]], f"coarse_parity and places in {MANIFEST}")
        return [(place, CoarseParity.from_dict(there)) for place, there in named.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{MANIFEST} must hold the measured coarse_parity, and does not; export again") from error


def _has_record(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest or the folder knows a record."""
    return RECORD_FILE in manifest.get("outputs", {}) or os.path.lexists(folder / RECORD_FILE)


def _measure_places(folder: Path, cache: Cache, expected: Mapping[str, Expected]) -> dict[str, CoarseParity]:
    return measure_places(OnnxDecoder(folder, cache=cache, keeps_prefix=True), expected)


def why_no_record(folder: Path) -> str:
    """Why an exported folder holds no record, and what helps."""
    manifest = read_manifest(folder) or {}
    if manifest.get("measured", {}).get("parity", manifest) is None:
        return "was exported with --no-parity, so it has none; export again without that"
    return "was exported before there was a record; export again"


def _first_difference(found: str, expected: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    return f"at character {at}: {found[at : at + 40]!r} instead of {expected[at : at + 40]!r}"
