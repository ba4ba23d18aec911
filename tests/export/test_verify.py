"""`toolkit verify`: an untouched folder passes, and each kind of damage is found by the check that is meant for it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.model import load_model
from export.checks.fuzz_corpus import fuzz_texts
from export.checks.goldens import CHATS, GREEDY_PROMPTS, GREEDY_TOKENS, LIKELIEST, POSITIONS, rendered_chats
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.external_data import check_external_data
from export.runtime.verify.checks import SMALL_BYTES, check_files, check_start, verify
from export.runtime.verify.comparisons import MARGIN_TOLERANCE, check_greedy, check_tokenizer
from export.runtime.verify.divergence import EXPECTED_FILE, measure_coarsely, read_expected
from export.runtime.verify.record import RECORD_FILE, GoldenRecord, read_record
from tests.processes import modules_loaded_by
from toolkit.cli.main import main
from toolkit.errors import GateFailed, InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.runs import file_facts, read_manifest

Damage = Callable[[Path], object]
WIDE = Bounds(max_mean_kl=99.0, min_top1=0.0)
NAMES = ["files", "external data", "tokenizer", "template", "end of text", "greedy tokens", "divergence"]


@pytest.fixture(scope="module")
def source(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with logits that differ widely, as a trained model's do."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(tiny_student, tmp_path_factory.mktemp("sharp") / "source"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.0 if len(parameter) == model.config.vocab_size else 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "int4"
    export_model(replace(int4_config(source, out), bounds=WIDE))
    return out


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def failures(folder: Path, *, fast: bool = False) -> dict[str, str]:
    return {check.name: check.line for check in verify(folder, fast=fast) if check.outcome == "failed"}


def repair_manifest(folder: Path) -> None:
    """Write the present digests and sizes, as someone who replaces a file would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["outputs"] = {p.name: file_facts(p) for p in sorted(folder.iterdir()) if p.name != path.name}
    path.write_text(json.dumps(manifest))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip_bits(path: Path, position: int, count: int) -> None:
    data = bytearray(path.read_bytes())
    data[position : position + count] = bytes(byte ^ 0x88 for byte in data[position : position + count])
    path.write_bytes(data)


