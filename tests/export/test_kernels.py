"""Compares our kernels, also those in plain C, and onnxruntime's with plain numpy, and the fast ones with both."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.graph.attention_over_codes import FEW_TOKENS, INPUTS, NAME, STEPS, attention_over_codes
from export.graph.matmul_3bits import matmul_3bits
from export.graph.model_graph import INT8_CACHE_OPSET, IR_VERSION, OPSET
from export.graph.nodes import MICROSOFT, OURS, THREE_BITS
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import Cache
from export.runtime.kernels.library import (
    IN_WORDS,
    SCALAR,
    THEIRS,
    VARIABLE,
    choose,
    kernels_here,
    kernels_library,
    kernels_name,
)
from export.runtime.session import open_session
from toolkit.errors import InputError

FEATURES = {
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    SCALAR: set(),
}
"""What Linux calls the instructions that each of our kernels needs."""
CPU_FACTS = Path("/proc/cpuinfo")
CLOSE = 2e-5
"""Of the largest value: the sums are the same, in another order."""


needs_kernels = pytest.mark.skipif(not kernels_library(), reason="our kernels don't run here")
OWN = kernels_here() if kernels_library() else ()
FAST = [name for name in OWN if name != SCALAR]
ours_of_each_kind = pytest.mark.parametrize("kernels", OWN)
NAMES = ", ".join((*kernels_here(), THEIRS))
fast_ones = pytest.mark.parametrize("kernels", FAST)
all_kernels = pytest.mark.parametrize("kernels", [*OWN, THEIRS])


def opened(path: Path, kernels: str) -> ort.InferenceSession:
    """Open a session that computes with the kernels of a name."""
    if kernels == THEIRS:
        return open_session(path, threads=2, own_kernels=False)
    choose(kernels)
    session = open_session(path, threads=2)
    choose(kernels_name())
    return session


@pytest.mark.skipif(not CPU_FACTS.is_file(), reason="this system does not say what its processor has")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only kernels for x86-64 need instructions")
def test_all_kernels_are_there_that_the_processor_can_run() -> None:
    flags = set(CPU_FACTS.read_text().split())
    assert kernels_here() == tuple(name for name, needed in FEATURES.items() if flags >= needed)


@pytest.mark.parametrize(
    "wanted, said",
    [
        (THEIRS, "None, onnxruntime's"),
        *((name, f"_library.so, {IN_WORDS[name]} ({name}; others that run here: ") for name in kernels_here()),
        ("avx9", f"TOOLKIT_KERNELS ('avx9') must be one of the kernels that run on this processor ({NAMES})"),
        *(
            (name, f"TOOLKIT_KERNELS ({name!r}) must be one of the kernels that run on this processor ({NAMES})")
            for name in IN_WORDS
            if kernels_here() and name not in kernels_here()
        ),
    ],
)
def test_the_environment_chooses_the_kernels_and_a_wrong_choice_is_refused(wanted: str, said: str) -> None:
    program = "from export.runtime.kernels.library import *; print(kernels_library(), kernels_in_words(), sep=', ')"
    run = [sys.executable, "-c", program]
    ended = subprocess.run(run, env=os.environ | {VARIABLE: wanted}, capture_output=True, text=True, check=False)
    assert said in ended.stdout + ended.stderr


@dataclass(frozen=True, kw_only=True)
class Product:
    N: int
    K: int
    bits: int = 4
    block_size: int = 256
    zero_points: bool = True
    bias: bool = False


def write_product(product: Product, path: Path, accuracy_level: int = 4, *, largest: bool = False) -> None:
    rng = np.random.default_rng(0)
    N, K, bits = product.N, product.K, product.bits
    blocks = -(-K // product.block_size)
    tensors: dict[str, NDArray[Any]] = {
        "codes": rng.integers(0, 256, (N, blocks, product.block_size * bits // 8), dtype=np.uint8),
        "scales": rng.uniform(0.001, 0.02, (N, blocks)).astype(np.float16 if bits == 3 else np.float32),
        "zero_points": rng.integers(0, 256, (N, -(-blocks * max(bits, 4) // 8)), dtype=np.uint8),
        "bias": rng.standard_normal(N, dtype=np.float32),
    }
    if largest:
        tensors["codes"][:] = 255
        tensors["zero_points"][:] = 0
    inputs = ["a", "codes", "scales", "zero_points" if product.zero_points else "", "", "bias" if product.bias else ""]
    form: dict[str, Any] = {"bits": bits, "block_size": product.block_size, "accuracy_level": accuracy_level}
    node = (
        helper.make_node(THREE_BITS, inputs, ["y"], domain=OURS, K=K, N=N)
        if bits == 3
        else helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT, K=K, N=N, **form)
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [None, None, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, N])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items() if name in inputs],
    )
    opsets = [helper.make_opsetid(*domain) for domain in {"": OPSET, MICROSOFT: 1, OURS: 1}.items()]
    functions = [matmul_3bits(OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=IR_VERSION), path)


PRODUCTS = [
    Product(N=2048, K=2048),
    Product(N=33, K=1536, bias=True),
    Product(N=100, K=2048, block_size=128),
    Product(N=77, K=576, block_size=64),
    Product(N=48, K=576, block_size=32, bias=True),
    Product(N=31, K=600, block_size=32, zero_points=False),
    Product(N=1, K=40, block_size=64),
    Product(N=64, K=512, bits=8),
    Product(N=96, K=576, bits=8, block_size=64),
    Product(N=65, K=580, bits=8, block_size=128, zero_points=False, bias=True),
    Product(N=32, K=320, bits=8, block_size=32),
    Product(N=2048, K=2048, bits=3),
    Product(N=33, K=768, bits=3, bias=True),
    Product(N=65, K=256, bits=3),
]


def decoded(product: Product, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weight_NK and bias_N of a written product with 4 or 8 bits (3 bits: test_matmul_3bits.py)."""
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    N, bits = product.N, product.bits
    codes_NK = numbers(tensors["codes"].reshape(N, -1), bits)
    scales_NK = np.repeat(tensors["scales"].astype(float), product.block_size, axis=1)
    zeros_NK = np.full_like(scales_NK, 2 ** (bits - 1))
    if product.zero_points:
        blocks = tensors["scales"].shape[1]
        zeros_NK = np.repeat(numbers(tensors["zero_points"], bits)[:, :blocks], product.block_size, axis=1)
    weight_NK = (codes_NK - zeros_NK) * scales_NK
    return weight_NK[:, : product.K], tensors.get("bias", np.zeros(N)).astype(float)


