"""Exports a checkpoint by optimum. Stands alone: runs where the project is not installed, with older libraries.

    python -I optimum_program.py FOLDER OUT CALLER     writes OUT/model.onnx and the files of its weights

Where that cannot be, the last line on stderr says why, and the exit code is 1. No code of the checkpoint is run,
nothing is fetched, and a tensor that the older transformers would fill with random numbers is refused. On Linux it ends
with its caller, a process id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}  # before the imports, which read them

TASK = "text-generation-with-past"
OPSET = 18
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def main() -> None:
    folder, out, caller = sys.argv[1:]
    end_with(int(caller))
    warnings.filterwarnings("ignore")
    sys.excepthook = in_one_line
    export(folder, out)


def end_with(caller: int) -> None:
    """Let Linux kill this process when its caller ends, be it by `kill -9`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != caller:
            sys.exit(f"the process {caller}, which it was to end with, has ended")


def in_one_line(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an error without its traceback; torch, transformers and optimum each raise their own."""
    sys.stderr.write(f"{kind.__name__}: {' '.join(str(error).split())}\n")


def positions_given() -> None:
    """Let Gemma's graphs, and those like them, take positions as the others do; alone they count the columns of the
    cache, which are no positions in a row that is padded."""
    from optimum.exporters.onnx.config import TextDecoderOnnxConfig
    from optimum.exporters.onnx.model_configs import GemmaOnnxConfig

    def inputs(self: Any) -> Any:
        return {**TextDecoderOnnxConfig.inputs.fget(self), "position_ids": {0: "batch_size", 1: "sequence_length"}}

    GemmaOnnxConfig.inputs = property(inputs)


def export(folder: str, out: str) -> None:
    """Write the graph of a folder's model."""
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoConfig, AutoModelForCausalLM

    given = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **given)
    known = TasksManager._LIBRARY_TO_SUPPORTED_MODEL_TYPES["transformers"]
    if TASK not in known.get(config.model_type, {}).get("onnx", {}):
        names = sorted(name for name, exporters in known.items() if TASK in exporters.get("onnx", {}))
        sys.exit(f"it generates text with {', '.join(names)}, and not with {config.model_type}")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # the others leave out the caps of Gemma 2's scores
        use_safetensors=True,
        output_loading_info=True,
        **given,
    )
    for what, names in found.items():
        if names:
            sys.exit(f"its transformers reads the checkpoint with {what.replace('_', ' ')}: {min(map(str, names))}")
    model.config.use_cache = True
    positions_given()
    onnx_export_from_model(model.eval(), out, opset=OPSET, task=TASK, do_validation=False, no_post_process=True)


if __name__ == "__main__":
    main()
