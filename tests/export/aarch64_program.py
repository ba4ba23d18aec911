"""`python aarch64_program.py CASES`: what each of our kernels gives on this processor, beside what was expected.

It runs on arm64 for `tests.export.aarch64_kernels`. A case is a folder with a graph and arrays: inputs by name, and
what the outputs must be. A line of JSON says, for each kernels and arrays, how far each output is from that, as a share
of the largest value.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.kernels.library import choose, kernels_here
from export.runtime.session import open_session

Arrays = Sequence[NDArray[Any]]


def differences(cases: Path) -> dict[str, list[float]]:
    found = {}
    for folder in sorted(cases.iterdir()):
        session = open_session(folder / "model.onnx", threads=2)
        for path in sorted(folder.glob("*.npz")):
            feeds = dict(np.load(path))
            expected = [feeds.pop(f"expected {i}") for i in range(len(session.get_outputs()))]
            pairs = zip(written(session.run(None, feeds), feeds), written(expected, feeds), strict=True)
            found[f"{folder.name}/{path.stem}"] = [difference(*pair) for pair in pairs]
    return found


def written(outputs: Arrays, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Leave out what lies behind the last position of each row of the caches."""
    for cache in outputs[1:]:
        for row, last in enumerate(feeds["seqlens_k"]):
            cache[row, :, last + 1 :] = 0
    return outputs


def difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    largest = np.abs(other.astype(float)).max()
    return float(np.abs(one.astype(float) - other).max() / largest)


def main() -> None:
    found = {}
    for kernels in kernels_here():
        choose(kernels)
        found[kernels] = differences(Path(sys.argv[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
