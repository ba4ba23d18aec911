"""Greedy ids of an exported folder by optimum. Stands alone: runs where the project is not installed."""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
sys.path.pop(0)  # this folder, in which this file would hide the library of its name

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main() -> None:
    request = json.load(sys.stdin)
    model = ORTModelForCausalLM.from_pretrained(
        sys.argv[1], file_name="model.onnx", use_cache=True, use_io_binding=False
    )
    answers = []
    for prompt in request["prompts"]:
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request["new_tokens"]
        )
        answers.append(written[0, len(prompt) :].tolist())
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
