"""Builds the tokenizer that a GGUF's metadata describes.

Byte-level ones (`gpt2`) merge within the pieces that a pre-tokenizer makes, which the metadata only names; each here
splits as llama.cpp's entry of that name does. SentencePiece's (`llama`) merge pieces by their scores; a list of merges
in the order of these scores does the same. transformers' own GGUF loading forgets to split digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from toolkit.errors import InputError
from toolkit.sources.gguf_header import Facts

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Values of `tokenizer.ggml.token_type` (GGUF specification): text is split at control and user-defined tokens before
merging."""
PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")
"""The added tokens of Phi-3's SentencePiece behind which white space stays; no fact says it, and llama.cpp goes by the
model's name."""
SPACE = "▁"
"""What SentencePiece writes for a space."""
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
LLAMA_3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
CAPITALS, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_WORDS = "|".join(
    rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}{most}{SMALL}{least}{CONTRACTIONS}?" for most, least in ("*+", "+*")
)
"""Words that end before a capital, such as the two of `HelloWorld`."""
SPLITS: Mapping[str, str] = {
    "dbrx": LLAMA_3,
    "gpt-4o": rf"{CASED_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    "llama-bpe": LLAMA_3,
    "qwen2": rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}",
}
"""The pieces that some pre-tokenizers make (llama.cpp's table of `tokenizer.ggml.pre`)."""


def build_tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """Raises `InputError` if the tokenizer is of another kind, or its parts do not fit together."""
    kind, pre = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    if len(set(tokens)) != len(tokens) or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise InputError(f"the {len(tokens)} tokens of the GGUF file must be distinct, each with a type; get it again")
    if kind == "gpt2" and pre in ("smollm", *SPLITS):
        tokenizer = _byte_level(tokens, facts["tokenizer.ggml.merges"], str(pre))
    elif kind == "llama":
        tokenizer = _sentencepiece(facts, tokens, kinds)
    else:
        raise InputError(
            f"the GGUF tokenizer {kind!s:.60} with {pre!s:.60} is not supported, only llama, and gpt2 with "
            f"smollm, {', '.join(SPLITS)}; take the model's safetensors"
        )
    strips = kind == "llama" and facts.get("general.architecture") == "phi3"
    added = [
        (each, AddedToken(t, special=each == CONTROL, normalized=False, rstrip=strips and t not in PHI3_KEEPS))
        for t, each in zip(tokens, kinds, strict=True)
        if each in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for each, token in added if each == CONTROL])
    tokenizer.add_tokens([token for each, token in added if each == USER_DEFINED])
    return tokenizer


def _byte_level(tokens: list[str], merges: Any, pre: str) -> Tokenizer:
    try:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"each merge of the GGUF file must be two tokens: {error!s:.200}; get it again") from None
    tokenizer = Tokenizer(_merging(tokens, pairs))
    if pre == "smollm":
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated")
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(facts: dict[str, Any], tokens: list[str], kinds: list[int]) -> Tokenizer:
    scores: Any = facts["tokenizer.ggml.scores"]
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InputError(f"each of the {len(tokens)} tokens of the GGUF file must have a score; get it again")
    places = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for i in sorted(range(len(tokens)), key=lambda i: (-scores[i], i)):
        if kinds[i] in (UNKNOWN, CONTROL, BYTE):
            continue
        token = tokens[i]
        halves = ((token[:j], token[j:]) for j in range(1, len(token)))
        found = [(left, right) for left, right in halves if left in places and right in places]
        merges += sorted(found, key=lambda pair: (places[pair[0]], places[pair[1]]))
    unknown = tokens[Facts(facts).token_id("tokenizer.ggml.unknown_token_id")]
    tokenizer = Tokenizer(_merging(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", SPACE)]
    if facts.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))  # type: ignore[arg-type]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    undone = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if facts.get("tokenizer.ggml.add_space_prefix", True):
        undone.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undone)
    return tokenizer


def _merging(tokens: list[str], pairs: list[tuple[str, str]], **settings: Any) -> models.BPE:
    try:
        return models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, **settings)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 – the library raises Exception itself, and panics
        raise InputError(
            f"each merge of the GGUF file must join two of its tokens: {error!s:.200}; get it again"
        ) from None
