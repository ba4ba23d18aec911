"""The runner: batches equal single rows, other loaders agree, and unsafe folders are not opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.export.export_shapes import SMOLLM2_1_7B
from benchmarks.export.random_model import write_random
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.rows.cached_model import SMALLEST_ROOM
from export.runtime.rows.prefix import PROMPT_CHUNK
from tests.processes import modules_loaded_by
from toolkit.errors import InputError
from toolkit.generation.generate import GREEDY, complete
from toolkit.machine.allowance import physical_cores

NO_STOP: frozenset[int] = frozenset()
READ_AND_STEP = """
import sys
from pathlib import Path

import numpy as np
import psutil

from export.runtime.rows.prefix import PROMPT_CHUNK
from export.runtime.decoder import OnnxDecoder

decoder = OnnxDecoder(Path(sys.argv[1]))
decoder.start([list(range(PROMPT_CHUNK))])
print(psutil.Process().memory_info().rss)
decoder.step(np.array([5]))
print(psutil.Process().memory_info().rss)
"""
"""Its own process, because an old one's heap keeps what is given back."""


@pytest.fixture(scope="module")
def exported(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "int4"
    export_model(replace(int4_config(tiny_student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    return out


@pytest.fixture(scope="module")
def decoder(exported: Path) -> OnnxDecoder:
    return OnnxDecoder(exported)


def prompts(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 320, length).tolist() for length in lengths]


def test_rows_of_a_batch_say_what_they_say_alone(decoder: OnnxDecoder) -> None:
    sampling = replace(GREEDY, max_new_tokens=20)
    rows = prompts(3, 40, 17, 1)
    together = complete(decoder, rows, sampling, NO_STOP)
    alone = [complete(decoder, [row], sampling, NO_STOP)[0] for row in rows]
    assert [row.ids for row in together] == [row.ids for row in alone]


def test_a_row_that_is_replaced_and_its_neighbours_say_what_they_say_alone(decoder: OnnxDecoder) -> None:
    rows = prompts(5, 30, 12, 70, 9)
    decoder.start(rows[:3])
    decoder.step(np.array([10, 20, 30]))
    read_BV = decoder.replace(np.array([2, 0]), rows[3:])
    stepped_BV = decoder.step(np.array([40, 50, 60]))
    for place, row, tokens in ((0, rows[4], [40]), (1, rows[1], [20, 50]), (2, rows[3], [60])):
        alone_BV = decoder.start([row])
        if len(tokens) == 1:
            np.testing.assert_allclose(read_BV[0 if place == 2 else 1], alone_BV[0], atol=1e-4)
        for token in tokens:
            alone_BV = decoder.step(np.array([token]))
        np.testing.assert_allclose(stepped_BV[place], alone_BV[0], atol=1e-4)


def test_kept_rows_go_on_as_if_the_others_had_never_been(decoder: OnnxDecoder) -> None:
    rows = prompts(5, 30, 12, 8)
    decoder.start(rows)
    decoder.step(np.array([10, 20, 30, 40]))
    decoder.keep(np.array([3, 1]))
    kept_BV = decoder.step(np.array([50, 60]))
    for logits_V, row, tokens in zip(kept_BV, (rows[3], rows[1]), ((40, 50), (20, 60)), strict=True):
        np.testing.assert_allclose(logits_V, decoder.start([[*row, *tokens]])[0], atol=0.02)


def test_a_prompt_longer_than_a_chunk_reads_as_if_it_came_token_by_token(decoder: OnnxDecoder) -> None:
    [prompt] = prompts(2 * PROMPT_CHUNK + 9)
    at_once_V = decoder.start([prompt])[0]
    decoder.start([prompt[:1]])
    for token in prompt[1:]:
        stepped_BV = decoder.step(np.array([token]))
    np.testing.assert_allclose(at_once_V, stepped_BV[0], atol=0.02)
    np.testing.assert_allclose(decoder.score(prompt)[-1], at_once_V, atol=1e-5)


def test_start_forgets_what_was_before(decoder: OnnxDecoder) -> None:
    first, second = prompts(9, 33)
    expected_BV = decoder.start([first])
    decoder.start([second])
    np.testing.assert_array_equal(decoder.start([first]), expected_BV)


def test_kept_prefix_is_not_computed_again_and_says_the_same(exported: Path, decoder: OnnxDecoder) -> None:
    [first, end, other] = prompts(PROMPT_CHUNK + 40, 30, 25)
    chat = OnnxDecoder(exported, keeps_prefix=True)
    for text in (first, first + end, first + other, other, first[:7], first[:7], first + end):
        np.testing.assert_allclose(chat.start([text])[0], decoder.start([text])[0], atol=0.02)
        for token in (5, 9):
            np.testing.assert_allclose(chat.step(np.array([token])), decoder.step(np.array([token])), atol=0.02)
    read = []
    run = chat.model._session.run_with_iobinding
    chat.model._session.run_with_iobinding = lambda *given: read.append(run(*given))
    chat.start([[*first, *end, 5, 9, *other]])
    assert len(read) == 1, "what is left of the prompt fits one chunk, the whole takes two"


def test_what_is_read_ahead_is_not_read_again_and_says_the_same_bit_for_bit(
    exported: Path, decoder: OnnxDecoder
) -> None:
    [prompt] = prompts(2 * PROMPT_CHUNK + 40)
    chat = OnnxDecoder(exported, keeps_prefix=True)
    assert [chat.read_ahead(prompt) for _ in range(3)] == [True, True, False]
    read = []
    run = chat.model._session.run_with_iobinding
    chat.model._session.run_with_iobinding = lambda *given: read.append(run(*given))
    np.testing.assert_array_equal(chat.start([prompt]), decoder.start([prompt]))
    assert len(read) == 1, "what is left of the prompt fits one chunk"
    assert not decoder.read_ahead(prompt), "a decoder that forgets at each start has no use for it"


def test_a_cache_that_grows_keeps_what_it_holds(exported: Path, decoder: OnnxDecoder) -> None:
    growing = OnnxDecoder(exported)
    rows = prompts(3, SMALLEST_ROOM - 2)
    growing.start(rows)
    for token in range(10, 20):
        grown_BV = growing.step(np.array([token, token]))
    assert all(cache.shape[1] > SMALLEST_ROOM for cache in growing.model.row(0).values())
    for logits_V, row in zip(grown_BV, rows, strict=True):
        np.testing.assert_allclose(logits_V, decoder.start([[*row, *range(10, 20)]])[0], atol=0.02)


def test_an_int8_cache_says_nearly_the_same_in_a_quarter_of_the_bytes(
    tiny_student: Path, traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "int4"
    config = int4_config(tiny_student, out, calibration=traces)
    export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    exact, rounded = OnnxDecoder(out, cache="exact"), OnnxDecoder(out, cache="int8")
    assert rounded.model.position_bytes * 4 == exact.model.position_bytes
    rows = prompts(PROMPT_CHUNK + 30, 40)
    exact_BV, rounded_BV = exact.start(rows), rounded.start(rows)
    for token in (5, 9, 7):
        assert np.corrcoef(exact_BV.ravel(), rounded_BV.ravel())[0, 1] > 0.999
        exact_BV, rounded_BV = exact.step(np.array([token, token])), rounded.step(np.array([token, token]))
    assert not np.array_equal(exact_BV, rounded_BV)


def test_an_int8_cache_needs_a_folder_that_was_calibrated(exported: Path) -> None:
    with pytest.raises(InputError, match=r"an int8 cache needs .*model\.int8-cache\.onnx, which is missing"):
        OnnxDecoder(exported, cache="int8")


def test_a_prompt_beyond_the_context_is_refused(decoder: OnnxDecoder) -> None:
    with pytest.raises(InputError, match=r"the prompt \(513 tokens\) must fit the model's context \(512\)"):
        decoder.start(prompts(513))


def test_onnxruntime_genai_generates_the_same_greedy_tokens(exported: Path, decoder: OnnxDecoder) -> None:
    import onnxruntime_genai as genai

    [prompt] = prompts(20)
    model = genai.Model(str(exported))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=60, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    theirs = generator.get_sequence(0).tolist()[len(prompt) :]
    ours = complete(decoder, [prompt], replace(GREEDY, max_new_tokens=40), frozenset({2}))[0].ids
    assert ours == theirs


def test_the_import_chain_of_the_runner_holds_no_training_library(exported: Path) -> None:
    program = "from pathlib import Path; from export.runtime.decoder import OnnxDecoder;"
    loaded = modules_loaded_by(f"{program} OnnxDecoder(Path({str(exported)!r})).start([[3, 4, 5]])")
    assert not {"torch", "transformers", "onnx", "safetensors"} & loaded


@pytest.mark.parametrize("module", ["machine", "session", "rows.cached_model"])
def test_telemetry_is_off_before_onnxruntime_is_imported_by_whichever_file(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = f"import os; import export.runtime.{module}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"


def test_physical_cores_are_at_most_the_allowed_cpus() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_data_file_that_is_a_link_elsewhere_is_refused(copied: Path, tmp_path: Path) -> None:
    data = copied / "model.onnx.data"
    shutil.move(data, tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"model\.onnx\.data must be a regular file of the folder or of its store"):
        OnnxDecoder(copied)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_hidden_layers", 1, r"in .*genai_config\.json \(1\) must equal that of model\.onnx \(2\)"),
        ("context_length", 4096, r"in .* \(4096\) must equal that of model\.onnx \(512\)"),
        ("num_key_value_heads", 1, r"in .* \(1\) must equal that of model\.onnx \(2\)"),
        ("head_size", 32, r"in .* \(32\) must equal that of model\.onnx \(16\)"),
        ("vocab_size", 319, r"in .* \(319\) must equal that of model\.onnx \(320\)"),
        ("num_hidden_layers", 0, r"in .* \(0\) must be from 1 to"),
        ("num_hidden_layers", [2], r"in .* \(\[2\]\) must be a whole number"),
        ("decoder", None, r"in .*genai_config\.json \(None\) must be an object"),
    ],
)
def test_a_configuration_that_contradicts_the_graph_is_refused_when_it_is_opened(
    name: str, value: object, message: str, copied: Path
) -> None:
    path = copied / "genai_config.json"
    content = json.loads(path.read_text())
    (content["model"] if name in content["model"] else content["model"]["decoder"])[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{name} {message}"):
        OnnxDecoder(copied)


def test_a_folder_without_its_numbers_is_refused_when_it_is_opened(copied: Path) -> None:
    (copied / "genai_config.json").unlink()
    with pytest.raises(InputError, match=r"lacks genai_config\.json; copy the whole folder again"):
        OnnxDecoder(copied)


def test_numbers_without_end_in_a_graph_are_refused_at_once(copied: Path) -> None:
    (copied / "model.onnx").write_bytes(b"\xff" * 4_000_000)
    with pytest.raises(InputError, match=r"model\.onnx is not a whole ONNX file"):
        OnnxDecoder(copied)


def field(number: int, content: bytes) -> bytes:
    """Encode a field of a protobuf message."""
    length, size = len(content), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + content


def test_messages_in_messages_without_end_are_refused(copied: Path) -> None:
    """The message nests a graph in an attribute of a node of a graph, and so on."""
    message = b""
    for _ in range(1500):
        for number in (6, 5, 1):
            message = field(number, message)
    (copied / "model.onnx").write_bytes(field(7, message))
    with pytest.raises(InputError, match=r"model\.onnx is not a whole ONNX file"):
        OnnxDecoder(copied)


def test_a_short_or_missing_data_file_is_refused(copied: Path) -> None:
    data = copied / "model.onnx.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(InputError, match=rf"has {size - 10} of {size} bytes"):
        OnnxDecoder(copied)
    data.unlink()
    with pytest.raises(InputError, match=r"model\.onnx\.data, which model\.onnx reads, is missing"):
        OnnxDecoder(copied)


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/hostname", "sub/x.data", "..", "model.onnx.data\0x"])
def test_data_outside_the_folder_is_refused_wherever_the_graph_names_it(copied: Path, location: str) -> None:
    import onnx

    path = copied / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.node[0].attribute.add(name="hidden", type=onnx.AttributeProto.TENSOR).t
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"external data .* must be a file beside"):
        OnnxDecoder(copied)


def test_a_damaged_graph_and_a_folder_without_one_are_refused(copied: Path, tiny_student: Path) -> None:
    path = copied / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"model\.onnx is not a whole ONNX file"):
        OnnxDecoder(copied)
    path.write_bytes(content.replace(b"MatMulNBits", b"MatMulNBitz"))
    with pytest.raises(InputError, match=r"onnxruntime cannot open .*model\.onnx: .*MatMulNBitz"):
        OnnxDecoder(copied)
    with pytest.raises(InputError, match=r"model\.onnx is missing; make the folder with: toolkit export"):
        OnnxDecoder(tiny_student)


def test_the_first_step_gives_back_what_a_prompt_was_read_in(tmp_path: Path) -> None:
    wide = SMOLLM2_1_7B | {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    wide |= {"intermediate_size": 32768, "num_hidden_layers": 1}
    write_random(wide, tmp_path / "source")
    config = int4_config(tmp_path / "source", tmp_path / "int4", preset="quick")
    export_model(replace(config, bounds=None))
    done = subprocess.run([sys.executable, "-c", READ_AND_STEP, tmp_path / "int4"], stdout=subprocess.PIPE, check=True)
    read, stepped = map(int, done.stdout.split())
    gate_and_up = 4 * PROMPT_CHUNK * 2 * 32768
    assert read - stepped > gate_and_up
