"""Names the architectures that can be trained here, and what their heads do besides a product.

Each of them passes `documents` on to the attention (`distill.training.document_attention`), and its logits are the head
times the hidden states, times a number. A test compares the loss of each with that of transformers' own forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.model.flops import GROUPED
from toolkit.records import read_object

STUDENT_TYPES = GROUPED
"""`model_type` of the architectures that can be trained: dense ones, whose operations can be counted."""
MUST_BE = {
    "attn_logit_softcapping": (None, "the documents' attention has no soft caps"),
    "final_logit_softcapping": (None, "the loss is computed without soft caps"),
    "use_bidirectional_attention": (False, "a student attends to what is before"),
    "attention_dropout": (0, "the documents' attention has no dropout"),
}
"""Settings that would change what is computed, each with the value that does not."""


def check_architecture(student: Path) -> None:
    """Raise `InputError` if the student's architecture, or a setting of it, cannot be trained here."""
    settings = read_object(student / "config.json")
    model_type = settings.get("model_type")
    if model_type not in STUDENT_TYPES:
        raise InputError(
            f"the student's architecture ({model_type}) must be one of {', '.join(STUDENT_TYPES)}; choose another "
            "student"
        )
    for name, (wanted, reason) in MUST_BE.items():
        if (found := settings.get(name) or wanted) != wanted:
            raise InputError(
                f"{name} ({found}) in {student / 'config.json'} must be {wanted}, since {reason}; choose another "
                "student, or set it if the model bears that"
            )


def logits_scale(config: Any) -> float:
    """Return the number by which a model multiplies its head's product: Granite divides it, Cohere multiplies it."""
    if config.model_type == "granite":
        return 1.0 / float(config.logits_scaling)
    return float(config.logit_scale) if config.model_type in ("cohere", "cohere2") else 1.0
