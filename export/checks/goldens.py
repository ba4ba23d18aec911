"""Writes the record for `toolkit verify`: the source's ids and renderings, the exported folder's greedy tokens, and
the float model's distributions.

Invariant: ids come from the source's own tokenizer and prompts from transformers, never from the folder that they
check; a folder that already differs here is not exported.

Shapes: T positions, K the likeliest tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from export.calibration.texts import CalibrationText
from export.checkpoint.source import FloatSource
from export.checks.fuzz_corpus import fuzz_texts
from export.checks.layerwise import FloatModel
from export.checks.parity import QUESTIONS
from export.runtime.decoder import OnnxDecoder
from export.runtime.verify.comparisons import check_end_of_text, check_template, check_tokenizer
from export.runtime.verify.divergence import Doubles, Expected, coarsen, measure_coarsely, write_expected
from export.runtime.verify.record import (
    RECORD_DAY,
    VERSION,
    GoldenRecord,
    GreedyText,
    RenderedChat,
    end_of_text_ids,
    text_digests,
    vocabulary_digests,
    write_record,
)
from toolkit.errors import GateFailed, InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.records import Message

FUZZ_SEED, FUZZ_TEXTS = 0, 300
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 32
POSITIONS = 256
LIKELIEST = 32
ASK, ASK_AGAIN = QUESTIONS[:2]
CHATS: tuple[list[Message], ...] = (
    [{"role": "user", "content": ASK}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": ASK}],
    [
        {"role": "user", "content": ASK},
        {"role": "assistant", "content": completion_text("<think>\n17 + 25 is 42.", "It is 42.")},
        {"role": "user", "content": ASK_AGAIN},
    ],
    [
        {"role": "system", "content": " Keep  white space.\n"},
        {"role": "user", "content": f"  {ASK}\n\n"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "\tWhy?\n"},
        {"role": "assistant", "content": completion_text("Ones first.\nThen tens.", "Because 7 + 5 = 12.\n")},
        {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<b>'你好' & {{ 7 * 7 }} {% raw %}"},
    ],
)
Chats = list[RenderedChat]
"""Conversations, each with the text that the model's own template renders."""


def write_goldens(
    source: FloatSource,
    model: FloatModel,
    folder: Path,
    decoder: OnnxDecoder,
    held_out: Sequence[CalibrationText],
    places: Mapping[str, Expected],
    chats: Chats,
) -> dict[str, Any]:
    """Write `verify.json` and `verify.npz` into an exported folder; returns the measurement for its manifest.

    `model` is the float one, `decoder` runs the folder, `places` holds the float model's distributions at each place
    (`export.runtime.verify.probes`), and `chats` are the `source_chats`. Without held-out texts the folder is measured
    on its own greedy tokens. Raises `GateFailed` if the folder's tokenizer, template or ends of text are not its
    source's.
    """
    chat_format = source.chat_format
    greedy = greedy_texts(decoder, chat_format, held_out)
    expected = expect(model, first_positions(held_out or answered(greedy)))
    write_expected(folder, expected, places)
    fuzz = fuzz_texts(FUZZ_SEED, FUZZ_TEXTS)
    record = GoldenRecord(
        version=VERSION,
        texts=fuzz,
        text_digests=text_digests(chat_format, fuzz),
        vocabulary_digests=vocabulary_digests(chat_format),
        chats=chats,
        end_of_text=end_of_text_ids(folder, chat_format),
        greedy=greedy,
    )
    _check(record, source.chat_folder, folder)
    write_record(folder, record)
    return {"coarse_parity": measure_coarsely(decoder, expected).to_dict()}


def first_positions(texts: Sequence[CalibrationText]) -> list[CalibrationText]:
    """Take the beginnings of the texts, with `POSITIONS` completion tokens in all."""
    taken: list[CalibrationText] = []
    room = POSITIONS
    for text in texts:
        completion = text.completion[:room]
        if completion:
            taken.append(CalibrationText(prompt=text.prompt, completion=completion))
            room -= len(completion)
    return taken


