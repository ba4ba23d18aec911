"""Each matrix gets the bits and block size that its rows allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.checkpoint.model_config import ModelConfig
from export.checkpoint.rope import Rope
from export.quantization.layout import Layout, layouts
from toolkit.errors import InputError

SMOLLM2 = ModelConfig(
    architecture="LlamaForCausalLM",
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    sliding_windows=(0,) * 30,
    ropes=(Rope(inv_freq=(1.0,) * 32),) * 30,
    attention_multiplier=0.125,
)


def test_rows_that_the_block_size_does_not_divide_get_the_next_smaller_one() -> None:
    chosen = layouts(SMOLLM2, bits=4, block_size=128, head_bits=8)
    assert chosen["model.layers.29.mlp.down_proj.weight"] == Layout(bits=4, block_size=128)
    assert chosen["model.layers.0.self_attn.qkv_proj.weight"] == Layout(bits=4, block_size=64)
    assert len(chosen) == 4 * 30 + 1


def test_narrow_modules_have_three_bits_where_their_rows_are_whole_blocks_of_256() -> None:
    chosen = layouts(SMOLLM2, bits=4, block_size=256, head_bits=4, narrow=("mlp.gate_up_proj", "mlp.down_proj"))
    assert chosen["model.layers.7.mlp.down_proj.weight"] == Layout(bits=3, block_size=256)
    assert chosen["model.layers.7.mlp.gate_up_proj.weight"] == Layout(bits=4, block_size=64)
    assert chosen["model.layers.7.self_attn.qkv_proj.weight"] == Layout(bits=4, block_size=64)


def test_a_tied_embedding_has_the_bits_of_the_head_and_another_four() -> None:
    assert layouts(SMOLLM2, bits=4, block_size=32, head_bits=8)["model.embed_tokens.weight"] == Layout(
        bits=8, block_size=32
    )
    untied = layouts(replace(SMOLLM2, tie_word_embeddings=False), bits=4, block_size=32, head_bits=8)
    assert untied["model.embed_tokens.weight"].bits == 4
    assert untied["lm_head.weight"].bits == 8


def test_rows_that_no_block_size_divides_are_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"rows of mlp.down_proj \(1500 values\) must be a multiple of 32, .*; export with --fp16 or --fp32",
    ):
        layouts(
            replace(SMOLLM2, intermediate_size=1500, tie_word_embeddings=False), bits=4, block_size=128, head_bits=8
        )
