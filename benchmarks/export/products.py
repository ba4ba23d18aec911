"""Measures the kernels of each instruction set that this machine runs: one row against the memory, prompts in GFLOP/s.

    python -m benchmarks.export.products [--rounds 5] [--threads 2] [--bits 4 3 8] [--kernels avx2 onnxruntime]
    python -m benchmarks.export.products --folder DIR [--rounds 5] [--contexts 128 512 2048] [--kernels avx2 …]

The matrices are random, in the shapes of SmolLM2-1.7B's MLP (2,048 → 8,192 and 8,192 → 2,048), in blocks of 256 and
more of them than any cache holds, so that one row reads them all from memory. In each round the machine's read
bandwidth is measured with the same threads, then each kind of kernels; rounds begin with another kind each. Figures are
medians over the rounds, and a share is the median of the rounds' shares. What is read are codes, scales and zero points
as they are in the file; onnxruntime widens three bits to four, so its row has none. With `--folder` an exported folder
decodes with each kind of kernels instead, in turns too. Each form writes a block of docs/explanation/running.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.matmul_3bits import matmul_3bits
from export.graph.model_graph import IR_VERSION, OPSET
from export.graph.nodes import INT8_ACTIVATIONS, MICROSOFT, OURS, THREE_BITS
from export.runtime.bench import read_bandwidth
from export.runtime.decoder import OnnxDecoder
from export.runtime.kernels.library import SCALAR, THEIRS, choose, kernels_here, kernels_library, kernels_name
from export.runtime.session import open_session
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table
from toolkit.machine.allowance import physical_cores

DOCUMENT = Path("docs/explanation/running.md")
SHAPES = ((8192, 2048), (2048, 8192))
"""Rows and columns of the matrices."""
PAIRS = 12
"""Matrices of each shape; with four bits they take 200 MB."""
BLOCK_SIZE = 256
PROMPT_ROWS = 128
MEASURED_S = 0.5
"""How long each figure of a round is measured."""
NEW_TOKENS = 64


@dataclass(kw_only=True)
class Figures:
    """One kind of kernels with one number of bits, a value for each round."""

    bytes_per_s: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    """Of the bandwidth that was measured in the same round."""
    prompt_flop_per_s: list[float] = field(default_factory=list)


def write_products(bits: int, path: Path) -> int:
    """Write a graph of independent products; returns the bytes that one row reads."""
    rng = np.random.default_rng(0)
    nodes, tensors, read_bytes = [], [], 0
    for number in range(PAIRS):
        for N, K in SHAPES:
            blocks = K // BLOCK_SIZE
            weight: dict[str, NDArray[Any]] = {
                "codes": rng.integers(0, 256, (N, blocks, BLOCK_SIZE * bits // 8), dtype=np.uint8),
                "scales": rng.uniform(0.001, 0.02, (N, blocks)).astype(np.float16 if bits == 3 else np.float32),
                "zero_points": rng.integers(0, 256, (N, blocks * max(bits, 4) // 8), dtype=np.uint8),
            }
            names = {part: f"{part}_{K}_{number}" for part in weight}
            tensors += [numpy_helper.from_array(weight[part], name) for part, name in names.items()]
            read_bytes += sum(part.nbytes for part in weight.values())
            form: dict[str, Any] = {"K": K, "N": N}
            if bits != 3:
                form |= {"bits": bits, "block_size": BLOCK_SIZE, "accuracy_level": INT8_ACTIVATIONS}
            nodes.append(
                helper.make_node(
                    THREE_BITS if bits == 3 else "MatMulNBits",
                    [f"x_{K}", *names.values()],
                    [f"y_{K}_{number}"],
                    domain=OURS if bits == 3 else MICROSOFT,
                    **form,
                )
            )
    values = {K: helper.make_tensor_value_info(f"x_{K}", TensorProto.FLOAT, [1, None, K]) for _, K in SHAPES}
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [1, None, None]) for node in nodes]
    graph = helper.make_graph(nodes, "products", list(values.values()), outputs, tensors)
    opsets = [helper.make_opsetid(*domain) for domain in {"": OPSET, MICROSOFT: 1, OURS: 1}.items()]
    model = helper.make_model(graph, opset_imports=opsets, functions=[matmul_3bits(OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    return read_bytes


@contextmanager
def chosen(kernels: str) -> Iterator[bool]:
    """Have what opens within this context compute with the kernels of a name; yields whether they are our own."""
    if kernels == THEIRS:
        yield False
        return
    choose(kernels)
    yield True
    choose(kernels_name())


def seconds_a_run(session: ort.InferenceSession, rows: int) -> float:
    """Return the median time of a run over so many rows, after one that is not measured."""
    rng = np.random.default_rng(1)
    feeds = {f"x_{K}": rng.standard_normal((1, rows, K), dtype=np.float32) for _, K in SHAPES}
    session.run(None, feeds)
    times: list[float] = []
    while sum(times) < MEASURED_S:
        begun = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begun)
    return median(times)


def measure(
    kinds: Sequence[str], all_bits: Sequence[int], threads: int, rounds: int, folder: Path
) -> tuple[float, dict[tuple[str, int], Figures]]:
    """Return the median read bandwidth, and the figures of each kind of kernels with each number of bits."""
    bandwidths: list[float] = []
    figures: dict[tuple[str, int], Figures] = {}
    for bits in all_bits:
        able = [kind for kind in kinds if (kind, bits) != (THEIRS, 3)]
        if not able:
            continue
        path = folder / f"{bits}.onnx"
        read_bytes = write_products(bits, path)
        sessions = {}
        for kind in able:
            with chosen(kind) as own:
                sessions[kind] = open_session(path, threads, own_kernels=own)
        flop = 2 * PROMPT_ROWS * PAIRS * sum(N * K for N, K in SHAPES)
        for number in range(rounds):
            bandwidth = read_bandwidth(threads)
            bandwidths.append(bandwidth)
            first = number % len(able)
            for kind in (*able[first:], *able[:first]):
                found = figures.setdefault((kind, bits), Figures())
                found.bytes_per_s.append(read_bytes / seconds_a_run(sessions[kind], 1))
                found.share.append(found.bytes_per_s[-1] / bandwidth)
                found.prompt_flop_per_s.append(flop / seconds_a_run(sessions[kind], PROMPT_ROWS))
    return median(bandwidths), figures


def measure_folder(
    kinds: Sequence[str], folder: Path, contexts: Sequence[int], rounds: int
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Return each round's tokens a second of prompt and of answer, for each kind of kernels and length of prompt."""
    decoders = {}
    for kind in kinds:
        with chosen(kind) as own:
            decoders[kind] = OnnxDecoder(folder, own_kernels=own)
    speeds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    rng = np.random.default_rng(0)
    for number in range(rounds + 1):  # the first warms up
        for context in contexts if number else [min(contexts)]:
            prompt = rng.integers(0, decoders[kinds[0]].model.vocab_size, context).tolist()
            first = number % len(kinds)
            for kind in (*kinds[first:], *kinds[:first]):
                begun = time.perf_counter()
                token = decoders[kind].start([prompt])[0].argmax()
                read = time.perf_counter()
                for _ in range(NEW_TOKENS):
                    token = decoders[kind].step(np.array([token]))[0].argmax()
                ended = time.perf_counter()
                if number:
                    found = (context / (read - begun), NEW_TOKENS / (ended - read))
                    speeds.setdefault((kind, context), []).append(found)
    return speeds


