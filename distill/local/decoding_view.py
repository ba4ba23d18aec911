"""Lets a model decode while it is trained, with its weights where they are.

Training replaces a model's forward by one that returns a loss, and its attention by that of documents; what decodes is
a second view of the same modules, whose forward is that of a causal language model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.local import grouped_attention
from toolkit.errors import InputError


class NotFinite(InputError):
    """A model gives no numbers, so nothing can be drawn."""


def decoding_view(causal_lm: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """Return the view. `tokens`: the ids of the tokenizer, which alone may be written; other rows are padding."""
    view: Any = copy.copy(causal_lm)  # the same modules and weights
    vars(view)["forward"] = partial(_forward, view, tokens)
    found: PreTrainedModel = view
    return found


@contextmanager
def decoding(causal_lm: PreTrainedModel) -> Iterator[None]:
    """Let a model decode within the context: in eval mode, with the attention of decoders."""
    attention, was_training = causal_lm.config._attn_implementation, causal_lm.training
    causal_lm.eval()
    causal_lm.set_attn_implementation(grouped_attention.NAME)
    try:
        with torch.inference_mode():
            yield
    finally:
        causal_lm.set_attn_implementation(attention)
        causal_lm.train(was_training)


def _forward(view: Any, tokens: int, *args: Any, **kwargs: Any) -> Any:
    output = type(view).forward(view, *args, **kwargs)
    output.logits = output.logits[..., :tokens]
    if not bool(output.logits.isfinite().all()):
        raise NotFinite(
            "the student's logits are not finite numbers; lower the learning rate, or get its weights again"
        )
    return output
