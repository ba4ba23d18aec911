"""Writes the report of a run: ledger.json, and report.html with what was measured and what the models said.

    run/
    ├── eval/<row>/     finished evaluations: the rows of the ledger
    ├── student/        the distillation run: loss.jsonl, drops.json
    ├── recipe.json     how the demo was sized to its machine
    ├── ledger.json     ┐ written here
    └── report.html     ┘ self-contained: its content security policy forbids scripts and requests

Everything that a model or a user wrote is escaped, and characters that act on the text around them (control characters,
direction overrides) are shown by their codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.errors import InputError, MissingExtra
from toolkit.figures.html_page import figure, page, section, text
from toolkit.figures.ledger import (
    TITLES,
    Evaluation,
    Ledger,
    Outcome,
    accuracy_name,
    build_ledger,
    comparison_sentence,
    megabytes,
    names_at_k,
    protocol_line,
    read_outcomes,
    speed,
    title,
    write_ledger,
)
from toolkit.figures.recipe import read_recipe, recipe_line
from toolkit.figures.tables import interval_text, percent
from toolkit.records import read_jsonl, read_object
from toolkit.runs import replace_text
from toolkit.terminal import counted

FURTHER = ("logits", "on_policy", "rl")
"""Rows of students that learned in another way than from texts alone."""
COLORED = ("teacher", "base", "student", "int4")
"""Rows with a colour of their own in the page's style."""
LEDGER, REPORT = "ledger.json", "report.html"
MARKS = {
    "correct": "right",
    "wrong": "wrong",
    "truncated": "truncated",
    "filtered": "filtered",
    "tool_call": "called a tool",
    "broken_off": "broken off",
    "empty": "no answer",
}


def report_run(run: Path) -> Ledger:
    """Write `ledger.json` and `report.html` of a run folder from the results of its stages.

    Raises `InputError` if it holds no finished evaluation.
    """
    if not run.is_dir():
        raise InputError(f"{run} is not a folder; give the run folder that holds eval")
    folders = evaluation_folders(run / "eval")
    ledger = build_ledger(folders, read_recipe(run))
    write_ledger(run / LEDGER, ledger)
    write_report(run / REPORT, ledger, folders, run / "student")
    return ledger


