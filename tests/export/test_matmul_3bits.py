"""With three bits a weight, our kernels and onnxruntime's compute what the codes stand for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.matmul_3bits import INPUTS, matmul_3bits
from export.graph.model_graph import IR_VERSION, OPSET
from export.graph.nodes import MICROSOFT, OURS, THREE_BITS
from export.pipeline import export_model
from export.presets import int4_config
from export.quantization.codes import dequantize, quantize_nearest
from export.runtime.decoder import OnnxDecoder
from export.runtime.kernels.library import kernels_library
from export.runtime.session import open_session
from toolkit.errors import InputError

needs_kernels = pytest.mark.skipif(not kernels_library(), reason="none run here")
own_kernels = pytest.mark.parametrize("own", [pytest.param(True, marks=needs_kernels), False])
K = 768


def write_product(path: Path) -> NDArray[np.float32]:
    """Write a product with three bits; returns the weight_NK of its codes."""
    weight_NK = np.random.default_rng(0).normal(size=(50, K)).astype(np.float32)
    weight = quantize_nearest(weight_NK, bits=3, block_size=256)
    tensors: dict[str, NDArray[Any]] = {
        "codes": weight.codes,
        "scales": weight.scales,
        "zero_points": weight.zero_points,
    }
    node = helper.make_node(
        THREE_BITS, [name if name in ("x", *tensors) else "" for name in INPUTS], ["y"], domain=OURS, K=K, N=50
    )
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, size]) for name, size in (("x", K), ("y", 50))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph([node], "product", floats[:1], floats[1:], constants)
    opsets = [helper.make_opsetid(*domain) for domain in {"": OPSET, MICROSOFT: 1, OURS: 1}.items()]
    functions = [matmul_3bits(OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION), path)
    return dequantize(weight)


@own_kernels
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_product_is_that_of_the_weights_that_the_codes_say(own: bool, rows: int, tmp_path: Path) -> None:
    weight_NK = write_product(tmp_path / "model.onnx")
    x_TK = np.random.default_rng(1).integers(-127, 128, (rows, K)).astype(np.float32)
    x_TK[:, ::256] = 127  # so that rounding them to eight bits changes nothing
    [found] = open_session(tmp_path / "model.onnx", threads=2, own_kernels=own).run(["y"], {"x": x_TK[None]})
    expected_TN = x_TK @ weight_NK.T
    np.testing.assert_allclose(found[0], expected_TN, atol=1e-5 * np.abs(expected_TN).max(), rtol=0)


@needs_kernels
def test_a_session_takes_our_operator_which_refuses_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    """onnxruntime's own kernels, which the function calls, would not refuse it."""
    write_product(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    for attribute in model.graph.node[0].attribute:
        attribute.i = 700 if attribute.name == "K" else attribute.i
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="K must be a multiple of 256"):
        open_session(tmp_path / "model.onnx", threads=2)


def test_fast_has_three_bits_in_its_mlps_alone(fast: Path) -> None:
    nodes = onnx.load(fast / "model.onnx", load_external_data=False).graph.node
    weights = {kind: [n.input[1] for n in nodes if n.op_type == kind] for kind in (THREE_BITS, "MatMulNBits")}
    assert len(weights[THREE_BITS]) == 2 * 2
    assert all(".mlp." in name for name in weights[THREE_BITS])
    assert not any(".mlp." in name for name in weights["MatMulNBits"])


@needs_kernels
def test_a_model_of_three_bits_says_the_same_with_either_kernels(fast: Path) -> None:
    ours, theirs = (OnnxDecoder(fast, cache="exact", own_kernels=own) for own in (True, False))
    prompt = np.random.default_rng(2).integers(3, 320, 50).tolist()
    found_V, expected_V = (decoder.start([prompt])[0] for decoder in (ours, theirs))
    np.testing.assert_allclose(found_V, expected_V, atol=0.02 * np.abs(expected_V).max())


MEMORY = """
import sys
from pathlib import Path
import psutil
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
before = psutil.Process().memory_info().rss
decoder = OnnxDecoder(Path(sys.argv[1]), own_kernels=False)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc is meant")
def test_what_widening_for_onnxruntime_s_kernels_took_is_given_back(
    deep_student: Path, traces: Path, tmp_path: Path
) -> None:
    """It runs in a process of its own, whose heap nothing else has grown."""
    config = int4_config(deep_student, tmp_path / "int4", preset="fast", calibration=traces, method="nearest")
    export_model(replace(config, bounds=None))
    widened_bytes = 16 * 3 * 512 * 2048 // 2
    command = [sys.executable, "-c", MEMORY, str(config.out)]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used < 3 * widened_bytes
