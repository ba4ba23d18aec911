"""Each row of a pool computes what it would alone, whichever others come, go and change places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.runtime.decoder import OnnxDecoder
from export.runtime.exported_model import open_exported
from export.runtime.kernels.library import kernels_library
from export.runtime.rows.row_pool import Row, RowPool
from toolkit.generation.generate import Floats


@pytest.fixture
def pool(calibrated: Path) -> RowPool:
    return RowPool(open_exported(calibrated))


@pytest.fixture(scope="module")
def alone(calibrated: Path) -> OnnxDecoder:
    return OnnxDecoder(calibrated)


def texts(seed: int, *lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, 320, length).tolist() for length in lengths]


def opened(pool: RowPool, prompt: list[int]) -> Row:
    row = pool.open(prompt)
    pool.read(row, prompt)
    return row


def assert_close(found_V: Floats, alone: OnnxDecoder, text: list[int]) -> None:
    np.testing.assert_allclose(found_V, alone.start([text])[0], atol=0.02)


def test_rows_that_come_and_go_leave_the_others_as_they_are(pool: RowPool, alone: OnnxDecoder) -> None:
    first, second, third = texts(0, 40, 300, 7)
    a, b = opened(pool, first), pool.open(second)
    pool.read(b, second[:200])
    pool.step([a], [5])
    c = opened(pool, third)
    pool.step([c, a], [7, 6])
    assert_close(pool.read(b, second[200:]), alone, second)
    pool.close(a)
    of_b_V, of_c_V = pool.step([b, c], [8, 9])
    assert_close(of_b_V, alone, [*second, 8])
    assert_close(of_c_V, alone, [*third, 7, 9])


@pytest.mark.skipif(not kernels_library(), reason="onnxruntime's kernels round a row by those beside it")
def test_whatever_comes_and_goes_a_row_s_logits_are_its_own_bit_for_bit(pool: RowPool, alone: OnnxDecoder) -> None:
    generator = np.random.default_rng(3)
    rows: list[Row] = []
    for _ in range(60):
        if len(rows) < 5 and generator.random() < 0.4:
            [prompt] = texts(int(generator.integers(2**31)), 20)
            rows.append(opened(pool, prompt))
        if rows and generator.random() < 0.2:
            pool.close(rows.pop(int(generator.integers(len(rows)))))
        stepped = [row for row in rows if generator.random() < 0.8]
        if not stepped:
            continue
        generator.shuffle(stepped)
        tokens = generator.integers(3, 320, len(stepped)).tolist()
        for row, logits_V in zip(stepped, pool.step(stepped, tokens), strict=True):
            alone.start([row.prefix.tokens[:20]])
            for token in row.prefix.tokens[20:]:
                [expected_V] = alone.step(np.array([token]))
            np.testing.assert_array_equal(logits_V, expected_V)


def test_a_row_goes_on_from_what_a_closed_one_left_and_overwrites_the_oldest(pool: RowPool, alone: OnnxDecoder) -> None:
    first, second, third = texts(1, 90, 90, 90)
    a, b = opened(pool, first), opened(pool, second)
    pool.step([a, b], [5, 6])
    pool.close(a)
    pool.close(b)
    longer = [*first, 5, *third]
    a = pool.open(longer)
    assert a.prefix.length == 90, "what was stepped is read again, as a prompt is"
    assert_close(pool.read(a, longer[90:]), alone, longer)
    b = pool.open(second[:50])
    assert b.prefix.length == 41, "a prompt's last tokens are always read, more than a few at once"
    assert_close(pool.read(b, second[41:50]), alone, second[:50])
    pool.close(b)
    pool.close(a)
    assert opened(pool, third).prefix.length == 90, "it has taken the place that was closed first"
    assert pool.open(longer).prefix.length == 172, "the longer one was closed last, and stays"
    pool.forget()
    assert pool.open(longer).prefix.length == 0


def test_a_closed_handle_reads_nothing(pool: RowPool) -> None:
    [prompt] = texts(2, 20)
    row = opened(pool, prompt)
    pool.close(row)
    with pytest.raises(AssertionError):
        pool.read(row, [5])
    other = pool.open(prompt)
    assert other.prefix.length == 0
    with pytest.raises(AssertionError):
        pool.read(row, [5])
