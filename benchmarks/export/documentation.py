"""Text for benchmarks that ships with every Python: its own documentation, in pieces, as conversations of one turn."""

from __future__ import annotations

import pydoc_data.topics

from toolkit.records import Example

PIECE_CHARACTERS = 1500
PIECES_A_TOPIC = 4


def documentation() -> list[Example]:
    """Return the first pieces of each topic."""
    examples = []
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        for piece in range(min(PIECES_A_TOPIC, len(text) // PIECE_CHARACTERS)):
            begin = piece * PIECE_CHARACTERS
            examples.append(
                Example(
                    problem_id=f"{topic}-{piece}",
                    family="documentation",
                    question=f"What does Python's documentation say about {topic}, part {piece + 1}?",
                    reasoning="",
                    answer=text[begin : begin + PIECE_CHARACTERS],
                    sample=0,
                    teacher="pydoc",
                )
            )
    return examples
