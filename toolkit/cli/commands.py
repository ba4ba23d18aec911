"""What each command of the command line does: it calls one stage and says what came out.

Those from problems to students are in `toolkit.cli.distill_commands`.

A stage is imported inside its command, so that `toolkit --help` and the light chat load nothing heavy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toolkit.cli.decoders import open_decoder
from toolkit.errors import InputError, ToolkitError
from toolkit.terminal import say

if TYPE_CHECKING:
    from toolkit.cli.doctor import Finding

Options = argparse.Namespace


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command hands back: the facts for --json, and the same as text for a person."""

    facts: Mapping[str, Any]
    text: str
    then: Callable[[], None] | None = None
    """What a person at a terminal gets next, after the text."""
    error: ToolkitError | None = None
    """Why the command fails although it has a result to show."""


def doctor(options: Options) -> Result:
    from toolkit.cli.doctor import examine, to_facts, to_text

    findings = [*examine(), _kernels()]
    return Result(facts=to_facts(findings), text=to_text(findings))


def _kernels() -> Finding:
    """Which kernels run an exported folder here, and why."""
    from toolkit.cli.doctor import Finding

    try:
        from export.runtime.kernels.library import VARIABLE, kernels_in_words

        return Finding(subject="kernels", found=kernels_in_words())
    except InputError as error:
        return Finding(subject="kernels", found=str(error), remedy=f"unset {VARIABLE}")


def pull(options: Options) -> Result:
    from toolkit.runs import folder_bytes
    from toolkit.sources import model_names

    folder = model_names.pull(options.model, options.out)
    size_bytes = folder_bytes(folder)
    facts = {"model": options.model, "folder": str(folder), "bytes": size_bytes}
    return Result(facts=facts, text=f"{options.model} is in {folder} ({size_bytes / 1e6:.0f} MB)")


def export(options: Options) -> Result:
    _check_exporting(options)

    from export.allocation import choices_table
    from export.checkpoint.adapter import base_model, is_adapter
    from export.pipeline import export_model, int4_config, nearest_config
    from export.runtime.kernels.library import WIDENED, kernels_library
    from toolkit.sources.model_names import resolve

    adapter = Path(options.model) if is_adapter(Path(options.model)) else None
    if options.base and adapter is None:
        raise InputError(f"--base ({options.base}) must come with an adapter folder, which {options.model} is not")
    source = resolve(options.base or base_model(adapter)) if adapter else resolve(options.model)
    if options.weights == "int4":
        config = int4_config(
            source,
            options.out,
            preset=options.preset,
            adapter=adapter,
            calibration=options.calibration,
            max_bytes=options.size or 0,
            bits_per_weight=options.bits_per_weight or 0.0,
            tune=options.tune,
            method=options.method,
        )
    else:
        config = nearest_config(source, options.out, options.weights, adapter=adapter, calibration=options.calibration)
    if options.no_parity:
        config = replace(config, bounds=None)
    if config.narrow and not config.is_sized and kernels_library() is None:
        say(f"export: where our kernels don't run, as here, the three bits of --fast {WIDENED}")
    measured = export_model(config)["measured"]
    parity = measured["parity"]
    text = f"{options.out}: {measured['bytes'] / 1e6:.1f} MB, {measured['bytes_per_parameter']:.3f} bytes a parameter; "
    if parity is None:
        text += "not compared with the float model"
    else:
        text += f"against the float model: mean KL {parity['mean_kl']:.4f}, "
        text += f"same first choice {100 * parity['top1']:.1f} %"
    if "allocation" in measured:
        text += f"\n{choices_table(measured['allocation'])}"
    return Result(facts={"folder": str(options.out), **measured}, text=text)


def _check_exporting(options: Options) -> None:
    """Refuse what the options alone show to be wrong, before what exports is imported, which takes seconds."""
    from toolkit.runs import check_out
    from toolkit.sources.model_names import ADAPTER_CONFIG, check_model

    if options.weights != "int4":
        _refuse_int4_options(options)
    if options.calibration and not options.calibration.is_file():
        raise InputError(
            f"--calibration ({options.calibration}) must be a file of traces, such as a student's train.jsonl"
        )
    check_out(options.out)
    if not (Path(options.model) / ADAPTER_CONFIG).is_file():
        check_model(options.model)
    if options.base:
        check_model(options.base)


def _refuse_int4_options(options: Options) -> None:
    chosen = {"size": options.size, "bits-per-weight": options.bits_per_weight}
    names = [name for name, value in chosen.items() if value is not None]
    if options.preset != "balanced":
        names.append(options.preset)
    if options.tune:
        names.append("tune")
    if options.method:
        names.append("method")
    if names:
        raise InputError(f"--{names[0]} must come with --int4, and not with --{options.weights}; leave one of them out")


