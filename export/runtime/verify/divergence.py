"""The exported model against the float one where the float one cannot be: on the user's machine.

    verify.npz   what the float model expects at some held-out positions, coarsened to its likeliest tokens and a rest;
                 the same at each place where faults hide (`export.runtime.verify.probes`), its arrays named place/array

KL(p‖q) over these K + 1 outcomes is a lower bound of the true one, as merging outcomes never adds to it; top-1 is
exact. Imports neither torch nor transformers nor onnx.

Shapes: T positions, K the likeliest tokens, V vocabulary, N ids of all texts, X texts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.generation.generate import Floats
from toolkit.json_files import check_regular
from toolkit.records import Record

Doubles = NDArray[np.float64]
Passage = tuple[list[int], int]
"""A text as ids, and how many of its last are compared."""
EXPECTED_FILE = "verify.npz"
MOST_BYTES = 2**28
"""Of its arrays, unpacked; those of a large model have some millions."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """`verify.npz`: texts as ids, and the float model's log probabilities at the ends of them."""

    tokens: NDArray[np.int32]
    """N: the ids of all texts, one after the other."""
    lengths: NDArray[np.int32]
    """X: how many ids each text has."""
    positions: NDArray[np.int32]
    """X: how many of the last positions of each text are compared; the position before a token expects it."""
    ids: NDArray[np.int32]
    """TK: the likeliest tokens, the likeliest first."""
    log_probs: NDArray[np.float32]
    """TK: their log probabilities, in nats."""
    rest: NDArray[np.float32]
    """T: the log probability of all other tokens together."""

    def passages(self) -> list[Passage]:
        return list(zip(self.texts(), self.positions.tolist(), strict=True))

    def texts(self) -> list[list[int]]:
        return [text.tolist() for text in np.split(self.tokens, np.cumsum(self.lengths)[:-1])]


@dataclass(frozen=True, kw_only=True)
class CoarseParity(Record):
    """What was measured on the coarsened distributions."""

    positions: int
    mean_kl: float
    """In nats."""
    top1: float


def read_expected(folder: Path, place: str = "") -> Expected:
    """What the float model expects of the traces, or at a place; raises `InputError` where `verify.npz` is missing or
    its arrays don't fit each other."""
    path = folder / EXPECTED_FILE
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(member.file_size for member in archive.infolist())
        if unpacked_bytes > MOST_BYTES:
            raise ValueError(f"its arrays ({unpacked_bytes} bytes) have more than {MOST_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            expected = Expected(**{field.name: arrays[_array(place, field.name)] for field in fields(Expected)})
        ids_TK, rest_T = expected.ids, expected.rest
        fits = (
            all(getattr(expected, name).dtype.kind == "i" for name in ("tokens", "lengths", "positions", "ids"))
            and all(getattr(expected, name).dtype.kind == "f" for name in ("log_probs", "rest"))
            and expected.lengths.shape == expected.positions.shape
            and expected.lengths.sum() == len(expected.tokens)
            and expected.positions.sum() == len(ids_TK) == len(rest_T) > 0
            and ids_TK.shape == expected.log_probs.shape
            and bool((expected.positions >= 0).all() and (expected.positions < expected.lengths).all())
        )
    except Exception as error:  # zipfile, zlib, numpy and the parser of its headers have errors of their own each
        raise InputError(f"{path} must be a record that toolkit export wrote: {error}; export again") from error
    if not fits:
        raise InputError(f"{path} must hold arrays that fit each other, and they don't; export again")
    return expected


def write_expected(folder: Path, expected: Expected, places: Mapping[str, Expected]) -> None:
    arrays = {
        _array(place, field.name): getattr(there, field.name)
        for place, there in {"": expected, **places}.items()
        for field in fields(Expected)
    }
    np.savez_compressed(folder / EXPECTED_FILE, **arrays)


def measure_coarsely(decoder: OnnxDecoder, expected: Expected) -> CoarseParity:
    """KL and top-1 over the likeliest tokens and one bucket for the rest.

    Raises `InputError` where a text is none that the model can read.
    """
    check_readable(decoder, expected)
    return agreement(score_passages(decoder, expected.passages()), expected)


def check_readable(decoder: OnnxDecoder, expected: Expected) -> None:
    """Raises `InputError` where a text is none that the model can read."""
    vocab_size, longest = decoder.model.vocab_size, int(expected.lengths.max())
    for ids in (expected.tokens, expected.ids):
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise InputError(f"the ids in {EXPECTED_FILE} must be below {vocab_size}, and are not; export again")
    if longest > decoder.max_length:
        raise InputError(
            f"the texts in {EXPECTED_FILE} ({longest} ids) must fit the model's "
            f"context ({decoder.max_length}); export again"
        )


def score_passages(decoder: OnnxDecoder, passages: Sequence[Passage]) -> list[Floats]:
    """logits_TV by which a decoder expects what is compared of each text."""
    return [decoder.score(tokens, first=len(tokens) - count - 1)[:-1] for tokens, count in passages]


def agreement(logits: Sequence[Floats], expected: Expected) -> CoarseParity:
    """Compare logits_TV of each text with what the float model expects."""
    logits_TV = np.concatenate(logits).astype(np.float64)
    log_q_TK, log_rest_q_T = coarsen(logits_TV, expected.ids)
    log_p_TK, log_rest_p_T = expected.log_probs.astype(np.float64), expected.rest.astype(np.float64)
    kl_T = (np.exp(log_p_TK) * (log_p_TK - log_q_TK)).sum(-1)
    kl_T += np.exp(log_rest_p_T) * (log_rest_p_T - log_rest_q_T)
    agrees_T = logits_TV.argmax(-1) == expected.ids[:, 0]
    return CoarseParity(positions=len(kl_T), mean_kl=float(kl_T.mean()), top1=float(agrees_T.mean()))


def coarsen(logits_TV: Doubles, ids_TK: NDArray[np.int32]) -> tuple[Doubles, Doubles]:
    """Log probabilities of the named tokens (TK) and of all others together (T)."""
    log_total_T = np.logaddexp.reduce(logits_TV, axis=-1)
    others_TV = logits_TV.copy()
    np.put_along_axis(others_TV, ids_TK, -np.inf, axis=-1)
    named_TK = np.take_along_axis(logits_TV, ids_TK, axis=-1) - log_total_T[:, None]
    return named_TK, np.logaddexp.reduce(others_TV, axis=-1) - log_total_T


def _array(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