def evaluation_folders(folder: Path) -> dict[str, Path]:
    """Return the evaluation folders by row name: the toolkit's own rows in order, then others by name."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not names:
        raise InputError(f"{folder} holds no evaluation; make one with: toolkit eval MODEL --out {folder / 'NAME'}")
    ordered = [name for name in TITLES if name in names] + [name for name in names if name not in TITLES]
    return {name: folder / name for name in ordered}


def write_report(path: Path, ledger: Ledger, evaluations: Mapping[str, Path], student: Path) -> None:
    """Write the page. `student` is the distillation run; the page leaves out what it does not hold.

    Raises `MissingExtra` if matplotlib is not installed.
    """
    try:
        from toolkit.figures import charts
    except ImportError as error:
        raise MissingExtra("matplotlib", "distill") from error
    outcomes = {name: read_outcomes(folder) for name, folder in evaluations.items()}
    lengths = {
        name: [o.trace.reasoning_tokens for o in outcomes[name] if o.trace.reasoning_tokens is not None]
        for name, row in ledger.rows.items()
        if charts.thinks(row)
    }
    loss, drops = student / "loss.jsonl", student / "drops.json"
    steps = [step for _, step in read_jsonl(loss)] if loss.is_file() else []
    training = []
    if steps:
        training.append(figure(charts.loss_curve(steps), "Loss of the student's completion tokens while it learns."))
    if drops.is_file():
        counts = read_object(drops)
        caption = f"What became of the teacher's {counted(counts['traces'], 'trace')} before training."
        training.append(figure(charts.curation(counts["kept"], counts["drops"]), caption))
    thinking = (
        figure(charts.thinking_lengths(lengths), "How long the models think about a held-out problem.")
        if lengths
        else ""
    )
    sections = [
        _headline(ledger),
        _cards(ledger),
        section(
            "Accuracy",
            figure(charts.accuracy_by_stage(ledger), "All held-out problems; whiskers are 95 % bootstrap intervals."),
            figure(charts.accuracy_by_family(ledger), "The same by family of problems."),
            _gains(ledger),
        ),
        section("All numbers", _table(ledger)),
        section("Training", *training) if training else "",
        section("Thinking", thinking) if thinking else "",
        section("What they said", *_transcripts(ledger, outcomes)),
        section("How it was measured", _protocol(ledger)),
    ]
    replace_text(path, page("What each stage gained", "".join(sections)))


def _headline(ledger: Ledger) -> str:
    rows = ledger.rows
    sentences = []
    if "student" in rows:
        before = f", where its base solved {percent(rows['base'].accuracy)}" if "base" in rows else ""
        sentences.append(
            f"The distilled student solves <b>{percent(rows['student'].accuracy)}</b> of the problems{before}."
        )
    for name in FURTHER:
        if name in rows:
            sentences.append(
                f"The {title(name)[0].lower()}{title(name)[1:]} solves <b>{percent(rows[name].accuracy)}</b>."
            )
    if "int4" in rows:
        int4 = rows["int4"]
        kept = (
            f" and keeps {percent(int4.accuracy / rows['student'].accuracy)} of that accuracy"
            if "student" in rows and rows["student"].accuracy
            else ""
        )
        sentences.append(
            f"As int4 ONNX it weighs <b>{megabytes(int4.bytes)}</b>, "
            f"runs at <b>{speed(int4.tokens_per_s)} tokens/s</b>{kept}."
        )
    lead = " ".join(sentences) or f"{len(rows)} models on {counted(ledger.problems, 'held-out problem')}."
    return (
        '<header><p class="kicker">reasoning-edge</p><h1>What each stage '
        f'gained</h1><p class="lead">{lead}</p></header>'
    )


def _cards(ledger: Ledger) -> str:
    cards = [
        f'<div class="card" style="--row: var(--{_color_name(name)})"><h3>{text(title(name))}</h3>'
        f'<p class="big">{percent(row.accuracy)}</p><p class="small">{interval_text(row.interval)}</p>'
        f"<p>{speed(row.tokens_per_s)} tokens/s<br>{megabytes(row.bytes)}</p></div>"
        for name, row in ledger.rows.items()
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _gains(ledger: Ledger) -> str:
    items = "".join(f"<li>{text(comparison_sentence(comparison))}</li>" for comparison in ledger.comparisons)
    return (
        f'<ul class="gains">{items}</ul><p class="small">Differences are paired, problem by problem.</p>'
        if items
        else ""
    )


def _table(ledger: Ledger) -> str:
    rows = list(ledger.rows.values())
    lines: list[tuple[str, list[str]]] = [
        (
            accuracy_name(ledger).capitalize(),
            [f"<b>{percent(row.accuracy)}</b><br><small>{interval_text(row.interval)}</small>" for row in rows],
        ),
        *((name, [_at_k(row, name) for row in rows]) for name in names_at_k(rows)),
        *_family_lines(rows),
        ("Thinking tokens, mean", [_mean(row.mean_reasoning_tokens) for row in rows]),
        ("Completion tokens, mean", [_mean(row.mean_completion_tokens) for row in rows]),
        ("Thinking not closed", [percent(row.truncation_rate) for row in rows]),
        ("Ran into the limit", [percent(row.limit_rate) for row in rows]),
        ("Tokens/s, one stream", [speed(row.tokens_per_s) for row in rows]),
        ("Tokens/s, batched", [_batch_speed(row) for row in rows]),
        ("Weights", [megabytes(row.bytes) for row in rows]),
        ("Model", [f"{text(row.model)}<br><small>{text(row.model_digest[:8])}</small>" for row in rows]),
    ]
    head = "".join(f"<th scope=col>{text(title(name))}</th>" for name in ledger.rows)
    body = "".join(
        f"<tr><th scope=row>{label}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for label, cells in lines
    )
    return f'<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _family_lines(rows: Sequence[Evaluation]) -> Iterator[tuple[str, list[str]]]:
    scores = [row.families for row in rows]
    for family in scores[0]:
        cells = [
            f"{percent(score[family]['accuracy'])}<br><small>{interval_text(score[family]['interval'])}</small>"
            for score in scores
        ]
        yield text(family.replace("_", " ")), cells


def _at_k(row: Evaluation, name: str) -> str:
    score = row.at_k.get(name)
    return f"{percent(score['accuracy'])}<br><small>{interval_text(score['interval'])}</small>" if score else "–"


def _batch_speed(row: Evaluation) -> str:
    if row.batch_tokens_per_s is None:
        return "–"
    return f"{row.batch_tokens_per_s:.0f}<br><small>batch {row.batch_size}</small>"


def _transcripts(ledger: Ledger, outcomes: Mapping[str, Sequence[Outcome]]) -> Iterator[str]:
    """Yield one problem of each family: the first of those that show most."""
    yield (
        '<p class="small">One problem of each family: the first that the last stage solves and the base does not, if '
        "there is one; open a line to read the thinking.</p>"
    )
    names = list(ledger.rows)
    said = {name: {(o.problem.id, o.trace.sample): o for o in outcomes[name]} for name in names}
    for family in ledger.rows[names[0]].families:
        keys = [(o.problem.id, o.trace.sample) for o in outcomes[names[0]] if o.problem.family == family]
        key = max(keys, key=lambda key: _tells({name: said[name][key].verdict.correct for name in names}))
        problem = said[names[0]][key].problem
        answers = "".join(_said(name, said[name][key]) for name in names)
        yield (
            f"<article><h3>{text(family.replace('_', ' '))}</h3>"
            f'<pre class="question">{text(problem.transcript.strip())}</pre>{answers}</article>'
        )


def _tells(correct: Mapping[str, bool]) -> int:
    """Score how much a problem shows: most if the last stage solves it and the base does not."""
    last = correct.get("int4", correct.get("student", True))
    return 2 * last + (not correct.get("base", False))


def _mean(tokens: float | None) -> str:
    return "–" if tokens is None else f"{tokens:.1f}"


def _said(name: str, outcome: Outcome) -> str:
    trace, reason = outcome.trace, outcome.verdict.reason
    mark = f'<span class="mark {reason}">{MARKS[reason]}</span>'
    who = f'<span class="who" style="--row: var(--{_color_name(name)})">{text(title(name))}</span>'
    answer = trace.answer.strip()
    short = answer if len(answer) <= 120 and "\n" not in answer else "… " + answer.split("\n")[-1][-120:]
    rest = f"<pre>{text(answer)}</pre>" if short != answer else ""
    thought = f'<pre class="thought">{text(trace.reasoning.strip())}</pre>' if trace.reasoning.strip() else ""
    count = trace.completion_tokens
    tokens = "" if count is None else f'<span class="small">{count} tokens</span>'
    if not thought and not rest:
        return f'<div class="said">{who}<code>{text(short)}</code>{mark}{tokens}</div>'
    return f'<details class="said"><summary>{who}<code>{text(short)}</code>{mark}{tokens}</summary>{thought}{rest}</details>'


def _protocol(ledger: Ledger) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in ledger.protocol.items())
    sized = f"<p>{text(recipe_line(ledger.recipe))}</p>" if ledger.recipe else ""
    versions = ", ".join(f"{name} {version}" for name, version in ledger.versions.items())
    return (
        f"<p>{text(protocol_line(ledger))}</p>{sized}"
        "<p>Every model gets the question in its own chat template, and one rule reads every answer: a boxed answer, "
        "else what follows the last “answer is”, else the last line; never the thinking. The family's own scorer "
        "decides. Thinking that was not closed within the limit counts as wrong, and is also listed separately.</p>"
        f'<p class="small">Settings: {text(settings)}. Versions: {text(versions)}.</p>'
    )


def _color_name(name: str) -> str:
    return name if name in COLORED else "other"
