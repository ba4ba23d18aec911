"""Prefixes on disk: continuing from them gives the same bits as reading the prompt."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import nearest_config
from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import Cache
from export.runtime.rows.prefix import PROMPT_CHUNK
from export.runtime.rows.prefix_cache import LEAST_SAVED, forget_prefixes

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
MEGABYTE = 10**6
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    return tmp_path


def prompts(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 320, length).tolist() for length in lengths]


def files(home: Path) -> list[Path]:
    return sorted((home / "prefixes").glob("*/*"))


def chunks_read(decoder: OnnxDecoder, prompt: list[int]) -> int:
    """Count the runs of the model that it takes to start with a prompt."""
    runs = []
    run = decoder.model._session.run_with_iobinding
    decoder.model._session.run_with_iobinding = lambda *given: runs.append(run(*given))
    decoder.start([prompt])
    decoder.model._session.run_with_iobinding = run
    return len(runs)


@pytest.mark.parametrize("cache", ["exact", "int8"])
def test_another_process_goes_on_from_the_file_bit_for_bit(calibrated: Path, home: Path, cache: Cache) -> None:
    [shared, end, other] = prompts(LEAST_SAVED + 40, 60, 20)
    first = OnnxDecoder(calibrated, cache=cache, keeps_prefix=True, prefix_bytes=MEGABYTE)
    first.start([shared + end])
    assert [path.suffix for path in files(home)] == [".prefix"]
    plain = OnnxDecoder(calibrated, cache=cache)
    second = OnnxDecoder(calibrated, cache=cache, keeps_prefix=True, prefix_bytes=MEGABYTE)
    np.testing.assert_array_equal(second.start([shared + other]), plain.start([shared + other]))
    for token in (5, 9, 7):
        np.testing.assert_array_equal(second.step(np.array([token])), plain.step(np.array([token])))
    third = OnnxDecoder(calibrated, cache=cache, prefix_bytes=MEGABYTE)
    assert chunks_read(third, shared + other) == 1
    assert chunks_read(plain, shared + other) == 3


def test_a_prompt_that_was_read_from_the_middle_on_is_not_kept(calibrated: Path, home: Path) -> None:
    """Positions after an answer were not read in whole chunks, and may differ in the last bits."""
    [shared, end] = prompts(PROMPT_CHUNK + 30, LEAST_SAVED)
    chat = OnnxDecoder(calibrated, keeps_prefix=True, prefix_bytes=MEGABYTE)
    chat.start([shared])
    chat.start([[*shared, *end]])
    assert files(home) == []
    fresh = OnnxDecoder(calibrated, prefix_bytes=MEGABYTE)
    fresh.start([[*shared, *end]])
    assert len(files(home)) == 1


def test_a_longer_prefix_takes_the_place_of_a_shorter_one(calibrated: Path, home: Path) -> None:
    [shared, end] = prompts(LEAST_SAVED + 1, PROMPT_CHUNK + 20)
    decoder = OnnxDecoder(calibrated, prefix_bytes=MEGABYTE)
    decoder.start([shared])
    [shorter] = files(home)
    decoder.start([shared + end])
    assert files(home) == [shorter], "128 tokens more are not worth a file"
    [longer] = [[*shared, *text] for text in prompts(LEAST_SAVED - 1)]
    decoder.start([longer])
    [path] = files(home)
    assert path != shorter
    assert chunks_read(OnnxDecoder(calibrated, prefix_bytes=MEGABYTE), longer) == 1


def test_another_model_never_uses_the_file(calibrated: Path, tiny_student: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "int8"
    export_model(replace(nearest_config(tiny_student, other, "int8"), bounds=None))
    [prompt] = prompts(LEAST_SAVED + 9)
    OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start([prompt])
    expected_BV = OnnxDecoder(other).start([prompt])
    np.testing.assert_array_equal(OnnxDecoder(other, prefix_bytes=MEGABYTE).start([prompt]), expected_BV)
    ours, theirs = files(home)
    assert ours.parent != theirs.parent


def test_forgotten_files_are_computed_again_by_who_had_them_open(calibrated: Path, home: Path) -> None:
    [prompt] = prompts(LEAST_SAVED + 9)
    expected_BV = OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start([prompt])
    decoder = OnnxDecoder(calibrated, prefix_bytes=MEGABYTE)
    assert files(home)
    forget_prefixes()
    assert files(home) == []
    np.testing.assert_array_equal(decoder.start([prompt]), expected_BV)
    assert len(files(home)) == 1, "what is read again is kept again"


def test_another_kind_of_cache_never_uses_the_file(calibrated: Path, home: Path) -> None:
    [prompt] = prompts(LEAST_SAVED + 9)
    OnnxDecoder(calibrated, cache="exact", prefix_bytes=MEGABYTE).start([prompt])
    assert chunks_read(OnnxDecoder(calibrated, cache="int8", prefix_bytes=MEGABYTE), prompt) == 3


@pytest.mark.parametrize("damage", ["cut", "header", "flipped", "empty"])
def test_a_damaged_file_is_named_in_one_line_and_computed_again(
    calibrated: Path, home: Path, damage: str, capsys: Captured
) -> None:
    [prompt] = prompts(LEAST_SAVED + 9)
    expected_BV = OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start([prompt])
    [path] = files(home)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"cut": whole[:-1], "header": b"x" + whole[1:], "flipped": flipped, "empty": b""}[damage])
    capsys.readouterr()
    np.testing.assert_array_equal(OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start([prompt]), expected_BV)
    assert capsys.readouterr().err.splitlines()[0].startswith(f"{path} is damaged and will be computed again: it")
    assert path.read_bytes() == whole


def test_the_files_keep_to_their_size_and_the_longest_unused_go(calibrated: Path, home: Path) -> None:
    texts = prompts(LEAST_SAVED + 1, LEAST_SAVED + 2, LEAST_SAVED + 3)
    OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start([texts[0]])
    [first] = files(home)
    room = 2 * first.stat().st_size
    os.utime(first, (1, 1))
    OnnxDecoder(calibrated, prefix_bytes=room).start([texts[1]])
    [second] = set(files(home)) - {first}
    os.utime(second, (2, 2))
    OnnxDecoder(calibrated, prefix_bytes=room).start([texts[0]])  # used again, so the other is the older one
    OnnxDecoder(calibrated, prefix_bytes=room).start([texts[2]])
    assert first in files(home)
    assert second not in files(home)
    assert len(files(home)) == 2
    OnnxDecoder(calibrated, prefix_bytes=room // 2 - 1).start([texts[1]])
    assert len(files(home)) == 2, "what is larger than the whole room is not kept, and nothing goes for it"


def test_the_files_are_the_owners_alone(calibrated: Path, home: Path) -> None:
    OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start(prompts(LEAST_SAVED + 1))
    [path] = files(home)
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_costs_one_line(calibrated: Path, home: Path, capsys: Captured) -> None:
    (home / "prefixes").write_text("a file where the folder should be")
    OnnxDecoder(calibrated, prefix_bytes=MEGABYTE).start(prompts(LEAST_SAVED + 1))
    assert capsys.readouterr().err.count("cannot be written") == 1
