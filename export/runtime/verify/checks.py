"""`toolkit verify DIR`: whether a folder is still what was exported, and says here what it said there.

    files ─ external data ─ tokenizer ─ template ─ end of text ─ greedy tokens ─ divergence
    └──────── fast: without large files' digests and the vocabulary ────────┘

What the files are is checked here, what they say in `export.runtime.verify.comparisons`.

Needs the light installation only: no torch, no transformers, no onnx. It finds damage and drift (a cut file, another
release of a library, another kind of CPU); it is no signature: who may rewrite a folder may rewrite its record too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import chosen_cache
from export.runtime.external_data import check_external_data
from export.runtime.verify.comparisons import (
    check_end_of_text,
    check_everywhere,
    check_greedy,
    check_template,
    check_tokenizer,
)
from export.runtime.verify.record import RECORD_DAY, RECORD_FILE, read_record
from toolkit.errors import InputError
from toolkit.figures.tables import columns
from toolkit.formats.chat_format import ChatFormat
from toolkit.json_files import check_regular
from toolkit.records import Record
from toolkit.runs import MANIFEST, file_digest, read_manifest
from toolkit.sources.model_names import MODEL_FILE, check_exported, is_exported
from toolkit.sources.stores import LFS_POINTER, LFS_REMEDY, check_inside

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
    return (
        f"{folder} keeps keys and values in int8 by steps that long texts outgrow; "
        "export again, or run it with --cache exact"
    )


def check_files(folder: Path, manifest: Mapping[str, Any], *, fast: bool) -> str:
    """Every file is a regular one with the size and the digest that the manifest names; no other file, none missing.

    A link is followed inside the folder's own store (`toolkit.sources.stores`). What nobody reads or runs may lie
    beside: cards and licences, and what a desktop or a version control leaves.
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


def table(checks: list[Check]) -> str:
    """One line a check, for a terminal."""
    return columns([(check.outcome, check.name, check.line) for check in checks])


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, outcome="ok", line=check())
    except InputError as error:
        return Check(name=name, outcome="failed", line=str(error))


def _check_external_data(folder: Path) -> str:
    if not is_exported(folder):
        raise InputError(f"{folder / MODEL_FILE} must exist; export again")
    for graph in sorted(folder.glob("*.onnx")):
        check_external_data(graph)
    return "every range lies in a file of the folder that has one name, or the manifest's digest"


def _has_record(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest or the folder knows a record."""
    return RECORD_FILE in manifest.get("outputs", {}) or os.path.lexists(folder / RECORD_FILE)


def why_no_record(folder: Path) -> str:
    """Why an exported folder holds no record, and what helps."""
    manifest = read_manifest(folder) or {}
    if manifest.get("measured", {}).get("parity", manifest) is None:
        return "was exported with --no-parity, so it has none; export again without that"
    return "was exported before there was a record; export again"
