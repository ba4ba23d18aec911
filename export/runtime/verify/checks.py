"""`toolkit verify DIR`: checks that a folder is still what was exported, and gives the same outputs on this machine.

    files ─ external data ─ tokenizer ─ template ─ end of text ─ greedy tokens ─ divergence
    └──────── fast: without large files' digests and the vocabulary ────────┘

The files are checked here, the model's outputs in `export.runtime.verify.comparisons`.

Needs only the light installation: no torch, no transformers, no onnx. It finds damage and drift (a cut file, another
release of a library, another kind of CPU). It is no signature: whoever can rewrite a folder can rewrite its record.
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
"""Files up to this size are hashed in the fast part: everything but a real model's weights."""
CARDS = ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "citation")
TEXT_SUFFIXES = (".txt", ".rst", ".cff", ".pdf", ".html")
CARD_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
"""Endings of cards, their pictures, licences and the like."""
LEFT_BY_DESKTOPS = ("desktop.ini", "thumbs.db", "icon\r")


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One named check and what it found."""

    name: str
    outcome: Literal["ok", "failed", "not run"]
    line: str


def verify(folder: Path, *, fast: bool) -> list[Check]:
    """Run every check, or the fast ones; checks that need the weights are not run if their files have changed.

    Raises `InputError` if the folder holds nothing to check against.
    """
    check_exported(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"verifying {folder} needs {folder / MANIFEST}, which is missing; export again")
    if not _has_record(folder, manifest):
        check_files(folder, manifest, fast=fast)
        raise InputError(f"{folder} cannot be verified: it {why_no_record(folder)}")
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
        why = "left out of the fast part" if fast else "the weights are not those that were exported"
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
    """Run the fast part, before a chat opens a folder.

    Returns False if the folder has no record (`why_no_record`); then only the files that its manifest names were
    checked. Raises `InputError` with the first failed line, except `outgrown`, which the caller reports: short chats
    are not affected.
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
    """Say in one line that a folder's int8 cache has steps that long texts outgrow, because it was exported before the
    gate looked at long positions; empty for any other folder."""
    manifest = read_manifest(folder) or {}
    if (
        RECORD_FILE not in manifest.get("outputs", {})
        or "places" in manifest.get("measured", {})
        or chosen_cache(folder) == "exact"
    ):
        return ""
    return (
        f"{folder} keeps keys and values in int8 with steps that long texts outgrow; "
        "export again, or run it with --cache exact"
    )


def check_files(folder: Path, manifest: Mapping[str, Any], *, fast: bool) -> str:
    """Check that the folder holds exactly the manifest's files, regular ones of the sizes and digests that it names.

    A link is followed inside the folder's own store (`toolkit.sources.stores`). Files that no program reads or runs are
    allowed beside them: cards, licences, and those of desktops and version control.
    """
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict):
        raise InputError(f"{folder / MANIFEST} names no files of the folder; export again")
    found = _files(folder, outputs)
    for name in sorted(outputs.keys() - found.keys()):
        raise InputError(f"{folder / name}, which the manifest names, is missing; export again or copy it again")
    for name in sorted(found.keys() - outputs.keys()):
        raise InputError(f"{folder / name} is not named by the manifest; move it away")
    hashed = 0
    for name, path in found.items():
        size_bytes, expected_bytes, expected = path.stat().st_size, outputs[name]["bytes"], outputs[name]["sha256"]
        if size_bytes != expected_bytes:
            remedy = _remedy(path, expected)
            raise InputError(f"{path} has {size_bytes} bytes instead of {expected_bytes}; {remedy}")
        if fast and size_bytes > SMALL_BYTES:
            continue
        digest = file_digest(path)
        if digest != expected:
            raise InputError(f"{path} has sha256 {digest} instead of {expected}; export again or copy it again")
        hashed += 1
    return f"all {len(found)} files have the manifest's sizes, and {hashed} of them its digests"


def _files(folder: Path, outputs: Collection[str]) -> dict[str, Path]:
    """Return the folder's files by name, without its manifest and the files that are allowed beside it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or (name not in outputs and _is_allowed_beside(path.relative_to(folder))):
            continue
        if path.is_dir() and not path.is_symlink():
            continue
        check_inside(path, folder)
        check_regular(path)
        found[name] = path
    return found


def _is_allowed_beside(name: Path) -> bool:
    """Whether neither a loader of models nor we look for a file of this name."""
    if any(part.startswith(".") for part in name.parts) or name.name.lower() in LEFT_BY_DESKTOPS:
        return True
    suffix = name.suffix.lower()
    first_word = re.split(r"[^a-z]", name.name.lower())[0]
    return suffix in CARD_SUFFIXES or (first_word in CARDS and suffix in ("", *TEXT_SUFFIXES))


def _remedy(path: Path, expected: str) -> str:
    """Return the remedy for a file that has another size than in the manifest."""
    if path.stat().st_size > SMALL_BYTES:
        return "export again or copy it again"
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        return LFS_REMEDY
    if hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == expected:
        return "git changed its line ends: run git config core.autocrlf false there, and check the files out again"
    return "export again or copy it again"


def table(checks: list[Check]) -> str:
    """Lay the checks out for a terminal, one line each."""
    return columns([(check.outcome, check.name, check.line) for check in checks])


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, outcome="ok", line=check())
    except InputError as error:
        return Check(name=name, outcome="failed", line=str(error))


def _check_external_data(folder: Path) -> str:
    if not is_exported(folder):
        raise InputError(f"{folder / MODEL_FILE} is missing; export again")
    for graph in sorted(folder.glob("*.onnx")):
        check_external_data(graph)
    return "every range is within a file of the folder that has one name, or the manifest's digest"


def _has_record(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest names a record or the folder holds one."""
    return RECORD_FILE in manifest.get("outputs", {}) or os.path.lexists(folder / RECORD_FILE)


def why_no_record(folder: Path) -> str:
    """Say why an exported folder has no record, and the remedy."""
    manifest = read_manifest(folder) or {}
    if manifest.get("measured", {}).get("parity", manifest) is None:
        return "was exported with --no-parity, and so without a record; export again without that option"
    return "was exported before there was a record; export again"
