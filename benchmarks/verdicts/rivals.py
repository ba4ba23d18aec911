"""Prints other programs' verdicts on the same rows; runs in their environments and imports nothing of ours.

    python rivals.py math-verify|lighteval|lm-eval  < rows.jsonl  > verdicts.json

Each grades a row as its own task of that form does; if it has no such task, as its mathematics task does. A verdict is
true or false; null marks a row that raised.

Sources: math-verify's README (the reference stands between dollars); lighteval's tasks gsm8k, math_500 and gpqa:diamond
(their metrics); lm-evaluation-harness' tasks gsm8k (flexible-extract), minerva_math (math_verify), aime24 and
gpqa_main_cot_zeroshot (flexible-extract), read from its own task files.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Grader = Callable[[Row], bool]
LETTERS = ["A", "B", "C", "D"]


def published_answer(reference: str) -> str:
    """Return GSM8K's answer after its mark, as its users split it off."""
    return reference.rpartition("####")[2].strip()


def in_dollars(reference: str) -> str:
    """Put a bare reference between dollars, and leave a whole solution unchanged."""
    return reference if "\\boxed" in reference or "$" in reference else f"${reference}$"


def in_a_box(reference: str) -> str:
    return reference if "\\boxed" in reference else rf"\boxed{{{reference}}}"


def math_verify() -> Grader:
    library: Any = importlib.import_module("math_verify")

    def right(row: Row) -> bool:
        reference = library.parse(in_dollars(published_answer(row["reference"])))
        return bool(library.verify(reference, library.parse(row["answer"])))

    return right


def lighteval() -> Grader:
    metrics: Any = importlib.import_module("lighteval.metrics.metrics").Metrics
    document: Any = importlib.import_module("lighteval.tasks.requests").Doc
    response: Any = importlib.import_module("lighteval.models.model_output").ModelResponse

    def right(row: Row) -> bool:
        reference, choices = row["reference"], [in_dollars(row["reference"])]
        metric, gold = metrics.pass_at_k_math, 0
        if row["form"] == "GSM8K":
            metric, choices = metrics.expr_gold_metric, [f" {reference}"]
        elif row["form"] == "multiple choice" and reference in LETTERS:
            metric, choices, gold = metrics.gpqa_instruct_metric, LETTERS, LETTERS.index(reference)
        scorer = metric(sample_params={"k": 1, "n": 1}) if metric is metrics.pass_at_k_math else metric.value
        asked = document(query="", choices=choices, gold_index=gold)
        score = scorer.sample_level_fn.compute(doc=asked, model_response=response(text=[row["answer"]]))
        return bool(float(score) == 1.0)

    return right


def lm_eval() -> Grader:
    minerva: Any = importlib.import_module("lm_eval.tasks.minerva_math.utils")
    aime: Any = importlib.import_module("lm_eval.tasks.aime.utils")
    gsm8k = filtered_match("gsm8k/gsm8k.yaml")
    gpqa = filtered_match("gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml")

    def right(row: Row) -> bool:
        reference, answer = row["reference"], row["answer"]
        if row["form"] == "GSM8K":
            return gsm8k(answer, reference)
        if row["form"] == "multiple choice" and reference in LETTERS:
            return gpqa(answer, f"({reference})")
        if row["form"] == "AIME":
            return bool(aime.process_results({"answer": reference}, [answer])["exact_match"])
        solution = in_a_box(reference)
        results = minerva.process_results({"solution": solution, "answer": reference}, [answer])
        return bool(results["math_verify"])

    return right


def filtered_match(task_file: str) -> Callable[[str, str], bool]:
    """Return a matcher with a task's filter `flexible-extract` and the options of its exact match."""
    yaml: Any = importlib.import_module("yaml")
    package: Any = importlib.import_module("lm_eval.tasks")
    filters: Any = importlib.import_module("lm_eval.filters")
    metrics: Any = importlib.import_module("lm_eval.api.metrics")
    yaml.SafeLoader.add_multi_constructor("!function", lambda loader, suffix, node: None)
    task = yaml.safe_load((Path(package.__file__).parent / task_file).read_text())
    [steps] = [entry["filter"] for entry in task["filter_list"] if entry["name"] == "flexible-extract"]
    [metric] = [entry for entry in task["metric_list"] if entry["metric"] == "exact_match"]
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore") if key in metric}

    def right(answer: str, reference: str) -> bool:
        extracted: Any = [[answer]]
        documents = [{"choices": [f"choice {letter}" for letter in LETTERS]}]
        for step in steps:
            values = {key: value for key, value in step.items() if key != "function"}
            if step["function"] == "multi_choice_regex":
                values.setdefault("fallback", "[invalid]")
            made = filters.get_filter(step["function"])(**values)
            extracted = list(made.apply(extracted, documents))
        result = metrics.exact_match_hf_evaluate(predictions=extracted, references=[reference], **options)
        return bool(result["exact_match"] == 1)

    return right


GRADERS = {"math-verify": math_verify, "lighteval": lighteval, "lm-eval": lm_eval}


def main() -> None:
    logging.disable()
    right = GRADERS[sys.argv[1]]()
    verdicts: list[bool | None] = []
    for line in sys.stdin:
        try:
            verdicts.append(right(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - whatever a rival raises is its verdict on that row
            print(f"{line.strip()}: {error!r}", file=sys.stderr)
            verdicts.append(None)
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
