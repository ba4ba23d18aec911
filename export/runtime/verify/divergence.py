"""Compares the exported model with the float one on a machine that has no float model: the user's.

    verify.npz   the float model's distributions at some held-out positions, coarsened to the likeliest tokens and a
                 rest, and those at each place where faults hide (`export.runtime.verify.probes`): place/array

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
"""The ids of a text, and how many of its last ones are compared."""
EXPECTED_FILE = "verify.npz"
MOST_BYTES = 2**28
"""Limit for its unpacked arrays; those of a large model take some millions."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The contents of `verify.npz`: texts as ids, and the float model's log probabilities at their ends."""

    tokens: NDArray[np.int32]
    """N: the ids of all texts, one after the other."""
    lengths: NDArray[np.int32]
    """X: how many ids each text has."""
    positions: NDArray[np.int32]
    """X: how many of the last positions of each text are compared; a token is predicted at the position before it."""
    ids: NDArray[np.int32]
    """TK: the likeliest tokens, in descending order of probability."""
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
    """KL and top-1 agreement on the coarsened distributions."""

    positions: int
    mean_kl: float
    """In nats."""
    top1: float


def read_expected(folder: Path, place: str = "") -> Expected:
    """Read the float model's distributions on the traces or at a place; raises `InputError` if `verify.npz` is missing
    or its arrays don't fit each other."""
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
    except Exception as error:  # zipfile, zlib, numpy and its header parser each raise their own
        raise InputError(f"{path} is no record of toolkit export: {error}; export again") from error
    if not fits:
        raise InputError(f"{path} holds arrays that don't fit each other; export again")
    return expected


def write_expected(folder: Path, expected: Expected, places: Mapping[str, Expected]) -> None:
    arrays = {
        _array(place, field.name): getattr(there, field.name)
        for place, there in {"": expected, **places}.items()
        for field in fields(Expected)
    }
    np.savez_compressed(folder / EXPECTED_FILE, **arrays)


def measure_coarsely(decoder: OnnxDecoder, expected: Expected) -> CoarseParity:
    """Measure KL and top-1 over the likeliest tokens and one bucket for the rest.

    Raises `InputError` if the model cannot read a text.
    """
    check_readable(decoder, expected)
    return agreement(score_passages(decoder, expected.passages()), expected)


def check_readable(decoder: OnnxDecoder, expected: Expected) -> None:
    """Raise `InputError` if the model cannot read a text."""
    vocab_size, longest = decoder.model.vocab_size, int(expected.lengths.max())
    for ids in (expected.tokens, expected.ids):
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise InputError(f"{EXPECTED_FILE} holds ids outside the vocabulary ({vocab_size}); export again")
    if longest > decoder.max_length:
        raise InputError(
            f"the texts in {EXPECTED_FILE} ({longest} ids) must fit the model's "
            f"context ({decoder.max_length}); export again"
        )


def score_passages(decoder: OnnxDecoder, passages: Sequence[Passage]) -> list[Floats]:
    """Return logits_TV at the compared positions of each text."""
    return [decoder.score(tokens, first=len(tokens) - count - 1)[:-1] for tokens, count in passages]


def agreement(logits: Sequence[Floats], expected: Expected) -> CoarseParity:
    """Compare logits_TV of each text with the float model's distributions."""
    logits_TV = np.concatenate(logits).astype(np.float64)
    log_q_TK, log_rest_q_T = coarsen(logits_TV, expected.ids)
    log_p_TK, log_rest_p_T = expected.log_probs.astype(np.float64), expected.rest.astype(np.float64)
    kl_T = (np.exp(log_p_TK) * (log_p_TK - log_q_TK)).sum(-1)
    kl_T += np.exp(log_rest_p_T) * (log_rest_p_T - log_rest_q_T)
    agrees_T = logits_TV.argmax(-1) == expected.ids[:, 0]
    return CoarseParity(positions=len(kl_T), mean_kl=float(kl_T.mean()), top1=float(agrees_T.mean()))


def coarsen(logits_TV: Doubles, ids_TK: NDArray[np.int32]) -> tuple[Doubles, Doubles]:
    """Compute the log probabilities of the given tokens (TK) and of all others together (T)."""
    log_total_T = _log_sum_exp(logits_TV)
    others_TV = logits_TV.copy()
    np.put_along_axis(others_TV, ids_TK, -np.inf, axis=-1)
    named_TK = np.take_along_axis(logits_TV, ids_TK, axis=-1) - log_total_T[:, None]
    return named_TK, _log_sum_exp(others_TV) - log_total_T


def _log_sum_exp(logits_TV: Doubles) -> Doubles:
    """Compute what `np.logaddexp.reduce` does, without a logarithm of each element; a row stays in the cache."""
    largest_T = logits_TV.max(-1)
    pairs = zip(logits_TV, largest_T, strict=True)
    total_T: Doubles = largest_T + np.log([np.exp(logits_V - largest).sum() for logits_V, largest in pairs])
    return total_T


def _array(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name
