"""Tests of bytes of tokens, and of the classes of two vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from distill.logits.vocabularies.bridge import Bridge, bridge_to_seen, build_bridge
from distill.logits.vocabularies.token_bytes import PROBE, token_bytes, written_bytes
from toolkit.errors import InputError
from toolkit.formats.chat_format import load_tokenizer
from toolkit.sources.model_names import resolve


def byte_level(*words: str, digits: bool = False) -> Tokenizer:
    """A byte-level vocabulary in which these words are tokens of their own."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(word.replace(" ", "Ġ") for word in words)]
    vocabulary = {piece: id for id, piece in enumerate(["<|end|>", *dict.fromkeys(pieces)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    splitters = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splitters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece(*words: str) -> Tokenizer:
    """A vocabulary with byte fallback, as SentencePiece writes it."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh", *words]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(dict.fromkeys(pieces))},
            merges=[],
            byte_fallback=True,
            unk_token="<unk>",
            ignore_merges=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def class_of(bridge: Bridge, side: str, text: bytes) -> int:
    tokens = bridge.student_bytes if side == "student" else bridge.teacher_bytes
    classes = bridge.student_class_V if side == "student" else bridge.teacher_class_V
    return int(classes[list(tokens).index(text)])


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_tokens_write_the_bytes_of_a_text(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    found = token_bytes(tokenizer, "it")
    assert written_bytes(tokenizer, found, PROBE) == PROBE.encode()
    assert found[tokenizer.token_to_id("<|end|>" if make is byte_level else "</s>")] is None


def test_a_vocabulary_that_changes_its_text_or_has_no_bytes_is_refused() -> None:
    lower = byte_level()
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="vocabulary of it cannot be bridged: it does not give back the bytes"):
        token_bytes(lower, "it")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(InputError, match=r"vocabulary of it cannot be bridged: its decoder \(none\)"):
        token_bytes(words, "it")


def test_a_vocabulary_has_a_class_for_each_token_of_its_own() -> None:
    tokenizer = byte_level(" cat", "12")
    bridge = build_bridge(tokenizer, byte_level(" cat", "12"), {0}, {0}, "it")
    assert bridge.is_identity and bridge.classes == tokenizer.get_vocab_size()
    assert bridge.student_class_V.tolist() == bridge.teacher_class_V.tolist() == list(range(bridge.classes))


def test_a_token_without_an_equal_stands_beside_the_first_one_of_its_bytes() -> None:
    bridge = build_bridge(byte_level(" cat", "12", "and"), byte_level(" cat", " catalogue", "an"), {0}, {0}, "it")
    assert not bridge.is_identity
    assert class_of(bridge, "student", b" cat") == class_of(bridge, "teacher", b" cat")
    assert class_of(bridge, "student", b"12") == class_of(bridge, "teacher", b"1") != class_of(bridge, "teacher", b"2")
    assert class_of(bridge, "student", b"and") == class_of(bridge, "teacher", b"a")
    assert class_of(bridge, "teacher", b"an") == class_of(bridge, "student", b"a")
    # its own tokenizer writes " catalogue" as it is, the student as bytes, the first of which is a space
    assert class_of(bridge, "teacher", b" catalogue") == class_of(bridge, "student", b" ")
    assert int(bridge.student_class_V[0]) == int(bridge.teacher_class_V[0]), "ends of turns are one class"


def test_the_tokens_of_a_class_begin_with_the_same_bytes() -> None:
    """Otherwise a class would say nothing of the text that follows."""
    student = load_tokenizer(resolve("builtin") / "tokenizer.json")
    bridge = build_bridge(student, byte_level(" Answer", "and", " that", "thing"), {2}, {0}, "it")
    first: dict[int, set[bytes]] = {}
    for tokens, classes in (
        (bridge.student_bytes, bridge.student_class_V.tolist()),
        (bridge.teacher_bytes, bridge.teacher_class_V.tolist()),
    ):
        for written, number in zip(tokens, classes, strict=True):
            if written:
                first.setdefault(number, set()).add(written[:1])
    assert all(len(found) == 1 for found in first.values())


def test_a_space_of_sentencepiece_is_one_of_bytes() -> None:
    bridge = build_bridge(byte_level(" cab"), sentencepiece("\u2581cab"), {0}, {1}, "it")
    assert class_of(bridge, "student", b" cab") == class_of(bridge, "teacher", b" cab")
    assert class_of(bridge, "student", b"\n") == class_of(bridge, "teacher", b"\n")
    assert int(bridge.student_class_V[0]) == int(bridge.teacher_class_V[1])


def test_tokens_that_were_seen_make_classes_of_their_own() -> None:
    student = byte_level(" cat", " cats", "12")
    seen = [b" cat", b"1", b"2", None]
    bridge = bridge_to_seen(student, seen, {0}, {3}, is_same=False)
    assert class_of(bridge, "student", b" cats") == class_of(bridge, "teacher", b" cat")
    assert class_of(bridge, "student", b"12") == class_of(bridge, "teacher", b"1")
    same = bridge_to_seen(student, seen, {0}, {3}, is_same=True)
    assert class_of(same, "student", b" cats") != class_of(same, "teacher", b" cat")
    assert torch.equal(same.members_C.sort().values.unique(), torch.tensor([1, 2]))


def test_a_teacher_that_cannot_begin_most_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="the vocabulary of it cannot be bridged: only 0% of the student's tokens"):
        build_bridge(byte_level(), _one_letter(), {0}, {0}, "it")


def _one_letter() -> Tokenizer:
    """A vocabulary that passes the probe only because each of its tokens is long."""
    tokenizer = Tokenizer(models.BPE(vocab={"<|end|>": 0, _as_bytes(PROBE): 1}, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def _as_bytes(text: str) -> str:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in splitter.pre_tokenize_str(text))


def test_the_built_in_teacher_can_write_what_any_student_writes(tiny_student: Path) -> None:
    student, teacher = (load_tokenizer(folder / "tokenizer.json") for folder in (tiny_student, resolve("builtin")))
    bridge = build_bridge(student, teacher, {2}, {2}, "builtin")
    has_teacher = set(bridge.teacher_class_V.tolist())
    assert all(
        number in has_teacher
        for number, written in zip(bridge.student_class_V.tolist(), bridge.student_bytes, strict=True)
        if written
    )
