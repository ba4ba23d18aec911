"""Compares an exported folder's outputs with its record: ids, prompts, ends, greedy tokens, distributions.

    verify.json ─ tokenizer ─ template ─ end of text ─ greedy tokens
    verify.npz, manifest.json ─ divergence, on the traces and at each place where faults hide

Invariant: each comparison returns a line with its result, or raises `InputError` with the first value that differs and
the expected one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import INT8_CACHE_FILE, Cache, chosen_cache
from export.runtime.verify.divergence import CoarseParity, Expected, measure_coarsely, read_expected
from export.runtime.verify.probes import LONG, int8_fault, measure_places
from export.runtime.verify.record import (
    RECORD_FILE,
    VOCABULARY_RUN,
    GoldenRecord,
    RenderedChat,
    end_of_text_ids,
    text_digests,
    vocabulary_digests,
)
from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.figures.tables import percent
from toolkit.formats.chat_format import ChatFormat
from toolkit.runs import MANIFEST


def check_tokenizer(record: GoldenRecord, chat_format: ChatFormat, *, fast: bool) -> str:
    """Check that every text of the corpus has the source tokenizer's ids; the full check tries every token too."""
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
    """Check that every message list is rendered as transformers rendered it, or refused as it was."""
    for number, chat in enumerate(chats, start=1):
        try:
            found: str | None = chat_format.render(chat.messages)
        except InputError:
            found = None
        if found != chat.text:
            shown = _first_difference(found or "", chat.text or "")
            raise InputError(
                f"chat {number} of {RECORD_FILE} is not rendered as transformers does: it differs {shown}; export again"
            )
    return f"{len(chats)} chats are rendered as transformers renders them"


def check_end_of_text(record: GoldenRecord, folder: Path, chat_format: ChatFormat) -> str:
    """Check that the files agree on the end-of-text ids, with each other and with the record."""
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
    return f"all files end a text at {found['chat']}"


MARGIN_TOLERANCE = 1.0
"""In logits. Below it another CPU's rounding may choose another token: without any int8 activations (the largest
possible difference between CPUs) a distilled 135M student's margins moved by 0.1 on average and by 0.57 at most."""


def check_greedy(record: GoldenRecord, decoder: OnnxDecoder) -> str:
    """Check that greedy decoding gives the recorded tokens; each step continues from the recorded one, so that one
    divergence hides no later one.

    A token whose logit led by less than `MARGIN_TOLERANCE` may differ; the line counts those that do.
    """
    accepted, total = [], 0
    for number, text in enumerate(record.greedy, start=1):
        ids = text.prompt + text.tokens
        if min(ids) < 0 or max(ids) >= decoder.model.vocab_size or len(ids) > decoder.max_length:
            raise InputError(
                f"prompt {number} of {RECORD_FILE} has ids or a length that the model does not support; export again"
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
    return f"{total - len(accepted)} of {total} greedy tokens equal the exported ones{differing}"


KL_FACTOR, KL_SLACK, TOP1_SLACK = 1.5, 0.001, 0.03
"""How far another CPU may be from the export machine: measured × factor + slack (nats), measured - slack. Without int8
activations a distilled 135M student's mean KL changed by a seventh, and its top-1 not at all."""
PLACE_TOP1_SLACK = 0.1
"""The slack at a place, which has only a hundred positions; at some of them no token leads by much."""


def check_everywhere(folder: Path, manifest: Mapping[str, Any], decoder: OnnxDecoder) -> str:
    """Check KL and top-1 against the float model's coarsened distributions, on the traces and at each place, and that
    an int8 cache, chosen or not, is nearly as close to them as the exact one."""
    on_traces, *at_places = _recorded(manifest)
    line = check_divergence(on_traces[1], measure_coarsely(decoder, read_expected(folder)))
    expected = {place: read_expected(folder, place) for place, _ in at_places}
    chosen = chosen_cache(folder)
    found = {chosen: _measure_places(folder, chosen, expected)}
    for place, recorded in at_places:
        check_divergence(recorded, found[chosen][place], place)
    if (folder / INT8_CACHE_FILE).is_file() and LONG in expected:
        other: Cache = "exact" if chosen == "int8" else "int8"
        found[other] = _measure_places(folder, other, {LONG: expected[LONG]})
        at_long = {cache: {LONG: there[LONG]} for cache, there in found.items()}
        if fault := int8_fault(at_long["exact"], at_long["int8"]):
            raise InputError(f"{fault}; export again, or run it with --cache exact")
    return f"{line}; within bounds at {', '.join(expected)} too" if expected else line


def check_divergence(recorded: CoarseParity, found: CoarseParity, place: str = "") -> str:
    """Check KL and top-1 against the recorded ones, within the tolerances above.

    Without a `place` they are those over the record's positions on the traces, which are fewer than the gate's tokens.
    """
    where = f"at {place}" if place else f"over the record's {recorded.positions} positions"
    most_kl = recorded.mean_kl * KL_FACTOR + KL_SLACK
    least_top1 = recorded.top1 - (PLACE_TOP1_SLACK if place else TOP1_SLACK)
    if not found.mean_kl <= most_kl:  # also where it is NaN
        raise InputError(
            f"mean KL to the float model {where} ({found.mean_kl:.4f}) must be at most {most_kl:.4f} "
            f"({recorded.mean_kl:.4f} when exported); copy the folder again"
        )
    if not found.top1 >= least_top1:
        raise InputError(
            f"top-1 agreement with the float model {where} ({found.top1:.4f}) must be at least {least_top1:.4f} "
            f"({recorded.top1:.4f} when exported); copy the folder again"
        )
    return (
        f"{where}: mean KL {found.mean_kl:.4f} ({recorded.mean_kl:.4f} when exported), same first choice "
        f"{percent(found.top1)} ({percent(recorded.top1)} when exported)"
    )


def _recorded(manifest: Mapping[str, Any]) -> list[tuple[str, CoarseParity]]:
    """Return the recorded measurements, on the traces first and then at each place; older folders have no places."""
    try:
        measured = manifest["measured"]
        named = {"": measured["coarse_parity"], **measured.get("places", {})}
        check_type(named, dict[str, dict[str, float]], f"coarse_parity and places in {MANIFEST}")
        return [(place, CoarseParity.from_dict(there)) for place, there in named.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{MANIFEST} lacks the measured coarse_parity; export again") from error


def _measure_places(folder: Path, cache: Cache, expected: Mapping[str, Expected]) -> dict[str, CoarseParity]:
    return measure_places(OnnxDecoder(folder, cache=cache, keeps_prefix=True), expected)


def _first_difference(found: str, expected: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    return f"at character {at}: {found[at : at + 40]!r} instead of {expected[at : at + 40]!r}"
