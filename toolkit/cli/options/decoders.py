"""Opens a model folder for decoding with the runtime that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.errors import InputError

if TYPE_CHECKING:
    from toolkit.generation.generate import Decoder


def open_decoder(
    folder: Path,
    *,
    cache: Literal["auto", "exact", "int8"] = "auto",
    rank: int = 0,
    traces: Path | None = None,
    load_in: Literal["8bit", "4bit"] | None = None,
) -> Decoder:
    """Open a model folder for decoding: an exported one through ONNX Runtime, any other through torch.

    `cache`: the precision of an exported folder's KV cache, or of a teacher's latents. `rank`: how many numbers each
    latent is projected to, by a projection fitted to `traces`; 0 projects none. `load_in`: the bits that a teacher's
    linear layers are loaded in.
    """
    from toolkit.sources.model_names import is_exported

    if is_exported(folder):
        from export.runtime.decoder import OnnxDecoder

        if load_in:
            from distill.local.quantized import check_load_in

            check_load_in(folder, load_in)
        if rank:
            raise InputError(f"{folder} is an exported model, whose cache cannot be projected; leave --cache-rank out")
        return OnnxDecoder(folder, cache=cache)
    from distill.local.causal_model import open_causal_model
    from toolkit.formats.chat_format import ChatFormat
    from toolkit.model.decoder import LatentCache
    from toolkit.model.latent_basis import trace_rows

    rows = [ids for ids, _ in trace_rows(traces, ChatFormat.from_folder(folder))] if traces else []
    kept = LatentCache(int8=cache == "int8", rank=rank, calibration=rows)
    return open_causal_model(folder, cache=kept, load_in=load_in)
