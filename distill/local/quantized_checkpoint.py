"""Writes a model folder with its linear layers in 4 or 8 bits, as bitsandbytes and transformers store them.

    out/
    ├── config.json                     with `quantization_config`, so that `from_pretrained` needs nothing else
    ├── model*.safetensors              codes and scales: what quantizing on load would make
    ├── tokenizer.json  chat_template.jinja  generation_config.json …     as the model has them
    ├── README.md                       the model card
    └── manifest.json

Which layers are quantized and how: `distill.local.quantized`. What is not is saved in bf16, or in fp16 as the model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from distill.local.causal_model import check_causal, devices
from distill.local.needs import check_room, needs_of
from distill.local.quantized import LoadIn, quantization_settings, quantized_layers
from toolkit.errors import InputError
from toolkit.model.decoder import free_bytes
from toolkit.model.loading import load_whole, quantization
from toolkit.records import read_object
from toolkit.runs import Stage, check_out, finish, folder_digest, is_complete, partial_folder, replace_text, say_done
from toolkit.sources.made_card import CARD as CARD_FILE
from toolkit.sources.made_card import base_lines, base_of, license_sentence, results_block, shown
from toolkit.sources.model_names import is_exported, resolve
from toolkit.terminal import say

KEPT = ("tokenizer*", "vocab.*", "merges.txt", "*.jinja", "special_tokens_map.json", "added_tokens.json")
"""Files of a model that its quantized copy has too, by their names' patterns."""
KEPT_TOO = ("generation_config.json", "trained_on.json", "LICENSE*", "NOTICE*")
METHODS = {
    "4bit": "NF4 in blocks of 64 with double quantization",
    "8bit": "int8 with a scale for each row",
}
CARD = """---
{base}
base_model_relation: quantized
library_name: transformers
pipeline_tag: text-generation
tags: [bitsandbytes, {load_in}]
---
# {name} in {load_in}

The linear layers of `{model}` in {method}, by bitsandbytes; embeddings, head and norms are as they were.
{quantized:,} of its {parameters:,} weights are quantized; all take {bytes:.1f} MB.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")  # needs bitsandbytes
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

## Results

{results}

{licence} It cannot be trained further; `toolkit export` takes it, as faithful as its few bits are.
"""


def quantize(model: str, out: Path, load_in: LoadIn) -> dict[str, Any]:
    """Write the quantized copy of a model, or do nothing if `out` holds it already; return the manifest's measurements.

    Raises `InputError` if the model is quantized or exported, or if memory or disk have no room for it.
    """
    check_out(out)
    folder = resolve(model)
    _check(folder)
    stage = Stage(
        name="quantize", config={"load_in": load_in}, inputs={"model": folder_digest(folder)}, names={"model": model}
    )
    if is_complete(out, stage):
        say_done(out)
        return dict(read_object(out / "manifest.json")["measured"])
    dtype = _stored_dtype(folder)
    empty = load_whole(AutoModelForCausalLM, folder, device_map="meta")
    layers = quantized_layers(empty, load_in)
    if not layers:
        raise InputError(f"no layer of {folder} can be quantized to {load_in}: its rows are no multiple of 64 weights")
    needs = needs_of(empty, folder, dtype, load_in)
    check_room(folder, needs, load_in, free_bytes())
    partial = partial_folder(out, stage)
    if needs.weights > (free := shutil.disk_usage(partial).free):
        raise InputError(
            f"the quantized weights need {needs.weights / 1e9:.1f} GB on the disk of {out}, which has {free / 1e9:.1f} "
            "GB free; free some, or choose another --out"
        )
    say(f"quantize: {len(layers)} layers of {model} to {load_in}")
    settings = quantization_settings(empty, load_in, dtype)
    loaded = load_whole(AutoModelForCausalLM, folder, dtype=dtype, device_map=devices(), **settings)
    loaded.save_pretrained(partial)
    for pattern in KEPT + KEPT_TOO:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, partial / path.name)
    measured = {
        "parameters": sum(parameter.numel() for parameter in empty.parameters()),
        "quantized_parameters": sum(layer.weight.numel() for layer in layers.values()),
        "bytes": sum(path.stat().st_size for path in partial.glob("*.safetensors")),
    }
    finish(partial, out, stage, measured)
    replace_text(out / CARD_FILE, _card(model, folder, load_in, measured))
    return measured


def _check(folder: Path) -> None:
    if is_exported(folder):
        raise InputError(
            f"{folder} is an exported model, whose weights are quantized already; choose the model that it was made "
            "from"
        )
    check_causal(folder)
    if method := quantization(folder):
        raise InputError(f"{folder} is quantized already (by {method}); choose the model that it was made from")


def _stored_dtype(folder: Path) -> torch.dtype:
    config = read_object(folder / "config.json")
    stored = config.get("dtype", config.get("torch_dtype"))
    return torch.float16 if stored == "float16" else torch.bfloat16


def _card(model: str, folder: Path, load_in: LoadIn, measured: dict[str, Any]) -> str:
    base = base_of(folder, model)
    return CARD.format(
        base="\n".join(base_lines(base)),
        licence=license_sentence(base),
        results=results_block(),
        model=shown(model),
        name=Path(model).name,
        load_in=load_in,
        method=METHODS[load_in],
        quantized=measured["quantized_parameters"],
        parameters=measured["parameters"],
        bytes=measured["bytes"] / 1e6,
    )
