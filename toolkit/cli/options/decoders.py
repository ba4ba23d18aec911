"""How a model folder is opened for decoding, whichever of our runtimes it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.generation.generate import Decoder


def open_decoder(folder: Path) -> Decoder:
    """Open a model folder for decoding: an exported one through ONNX Runtime, any other through torch."""
    if (folder / "model.onnx").is_file():
        from export.runtime.decoder import OnnxDecoder

        return OnnxDecoder(folder)
    from toolkit.model.decoder import TorchDecoder

    return TorchDecoder.open(folder)