def table_of_folder(
    kinds: Sequence[str], contexts: Sequence[int], speeds: dict[tuple[str, int], list[tuple[float, float]]]
) -> str:
    """Render tokens a second as Markdown, each with its multiple of the last kind's, the median of the rounds'."""
    rows = []
    for context in contexts:
        last = speeds[kinds[-1], context]
        for kind in kinds:
            found = speeds[kind, context]
            cells = []
            for part in (0, 1):
                ratio = median(one[part] / other[part] for one, other in zip(found, last, strict=True))
                cells.append(f"{median(one[part] for one in found):.1f} tokens/s ({ratio:.2f} ×)")
            rows.append((kind, f"{context:,}", *cells))
    return markdown_table([("kernels", "tokens before", "prompt", "answer"), *rows])


def table(kinds: Sequence[str], all_bits: Sequence[int], figures: dict[tuple[str, int], Figures]) -> str:
    """Render the figures as Markdown, a row for each kind of kernels and number of bits."""
    rows = [
        (
            kind,
            f"{bits}",
            f"{median(found.bytes_per_s) / 1e9:.1f} GB/s",
            f"{100 * median(found.share):.0f} %",
            f"{median(found.prompt_flop_per_s) / 1e9:.0f} GFLOP/s",
        )
        for bits in all_bits
        for kind in kinds
        if (found := figures.get((kind, bits)))
    ]
    return markdown_table([("kernels", "bits", "one row", "of the bandwidth", f"{PROMPT_ROWS} rows"), *rows])


def main() -> None:
    fast = [name for name in kernels_here() if name != SCALAR and kernels_library()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export.products", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--bits", type=int, nargs="+", choices=(3, 4, 8), default=[4, 3, 8])
    parser.add_argument("--kernels", nargs="+", choices=(*fast, THEIRS), default=[*fast, THEIRS])
    parser.add_argument("--folder", type=Path, help="exported folder to decode with, instead of products alone")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048])
    options = parser.parse_args()
    if options.folder:
        speeds = measure_folder(options.kernels, options.folder, options.contexts, options.rounds)
        text = f"{table_of_folder(options.kernels, options.contexts, speeds)}\n\n{options.rounds} rounds, medians."
        print(text)
        fill_file(DOCUMENT, "kernels-of-a-folder", text)
        return
    with tempfile.TemporaryDirectory() as folder:
        bandwidth, figures = measure(options.kernels, options.bits, options.threads, options.rounds, Path(folder))
    text = (
        f"{table(options.kernels, options.bits, figures)}\n\n{options.threads} threads, {options.rounds} rounds, "
        f"medians; this machine reads {bandwidth / 1e9:.1f} GB/s."
    )
    print(text)
    fill_file(DOCUMENT, "products", text)


if __name__ == "__main__":
    main()
