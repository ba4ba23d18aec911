"""A graph as optimum writes it becomes one that our runner opens: the same logits, however rows are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from export.foreign.foreign_export import ForeignConfig, foreign_config, open_foreign, write_model
from export.foreign.foreign_graph import ForeignGraph
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.generation.generate import Floats

V, D, F, H, G, A, E, LAYERS, WINDOW, CONTEXT = 320, 64, 128, 4, 2, 16, 4, 2, 5, 512
"""Those of the tiny student where both have them; E experts, and a window in the last layer."""
PROMPTS = [[5], [9, 8, 7, 6], list(range(20, 31)), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]


class Layer(nn.Module):
    """Attention over a cache, and experts of which each token takes two."""

    def __init__(self, window: int, *, casts: bool) -> None:
        super().__init__()
        self.window, self.casts = window, casts
        self.q_proj, self.o_proj = nn.Linear(D, H * A), nn.Linear(H * A, D, bias=False)
        self.k_proj, self.v_proj = nn.Linear(D, G * A), nn.Linear(D, G * A, bias=False)
        self.gate = nn.Linear(D, E, bias=False)
        self.up = nn.Parameter(torch.randn(D, F) * 0.2)
        self.up_bias = nn.Parameter(torch.randn(F) * 0.2)
        self.experts = nn.ModuleList(nn.Linear(F, D, bias=False) for _ in range(E))

    def forward(self, x_BTD: Tensor, mask_BS: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch, new, _ = x_BTD.shape
        q_BHTA = self.q_proj(x_BTD).view(batch, new, H, A).transpose(1, 2)
        k_BGTA = self.k_proj(x_BTD).view(batch, new, G, A).transpose(1, 2)
        v_BGTA = self.v_proj(x_BTD).view(batch, new, G, A).transpose(1, 2)
        k_BGSA, v_BGSA = torch.cat([past[0], k_BGTA], dim=-2), torch.cat([past[1], v_BGTA], dim=-2)
        if self.casts:  # as GPT-J does
            k_BGSA, v_BGSA = k_BGSA.to(torch.float32), v_BGSA.to(torch.float32)
        before, total = past[0].shape[-2], k_BGSA.shape[-2]
        distance_TS = torch.arange(before, total)[:, None] - torch.arange(total)[None]
        seen_TS = (distance_TS >= 0) & (distance_TS < self.window)
        seen_B1TS = seen_TS & mask_BS[:, None, None, :].bool()
        scores = q_BHTA @ k_BGSA.repeat_interleave(H // G, 1).transpose(-1, -2) / A**0.5
        weights = scores.masked_fill(~seen_B1TS, -1e9).softmax(-1)
        attended = (weights @ v_BGSA.repeat_interleave(H // G, 1)).transpose(1, 2).reshape(batch, new, H * A)
        x_BTD = x_BTD + self.o_proj(attended)
        best_BTK, chosen_BTK = self.gate(x_BTD).softmax(-1).topk(2, dim=-1)
        share_BTE = torch.zeros(batch, new, E).scatter(-1, chosen_BTK, best_BTK)
        up_XF = torch.addmm(self.up_bias, x_BTD.reshape(-1, D), self.up).relu()
        found = [expert(up_XF).view(batch, new, D) * share_BTE[..., i, None] for i, expert in enumerate(self.experts)]
        return x_BTD + sum(found), k_BGSA, v_BGSA


class Decoder(nn.Module):
    """A decoder with learned positions, a tied head and capped logits, with the inputs that optimum gives it."""

    def __init__(self, *, last: Callable[[Tensor], Tensor], casts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.embed_positions = nn.Embedding(V, D), nn.Embedding(CONTEXT, D)
        self.layers = nn.ModuleList([Layer(10**6, casts=casts), Layer(WINDOW, casts=casts)])
        self.last = last

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *pasts: Tensor) -> Any:
        x_BTD = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        presents: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            x_BTD, *grown = layer(x_BTD, attention_mask, pasts[2 * number : 2 * number + 2])
            presents += grown
        logits_BTV = nn.functional.layer_norm(x_BTD, (D,)) @ self.embed_tokens.weight.T
        return self.last(logits_BTV), *presents

    def alone(self, ids: list[int]) -> Floats:
        """Return logits_TV of one row without a cache."""
        none = [torch.empty(1, G, 0, A) for _ in range(2 * LAYERS)]
        with torch.no_grad():
            logits_BTV = self(torch.tensor([ids]), torch.ones(1, len(ids)), torch.arange(len(ids))[None], *none)[0]
        logits_TV: Floats = logits_BTV[0].numpy()
        return logits_TV


def capped(logits: Tensor) -> Tensor:
    return (logits / 6).tanh() * 6


def normed(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


def write_graph(model: nn.Module, path: Path) -> Path:
    """Export a decoder as optimum does: by torch's tracing exporter, under optimum's names."""
    pasts = [f"past_key_values.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
    presents = [name.replace("past_key_values", "present") for name in pasts]
    given = (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64), torch.arange(3).repeat(2, 1) + 4)
    axes = {"input_ids": {0: "b", 1: "t"}, "attention_mask": {0: "b", 1: "s"}, "position_ids": {0: "b", 1: "t"}}
    axes |= {"logits": {0: "b", 1: "t"}} | {name: {0: "b", 2: "p"} for name in (*pasts, *presents)}
    torch.onnx.export(
        model.eval(),
        (*given, *(torch.randn(2, G, 4, A) for _ in pasts)),
        str(path),
        input_names=["input_ids", "attention_mask", "position_ids", *pasts],
        output_names=["logits", *presents],
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )
    return path


@pytest.fixture(scope="module", params=[capped, normed], ids=["capped logits", "normed logits, cast cache"])
def decoder_and_graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    model = Decoder(last=request.param, casts=request.param is normed)
    return model, write_graph(model, tmp_path_factory.mktemp("graph") / "model.onnx")


def exported(student: Path, graph: Path, out: Path, config: ForeignConfig) -> OnnxDecoder:
    out.mkdir()
    write_model(open_foreign(student), config, ForeignGraph(graph), out)
    return OnnxDecoder(out, cache="exact")


def test_rows_of_any_length_have_the_logits_that_they_have_alone(
    decoder_and_graph: tuple[Decoder, Path], tiny_student: Path, tmp_path: Path
) -> None:
    """Also past the window, where a row that is shorter must not lose the tokens that it attends to."""
    model, graph = decoder_and_graph
    config = foreign_config(tiny_student, tmp_path / "out", "fp32")
    decoder = exported(tiny_student, graph, tmp_path / "out", config)
    texts = [list(prompt) for prompt in PROMPTS]
    logits_BV = decoder.start(texts)
    for _ in range(2 * WINDOW):
        expected_BV = np.stack([model.alone(text)[-1] for text in texts])
        np.testing.assert_allclose(logits_BV, expected_BV, atol=2e-4)
        tokens = logits_BV.argmax(-1)
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        logits_BV = decoder.step(tokens)


def test_a_text_read_in_pieces_has_the_logits_of_the_whole(
    decoder_and_graph: tuple[Decoder, Path], tiny_student: Path, tmp_path: Path
) -> None:
    model, graph = decoder_and_graph
    decoder = exported(tiny_student, graph, tmp_path / "out", foreign_config(tiny_student, tmp_path / "out", "fp32"))
    ids = np.random.default_rng(0).integers(0, V, 40).tolist()
    expected_TV = model.alone(ids)
    decoder.start([ids[:7]])
    np.testing.assert_allclose(decoder.extend(ids[7:20]), expected_TV[7:20], atol=2e-4)
    decoder.rewind(5)
    np.testing.assert_allclose(decoder.extend(ids[15:30]), expected_TV[15:30], atol=2e-4)
    np.testing.assert_allclose(decoder.score(ids, first=25), expected_TV[25:], atol=2e-4)


def test_matrices_are_rounded_but_for_the_choice_of_experts(
    decoder_and_graph: tuple[Decoder, Path], tiny_student: Path, tmp_path: Path
) -> None:
    model, graph = decoder_and_graph
    out = tmp_path / "out"
    decoder = exported(tiny_student, graph, out, foreign_config(tiny_student, out, "int4"))
    nodes = onnx.load(out / "model.onnx", load_external_data=False).graph.node
    bits = [
        attribute.i
        for node in nodes
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    ]
    per_layer = ["q", "k", "v", "o", "up", *range(E)]
    assert sorted(bits) == [4] * LAYERS * len(per_layer) + [8], "the head, which is the embedding, has eight"
    kinds = [node.op_type for node in nodes]
    assert kinds.count("GatherBlockQuantized") == 1
    assert kinds.count("FusedMatMul") == LAYERS, "the routers"
    found = decoder.score(PROMPTS[-1])
    expected = model.alone(PROMPTS[-1])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_eight_bits_are_far_closer_than_four_however_they_are_rounded(
    decoder_and_graph: tuple[Decoder, Path], tiny_student: Path, tmp_path: Path
) -> None:
    model, graph = decoder_and_graph
    expected = model.alone(PROMPTS[-1])
    errors = {}
    for name, weights, rounding in (
        ("int8", "int8", "nearest"),
        ("searched", "int4", "searched"),
        ("nearest", "int4", "nearest"),
    ):
        config: Any = foreign_config(tiny_student, tmp_path / name, weights, rounding=rounding)  # type: ignore[arg-type]
        found = exported(tiny_student, graph, tmp_path / name, config).score(PROMPTS[-1])
        errors[name] = float(np.square(found - expected).mean())
    assert errors["int8"] < 0.05 * min(errors["searched"], errors["nearest"])
    assert errors["searched"] != errors["nearest"]


FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(
    "facts",
    [
        {"rope_parameters": FACTORS | {"rope_type": "longrope", "rope_theta": 1e4}},
        {"rope_scaling": FACTORS | {"type": "longrope"}, "rope_theta": 1e4},
    ],
    ids=["transformers 5", "transformers 4"],
)
def test_a_context_ends_where_the_frozen_short_factors_of_longrope_do(
    facts: dict[str, Any], tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_student, tmp_path / "phi")
    config = json.loads((tiny_student / "config.json").read_text())
    config = {name: value for name, value in config.items() if not name.startswith("rope")} | facts
    config |= {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
    (tmp_path / "phi" / "config.json").write_text(json.dumps(config))
    assert config["max_position_embeddings"] == CONTEXT
    assert open_foreign(tmp_path / "phi").sizes.max_position_embeddings == 64
    assert "it will read up to 64 tokens" in capsys.readouterr().err
    assert open_foreign(tiny_student).sizes.max_position_embeddings == CONTEXT
    assert not capsys.readouterr().err


def _append_in_axis_1(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Concat" and node.input[0].startswith("past_key_values"):
            node.attribute[0].i = 1


def _read_past(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Neg", ["past_key_values.0.key"], ["negative"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_append_in_axis_1, r"must append to past_key_values\.0\.key in axis 2, not 1"),
        (lambda g: setattr(g.input[0], "name", "token_type_ids"), r"has an input token_type_ids, which"),
        (
            lambda g: g.input.pop(),
            r"must be a key and a value of one shape for each layer, in float32, but is past_key_values\.0\.key",
        ),
        (
            lambda g: g.input.remove(next(value for value in g.input if value.name == "position_ids")),
            r"graph takes no position_ids, without which rows of several lengths would be misplaced",
        ),
        (_read_past, r"reads past_key_values\.0\.key by Neg, but must only append to it"),
    ],
)
def test_a_graph_of_another_kind_is_refused_in_one_line(
    decoder_and_graph: tuple[Decoder, Path], tiny_student: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    model = onnx.load(decoder_and_graph[1])
    damage(model.graph)
    onnx.save(model, tmp_path / "model.onnx")
    config = foreign_config(tiny_student, tmp_path / "out", "fp32")
    with pytest.raises(InputError, match=rf"graph that optimum-onnx .* cannot be run here: .*{message}") as caught:
        exported(tiny_student, tmp_path / "model.onnx", tmp_path / "out", config)
    assert "\n" not in str(caught.value)
