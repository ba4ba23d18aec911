"""Writes chains for counting letters, sorting numbers and spelling backward: one letter or one number per step."""

from __future__ import annotations

from distill.problems.chains.arithmetic import Chain
from toolkit.records import Problem


def letter_counting(problem: Problem) -> Chain:
    """Spell every word, with the running count after each hit."""
    target, count = problem.metadata["target_letter"], 0
    lines = []
    for word in problem.metadata["span"]:
        letters = []
        for letter in word.lower():
            count += letter == target
            letters.append(f"{letter}{count}" if letter == target else letter)
        lines.append(f"{word}: {' '.join(letters)}")
    return "\n".join(lines), str(count)


def number_sorting(problem: Problem) -> Chain:
    """Sort by selection: each line lists the numbers left and the smallest (or largest) of them."""
    left = [int(float(text)) for text in problem.metadata["original_numbers"]]
    ascending = problem.metadata["direction"] == "ascending"
    word, choose = ("smallest", min) if ascending else ("largest", max)
    lines, taken = [], []
    while left:
        chosen = choose(left)
        taken.append(chosen)
        lines.append(f"{' '.join(map(str, left))}: {word} {chosen}")
        left.remove(chosen)
    return "\n".join(lines), str([str(number) for number in taken])


def spell_backward(problem: Problem) -> Chain:
    """Spell the word, then the letters from the last to the first."""
    word = problem.metadata["word"]
    return f"{word}: {' '.join(word)}\nbackward: {' '.join(reversed(word))}", word[::-1]