def numbers(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float64]:
    """Unpack rows of numbers of so many bits, the lowest bit first."""
    digits = np.unpackbits(packed, axis=1, bitorder="little")
    return digits.reshape(len(packed), -1, bits) @ (2.0 ** np.arange(bits))


@all_kernels
@pytest.mark.parametrize("product", [product for product in PRODUCTS if product.bits != 3], ids=str)
def test_products_are_those_of_the_weights_that_the_codes_say(product: Product, kernels: str, tmp_path: Path) -> None:
    write_product(product, tmp_path / "model.onnx")
    weight_NK, bias_N = decoded(product, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx", kernels)
    for shape in ((1, 1), (4, 2), (1, 9), (2, 67)):
        a = np.random.default_rng(1).integers(-127, 128, (*shape, product.K)).astype(np.float32)
        a[..., :: product.block_size] = 127  # so that rounding a block to eight bits changes nothing
        expected = a @ weight_NK.T + bias_N
        np.testing.assert_allclose(
            session.run(["y"], {"a": a})[0], expected, atol=CLOSE * np.abs(expected).max(), rtol=0
        )


@fast_ones
@pytest.mark.parametrize("others", [SCALAR, THEIRS])
@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_fast_products_are_those_in_plain_c_and_those_of_onnxruntime(
    product: Product, others: str, kernels: str, tmp_path: Path
) -> None:
    write_product(product, tmp_path / "model.onnx")
    ours, theirs = (opened(tmp_path / "model.onnx", name) for name in (kernels, others))
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (2, 1), (1, 3), (4, 2), (1, 9), (1, 12), (1, 23), (2, 67), (1, 300)):
        a = rng.standard_normal((*shape, product.K), dtype=np.float32)
        a[..., :2] *= 50  # a block with outliers
        found, expected = (session.run(["y"], {"a": a})[0] for session in (ours, theirs))
        np.testing.assert_allclose(found, expected, atol=CLOSE * np.abs(expected).max(), rtol=0)


