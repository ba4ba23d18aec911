"""Our operator adds to each row its own adapter's change, as plain numpy does, whatever is beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.graph.model_graph import IR_VERSION, OPSET
from export.graph.nodes import OURS
from export.runtime.adapted_graph import LOW_RANK
from export.runtime.kernels.library import choose, kernels_here, kernels_library, kernels_name
from export.runtime.session import open_session

OWN = kernels_here() if kernels_library() else ()
SHAPES: list[tuple[int, int, int, list[int], int]] = [
    (1, 1, 64, [48], 8),
    (3, 1, 37, [45], 5),
    (2, 9, 64, [61, 96, 130], 16),
    (1, 70, 96, [530, 1200], 13),
    (4, 33, 20, [3, 7], 1),
    (1, 1, 2048, [2048, 2560, 3072], 16),
]
"""Rows, tokens, inputs, the ends of the outputs of each matrix, their rank; not all of them are whole vectors."""
NUMBERS = [2, 0, 1, 2]


def opened(path: Path, kernels: str) -> ort.InferenceSession:
    """Open a graph of the one operator."""
    shapes: dict[str, list[int | str]] = {
        "unchanged": ["B", "T", "N"],
        "x": ["B", "T", "K"],
        "down": ["A", "R", "K"],
        "up": ["A", "L", "N"],
        "adapters": ["B"],
        "ends": ["P"],
    }
    types = dict.fromkeys(("adapters", "ends"), TensorProto.INT64)
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in shapes.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["unchanged"])
    node = helper.make_node(LOW_RANK, [*shapes], ["y"], domain=OURS)
    opsets = [helper.make_opsetid(*domain) for domain in {"": OPSET, OURS: 1}.items()]
    graph = helper.make_graph([node], "low_rank", inputs, [output])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), path)
    before = kernels_name()
    choose(kernels)
    try:
        return open_session(path, threads=2)
    finally:
        choose(before)


def random_feeds(rows: int, tokens: int, columns: int, ends: list[int], rank: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(rows)
    outputs = ends[-1]
    shapes = {
        "unchanged": (rows, tokens, outputs),
        "x": (rows, tokens, columns),
        "down": (2, rank * len(ends), columns),
        "up": (2, rank, outputs),
    }
    feeds: dict[str, NDArray[Any]] = {
        name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    return feeds | {"adapters": np.array(NUMBERS[:rows]), "ends": np.array(ends)}


@pytest.mark.parametrize("kernels", OWN)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_gets_its_own_change(
    kernels: str, shape: tuple[int, int, int, list[int], int], tmp_path: Path
) -> None:
    session, feeds = opened(tmp_path / "model.onnx", kernels), random_feeds(*shape)
    [found_BTN] = session.run(["y"], feeds)
    for row, number in enumerate(feeds["adapters"]):
        expected_TN = feeds["unchanged"][row].astype(np.float64)
        if number:
            h_TR = feeds["x"][row].astype(np.float64) @ feeds["down"][number - 1].T
            rank, begin = feeds["up"].shape[1], 0
            for place, end in enumerate(feeds["ends"]):
                h_TL = h_TR[:, place * rank : (place + 1) * rank]
                expected_TN[:, begin:end] += h_TL @ feeds["up"][number - 1][:, begin:end]
                begin = end
        np.testing.assert_allclose(found_BTN[row], expected_TN, rtol=1e-4, atol=1e-4 * np.abs(expected_TN).max())
        if not number:
            np.testing.assert_array_equal(found_BTN[row], feeds["unchanged"][row])


@pytest.mark.parametrize("kernels", OWN)
def test_a_token_alone_has_the_same_bits_as_among_others(kernels: str, tmp_path: Path) -> None:
    session, feeds = opened(tmp_path / "model.onnx", kernels), random_feeds(4, 37, 70, [50, 90], 11)
    [found_BTN] = session.run(["y"], feeds)
    for row in range(4):
        for token in (0, 5, 36):
            alone = {name: feeds[name][row : row + 1, token : token + 1] for name in ("unchanged", "x")}
            alone |= {name: feeds[name] for name in ("down", "up", "ends")}
            alone |= {"adapters": feeds["adapters"][row : row + 1]}
            np.testing.assert_array_equal(session.run(["y"], alone)[0][0, 0], found_BTN[row, token])


def test_an_adapter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    if not OWN:
        pytest.skip("our kernels don't run here")
    session, feeds = opened(tmp_path / "model.onnx", OWN[0]), random_feeds(1, 1, 8, [8], 2)
    with pytest.raises(Exception, match="adapter must be one of the graph's"):
        session.run(["y"], feeds | {"adapters": np.array([3])})
