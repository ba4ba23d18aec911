"""The GGUF that is written to compare with llama.cpp holds the checkpoint's own weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.peers.gguf_writer import write_gguf
from tests.processes import modules_loaded_by
from toolkit.sources.gguf_checkpoint import write_checkpoint


def test_a_written_gguf_reads_back_as_the_checkpoint(tiny_student: Path, tmp_path: Path) -> None:
    write_gguf(tiny_student, tmp_path / "model.gguf")
    again = tmp_path / "again"
    again.mkdir()
    write_checkpoint(tmp_path / "model.gguf", again)
    written, read = load_file(tiny_student / "model.safetensors"), load_file(again / "model.safetensors")
    assert written.keys() == read.keys()
    for name, tensor in written.items():
        stored = tensor.half() if tensor.dim() > 1 else tensor.float()  # matrices in fp16, norms in fp32
        assert read[name].dtype == stored.dtype and torch.equal(stored, read[name]), name
    template = (tiny_student / "chat_template.jinja").read_text()
    assert (again / "chat_template.jinja").read_text() == template


def test_llama_cpp_is_measured_in_a_process_without_torch_and_without_our_reader_of_its_file() -> None:
    loaded = modules_loaded_by("import export.runtime.bench, export.runtime.llama_cpp")
    assert not {"torch", "gguf", "transformers"} & loaded
