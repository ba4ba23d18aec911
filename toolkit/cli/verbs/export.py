"""`toolkit export` quantizes a model and writes it as an ONNX folder, `toolkit quantize` as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.local import LOAD_IN
from toolkit.cli.options.values import add_flag, name_of, path_of, rate_of, size_of
from toolkit.errors import InputError, MissingExtra
from toolkit.terminal import counted, say


def add_export(add: AddCommand) -> None:
    parser = add("export", export, extra="export", summary="quantize a model and write it as an ONNX folder")
    parser.add_argument(
        "model",
        type=name_of,
        help="model to export: a folder, a LoRA adapter folder, a GGUF file, a known name or a hub id",
    )
    parser.add_argument(
        "--base", type=name_of, help="model that the adapter was trained on; default: the one that the adapter names"
    )
    weights = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("int4", "four bits a weight (default)"),
        ("int8", "eight bits a weight: nearly the float model, twice the size"),
        ("fp16", "half precision: half the size of fp32 on disk, but as large in memory"),
        ("fp32", "the float model itself"),
    ):
        weights.add_argument(
            f"--{name}", dest="weights", action="store_const", const=name, default="int4", help=help_text
        )
    preset = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("best", "smaller blocks: closest to the float model"),
        ("fast", "three bits in each layer's MLP: fastest and smallest"),
        (
            "quick",
            "not calibrated: made in seconds, farthest from the float model; its gate takes minutes (see --no-parity)",
        ),
    ):
        preset.add_argument(
            f"--{name}", dest="preset", action="store_const", const=name, default="balanced", help=help_text
        )
    parser.add_argument(
        "--method",
        choices=("gptq", "searched", "nearest"),
        help="how weights are rounded: gptq (error feedback), searched (weighted by squared inputs, with less memory "
        "and time) or nearest; default: gptq, or nearest with --quick",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--size",
        type=size_of,
        help="largest size of the weights, such as 90MB; more bits go to the matrices that need them most",
    )
    size.add_argument(
        "--bits-per-weight", type=rate_of, help="the same as mean bits of a weight, scales included, such as 4.6"
    )
    parser.add_argument(
        "--recovery",
        choices=("none", "scales"),
        help="what is trained on traces after the weights were rounded, so that the whole model comes closer to the "
        "float one: nothing, or scales and norms; default: none",
    )
    parser.add_argument(
        "--calibration", type=path_of, help="train.jsonl to calibrate on; default: the one in the model folder"
    )
    add_flag(
        parser,
        "--no-parity",
        "skip the comparison with the float model, which takes minutes; the quality is then "
        "unknown, and toolkit verify cannot check the folder",
    )
    add_flag(
        parser,
        "--plan",
        "only say what it takes here: minutes and memory by part, from one measured layer, and the size of the weights",
    )
    parser.add_argument(
        "--exporter",
        choices=("ours", "optimum"),
        default="ours",
        help="who writes the graph: ours, or, for an architecture that it lacks, optimum-onnx in an environment of its "
        "own; such a folder runs slower, and nothing is calibrated; default: ours",
    )
    add_flag(
        parser,
        "--install-optimum",
        "with --exporter optimum: have pip make that environment in the cache folder, if it is not there yet",
    )
    parser.add_argument("--out", type=path_of, required=True, help="folder to write")


def export(options: Options) -> Result:
    _check_exporting(options)
    if options.exporter == "optimum":
        return _export_by_optimum(options)

    from export.allocation import choices_table
    from export.pipeline import export_model
    from export.presets import int4_config, nearest_config
    from export.runtime.kernels.library import WIDENED, kernels_library
    from toolkit.sources.adapter_folder import base_model, is_adapter
    from toolkit.sources.model_names import resolve

    adapter = Path(options.model) if is_adapter(Path(options.model)) else None
    if options.base and adapter is None:
        raise InputError(f"--base ({options.base}) needs an adapter folder, which {options.model} is not; leave it out")
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
            recovery=options.recovery or "none",
            method=options.method,
        )
    else:
        config = nearest_config(source, options.out, options.weights, adapter=adapter, calibration=options.calibration)
    if options.no_parity:
        config = replace(config, bounds=None)
    if options.plan:
        from export.planning import plan_export

        plan = plan_export(config)
        return Result(facts=plan.to_dict(), text=plan.text())
    if config.narrow and not config.is_sized and kernels_library() is None:
        say(f"export: our kernels do not run here, so the three bits of --fast {WIDENED}")
    manifest = export_model(config)
    measured = manifest["measured"]
    lines = [_recovery_line(measured["recovery"])] if "recovery" in measured else []
    lines.append(_gate_line(manifest))
    if "allocation" in measured:
        lines.append(choices_table(measured["allocation"]))
    return _exported(options.out, measured, lines)


def _export_by_optimum(options: Options) -> Result:
    from export.foreign.foreign_export import export_foreign, foreign_config
    from toolkit.sources.model_names import resolve

    config = foreign_config(resolve(options.model), options.out, options.weights, rounding=options.method or "nearest")
    if options.no_parity:
        config = replace(config, bounds=None)
    manifest = export_foreign(config, may_install=options.install_optimum)
    return _exported(options.out, manifest["measured"], [_gate_line(manifest)])


def _exported(out: Path, measured: Mapping[str, Any], lines: Sequence[str]) -> Result:
    first = f"{out}: {measured['bytes'] / 1e6:.1f} MB, {measured['bytes_per_parameter']:.3f} bytes a parameter"
    return Result(facts={"folder": str(out), **measured}, text="\n".join([first, *lines]))


def add_quantize(add: AddCommand) -> None:
    parser = add(
        "quantize", quantize, extra="scale", summary="write a model in 4 or 8 bits, as a checkpoint of transformers"
    )
    parser.add_argument("model", type=name_of, help="model to quantize: a folder, a known name or a hub id")
    parser.add_argument(
        "--load-in",
        choices=LOAD_IN,
        required=True,
        help="bits of the linear layers' weights, by bitsandbytes: NF4 with double quantization, or int8",
    )
    parser.add_argument("--out", type=path_of, required=True, help="folder to write")


def quantize(options: Options) -> Result:
    from importlib.util import find_spec

    from toolkit.runs import check_out
    from toolkit.sources.model_names import check_model

    check_out(options.out)
    check_model(options.model)
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "scale")
    from distill.local import quantized_checkpoint

    measured = quantized_checkpoint.quantize(options.model, options.out, options.load_in)
    text = (
        f"{options.out}: {measured['bytes'] / 1e6:.1f} MB; {measured['quantized_parameters']:,} of "
        f"{measured['parameters']:,} weights in {options.load_in}"
    )
    return Result(facts={"folder": str(options.out), **measured}, text=text)


def _gate_line(manifest: Mapping[str, Any]) -> str:
    """Say whether the gate passed, over what text, and each figure with its bound."""
    from toolkit.figures.tables import percent

    parity, bounds = manifest["measured"]["parity"], manifest["config"]["bounds"]
    if parity is None:
        return "no gate (--no-parity): its distance from the float model is unknown, and toolkit verify cannot check it"
    text = "held-out examples" if "calibration" in manifest["inputs"] else "the float model's own answers"
    return (
        f"the gate passed: over {counted(parity['tokens'], 'token')} of {text} the likeliest next token is the float "
        f"model's at {percent(parity['top1'])} (at least {percent(bounds['min_top1'])} passes), and the probabilities "
        f"differ by a mean KL of {parity['mean_kl']:.4f} (0 is no difference; at most {bounds['max_mean_kl']:g} passes)"
    )


def _recovery_line(report: Mapping[str, Any]) -> str:
    """Say what recovery did, and whether it was kept."""
    return (
        f"recovery on {counted(report['tokens'], 'token')}: the mean KL on texts kept apart went from "
        f"{report['mean_kl_before']:.4f} to {report['mean_kl_after']:.4f}"
        + ("" if report["kept"] else ", so the rounded scales were kept")
    )


def _check_exporting(options: Options) -> None:
    """Refuse what the options alone show to be wrong before importing the exporter, which takes seconds."""
    from toolkit.runs import check_out
    from toolkit.sources.model_names import ADAPTER_CONFIG, check_model

    if options.weights != "int4":
        _refuse_int4_options(options)
    if options.exporter == "optimum":
        _refuse_own_options(options)
    elif options.install_optimum:
        raise InputError("--install-optimum needs --exporter optimum; leave it out, or give both")
    if options.calibration and not options.calibration.is_file():
        raise InputError(
            f"--calibration ({options.calibration}) is no file; give a file of traces, such as a student's train.jsonl"
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
    if options.recovery:
        names.append("recovery")
    if options.method:
        names.append("method")
    if names:
        raise InputError(f"--{names[0]} needs --int4, not --{options.weights}; leave one of them out")


def _refuse_own_options(options: Options) -> None:
    """Refuse what only our own graph can have: what is calibrated, measured, planned or merged."""
    from toolkit.sources.model_names import ADAPTER_CONFIG

    chosen = {
        "base": options.base,
        "calibration": options.calibration,
        "size": options.size,
        "bits-per-weight": options.bits_per_weight,
        "recovery": options.recovery,
        "plan": options.plan,
        "method gptq": options.method == "gptq",
        options.preset: options.preset not in ("balanced", "quick"),
    }
    for name, value in chosen.items():
        if value:
            raise InputError(f"--{name} does not go with --exporter optimum, which calibrates nothing; leave one out")
    if (Path(options.model) / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"--exporter optimum merges no adapter, as {options.model} is; merge it with PEFT, then export the merged "
            "folder"
        )