@torch.no_grad()
def expect(
    model: FloatModel, texts: Sequence[CalibrationText], advance: Callable[[], object] = lambda: None
) -> Expected:
    """Compute the float model's coarsened distributions at the completions; `advance` is called after each text."""
    ids, log_probs, rest = [], [], []
    for text in texts:
        ids_BT, compared = torch.tensor([text.ids]), len(text.completion) + 1
        logits_TV = model(ids_BT, logits_to_keep=compared).logits[0, :-1].double().numpy()
        ids_TK = _likeliest(logits_TV, min(LIKELIEST, logits_TV.shape[-1] - 1))
        log_p_TK, log_rest_T = coarsen(logits_TV, ids_TK)
        ids.append(ids_TK)
        log_probs.append(log_p_TK.astype(np.float32))
        rest.append(log_rest_T.astype(np.float32))
        advance()
    return Expected(
        tokens=np.array([token for text in texts for token in text.ids], dtype=np.int32),
        lengths=np.array([len(text.ids) for text in texts], dtype=np.int32),
        positions=np.array([len(text.completion) for text in texts], dtype=np.int32),
        ids=np.concatenate(ids),
        log_probs=np.concatenate(log_probs),
        rest=np.concatenate(rest),
    )


def _likeliest(logits_TV: Doubles, count: int) -> NDArray[np.int32]:
    """Return the ids of the largest logits, in their order; of equal ones the first comes first."""
    ids_TK = np.sort(np.argpartition(-logits_TV, count - 1, axis=-1)[:, :count], axis=-1)
    order_TK = np.argsort(-np.take_along_axis(logits_TV, ids_TK, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(ids_TK, order_TK, axis=-1).astype(np.int32)


def greedy_texts(
    decoder: OnnxDecoder, chat_format: ChatFormat, held_out: Sequence[CalibrationText]
) -> list[GreedyText]:
    """Decode a folder's greedy answers to the held-out prompts, or to `QUESTIONS`."""
    prompts = [text.prompt for text in held_out] or [chat_format.question_ids(question) for question in QUESTIONS]
    return [_greedy_text(decoder, prompt, chat_format.stop_ids) for prompt in prompts[:GREEDY_PROMPTS]]


def answered(greedy: Sequence[GreedyText]) -> list[CalibrationText]:
    return [CalibrationText(prompt=text.prompt, completion=text.tokens) for text in greedy]


def _greedy_text(decoder: OnnxDecoder, prompt: list[int], stop_ids: frozenset[int]) -> GreedyText:
    tokens: list[int] = []
    margins: list[float] = []
    logits_V = decoder.start([prompt])[0]
    for _ in range(min(GREEDY_TOKENS, decoder.max_length - len(prompt))):
        second, first = np.partition(logits_V, -2)[-2:]
        tokens.append(int(logits_V.argmax()))
        margins.append(round(float(first - second), 4))
        if tokens[-1] in stop_ids:
            break
        logits_V = decoder.step(np.array(tokens[-1:]))[0]
    return GreedyText(prompt=prompt, tokens=tokens, margins=margins)


def rendered_chats(source: Path, chat_format: ChatFormat) -> Chats:
    """Render `CHATS` by transformers; if the template writes today's date, with the date of the record in its place."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    except Exception as error:  # a malformed file may raise anything
        line = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"transformers cannot read the tokenizer in {source}: {type(error).__name__}: {line}; get its files again"
        ) from error
    tokenizer.chat_template = tokenizer.chat_template or chat_format.template  # it does not read a processor's
    recorded = _on_the_record_day(chat_format)
    chats = []
    for messages in CHATS:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, InputError):
            text = None
        if text is not None and _rendered(chat_format, messages) == text:
            text = _rendered(recorded, messages)
        chats.append(RenderedChat(messages=messages, text=text))
    return chats


def source_chats(source: FloatSource) -> Chats:
    """Render the chats of the record before there is an exported folder; raises `GateFailed` if our template renders
    one differently from transformers, and `InputError` if transformers cannot read the tokenizer."""
    chats = rendered_chats(source.chat_folder, source.chat_format)
    with _as_it_was_made(source.chat_folder):
        check_template(chats, _on_the_record_day(source.chat_format))
    return chats


def _on_the_record_day(chat_format: ChatFormat) -> ChatFormat:
    return chat_format.with_clock(lambda: RECORD_DAY)


def _rendered(chat_format: ChatFormat, messages: Sequence[Message]) -> str | None:
    try:
        return chat_format.render(messages)
    except InputError:
        return None


def _check(record: GoldenRecord, source: Path, folder: Path) -> None:
    chat_format = ChatFormat.from_folder(folder, clock=lambda: RECORD_DAY)
    with _as_it_was_made(source):
        check_tokenizer(record, chat_format, fast=False)
        check_template(record.chats, chat_format)
        check_end_of_text(record, folder, chat_format)


@contextmanager
def _as_it_was_made(source: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        what = str(error).rpartition("; ")[0]  # the remedy is for a folder that was once good
        raise GateFailed(f"the chat would not read {source} as it was made: {what}") from error