def name_outside_data(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    entry = next(t for t in model.graph.initializer if t.external_data).external_data[0]
    assert entry.key == "location"
    entry.value = "../model.onnx.data"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    shutil.copy(folder / "model.onnx.data", folder.parent)
    repair_manifest(folder)


def link_softly(folder: Path) -> None:
    data = folder / "model.onnx.data"
    shutil.move(data, folder.parent / "elsewhere")
    data.symlink_to(folder.parent / "elsewhere")


def test_an_untouched_folder_passes_every_check(exported: Path) -> None:
    checks = verify(exported, fast=False)
    assert [(check.name, check.outcome) for check in checks] == [(name, "ok") for name in NAMES]
    assert "differ" not in checks[5].line, "on the machine that exported it no token may differ"


def test_the_fast_part_runs_all_but_the_model(exported: Path) -> None:
    assert [(check.name, check.outcome) for check in verify(exported, fast=True)] == [
        (name, "ok" if name in NAMES[:5] else "not run") for name in NAMES
    ]


@pytest.mark.parametrize(
    ("damage", "found_by", "message"),
    [
        (lambda f: flip_bits(f / "model.onnx.data", 999, 1), ["files"], r"model\.onnx\.data has sha256 .* instead of"),
        (lambda f: (f / "notes.txt").write_text("x"), ["files"], r"notes\.txt is not named by the manifest"),
        (lambda f: (f / "vocab").mkdir() or (f / "vocab" / "a").write_text(""), ["files"], r"vocab/a is not named"),
        (lambda f: (f / EXPECTED_FILE).unlink(), ["files"], r"verify\.npz, which the manifest names, is missing"),
        (lambda f: (f / "config.json").open("a").write(" "), ["files"], r"has \d+ bytes instead of \d+"),
        (link_softly, ["files", "external data"], r"model\.onnx\.data must be a regular file"),
        (name_outside_data, ["external data"], r"'\.\./model\.onnx\.data' must be a file beside"),
        (lambda f: (f / RECORD_FILE).write_text("{}"), ["files", "tokenizer", "template", "end of text"], r"verify\.json"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_found(copied: Path, damage: Damage, found_by: list[str], message: str) -> None:
    damage(copied)
    found = failures(copied)
    assert list(found) == found_by
    for line in found.values():
        assert "\n" not in line
    assert re.search(message, found[found_by[0]]), found


def drop_merge(folder: Path, index: int) -> None:
    edit_json(folder / "tokenizer.json", lambda t: t["model"]["merges"].pop(index))


def set_eos(name: str) -> Damage:
    def change(folder: Path) -> None:
        if name == "tokenizer_config.json":
            edit_json(folder / name, lambda v: v.update(eos_token="<|endoftext|>"))
        elif name == "genai_config.json":
            edit_json(folder / name, lambda v: v["model"].update(eos_token_id=[0]))
        else:
            edit_json(folder / name, lambda v: v.update(eos_token_id=[0, 2]))

    return change


@pytest.mark.parametrize(
    ("damage", "found_by", "message"),
    [
        (lambda f: drop_merge(f, 0), ["tokenizer"], r"the ids of .* must equal the original tokenizer's"),
        (lambda f: drop_merge(f, -1), ["tokenizer"], r"the ids of .* must equal the original tokenizer's"),
        (
            lambda f: (f / "chat_template.jinja").open("a").write("{# #}{{- '\\n' -}}"),
            ["template"],
            r"chat 1 of verify\.json .* at character \d+: '\\n' instead of ''",
        ),
        (
            lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].content }}"),
            ["template"],
            r"chat 1 of verify\.json .* at character 0: 'What is 17 \+ 25\?' instead of '<\|im_start\|>user",
        ),
        (set_eos("config.json"), ["end of text"], r"of config\.json \(\[0, 2\]\) must equal the exported ones \(\[2\]"),
        (set_eos("generation_config.json"), ["end of text"], r"of generation_config\.json \(\[0, 2\]\) must equal"),
        (set_eos("genai_config.json"), ["end of text"], r"of genai_config\.json \(\[0\]\) must equal the exported"),
        (set_eos("tokenizer_config.json"), ["end of text"], r"of tokenizer_config\.json \(\[0\]\) must equal the exp"),
        (
            lambda f: flip_bits(f / "model.onnx.data", 2 * (f / "model.onnx.data").stat().st_size // 3, 4096),
            ["greedy tokens", "divergence"],
            r"greedy token \d+ of prompt \d \(\d+\) must equal the exported one \(\d+\), which led by \d+\.\d+ logits",
        ),
    ],
)  # fmt: skip
def test_damage_with_a_repaired_manifest_is_found_by_what_the_folder_says(
    copied: Path, damage: Damage, found_by: list[str], message: str
) -> None:
    damage(copied)
    repair_manifest(copied)
    found = failures(copied)
    assert list(found) == found_by
    assert re.search(message, found[found_by[0]]), found


def test_every_dropped_merge_is_found(copied: Path) -> None:
    record = read_record(copied)
    content = (copied / "tokenizer.json").read_text()
    count = len(json.loads(content)["model"]["merges"])
    assert count > 10
    for index in range(count):
        (copied / "tokenizer.json").write_text(content)
        drop_merge(copied, index)
        with pytest.raises(InputError, match="must equal the original tokenizer's"):
            check_tokenizer(record, ChatFormat.from_folder(copied), fast=False)


def test_weights_are_not_run_where_their_files_are_not_what_was_exported(copied: Path) -> None:
    flip_bits(copied / "model.onnx.data", 999, 1)
    outcomes = {check.name: check.outcome for check in verify(copied, fast=False)}
    assert outcomes["greedy tokens"] == outcomes["divergence"] == "not run"


def test_the_fast_part_leaves_large_files_digests_out_but_not_their_sizes(copied: Path) -> None:
    large = copied / "model.onnx.data"
    with large.open("ab") as file:
        file.truncate(SMALL_BYTES + 1)
    repair_manifest(copied)
    flip_bits(large, 999, 1)
    assert "files" not in failures(copied, fast=True)
    assert "sha256" in failures(copied)["files"]
    with large.open("ab") as file:
        file.truncate(SMALL_BYTES + 2)
    assert f"has {SMALL_BYTES + 2} bytes instead of {SMALL_BYTES + 1}" in failures(copied, fast=True)["files"]


def test_a_manifest_cannot_name_files_outside_the_folder(copied: Path) -> None:
    manifest = read_manifest(copied) or {}
    manifest["outputs"]["../elsewhere"] = {"bytes": 1, "sha256": "0"}
    with pytest.raises(InputError, match=r"\.\./elsewhere, which the manifest names, is missing"):
        check_files(copied, manifest, fast=True)


def test_the_recorded_ids_are_those_of_transformers(exported: Path, source: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    record = read_record(exported)
    for text, digest in zip(record.texts, record.text_digests, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert hashlib.sha256(" ".join(str(i) for i in ids).encode()).hexdigest().startswith(digest), text


def test_the_corpus_is_the_same_for_a_seed_and_holds_every_kind() -> None:
    texts = fuzz_texts(0, 300)
    assert texts == fuzz_texts(0, 300) != fuzz_texts(1, 300)
    assert len(set(texts)) > 400
    for piece in ("<|im_end|>", "\t", "\r\n", "👩‍👩‍👧‍👦", "e\u0301", "مرحبا", "你好", "\x00", "def f(x)", "1234567890"):
        assert sum(piece in text for text in texts) > 1, piece
    "".join(texts).encode()


def test_chats_are_recorded_as_the_format_says(exported: Path) -> None:
    record = read_record(exported)
    assert [chat.messages for chat in record.chats] == list(CHATS)
    assert record.chats[2].text == (
        "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 42.<|im_end|>\n"
        "<|im_start|>user\nWhich is larger, 3/4 or 2/3?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_golden_tokens_are_what_decoding_alone_gives(exported: Path) -> None:
    decoder = OnnxDecoder(exported)
    record = read_record(exported)
    assert len(record.greedy) == GREEDY_PROMPTS
    for text in record.greedy:
        assert len(text.tokens) == GREEDY_TOKENS or text.tokens[-1] == 2
        logits_TV = decoder.score(text.prompt + text.tokens)[len(text.prompt) - 1 : -1]
        for token, margin, logits_V in zip(text.tokens, text.margins, logits_TV, strict=True):
            others_V = np.delete(logits_V, token)
            assert margin == pytest.approx(
                logits_V[token] - others_V.max(), abs=0.3
            )  # prompts are read in one run here


def test_a_divergence_is_accepted_only_below_the_margin(exported: Path) -> None:
    decoder, record = OnnxDecoder(exported), read_record(exported)
    text = record.greedy[0]
    wrong = [*text.tokens[:-1], text.tokens[-1] ^ 1]

    def with_margin(margin: float) -> GoldenRecord:
        return replace(record, greedy=[replace(text, tokens=wrong, margins=[*text.margins[:-1], margin])])

    accepted = check_greedy(with_margin(0.9 * MARGIN_TOLERANCE), decoder)
    assert accepted == f"{len(wrong) - 1} of {len(wrong)} greedy tokens equal the exported ones; 1 differ, " + (
        f"which led by at most {0.9 * MARGIN_TOLERANCE:.2f} logits"
    )
    with pytest.raises(InputError, match=rf"\({text.tokens[-1]}\) must equal the exported one \({wrong[-1]}\)"):
        check_greedy(with_margin(MARGIN_TOLERANCE), decoder)


def test_coarse_divergence_equals_the_sum_over_its_outcomes_and_bounds_the_true_one(
    exported: Path, source: Path
) -> None:
    """The oracle is the float model itself in torch, and plain loops."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    decoder, expected = OnnxDecoder(exported), read_expected(exported)
    coarse, whole, agrees = [], [], []
    for tokens, positions in zip(expected.texts(), expected.positions.tolist(), strict=True):
        with torch.no_grad():
            p_TV = model(torch.tensor([tokens])).logits[0].double().softmax(-1).numpy()
        q_TV = torch.from_numpy(decoder.score(tokens)).double().softmax(-1).numpy()
        for t in range(len(tokens) - positions - 1, len(tokens) - 1):
            p, q = p_TV[t], q_TV[t]
            named = sorted(range(len(p)), key=lambda i, p=p: -p[i])[:LIKELIEST]  # type: ignore[misc]
            rest_p, rest_q = (1 - sum(float(d[i]) for i in named) for d in (p, q))
            coarse.append(sum(p[i] * math.log(p[i] / q[i]) for i in named) + rest_p * math.log(rest_p / rest_q))
            whole.append(sum(p[i] * math.log(p[i] / q[i]) for i in range(len(p))))
            agrees.append(p.argmax() == q.argmax())
    found = measure_coarsely(decoder, expected)
    assert 0 < found.positions == len(coarse) <= POSITIONS
    assert found.mean_kl == pytest.approx(np.mean(coarse), rel=1e-4)
    assert 0 < found.mean_kl <= np.mean(whole)
    assert found.top1 == pytest.approx(np.mean(agrees))
    assert (read_manifest(exported) or {})["measured"]["coarse_parity"] == found.to_dict()


def test_a_template_that_transformers_renders_otherwise_is_not_exported(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    (folder / "chat_template.jinja").write_text("{{ namespace(said=messages[0].content) }}")
    with pytest.raises(
        GateFailed,
        match=r"the chat would not read .* as it was made: chat 1 of verify\.json "
        r".* differs at character \d+: .* instead of .*said",
    ):
        export_model(replace(int4_config(folder, tmp_path / "out"), bounds=WIDE))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_template_that_writes_the_date_is_recorded_with_the_day_of_the_record(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    (folder / "chat_template.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}A"
    )
    today = ChatFormat.from_folder(folder)
    assert {chat.text for chat in rendered_chats(folder, today)} == {"26 Jul 2024A"}
    assert today.render([]) == f"{datetime.now():%d %b %Y}A"


def make_older(folder: Path) -> None:
    """Turn a folder into one from before there was a record."""
    (folder / RECORD_FILE).unlink()
    (folder / EXPECTED_FILE).unlink()
    repair_manifest(folder)


def test_an_older_folder_opens_with_a_note_and_is_not_verified(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_older(copied)
    assert load_model(copied).name == "copy"
    assert capsys.readouterr().err == (
        f"{copied} cannot be verified: it was exported before there was a record; export again\n"
    )
    with pytest.raises(InputError, match=r"cannot be verified: it was exported before .*; export again"):
        verify(copied, fast=True)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        ".gitattributes",
        ".git/config",
        ".cache/huggingface/download/config.json.metadata",
        "desktop.ini",
        "Thumbs.db",
        "assets/chart.png",
    ],
)
def test_what_nobody_runs_may_lie_beside(name: str, copied: Path) -> None:
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_text("x")
    assert failures(copied) == {}
    assert load_model(copied).name == "copy"


@pytest.mark.parametrize(
    "name", ["modeling.py", "README.py", "vocab.json", "other.onnx", "pytorch_model.bin", "LICENSE.json"]
)
def test_what_a_loader_might_read_may_not_lie_beside(name: str, copied: Path) -> None:
    (copied / name).write_text("x")
    assert re.search(rf"{name} is not named by the manifest; move it away", failures(copied)["files"])


def test_line_ends_that_git_changed_have_their_own_remedy(copied: Path) -> None:
    path = copied / "genai_config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert failures(copied)["files"].endswith(
        "git changed its line ends: run git config core.autocrlf false there, and check the files out again"
    )


def test_a_pointer_of_git_lfs_is_told_so(copied: Path) -> None:
    (copied / "model.onnx.data").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert failures(copied)["files"].endswith("it is a pointer of Git LFS: run git lfs pull in the folder")


@pytest.mark.parametrize("name", ["config.json", "verify.json", "tokenizer.json", "model.onnx", "verify.npz", "x.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_found_and_not_waited_for(name: str, copied: Path) -> None:
    (copied / name).unlink(missing_ok=True)
    os.mkfifo(copied / name)
    assert re.search(rf"{name} must be a regular file", failures(copied)["files"])
    with pytest.raises(InputError, match=rf"{name} must be a regular file"):
        load_model(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(texts="abc"), r"texts of verify\.json \('abc'\) must be a list, each entry a text"),
        (lambda r: r.update(texts=[1, 2]), r"texts of verify\.json .* must be a list, each entry a text"),
        (lambda r: r.update(chats=[[1]]), r"verify\.json is no record"),
        (lambda r: r.update(chats=5), r"verify\.json is no record"),
        (lambda r: r.update(chats=[{"messages": ["hi"], "text": None}]), r"messages of verify\.json .* must be a list"),
        (lambda r: r.update(end_of_text={"chat": "2"}), (r"end_of_text of verify\.json .* must be "
                                                        r"an object, each entry a li")),
        (lambda r: r["greedy"][0].update(margins=[0.5]), (r"must have a prompt \(\d+ ids\) and a "
                                                         r"margin \(1\) for each tok")),
        (lambda r: r["greedy"][0].update(tokens="ab", margins=[1, 1]), (r"tokens of verify\.json \('ab'\) "
                                                                       r"must be a list")),
        (lambda r: r["greedy"][0].update(prompt=[10**9]), r"prompt 1 of verify\.json has ids or a length that the model does not support"),
        (lambda r: r["text_digests"].pop(), r"verify\.json must have a digest \(\d+\) for each text \(\d+\)"),
        (lambda r: r.update(version=[1]), r"the version of verify\.json \(\[1\]\) must be 1"),
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_one_line(
    change: Callable[[dict[str, Any]], object], message: str, copied: Path
) -> None:
    edit_json(copied / RECORD_FILE, change)
    repair_manifest(copied)
    found = failures(copied)
    assert "files" not in found
    assert any(re.search(message, line) for line in found.values()), found
    assert not any("\n" in line for line in found.values())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.array([10**8], np.int32)}, r"holds arrays that don.t fit each other|outside the vocabulary"),
        ({"ids": np.array([[1.5]])}, r"holds arrays that don.t fit each other"),
        ({"lengths": np.array([["a"]])}, r"holds arrays that don.t fit each other|is no record"),
    ],
)
def test_expected_arrays_of_other_types_are_one_line(arrays: dict[str, Any], message: str, copied: Path) -> None:
    with np.load(copied / EXPECTED_FILE) as old:
        np.savez_compressed(copied / EXPECTED_FILE, **{name: old[name] for name in old.files} | arrays)
    repair_manifest(copied)
    assert re.search(message, failures(copied)["divergence"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"eos_token_id": [[2]]}, (r"eos_token_id in .*/config\.json \(\[\[2\]\]\) "
                                                 r"must be a whole number or")),
        ("generation_config.json", {"eos_token_id": "2"}, (r"eos_token_id in .*/generation_config\.json "
                                                          r"\('2'\) must be")),
        ("genai_config.json", {"model": {"eos_token_id": {}}}, (r"eos_token_id in .*/genai_config\.json "
                                                               r"\(\{\}\) must be")),
        ("tokenizer_config.json", {"eos_token": ["a"]}, (r"eos_token in .*/tokenizer_config\.json "
                                                        r".* must be a text or null")),
        ("manifest.json", {"measured": {"coarse_parity": {"mean_kl": "0"}}}, (r"coarse_parity and places in "
                                                                             r"manifest\.json .* must be an")),
    ],
)  # fmt: skip
def test_values_of_other_types_are_one_line(name: str, change: dict[str, Any], message: str, copied: Path) -> None:
    edit_json(copied / name, lambda values: values.update(change))
    if name != "manifest.json":
        repair_manifest(copied)
    found = failures(copied)
    assert any(re.search(message, line) for line in found.values()), found
    assert not any("\n" in line for line in found.values())


def test_expected_ids_beyond_the_vocabulary_are_one_line(copied: Path) -> None:
    with np.load(copied / EXPECTED_FILE) as old:
        values = {name: old[name] for name in old.files}
    values["tokens"][3] = 320
    np.savez_compressed(copied / EXPECTED_FILE, **values)
    repair_manifest(copied)
    assert "verify.npz holds ids outside the vocabulary (320)" in failures(copied)["divergence"]


def test_without_a_record_the_manifest_s_digests_are_checked(copied: Path) -> None:
    make_older(copied)
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match=r"chat_template\.jinja has \d+ bytes instead of \d+"):
        load_model(copied)
    with pytest.raises(InputError, match=r"chat_template\.jinja has \d+ bytes instead of \d+"):
        verify(copied, fast=False)


def test_a_folder_that_was_not_compared_is_told_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(replace(int4_config(source, tmp_path / "out"), bounds=None))
    capsys.readouterr()
    with pytest.raises(
        InputError, match=r"cannot be verified: it was exported with --no-parity, and so without a record"
    ):
        verify(tmp_path / "out", fast=False)
    load_model(tmp_path / "out")
    assert "cannot be verified: it was exported with --no-parity" in capsys.readouterr().err


def test_the_chat_refuses_a_folder_that_fails_the_fast_part(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_start(copied)
    load_model(copied)
    assert capsys.readouterr().err == ""
    (copied / "chat_template.jinja").open("a").write(" ")
    with pytest.raises(InputError, match=r"chat_template\.jinja has \d+ bytes instead of \d+; export again"):
        load_model(copied)
    (copied / RECORD_FILE).unlink()
    with pytest.raises(InputError, match=r"verify\.json, which the manifest names, is missing"):
        load_model(copied)


def test_the_command_prints_a_line_a_check_and_fails_with_the_first(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(copied)]) == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[0].strip() for line in out.splitlines()] == ["ok"] * len(NAMES)
    assert err == ""
    set_eos("config.json")(copied)
    assert main(["verify", str(copied), "--fast"]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["failed", "ok", "ok", "ok", "failed", "not", "not"]
    assert err.startswith(f"toolkit: {copied}/config.json has ") and len(err.splitlines()) == 1
    assert main(["verify", str(copied), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["exit"], len(facts["checks"])) == (False, 2, len(NAMES))


def test_verifying_imports_no_training_library(exported: Path) -> None:
    loaded = modules_loaded_by(f"from toolkit.cli.main import main; assert main(['verify', {str(exported)!r}]) == 0")
    assert not {"torch", "transformers", "onnx", "safetensors", "gradio"} & loaded


def test_the_same_source_gives_the_same_record(exported: Path, source: Path, tmp_path: Path) -> None:
    export_model(replace(int4_config(source, tmp_path / "again"), bounds=WIDE))
    check_external_data(tmp_path / "again" / "model.onnx")
    for name in (RECORD_FILE, EXPECTED_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_a_folder_that_is_not_there_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no exported folder .*nothing; make it with"):
        verify(tmp_path / "nothing", fast=True)


def test_a_model_that_is_not_exported_yet_is_called_one(tiny_student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_student, tmp_path / "my student"))
    for check in (check_start, partial(verify, fast=True)):
        with pytest.raises(
            InputError, match=r"is a model that is not exported yet; .*: toolkit export '.*my student' --int4"
        ):
            check(folder)


def test_a_context_beyond_the_graph_s_is_found(copied: Path) -> None:
    edit_json(copied / "genai_config.json", lambda config: config["model"].update(context_length=4096))
    repair_manifest(copied)
    found = failures(copied)
    assert found.keys() == {"greedy tokens", "divergence"}
    assert all("context_length" in line and "(4096) must equal that of" in line for line in found.values())
