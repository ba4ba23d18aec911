"""Checks and measures exported folders: `toolkit verify` and `toolkit bench`."""

from __future__ import annotations

from functools import partial

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import add_adapter_option, add_opening_options, say_what_is_slower
from toolkit.cli.options.values import add_flag, count_of, path_of
from toolkit.errors import InputError


def add_verify(add: AddCommand) -> None:
    parser = add(
        "verify",
        verify,
        extra="chat",
        summary="check an exported folder's files, and that this machine reproduces its recorded outputs",
    )
    parser.add_argument("folder", type=path_of, help="exported folder to check")
    add_flag(parser, "--fast", "skip large files' digests and do not run the model")


def verify(options: Options) -> Result:
    from export.runtime.verify.checks import table, verify

    checks = verify(options.folder, fast=options.fast)
    failed = [check.line for check in checks if check.outcome == "failed"]
    facts = {"folder": str(options.folder), "ok": not failed, "checks": [check.to_dict() for check in checks]}
    error = InputError(failed[0]) if failed else None
    if error:
        facts |= {"error": str(error), "kind": "InputError", "exit": error.exit_code}
    return Result(facts=facts, text=table(checks), error=error)


def add_bench(add: AddCommand) -> None:
    parser = add(
        "bench", bench, extra="chat", summary="measure an exported folder: tokens/s, time to first token, memory"
    )
    parser.add_argument("folder", type=path_of, help="exported folder to measure")
    add_opening_options(parser)
    add_adapter_option(parser)
    parser.add_argument(
        "--vs",
        type=path_of,
        action="append",
        default=[],
        help="GGUF file or exported folder to measure beside it; repeatable",
    )
    parser.add_argument(
        "--contexts",
        type=count_of,
        nargs="+",
        default=[128, 512, 2048],
        help="prompt lengths in tokens; default: %(default)s",
    )
    parser.add_argument(
        "--new-tokens", type=count_of, default=64, help="tokens decoded after each prompt; default: %(default)s"
    )
    parser.add_argument(
        "--rounds", type=count_of, default=3, help="rounds to measure, after one to warm up; default: %(default)s"
    )


def bench(options: Options) -> Result:
    from export.runtime.bench import run_benchmark, table
    from export.runtime.decoder import OnnxDecoder

    say_what_is_slower(options.folder, *options.vs)
    benchmark = run_benchmark(
        options.folder,
        versus=options.vs,
        adapter=options.adapter,
        open_decoder=partial(OnnxDecoder, cache=options.cache, prepacked=options.prepacked),
        contexts=options.contexts,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
    )
    return Result(facts=benchmark.to_dict(), text=table(benchmark))
