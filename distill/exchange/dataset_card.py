"""Writes the card of a data set of traces: a README.md whose front matter `datasets` and the hub read.

The license is the user's to name: the front matter has a place for it and no value.
Source: the hub's dataset cards, https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.exchange.dataset_files import DATA
from distill.exchange.exported_rows import COLUMNS
from toolkit.figures.tables import markdown_table
from toolkit.records import SPLITS

CARD = "README.md"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LARGEST_SIZE = "10M<n<100M"


@dataclass(kw_only=True)
class DatasetFacts:
    """What a card says of a data set."""

    name: str
    stage: str
    """The command that made the run."""
    problems: int = 0
    traces: Counter[str] = field(default_factory=Counter)
    """By split."""
    bytes: Counter[str] = field(default_factory=Counter)
    """By split, in memory."""
    files_bytes: int = 0
    correct: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)
    verifiers: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.traces[split]]


def card_of(facts: DatasetFacts) -> str:
    """Return the text of the card."""
    return "\n".join([*_front_matter(facts), "", *_body(facts)])


def _front_matter(facts: DatasetFacts) -> list[str]:
    rows = sum(facts.traces.values())
    size = next((name for most, name in _SIZES if rows < most), LARGEST_SIZE)
    lines = ["---", "# license: name the license under which you publish these traces, and delete this mark"]
    lines += ["task_categories:", "- text-generation", "tags:", "- reasoning", "- distillation"]
    lines += ["size_categories:", f"- {size}", "configs:", "- config_name: default", "  data_files:"]
    for split in facts.splits:
        lines += [f"  - split: {split}", f"    path: {DATA}/{split}-*.parquet"]
    lines += ["dataset_info:", "  features:"]
    for column in COLUMNS:
        lines.append(f"  - name: {column.name}")
        if column.dtype == "messages":
            lines += ["    list:", *(f"    - name: {name}\n      dtype: string" for name in ("role", "content"))]
        else:
            lines.append(f"    dtype: {column.dtype}")
    lines.append("  splits:")
    for split in facts.splits:
        lines += [f"  - name: {split}", f"    num_bytes: {facts.bytes[split]}"]
        lines.append(f"    num_examples: {facts.traces[split]}")
    return [
        *lines,
        f"  download_size: {facts.files_bytes}",
        f"  dataset_size: {sum(facts.bytes.values())}",
        "---",
    ]


def _body(facts: DatasetFacts) -> list[str]:
    rows = sum(facts.traces.values())
    counts = [["split", "traces", "right", "wrong", "not verified"]]
    for split in facts.splits:
        found = facts.traces[split], facts.correct[split], facts.wrong[split]
        counts.append([split, *map(str, (*found, found[0] - found[1] - found[2]))])
    about = (
        f"{rows:,} chains of thought with their answers to {facts.problems:,} problems, exported from a run of "
        f"`{facts.stage}`."
    )
    verified = (
        "An answer is right if the final answer after the thought means the reference; a program, if it passes all "
        "tests. It was decided by:"
    )
    held_out = (
        "Rows of the split `test` are not for training: their problems are held out by their source, or by the hash of "
        "their question."
    )
    sampling = ", ".join(f"{name} {value}" for name, value in facts.sampling.items() if value not in (None, ""))
    ends = ", ".join(f"`{name}` ({count:,})" for name, count in facts.finish_reasons.most_common())
    columns = [["column", "type", "meaning"], *([c.name, c.dtype, c.meaning] for c in COLUMNS)]
    sections = {
        f"# {facts.name}": [about, markdown_table(counts)],
        "## Teacher": [_listed(facts.teachers), f"Sampling: {sampling or 'not recorded'}."],
        "## Verification": [
            *([verified, _listed(facts.verifiers)] if facts.verifiers else ["No answer was verified."])
        ],
        "## Ends and splits": [f"Why the turns ended: {ends}.", held_out],
        "## Columns": [markdown_table(columns)],
        "## Loading": ['```python\nfrom datasets import load_dataset\n\ntraces = load_dataset("this/folder")\n```'],
    }
    return ["\n\n".join([head, *texts, ""]).rstrip("\n") + "\n" for head, texts in sections.items()]


def _listed(counts: Counter[str]) -> str:
    return "\n".join(f"- `{name}`: {count:,}" for name, count in counts.most_common())