@fast_ones
@pytest.mark.parametrize(("bits", "block_size"), [(3, 256), (4, 256), (4, 32), (8, 256), (8, 32)])
def test_the_largest_codes_and_activations_do_not_overflow(
    bits: int, block_size: int, kernels: str, tmp_path: Path
) -> None:
    write_product(Product(N=33, K=512, bits=bits, block_size=block_size), tmp_path / "model.onnx", largest=True)
    ours, plain = (opened(tmp_path / "model.onnx", name) for name in (kernels, SCALAR))
    for rows in (1, 7, 30):
        a = np.full((1, rows, 512), 127, dtype=np.float32)
        a[:, 1::2] = -127
        found, expected = (session.run(["y"], {"a": a})[0] for session in (ours, plain))
        np.testing.assert_allclose(found, expected, atol=CLOSE * np.abs(expected).max(), rtol=0)


@ours_of_each_kind
def test_a_row_is_the_same_beside_others(kernels: str, tmp_path: Path) -> None:
    """It is bit-identical, which onnxruntime's kernels do not promise."""
    product = Product(N=100, K=576, block_size=64)
    write_product(product, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx", kernels)
    a = np.random.default_rng(1).standard_normal((8, 1, product.K), dtype=np.float32)
    [together] = session.run(["y"], {"a": a})
    for row in range(8):
        np.testing.assert_array_equal(session.run(["y"], {"a": a[row : row + 1]})[0], together[row : row + 1])


@all_kernels
def test_rows_of_zeros_give_the_bias_and_no_rows_nothing(kernels: str, tmp_path: Path) -> None:
    product = Product(N=33, K=256, bias=True)
    write_product(product, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx", kernels)
    [bias] = [
        numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer if t.name == "bias"
    ]
    for rows in (1, 20):
        [y] = session.run(["y"], {"a": np.zeros((1, rows, 256), dtype=np.float32)})
        np.testing.assert_array_equal(y[0], np.broadcast_to(bias, (rows, 33)))
    assert session.run(["y"], {"a": np.zeros((1, 0, 256), dtype=np.float32)})[0].shape == (1, 0, 33)


@needs_kernels
def test_a_product_that_is_not_ours_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    write_product(Product(N=32, K=256), tmp_path / "model.onnx", accuracy_level=0)
    with pytest.raises(InputError, match="accuracy_level 4"):
        open_session(tmp_path / "model.onnx", threads=2)


@dataclass(frozen=True, kw_only=True)
class Heads:
    H: int
    G: int
    A: int
    window: int = -1
    rotates: bool = True
    packed: bool = True


POSITIONS = 1000


def write_attention(heads: Heads, path: Path) -> None:
    rng = np.random.default_rng(0)
    steps = {name: rng.uniform(0.03, 0.05, heads.G * heads.A).astype(np.float32) for name in STEPS}
    angles = np.arange(POSITIONS)[:, None] * 10000.0 ** (-np.arange(heads.A // 2) / (heads.A / 2))
    table = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    left_out = [*(() if heads.rotates else ("cos", "sin")), *(("key", "value") if heads.packed else ())]
    node = helper.make_node(
        NAME,
        ["" if name in left_out else name for name in (*INPUTS, *STEPS)],
        ["attended", "present_key", "present_value"],
        domain=OURS,
        num_heads=heads.H,
        kv_num_heads=heads.G,
        do_rotary=int(heads.rotates),
        scale=heads.A**-0.5,
        local_window_size=heads.window,
    )
    floats = [name for name in ("query", "key", "value") if name not in left_out]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None, None]) for name in floats]
    values += [helper.make_tensor_value_info(name, TensorProto.INT8, [None] * 4) for name in INPUTS[3:5]]
    values += [helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [None])]
    values += [helper.make_tensor_value_info("total", TensorProto.INT32, [])]
    outputs = [helper.make_tensor_value_info("attended", TensorProto.FLOAT, [None, None, None])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.INT8, [None] * 4) for name in node.output[1:]]
    constants = steps | (table if heads.rotates else {})
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    domains = {"": INT8_CACHE_OPSET, MICROSOFT: 1, OURS: 1}
    model = helper.make_model(
        helper.make_graph([node], "attention", values, outputs, initializers),
        opset_imports=[helper.make_opsetid(*domain) for domain in domains.items()],
        functions=[attention_over_codes(INT8_CACHE_OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.save(model, path)


ATTENTIONS = [
    Heads(H=4, G=4, A=64),
    Heads(H=9, G=3, A=64),
    Heads(H=8, G=1, A=128),
    Heads(H=2, G=2, A=16, rotates=False),
    Heads(H=4, G=2, A=80),
    Heads(H=2, G=1, A=256, packed=False),
    Heads(H=16, G=8, A=32, window=40),
]


def rotated(heads: Heads, vectors_BTHA: NDArray[Any], positions_BT: NDArray[np.int64]) -> NDArray[Any]:
    """Rotate halves against each other, by the table that `write_attention` writes."""
    if not heads.rotates:
        return vectors_BTHA
    half = heads.A // 2
    angles = positions_BT[:, :, None, None] * 10000.0 ** (-np.arange(half) / half)
    left, right = vectors_BTHA[..., :half], vectors_BTHA[..., half:]
    turned = (left * np.cos(angles) - right * np.sin(angles), right * np.cos(angles) + left * np.sin(angles))
    return np.concatenate(turned, axis=-1)


def attended_by_loops(
    heads: Heads, feeds: dict[str, NDArray[Any]], tokens: dict[str, NDArray[Any]], lengths: list[int]
) -> NDArray[Any]:
    """Compute attended_BTD, one query of one head at a time; each attends to its row's codes up to its own position."""
    rng = np.random.default_rng(0)  # as in `write_attention`
    key_steps, value_steps = (rng.uniform(0.03, 0.05, heads.G * heads.A).reshape(heads.G, heads.A) for _ in STEPS)
    B, new, _ = tokens["query"].shape
    positions_BT = np.array(lengths)[:, None] + np.arange(new)
    query, key, value = (tokens[name].astype(float).reshape(B, new, -1, heads.A) for name in ("query", "key", "value"))
    query, key = (rotated(heads, vectors, positions_BT) for vectors in (query, key))
    key, value = (np.rint(new_codes / steps) for new_codes, steps in ((key, key_steps), (value, value_steps)))
    attended = np.empty_like(query)
    for row, past in enumerate(lengths):
        for h in range(heads.H):
            g = h * heads.G // heads.H
            key_SA, value_SA = (
                np.concatenate([feeds[name][row, g, :past], new_codes[row, :, g]]).clip(-128, 127) * steps[g]
                for name, new_codes, steps in (("past_key", key, key_steps), ("past_value", value, value_steps))
            )
            for t in range(new):
                end = past + t + 1
                begin = max(end - heads.window, 0) if heads.window > 0 else 0
                weights_S = np.exp(key_SA[begin:end] @ query[row, t, h] * heads.A**-0.5)
                attended[row, t, h] = weights_S / weights_S.sum() @ value_SA[begin:end]
    return attended.reshape(B, new, -1)


@all_kernels
@pytest.mark.parametrize("heads", ATTENTIONS, ids=str)
@pytest.mark.parametrize("new", [1, 5, FEW_TOKENS + 1])
def test_attention_over_codes_is_that_of_numpy(heads: Heads, new: int, kernels: str, tmp_path: Path) -> None:
    write_attention(heads, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx", kernels)
    for lengths in ([0], [3], [90], [7, 90]):
        if len(lengths) > 1 and new > 1:
            continue
        tokens, feeds = attention_feeds(heads, new, lengths)
        expected = attended_by_loops(heads, feeds, tokens, lengths)
        np.testing.assert_allclose(
            session.run(None, feeds)[0], expected, atol=rounding(new) * np.abs(expected).max(), rtol=0
        )


def rounding(new: int) -> float:
    """Return the tolerance as a share of the largest value; onnxruntime's kernels read prompts over floats."""
    return 2e-3 if new <= FEW_TOKENS else 4e-2


def attention_feeds(
    heads: Heads, new: int, lengths: list[int]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Make new tokens of rows that hold so many, and the feeds for them."""
    rng = np.random.default_rng(1)
    B, past = len(lengths), max(lengths)
    sizes = {"query": heads.H * heads.A, "key": heads.G * heads.A, "value": heads.G * heads.A}
    tokens: dict[str, NDArray[Any]] = {
        name: rng.standard_normal((B, new, size), dtype=np.float32) for name, size in sizes.items()
    }
    room = past + new if new > FEW_TOKENS else past  # where prompts are written must be there
    shape = (B, heads.G, room, heads.A)
    feeds: dict[str, NDArray[Any]] = {
        name: rng.integers(-127, 128, shape).astype(np.int8) for name in ("past_key", "past_value")
    }
    feeds["seqlens_k"] = np.array(lengths, dtype=np.int32) + new - 1
    feeds["total"] = np.array(past + new, dtype=np.int32)
    packed = {"query": np.concatenate(list(tokens.values()), axis=-1)}
    return tokens, feeds | (packed if heads.packed else tokens)


@fast_ones
@pytest.mark.parametrize("others", [SCALAR, THEIRS])
@pytest.mark.parametrize("heads", ATTENTIONS, ids=str)
@pytest.mark.parametrize("new", [1, 5, FEW_TOKENS, 130])
def test_fast_attention_over_codes_is_that_in_plain_c_and_that_of_onnxruntime(
    heads: Heads, new: int, others: str, kernels: str, tmp_path: Path
) -> None:
    write_attention(heads, tmp_path / "model.onnx")
    ours, theirs = (opened(tmp_path / "model.onnx", name) for name in (kernels, others))
    for lengths in ([0], [3], [31], [300], [640], [20, 20, 20], [7, 300]):
        if len(lengths) > 1 and new > 1 and others == THEIRS:
            continue  # onnxruntime takes several rows for single tokens alone
        _, feeds = attention_feeds(heads, new, lengths)
        found, expected = (session.run(None, feeds) for session in (ours, theirs))
        np.testing.assert_allclose(found[0], expected[0], atol=rounding(new) * np.abs(expected[0]).max(), rtol=0)
        for cache, other in zip(found[1:], expected[1:], strict=True):
            for row, length in enumerate(lengths):
                known = cache[row, :, : length + new].astype(int) - other[row, :, : length + new]
                assert np.abs(known).max() <= 1 and np.mean(known != 0) < 1e-3  # a value halfway between two codes


@needs_kernels
def test_a_session_runs_our_attention_and_not_the_function(tmp_path: Path) -> None:
    """onnxruntime's attention over codes does not support several new tokens of several rows."""
    heads = Heads(H=4, G=2, A=32)
    write_attention(heads, tmp_path / "model.onnx")
    ours, theirs = (open_session(tmp_path / "model.onnx", threads=2, own_kernels=own) for own in (True, False))
    rng = np.random.default_rng(1)
    feeds: dict[str, NDArray[Any]] = {"query": rng.standard_normal((2, 3, 8 * heads.A), dtype=np.float32)}
    feeds |= {name: np.zeros((2, heads.G, 9, heads.A), dtype=np.int8) for name in ("past_key", "past_value")}
    feeds |= {"seqlens_k": np.array([8, 5], dtype=np.int32), "total": np.array(9, dtype=np.int32)}
    together = ours.run(["attended"], feeds)[0]
    for row, last in enumerate(feeds["seqlens_k"]):
        alone = {name: value[row : row + 1] for name, value in feeds.items() if name not in ("total", "seqlens_k")}
        alone |= {"seqlens_k": np.array([last]), "total": np.array(last + 1, dtype=np.int32)}
        np.testing.assert_array_equal(together[row], ours.run(["attended"], alone)[0][0])
    with pytest.raises(Exception, match="GroupQueryAttention"):
        theirs.run(["attended"], feeds)


@needs_kernels
@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_a_model_says_the_same_with_our_kernels_and_onnxruntime_s(calibrated: Path, cache: Cache) -> None:
    ours, theirs = (OnnxDecoder(calibrated, cache=cache, own_kernels=own) for own in (True, False))
    ids = list(range(5, 70))
    for decoder in (ours, theirs):
        decoder.start([ids])
    for token in (7, 8, 9):
        found, expected = (decoder.step(np.array([token])) for decoder in (ours, theirs))
        assert found.argmax() == expected.argmax()
        np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max(), rtol=0)
