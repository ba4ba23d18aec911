"""Ranges of external data at multiples of 64; the oracle is the onnx library's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.runtime.aligned_data import ALIGNMENT, align_data

PACKED = bytes(range(7)), bytes(range(100, 111))


def entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def unaligned_model(folder: Path) -> onnx.ModelProto:
    """Write a model with two tensors, one of them deep in a branch, and two packed forms, all at odd offsets."""
    arrays: list[NDArray[Any]] = [np.arange(33, dtype=np.uint8), np.linspace(0, 1, 5, dtype=np.float32)]
    tensors = [numpy_helper.from_array(array, f"tensor{i}") for i, array in enumerate(arrays)]
    content = b"???"
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor.data_location = TensorProto.EXTERNAL
        values = {"location": "model.data", "offset": len(content), "length": array.nbytes}
        for key, value in values.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
        content += array.tobytes()
    blobs = []
    for packed in PACKED:
        blobs.append(f"{len(content)};{len(packed)};42")
        content += packed
    tensors[0].external_data.add(key="prepacked_0", value="|".join(["Kernel+17", *blobs]))
    inner = helper.make_graph([helper.make_node("Identity", ["tensor1"], ["y"])], "inner", [], [], [tensors[1]])
    node = helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([node], "outer", [], [], [tensors[0]])
    model = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 21)])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.data").write_bytes(content)
    return model


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")  # onnx knows no packed forms
def test_every_range_keeps_its_bytes_and_gets_an_aligned_place(tmp_path: Path) -> None:
    model = unaligned_model(tmp_path)
    branch = [attribute.g.initializer[0] for attribute in model.graph.node[0].attribute]
    before = [numpy_helper.to_array(tensor, str(tmp_path)) for tensor in [model.graph.initializer[0], *branch]]
    align_data(tmp_path / "model.onnx", tmp_path / "model.data")
    moved = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    tensors = [moved.graph.initializer[0], *(attribute.g.initializer[0] for attribute in moved.graph.node[0].attribute)]
    for tensor, expected in zip(tensors, before, strict=True):
        assert int(entries(tensor)["offset"]) % ALIGNMENT == 0
        np.testing.assert_array_equal(numpy_helper.to_array(tensor, str(tmp_path)), expected)
    kernel, *blobs = entries(tensors[0])["prepacked_0"].split("|")
    content = (tmp_path / "model.data").read_bytes()
    assert kernel == "Kernel+17"
    for blob, packed in zip(blobs, PACKED, strict=True):
        offset, length, checksum = blob.split(";")
        assert int(offset) % ALIGNMENT == 0
        assert content[int(offset) : int(offset) + int(length)] == packed
        assert checksum == "42"
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.data"}


def test_nothing_else_of_the_model_changes(tmp_path: Path) -> None:
    model = unaligned_model(tmp_path)
    align_data(tmp_path / "model.onnx", tmp_path / "model.data")
    moved = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for found in (model, moved):
        inner = [attribute.g.initializer[0] for attribute in found.graph.node[0].attribute]
        for tensor in (found.graph.initializer[0], *inner):
            tensor.ClearField("external_data")
    assert moved == model
