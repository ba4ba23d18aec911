"""Small real objects that many tests share, made once per session."""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False"
)

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True, database=None)  # no test asserts on time
settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one process, for `--dist loadgroup`, the tests of a file and all those of the dearest shared object."""
    for item in items:
        together = "taught" if "taught" in getattr(item, "fixturenames", ()) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random two-layer Llama with tied embeddings, its own byte-level tokenizer and the reasoning template."""
    return write_tiny_student(tmp_path_factory.mktemp("models") / "tiny_student", context=512)


def write_tiny_student(folder: Path, *, context: int) -> Path:
    """Write the model of `tiny_student` with a context of this many positions."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    from toolkit.formats.chat_format import REASONING_TEMPLATE, TURN_END, TURN_START, write_chat_files

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["How many times does the letter appear in the text? The answer is"], trainer)
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
