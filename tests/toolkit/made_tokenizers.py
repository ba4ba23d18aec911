"""Makes some thirty small tokenizers of the kinds that models have, each as a folder that transformers reads too.

    byte-level BPE     GPT-2's way of splitting, Qwen's, Llama 3's (whole words first), DeepSeek's single digits
    SentencePiece-like BPE with byte fallback and Unigram, whose spaces are put before texts by each known rule
    WordPiece, words   lower case, splitting at white space alone, control tokens in the vocabulary itself

Added tokens come with every flag that the library knows, at ids with gaps, in the vocabulary or behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<｜User｜>{{ message['content'] }}{% "
    "else %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<｜Assistant｜>{{ content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == "
    "'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ message['content'] | upper }} [/INST]{% endif %}{% endfor %}"
)
QWEN_3 = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if content.startswith('<tool_response>') %}<|im_start|>tool\n{% else "
    "%}<|im_start|>{{ message['role'] }}\n{% endif %}"
    "{{ content.strip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "r1": R1, "llama3": LLAMA_3, "mistral": MISTRAL, "qwen3": QWEN_3}
CONTROL = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "r1": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_0|>",
    ],
    "mistral": ["<s>", "</s>", "<unk>", "[INST]", "[/INST]"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>"],
}
ENDS = {"chatml": 2, "r1": 1, "llama3": 1, "mistral": 1, "qwen3": 2}
NOT_SPECIAL = ("<think>", "</think>", "<tool_response>")
SAMPLE = [
    "How many times does the letter appear in the text? The answer is 42, and 17 + 25 = 42.",
    "def f(x):\n    return x ** 2\n\nint a[i] += b[i]; <b>bold</b> naïve straße 你好 Привет",
    "system user assistant im_start im_end think User Assistant INST eot_id s < > | [ ] / <| |> </",
]
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Flags = dict[str, bool]


def byte_level(pattern: str, *, digits: bool = False, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    splits: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    splits += [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SAMPLE, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def sentence_piece(prefix: str) -> Tokenizer:
    """Make a BPE tokenizer with byte fallback; `prefix`: legacy, first, always or never."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(SAMPLE, trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False))
    state = json.loads(trained.to_str())
    vocab, merges = state["model"]["vocab"], [tuple(merge) for merge in state["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prefix == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return tokenizer


def unigram(prefix: str, *, control: Sequence[str], nfkc: bool) -> Tokenizer:
    """Make a Unigram tokenizer; `control`: tokens in the model's own vocabulary, as in T5 and XLM-R."""
    letters = sorted({char for text in SAMPLE for char in text.replace(" ", "▁")} | set("".join(control)))
    words = ["▁the", "▁answer", "▁is", "▁system", "im", "start", "end", "<|", "|>", "</", "▁<"]
    pieces = [
        *((text, 0.0) for text in ["<unk>", *control]),
        *((w, -3.0) for w in words),
        *((c, -6.0) for c in letters),
    ]
    tokenizer = Tokenizer(models.Unigram(list(dict(pieces).items()), 0, byte_fallback=False))
    if nfkc:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    return tokenizer


def word_piece(*, split_signs: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if split_signs else pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        SAMPLE, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<|im_end|>"], show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return tokenizer


PLAIN: Flags = {}
STRIPS: Flags = {"lstrip": True, "rstrip": True}
NORMALIZED: Flags = {"normalized": True}

KINDS: dict[str, tuple[Callable[[], Tokenizer], str, Flags, int]] = {
    "gpt2": (lambda: byte_level(GPT_2), "chatml", PLAIN, 0),
    "gpt2-strips": (lambda: byte_level(GPT_2), "chatml", STRIPS, 0),
    "gpt2-normalized": (lambda: byte_level(GPT_2), "chatml", NORMALIZED, 0),
    "gpt2-gaps": (lambda: byte_level(GPT_2), "qwen3", PLAIN, 7),
    "qwen": (lambda: byte_level(LLAMA, digits=True), "qwen3", PLAIN, 0),
    "qwen-strips": (lambda: byte_level(LLAMA, digits=True), "qwen3", STRIPS, 0),
    "smollm": (lambda: byte_level(GPT_2, digits=True), "llama3", PLAIN, 0),
    "deepseek": (lambda: byte_level(LLAMA, digits=True), "r1", PLAIN, 0),
    "deepseek-gaps": (lambda: byte_level(LLAMA, digits=True), "r1", PLAIN, 3),
    "deepseek-normalized": (lambda: byte_level(LLAMA), "r1", NORMALIZED, 0),
    "llama3": (lambda: byte_level(LLAMA, ignore_merges=True), "llama3", PLAIN, 0),
    "llama3-strips": (lambda: byte_level(LLAMA, ignore_merges=True), "llama3", STRIPS, 0),
    "llama3-gaps": (lambda: byte_level(LLAMA, ignore_merges=True), "llama3", PLAIN, 11),
    "tekken": (lambda: byte_level(LLAMA), "mistral", PLAIN, 0),
    "llama2-legacy": (lambda: sentence_piece("legacy"), "mistral", PLAIN, 0),
    "llama2-first": (lambda: sentence_piece("first"), "mistral", PLAIN, 0),
    "llama2-always": (lambda: sentence_piece("always"), "mistral", PLAIN, 0),
    "llama2-never": (lambda: sentence_piece("never"), "mistral", PLAIN, 0),
    "llama2-chatml": (lambda: sentence_piece("first"), "chatml", PLAIN, 0),
    "llama2-strips": (lambda: sentence_piece("legacy"), "chatml", STRIPS, 0),
    "llama2-r1": (lambda: sentence_piece("legacy"), "r1", PLAIN, 5),
    "phi3": (lambda: sentence_piece("legacy"), "llama3", {"rstrip": True}, 0),
    "unigram": (lambda: unigram("first", control=[], nfkc=False), "chatml", PLAIN, 0),
    "t5": (lambda: unigram("always", control=["<s>", "</s>"], nfkc=True), "mistral", PLAIN, 0),
    "xlm-r": (lambda: unigram("always", control=CONTROL["chatml"], nfkc=True), "chatml", PLAIN, 0),
    "xlm-r-normalized": (lambda: unigram("first", control=CONTROL["qwen3"], nfkc=True), "qwen3", NORMALIZED, 0),
    "bert": (lambda: word_piece(split_signs=True), "chatml", PLAIN, 0),
    "bert-whole": (lambda: word_piece(split_signs=False), "chatml", PLAIN, 0),
    "bert-normalized": (lambda: word_piece(split_signs=True), "llama3", NORMALIZED, 0),
    "words": (words, "chatml", PLAIN, 0),
}


def write_folder(kind: str, folder: Path) -> None:
    """Write the tokenizer's files of one kind."""
    make, template, flags, gap = KINDS[kind]
    tokenizer = make()
    tokenizer.add_tokens([AddedToken(f"<gap {i}>", normalized=False) for i in range(gap)])
    tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("strawberry", single_word=True)])
    for text in CONTROL[template]:
        token = AddedToken(text, **{"normalized": False, "special": text not in NOT_SPECIAL} | flags)
        tokenizer.add_tokens([token])
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<gap")]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    control = CONTROL[template]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": control[0],
        "eos_token": control[ENDS[template]],
        "chat_template": TEMPLATES[template],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
