"""What each command of the command line does: it calls one stage and says what came out.

A stage is imported inside its command, so that `toolkit --help` and the light chat load nothing heavy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toolkit.errors import InputError, ToolkitError

if TYPE_CHECKING:
    from toolkit.generate import Decoder, Sampling
    from toolkit.records import Problem

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
    from toolkit.doctor import examine, to_facts, to_text

    findings = examine()
    return Result(facts=to_facts(findings), text=to_text(findings))


def pull(options: Options) -> Result:
    from toolkit import models
    from toolkit.runs import folder_bytes

    folder = models.pull(options.model, options.out)
    size_bytes = folder_bytes(folder)
    facts = {"model": options.model, "folder": str(folder), "bytes": size_bytes}
    return Result(facts=facts, text=f"{options.model} is in {folder} ({size_bytes / 1e6:.0f} MB)")


def teach(options: Options) -> Result:
    from distill import teach as stages
    from distill.stages import STAGES
    from distill.teacher_recipe import PRESETS
    from toolkit.models import resolve

    _allow_unsafe(options)
    config = replace(PRESETS[options.preset](), seed=options.seed, judge=options.judge)
    base, start = (resolve(model) if model else None for model in (options.base, options.start))
    if start and not options.stage:
        raise InputError(f"--start ({options.start}) must name the model of one stage; add --stage, or give --base")
    if options.stage and options.stage not in STAGES:
        raise InputError(f"--stage ({options.stage}) must be one of {', '.join(STAGES)}")
    if options.seeds > 1 and (options.stage or options.zero):
        raise InputError(f"--seeds ({options.seeds}) must be 1 with --stage or --zero; leave one of them out")
    if options.stage:
        folder = stages.run_stage(options.stage, config, options.out, base=base, start=start)
        return Result(facts={"folder": str(folder)}, text=f"stage {options.stage} is in {folder}")
    if options.zero:
        folder = stages.teach_zero(config, options.out, base=base)
        return Result(facts={"folder": str(folder)}, text=f"R1-Zero is in {folder}")
    folder = stages.teach(config, options.out, base=base, seeds=options.seeds)
    return Result(facts={"folder": str(folder)}, text=f"the teacher is in {folder}; its README.md has the figures")


def traces(options: Options) -> Result:
    from distill.evaluate import problems_digest
    from distill.problems import make_problems
    from distill.respondent import find_respondent
    from toolkit.ledger import PROBLEMS, TRACES
    from toolkit.records import write_records
    from toolkit.runs import Stage, finish, is_complete, partial_folder, read_manifest

    teacher, sampling = find_respondent(options.teacher, *_decoder_options(options)), _sampling(options)
    if options.problems is not None:
        problems = _given_problems(options.problems)
    else:
        problems = make_problems("train", options.per_family, options.seed)
    stage = Stage(
        name="traces",
        config={"samples": options.samples, **asdict(sampling)},
        inputs={"teacher": teacher.digest, "problems": problems_digest(problems)},
    )
    if not is_complete(options.out, stage):
        folder = partial_folder(options.out, stage)
        write_records(folder / PROBLEMS, problems)
        with teacher:
            written = teacher.answer(
                problems,
                sampling,
                samples=options.samples,
                batch_size=options.batch_size,
                path=folder / TRACES,
                teacher=f"{options.teacher}@{teacher.digest}",
            )
        finish(folder, options.out, stage, {"traces": len(written), "closed": sum(t.closed for t in written)})
    measured = (read_manifest(options.out) or {})["measured"]
    text = f"{measured['traces']} traces ({measured['closed']} with their thinking closed) are in {options.out}"
    return Result(facts={"folder": str(options.out), **measured}, text=text)


def distill(options: Options) -> Result:
    from distill import pipeline
    from toolkit.runs import read_manifest

    _allow_unsafe(options)
    given = {name: value for name in ("epochs", "seed") if (value := getattr(options, name)) is not None}
    recipe = pipeline.full if options.preset == "full" else pipeline.demo
    config = recipe(lora=options.lora, **given)
    changes = {name: value for name in ("per_family", "samples") if (value := getattr(options, name)) is not None}
    changes |= {name: getattr(options, name) for name in ("teacher", "student", "problems", "traces")}
    folder = pipeline.distill(replace(config, **changes), options.out, open_decoder)
    measured = (read_manifest(folder) or {})["measured"]
    return Result(facts={"folder": str(folder), **measured}, text=f"the student is in {folder}")


def eval(options: Options) -> Result:
    from distill.compare import COMPARISON_MD, compare_models, comparison_table
    from distill.evaluate import EvalConfig, evaluate
    from distill.problems import ledger_problems
    from distill.respondent import find_respondent, folder_name
    from toolkit.ledger import build_ledger, ledger_table

    _allow_unsafe(options)
    models = [find_respondent(options.model, *_decoder_options(options))]
    models += [find_respondent(model, open_decoder) for model in options.against]
    config = EvalConfig(sampling=_sampling(options), samples=options.samples, batch_size=options.batch_size)
    problems = _given_problems(options.problems) if options.problems is not None else ledger_problems()
    if options.against:
        out = options.out or Path("runs/compare")
        comparison = compare_models(models, problems, config, out)
        text = f"{comparison_table(comparison)}\n\nthe same as Markdown: {out / COMPARISON_MD}"
        return Result(facts={"folder": str(out), **comparison.to_dict()}, text=text)
    (model,) = models
    out = options.out or Path("runs/eval") / folder_name(model.name)
    evaluation = evaluate(model, problems, config, out)
    text = f"{ledger_table(build_ledger({model.name: out}))}\n\ntraces and verdicts are in {out}"
    return Result(facts={"folder": str(out), **evaluation.to_dict()}, text=text)


def export(options: Options) -> Result:
    from export.adapter import base_model, is_adapter
    from export.allocation import choices_table
    from export.pipeline import export_model, int4_config, nearest_config
    from toolkit.models import resolve

    adapter = Path(options.model) if is_adapter(Path(options.model)) else None
    if options.base and adapter is None:
        raise InputError(f"--base ({options.base}) must come with an adapter folder, which {options.model} is not")
    if options.weights != "int4":
        _refuse_int4_options(options)
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
    from export.verify import table, verify

    checks = verify(options.folder, fast=options.fast)
    failed = [check.line for check in checks if check.outcome == "failed"]
    facts = {"folder": str(options.folder), "ok": not failed, "checks": [check.to_dict() for check in checks]}
    error = InputError(failed[0]) if failed else None
    if error:
        facts |= {"error": str(error), "kind": "InputError", "exit": error.exit_code}
    return Result(facts=facts, text=table(checks), error=error)


def bench(options: Options) -> Result:
    from export.benchmark import run_benchmark, table
    from export.session import OnnxDecoder

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
    from apps.chat import run_chat
    from apps.model import CHAT_DECODER
    from apps.store import data_folder

    model = _chat_model(options)
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
    from apps.serve import run_server
    from export.session import OnnxDecoder

    run_server(
        options.folder,
        open_decoder=partial(OnnxDecoder, cache=options.cache, prepacked=options.prepacked),
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        parallel=options.parallel,
        queue=options.queue,
    )
    return Result(facts={"folder": str(options.folder)}, text="")


def report(options: Options) -> Result:
    from toolkit.ledger import ledger_table
    from toolkit.readme import write_figures
    from toolkit.report import REPORT, report_run

    ledger = report_run(options.folder)
    if options.readme is not None:
        write_figures(options.readme, options.folder, ledger)
    return Result(facts=ledger.to_dict(), text=f"{ledger_table(ledger)}\n\nreport: {options.folder / REPORT}")


def demo(options: Options) -> Result:
    from distill import pipeline
    from distill.problems import ledger_problems
    from toolkit import demo as line
    from toolkit.ledger import ledger_table
    from toolkit.report import REPORT

    out = options.out or Path("runs/full" if options.full else "runs/demo")
    config = pipeline.full() if options.full else pipeline.demo()
    ledger = line.demo(config, ledger_problems(), out, open_decoder)
    text = f"{ledger_table(ledger)}\n\nreport: {out / REPORT}\nchat:   toolkit chat {out / line.INT4}"
    return Result(facts=ledger.to_dict(), text=text, then=lambda: _chat_if_someone_is_there(out / line.INT4))


def open_decoder(folder: Path) -> Decoder:
    """Open a model folder for decoding: an exported one through ONNX Runtime, any other through torch."""
    if (folder / "model.onnx").is_file():
        from export.session import OnnxDecoder

        return OnnxDecoder(folder)
    from toolkit.model.decoder import TorchDecoder

    return TorchDecoder.open(folder)


def _decoder_options(options: Options) -> tuple[Callable[[Path], Decoder], str]:
    """What opens a model folder with the cache that is asked for, and that cache's name: empty for the exact one."""
    from toolkit.runs import file_digest

    rank, traces = options.cache_rank, options.cache_calibration
    if (rank is None) != (traces is None):
        raise InputError(
            f"--cache-rank ({rank}) and --cache-calibration ({traces}) must come together; "
            "toolkit traces writes a folder to calibrate on"
        )
    names = [] if options.cache == "auto" else [options.cache]
    if traces is not None:
        from toolkit.ledger import TRACES

        if not (traces / TRACES).is_file():
            raise InputError(f"--cache-calibration ({traces}) must be a folder that toolkit traces wrote")
        names.append(f"rank {rank} fitted to {file_digest(traces / TRACES)[:16]}")
    if not names:
        return open_decoder, ""

    def open_with_cache(folder: Path) -> Decoder:
        from toolkit.chat_format import ChatFormat
        from toolkit.model.decoder import LatentCache, TorchDecoder
        from toolkit.model.latent_basis import trace_rows

        if (folder / "model.onnx").is_file():
            from export.session import OnnxDecoder

            if rank is not None:
                raise InputError(
                    f"{folder} is an exported model, whose cache cannot be projected; leave --cache-rank out"
                )
            return OnnxDecoder(folder, cache=options.cache)
        rows = [ids for ids, _ in trace_rows(traces, ChatFormat.from_folder(folder))] if traces else []
        return TorchDecoder.open(
            folder, cache=LatentCache(int8=options.cache == "int8", rank=rank or 0, calibration=rows)
        )

    return open_with_cache, ", ".join(names)


def _chat_model(options: Options) -> str:
    """The model argument that the chat's options name."""
    if (options.folder is None) == (options.endpoint is None):
        raise InputError(
            f"the folder ({options.folder}) or --endpoint ({options.endpoint}) must be given, and not both"
        )
    if options.model and not options.endpoint:
        raise InputError(f"--model ({options.model}) must come with --endpoint; a folder holds one model only")
    named = f"{options.endpoint}#{quote(options.model)}" if options.model else options.endpoint
    return str(options.folder or named)


def _chat_if_someone_is_there(folder: Path) -> None:
    if sys.stdin.isatty():
        from apps.chat import run_chat
        from apps.store import data_folder

        run_chat(folder, data_folder(), port=0)


def _allow_unsafe(options: Options) -> None:
    """What the user allowed counts for all grading of this process."""
    from distill.sandbox import allow_unsafe

    if options.allow_unsafe_exec:
        allow_unsafe()


def _given_problems(path: Path) -> list[Problem]:
    from distill.problems import read_problems

    problems = read_problems(path)
    if not problems:
        raise InputError(f"{path} must hold at least 1 problem; it holds none")
    return problems


def _sampling(options: Options) -> Sampling:
    from toolkit.generate import Sampling

    return Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens, seed=options.seed)
