"""A GGUF file that lies about itself is one line, and leaves nothing in the cache."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toolkit.test_gguf_checkpoint import write_gguf
from toolkit.errors import InputError
from toolkit.sources.gguf_header import read_header
from toolkit.sources.model_names import unpack_gguf


@pytest.fixture(scope="module")
def content(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, tiny_student)
    return path.read_bytes()


def with_number(key: str, number: int) -> Callable[[bytes], bytes]:
    """Replace a number of 32 bits."""

    def change(content: bytes) -> bytes:
        at = content.index(key.encode()) + len(key) + 4
        return content[:at] + struct.pack("<I", number) + content[at + 4 :]

    return change


def with_length(key: str, length: int) -> Callable[[bytes], bytes]:
    """Replace the number of entries that an array claims to have."""

    def change(content: bytes) -> bytes:
        at = content.index(key.encode()) + len(key) + 8
        return content[:at] + struct.pack("<Q", length) + content[at + 8 :]

    return change


def with_bytes(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


def with_count(at: int, count: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + struct.pack("<Q", count) + content[at + 8 :]


def with_first_merge(start: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        key = b"tokenizer.ggml.merges"
        at = content.index(key) + len(key) + 4 + 4 + 8 + 8
        return content[:at] + start + content[at + len(start) :]

    return change


def onto_the_next(tensor: str) -> Callable[[bytes], bytes]:
    """Move a tensor 32 bytes further, into the next one."""

    def change(content: bytes) -> bytes:
        at = content.index(tensor.encode()) + len(tensor) + 4
        at += 8 * struct.unpack_from("<I", content, at - 4)[0] + 4
        (offset,) = struct.unpack_from("<Q", content, at)
        return content[:at] + struct.pack("<Q", offset + 32) + content[at + 8 :]

    return change


HEADS = "llama.attention.head_count"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_length("tokenizer.ggml.tokens", 2**60), r"an array's entries \(1152921504606846976\) do not fit"),
        (with_length("tokenizer.ggml.token_type", 2**60), r"an array's entries .* do not fit"),
        (with_length("tokenizer.ggml.merges", 3), r"must be a whole GGUF file"),
        (with_count(8, 2**62), r"tensors \(4611686018427387904\) do not fit"),
        (with_count(16, 2**40), r"facts \(1099511627776\) do not fit"),
        (with_bytes(b"llama.block_count\x04", b"llama.block_count\x63"), r"a fact has an unknown type \(99\)"),
        (with_number(f"{HEADS}", 0), rf"{HEADS} of the GGUF file \(0\) must be a whole number from 1 to"),
        (
            with_number(f"{HEADS}_kv", 3),
            r"attn_k\.weight of the GGUF file has the shape \(32, 64\), not \(48, 64\)",
        ),
        (with_number(HEADS, 5), r"llama\.embedding_length \(64\) must be 5 heads of an even size"),
        (with_number("llama.block_count", 2**31 - 1), r"block_count \(2147483647\) .* needs more than its"),
        (
            with_number("llama.context_length", 2**32 - 1),
            r"llama\.context_length of the GGUF file \(4294967295\) must be a whole number from 1 to 2147483647",
        ),
        (with_bytes(b"{%- for message in", b"{%- fro message in"), r"^the chat template must be valid Jinja"),
        (
            with_bytes(b"'<|im_start|>' +", b"(1/0)|string   +"),
            r"^the chat template cannot render 1 messages: ZeroDivision",
        ),
        (onto_the_next("blk.0.attn_q.weight"), r"of the GGUF file begins at \d+, before .* ends at \d+"),
        (
            with_number("llama.block_count", 1),
            r"the GGUF tensor blk\.1\.attn_k\.weight is not of a llama model with 1 layers",
        ),
        (
            with_number("llama.feed_forward_length", 96),
            r"ffn_gate\.weight .* has the shape \(128, 64\), not \(96",
        ),
        (
            with_number("llama.rope.freq_base", 0),
            r"llama\.rope\.freq_base of the GGUF file \(0\.0\) must be a number above",
        ),
        (
            with_number("tokenizer.ggml.eos_token_id", 10**6),
            r"eos_token_id .* \(1000000\) must be the id of one of its 320",
        ),
        (with_number("", 0x03000000), r"byte order of other machines \(big-endian\)"),
        (with_first_merge(b"QQ"), r"each merge of the GGUF file must join two of its tokens"),
        (with_bytes(b"<|im_end|>", b"<|im_\xff\xfed|>"), r"must be a whole GGUF file: .*utf-8"),
    ],
)
def test_a_lie_is_one_line_and_leaves_nothing(
    change: Callable[[bytes], bytes], message: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    lying = change(content)
    assert lying != content
    (tmp_path / "model.gguf").write_bytes(lying)
    with pytest.raises(InputError, match=message) as caught:
        unpack_gguf(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    models = tmp_path / "home" / "models"
    assert not models.exists() or not list(models.iterdir())


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def headers_of(many: int) -> dict[str, bytes]:
    """Make headers with as many small entries of one kind as fit."""
    names = [text(f"{i:x}") for i in range(many)]
    begin = b"GGUF" + struct.pack("<I", 3)
    array = begin + struct.pack("<QQ", 0, 1) + text("a")
    return {
        "facts": begin + struct.pack("<QQ", 0, many) + b"".join(name + b"\0\0\0\0\1" for name in names),
        "tensors": begin
        + struct.pack("<QQ", many, 0)
        + b"".join(name + struct.pack("<IQIQ", 1, 1, 0, 0) for name in names),
        "texts": array + struct.pack("<IIQ", 9, 8, many) + b"".join(names),
        "numbers": array + struct.pack("<IIQ", 9, 0, many) + bytes(many),
    }


@pytest.mark.parametrize("kind", ["facts", "tensors", "texts", "numbers"])
def test_a_header_takes_memory_in_proportion_to_its_size(kind: str, tmp_path: Path) -> None:
    content = headers_of(20_000)[kind]
    (tmp_path / "model.gguf").write_bytes(content)
    tracemalloc.start()
    try:
        header = read_header(tmp_path / "model.gguf")
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 30 * len(content)
    entries = header.facts["a"] if kind in ("texts", "numbers") else ()
    assert 20_000 in (len(header.facts), len(header.tensors), len(entries))


def begun(*facts: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(facts)) + b"".join(facts) + bytes(99)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (begun(text("a") + b"\0\0\0\0\1", text("a") + b"\0\0\0\0\1"), r"'a' occurs twice"),
        (begun(text("\x1b[2J" * 100) + b"\0\0\0\0\1"), r"a fact's name \(400 characters\) has more than 256"),
        (
            begun(text("general.alignment") + struct.pack("<II", 4, 0)),
            r"general\.alignment \(0\) is not a power of two",
        ),
        (
            begun(text("general.alignment") + struct.pack("<II", 4, 33)),
            r"general\.alignment \(33\) is not a power of two",
        ),
        (begun()[:4] + struct.pack("<I", 9) + begun()[8:], r"its version \(9\) is not 2 or 3"),
        (begun(tensors=2), r"a tensor's dimensions \(0\) are not 1 to 4"),
    ],
)
def test_what_a_header_cannot_hold_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_header(tmp_path / "model.gguf")


def test_a_tensor_that_ends_behind_the_file_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(content[:-40])
    with pytest.raises(InputError, match=r"of the GGUF file ends at \d+, beyond the file's"):
        unpack_gguf(tmp_path / "model.gguf")
    assert not list((tmp_path / "home" / "models").iterdir())


@pytest.mark.filterwarnings("error")
def test_a_scale_that_is_infinite_is_one_line_and_no_warning(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    at = read_header(path).tensors["token_embd.weight"].offset
    path.write_bytes(
        content[:at] + b"\x00\x7c" + bytes(32) + content[at + 34 :]
    )  # a block of Q8_0: its scale, its codes
    with pytest.raises(InputError, match=r"token_embd\.weight of the GGUF file holds NaN"):
        unpack_gguf(path)
