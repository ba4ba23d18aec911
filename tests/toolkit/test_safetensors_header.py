"""A header that is written by hand is the library's; the oracle is the library's own reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import InputError
from toolkit.sources.safetensors_header import read_header, write_header


def test_the_library_reads_what_follows_a_header_of_ours(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).bfloat16(), "b.weight": torch.ones(5).bfloat16()}
    with (tmp_path / "ours").open("wb") as file:
        size = write_header(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        assert size == sum(tensor.nbytes for tensor in tensors.values())
        for tensor in tensors.values():
            file.write(tensor.view(torch.int16).numpy().tobytes())
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_header_of_the_library_says_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4).to(torch.int8)}
    save_file(tensors, path)
    for name, facts in read_header(path).items():
        assert facts.shape == tuple(tensors[name].shape)
        content = path.read_bytes()[facts.offset : facts.offset + tensors[name].nbytes]
        assert content == tensors[name].numpy().tobytes()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"theirs \(\d+ bytes\) must be a whole safetensors file"):
        read_header(path)