def verify(options: Options) -> Result:
    from export.runtime.verify.checks import table, verify

    checks = verify(options.folder, fast=options.fast)
    failed = [check.line for check in checks if check.outcome == "failed"]
    facts = {"folder": str(options.folder), "ok": not failed, "checks": [check.to_dict() for check in checks]}
    error = InputError(failed[0]) if failed else None
    if error:
        facts |= {"error": str(error), "kind": "InputError", "exit": error.exit_code}
    return Result(facts=facts, text=table(checks), error=error)


def bench(options: Options) -> Result:
    from export.runtime.bench import run_benchmark, table
    from export.runtime.decoder import OnnxDecoder

    _say_what_is_slower(options.folder, *options.vs)
    benchmark = run_benchmark(
        options.folder,
        versus=options.vs,
        open_decoder=partial(OnnxDecoder, cache=options.cache, prepacked=options.prepacked),
        contexts=options.contexts,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
    )
    return Result(facts=benchmark.to_dict(), text=table(benchmark))


def chat(options: Options) -> Result:
    from toolkit.sources.model_names import check_exported, is_endpoint

    model = _chat_model(options)
    for name in (model, options.compare):
        if name and not is_endpoint(name):
            check_exported(Path(name))

    from apps.chat.run_chat import run_chat
    from apps.model import CHAT_DECODER
    from toolkit.machine.user_folders import data_folder

    _say_what_is_slower(model, options.compare or "")
    run_chat(
        model,
        options.data or data_folder(),
        against=options.compare or "",
        open_decoder=partial(
            CHAT_DECODER, cache=options.cache, prefix_bytes=options.prefix_cache, prepacked=options.prepacked
        ),
        port=options.port,
        window=options.window,
    )
    return Result(facts={"model": model}, text="")


def serve(options: Options) -> Result:
    from apps.server.run_server import run_server
    from export.runtime.exported_model import open_exported

    _say_what_is_slower(options.folder)
    run_server(
        options.folder,
        open_model=partial(open_exported, cache=options.cache, prepacked=options.prepacked),
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        parallel=options.parallel,
        queue=options.queue,
        name=options.name,
        repeatable=options.repeatable,
        origins=options.allow_origin,
        hosts=options.allow_host,
    )
    return Result(facts={"folder": str(options.folder)}, text="")


def report(options: Options) -> Result:
    from toolkit.figures.ledger import ledger_table
    from toolkit.figures.readme import write_figures
    from toolkit.figures.report import REPORT, report_run

    ledger = report_run(options.folder)
    if options.readme is not None:
        write_figures(options.readme, options.folder, ledger)
    return Result(facts=ledger.to_dict(), text=f"{ledger_table(ledger)}\n\nreport: {options.folder / REPORT}")


def demo(options: Options) -> Result:
    from distill import pipeline
    from toolkit.cli.demo import demo as line
    from toolkit.figures.ledger import ledger_table
    from toolkit.figures.report import REPORT

    out = options.out or Path("runs/full" if options.full else "runs/demo")
    minutes = line.FULL_MINUTES if options.full else options.minutes
    ledger = line.demo(pipeline.demo(), out, open_decoder, minutes=minutes)
    text = f"{ledger_table(ledger)}\n\nreport: {out / REPORT}\nchat:   toolkit chat {out / line.INT4}"
    return Result(facts=ledger.to_dict(), text=text, then=lambda: _chat_if_someone_is_there(out / line.INT4))


def _say_what_is_slower(*models: str | Path) -> None:
    """A line on stderr for each exported folder whose products our kernels don't compute."""
    from export.runtime.exported_model import MODEL_FILE
    from export.runtime.kernels.library import what_is_slower

    lines = (what_is_slower(Path(model) / MODEL_FILE) for model in models if model and Path(model).is_dir())
    for line in filter(None, lines):
        say(line)


def _chat_model(options: Options) -> str:
    """The model argument that the chat's options name."""
    if options.folder is None and options.endpoint is None:
        raise InputError(
            "chat must be given a model: an exported folder (toolkit demo makes runs/demo/int4, toolkit export others), or "
            "a server by --endpoint"
        )
    if options.folder is not None and options.endpoint is not None:
        raise InputError(
            f"the folder ({options.folder}) and --endpoint ({options.endpoint}) must not both be given; leave one out"
        )
    if options.model and not options.endpoint:
        raise InputError(f"--model ({options.model}) must come with --endpoint; a folder holds one model only")
    named = f"{options.endpoint}#{quote(options.model)}" if options.model else options.endpoint
    return str(options.folder or named)


def _chat_if_someone_is_there(folder: Path) -> None:
    if sys.stdin.isatty():
        from apps.chat.run_chat import run_chat
        from toolkit.machine.user_folders import data_folder

        run_chat(folder, data_folder(), port=0)
