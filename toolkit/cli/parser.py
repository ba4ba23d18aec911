"""What a person can type: one parser, a function for each part of the line from problems to chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from toolkit.cli.arguments import (
    Instead,
    Parser,
    Version,
    count_of,
    data_of,
    name_of,
    path_of,
    port_of,
    rate_of,
    seed_of,
    size_of,
    temperature_of,
)

AddVerb = Callable[[str, str, str], Parser]
"""Name, the extra that it needs, and what it does; returns the verb's own parser."""


def build_parser() -> Parser:
    parser = Parser(prog="toolkit", description="Distill a reasoning model, quantize it to int4 ONNX, chat offline.")
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    shared = Parser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def verb(name: str, extra: str, summary: str) -> Parser:
        added = verbs.add_parser(name, help=summary, description=summary, parents=[shared], allow_abbrev=False)
        added.set_defaults(verb=name, extra=extra)
        return added

    _add_distilling(verb, shared)
    _add_exporting(verb)
    _add_chatting(verb)
    _add_reporting(verb)
    return parser


def _add_distilling(verb: AddVerb, shared: Parser) -> None:
    verb("doctor", "all", "say what this machine has and what each command still needs")

    pull = verb("pull", "distill", "download a model once")
    pull.add_argument("model", type=name_of, help="a known name (smollm2-135m) or a hub id (owner/name)")
    pull.add_argument("--out", type=path_of, help="folder to write; default: the cache")

    teach = verb("teach", "distill", "make a reasoning teacher in DeepSeek-R1's stages (MLA and mixture of experts)")
    teach.add_argument("--preset", choices=("nano", "quick"), default="nano", help="recipe; default: %(default)s")
    teach.add_argument("--base", type=name_of, help="pretrained model to start from; default: one is pretrained")
    only = teach.add_mutually_exclusive_group()
    only.add_argument(
        "--stage", metavar="NAME", help="run this stage of the run alone: pretrain, midtrain, cold_start …"
    )
    only.add_argument("--zero", action="store_true", help="R1-Zero alone: reinforcement straight from the base")
    teach.add_argument(
        "--start", type=name_of, help="model that --stage starts from; default: that of the stage before"
    )
    teach.add_argument(
        "--judge", type=name_of, help="classifier or endpoint that rates responses to requests in align_rl"
    )
    teach.add_argument("--seed", type=count_of, default=1, help="default: %(default)s")
    teach.add_argument(
        "--seeds", type=count_of, default=1, help="repeat all stages under so many seeds, R1-Zero beside them"
    )
    _add_unsafe_option(teach)
    teach.add_argument("--out", type=path_of, required=True, help="run folder to write")

    traces = verb("traces", "distill", "let a teacher answer problems, thinking aloud")
    traces.add_argument(
        "--teacher",
        type=name_of,
        default="builtin",
        help="model that answers, or an endpoint; default: %(default)s",
    )
    _add_problem_options(traces, "procedural problems")
    traces.add_argument(
        "--per-family", type=count_of, default=100, help="procedural problems a family; default: %(default)s"
    )
    _add_sampling_options(traces, temperature=0.6)
    _add_cache_options(traces)
    _add_retry_option(traces)
    traces.add_argument("--out", type=path_of, required=True, help="run folder to write")
    show = traces.add_subparsers(metavar="show", action=Instead).add_parser(
        "show",
        help="list a run's traces, or the requests that failed",
        description="list what a run of toolkit traces or toolkit distill has, finished or not; changes nothing",
        parents=[shared],
        allow_abbrev=False,
    )
    show.set_defaults(verb="traces_show", what="all")
    show.add_argument("run", type=path_of, help="run folder")
    what = show.add_mutually_exclusive_group()
    what.add_argument("--failed", dest="what", action="store_const", const="failed", help="requests without an answer")
    what.add_argument("--dropped", dest="what", action="store_const", const="dropped", help="traces not learned from")

    distill = verb("distill", "distill", "teach a small model a teacher's reasoning")
    distill.add_argument(
        "--teacher",
        type=name_of,
        default="builtin",
        help="model to learn from, or an endpoint; default: %(default)s",
    )
    distill.add_argument("--student", type=name_of, default="smollm2-135m", help="model to train; default: %(default)s")
    distill.add_argument("--preset", choices=("demo", "full"), default="demo", help="recipe; default: %(default)s")
    _add_problem_options(distill, "procedural problems")
    distill.add_argument("--traces", type=path_of, help="traces.jsonl to learn from; default: the teacher is asked")
    distill.add_argument("--per-family", type=count_of, help="procedural problems a family; default: the preset's")
    distill.add_argument("--samples", type=count_of, help="answers a problem; default: the preset's")
    distill.add_argument("--temperature", type=temperature_of, help="of the teacher's sampling; default: the preset's")
    distill.add_argument("--max-new-tokens", type=count_of, help="of the teacher's answers; default: the preset's")
    distill.add_argument("--max-tokens", type=count_of, help="of the longest example; default: the preset's")
    distill.add_argument("--per-problem", type=count_of, help="most examples of one problem; default: the preset's")
    distill.add_argument("--epochs", type=count_of, help="passes over the training set; default: the preset's")
    distill.add_argument("--learning-rate", type=rate_of, help="the highest one; default: the preset's")
    distill.add_argument("--lora", action="store_true", help="train low-rank adapters, then merge them")
    distill.add_argument("--seed", type=seed_of, help="default: the preset's")
    _add_retry_option(distill)
    _add_unsafe_option(distill)
    distill.add_argument("--out", type=path_of, required=True, help="run folder to write")

    evaluation = verb("eval", "distill", "measure a model on held-out problems")
    evaluation.add_argument(
        "model",
        type=name_of,
        help="model folder (torch or int4), known name, hub id or http(s)://…/v1 endpoint",
    )
    evaluation.add_argument(
        "--against",
        type=name_of,
        nargs="+",
        action="extend",
        default=[],
        metavar="OTHER",
        help="models to measure beside it",
    )
    _add_problem_options(evaluation, "the ledger's problems")
    evaluation.add_argument(
        "--split",
        choices=("test", "validation", "train", "all"),
        help="part of --problems to ask; default: the data set's own test part, else all",
    )
    evaluation.add_argument(
        "--include-trained",
        action="store_true",
        help="ask problems that the model was trained on too; default: left out, and said",
    )
    _add_sampling_options(evaluation, temperature=0.0)
    _add_cache_options(evaluation)
    _add_unsafe_option(evaluation)
    evaluation.add_argument(
        "--out",
        type=path_of,
        help="run folder to write; default: in runs/eval, with --against in runs/compare, named by model and problems and a "
        "digest of all that is asked",
    )


def _add_problem_options(verb: Parser, default: str) -> None:
    verb.add_argument(
        "--problems",
        type=data_of,
        metavar="DATA",
        help="JSONL, JSON, CSV, TSV or parquet file, folder of them, dataset folder, or a data set's hub id "
        f"(owner/name, owner/name:config); default: {default}",
    )
    verb.add_argument(
        "--question-field",
        default="",
        metavar="COLUMN",
        help="column of the questions; default: its form is recognized",
    )
    verb.add_argument(
        "--answer-field", default="", metavar="COLUMN", help="column of the answers; default: its form is recognized"
    )
    verb.add_argument(
        "--conflicts",
        choices=("refuse", "leave-out"),
        default="refuse",
        help="what becomes of questions with several answers; default: %(default)s",
    )


def _add_exporting(verb: AddVerb) -> None:
    export = verb("export", "export", "quantize a model and write it as an ONNX folder")
    export.add_argument(
        "model", type=name_of, help="model folder, LoRA adapter folder, GGUF file, known name or hub id"
    )
    export.add_argument("--base", type=name_of, help="model that the adapter changes; default: the one that it names")
    weights = export.add_mutually_exclusive_group()
    for name, help_text in (
        ("int4", "four bits a weight, the default"),
        ("int8", "eight bits a weight: nearly the float model, twice the size"),
        ("fp16", "half the size of fp32 on disk, as large in memory"),
        ("fp32", "the float model itself"),
    ):
        weights.add_argument(
            f"--{name}", dest="weights", action="store_const", const=name, default="int4", help=help_text
        )
    preset = export.add_mutually_exclusive_group()
    for name, help_text in (
        ("best", "smaller blocks: the most faithful"),
        ("fast", "as the default, with three bits in each layer's MLP: the fastest and smallest"),
        ("quick", "no calibration: made in seconds, the least faithful"),
    ):
        preset.add_argument(
            f"--{name}", dest="preset", action="store_const", const=name, default="balanced", help=help_text
        )
    export.add_argument(
        "--method",
        choices=("gptq", "searched", "nearest"),
        help="how weights become codes: error feedback; search by the inputs' squares alone, which takes less memory and "
        "time; nearest. Default: gptq, and nearest with --quick",
    )
    size = export.add_mutually_exclusive_group()
    size.add_argument("--size", type=size_of, help="such as 90MB: bits go to the matrices that need them most")
    size.add_argument("--bits-per-weight", type=rate_of, help="the same, scales included, such as 4.6")
    export.add_argument(
        "--tune", action="store_true", help="tune scales and norms on the whole model at the end; wants much text"
    )
    export.add_argument("--calibration", type=path_of, help="train.jsonl to calibrate on; default: the model folder's")
    export.add_argument(
        "--no-parity", action="store_true", help="don't compare with the float model, which may not fit the memory"
    )
    export.add_argument("--out", type=path_of, required=True, help="folder to write")

    verify = verb("verify", "chat", "check that an exported folder is whole and says here what it said when exported")
    verify.add_argument("folder", type=path_of, help="exported folder")
    verify.add_argument(
        "--fast", action="store_true", help="without large files' digests and without running the model"
    )

    bench = verb("bench", "chat", "measure an exported folder: tokens/s, time to first token, memory")
    bench.add_argument("folder", type=path_of, help="exported folder")
    _add_cache_option(bench)
    _add_prepacked_option(bench)
    bench.add_argument(
        "--vs",
        type=path_of,
        action="append",
        default=[],
        help="GGUF file or exported folder to measure beside it, repeatable",
    )
    bench.add_argument(
        "--contexts", type=count_of, nargs="+", default=[128, 512, 2048], help="prompt lengths; default: %(default)s"
    )
    bench.add_argument(
        "--new-tokens", type=count_of, default=64, help="decoded after each prompt; default: %(default)s"
    )
    bench.add_argument("--rounds", type=count_of, default=3, help="after one to warm up; default: %(default)s")


def _add_chatting(verb: AddVerb) -> None:
    chat = verb("chat", "chat", "open the local chat with an exported folder")
    chat.add_argument("folder", type=name_of, nargs="?", help="exported folder")
    chat.add_argument(
        "--endpoint",
        type=name_of,
        metavar="URL",
        help="let an OpenAI-compatible server answer: http(s)://…/v1",
    )
    chat.add_argument("--compare", type=name_of, metavar="OTHER", help="folder or endpoint to ask the same beside it")
    chat.add_argument("--model", metavar="NAME", help="which of the endpoint's models; default: its only one")
    _add_cache_option(chat)
    _add_prepacked_option(chat)
    chat.add_argument(
        "--prefix-cache",
        type=size_of,
        default=0,
        metavar="SIZE",
        help="keep the beginnings of long prompts on disk, such as 1GB at most; default: not kept",
    )
    chat.add_argument("--port", type=port_of, default=0, help="port on 127.0.0.1; default: a free one")
    chat.add_argument(
        "--data", type=path_of, help="folder that keeps the conversations; default: the user's data folder"
    )
    chat.add_argument(
        "--window",
        choices=("auto", "app", "browser", "none"),
        default="auto",
        help="a window of its own, a tab, or the address only; default: the first that works",
    )
    chat.add_argument("--no-browser", dest="window", action="store_const", const="none", help="as --window none")

    serve = verb("serve", "serve", "serve an exported folder to other programs, as OpenAI's API does")
    serve.add_argument("folder", type=path_of, help="exported folder")
    _add_cache_option(serve)
    _add_prepacked_option(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    serve.add_argument("--port", type=port_of, default=8000, help="0 is any free one; default: %(default)s")
    serve.add_argument(
        "--api-key", help="key that clients must send; default: TOOLKIT_API_KEY, or none on the loopback address"
    )
    serve.add_argument("--name", default="", help="the model's name in requests; default: its folder's")
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let a web page of this origin ask, such as https://example.org, or * for any; repeatable; default: none",
    )
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer under this name too (a proxy's, a container's), NAME:PORT for one port; repeatable; default: none",
    )
    serve.add_argument("--parallel", type=count_of, default=8, help="answers in work at once; default: %(default)s")
    serve.add_argument("--queue", type=count_of, default=32, help="answers that may wait; default: %(default)s")
    serve.add_argument(
        "--repeatable",
        action="store_true",
        help="let no other answer or cache change a word, whatever the kernels, for what the batch gains; see docs/server.md",
    )


def _add_reporting(verb: AddVerb) -> None:
    report = verb("report", "distill", "print a run's ledger and write its report.html again")
    report.add_argument("folder", type=path_of, nargs="?", default=Path("runs/demo"), help="default: %(default)s")
    report.add_argument("--readme", type=path_of, help="Markdown file whose marked blocks get this run's figures")

    demo = verb("demo", "all", "pull, distill, export, evaluate and report, then open the chat")
    long = demo.add_mutually_exclusive_group()
    long.add_argument(
        "--minutes", type=count_of, help="size the recipe to so many, by what is measured on this machine; default: 20"
    )
    long.add_argument("--full", action="store_true", help="as --minutes 120, in a folder of its own")
    demo.add_argument("--out", type=path_of, help="default: runs/demo, or runs/full with --full")


def _add_sampling_options(parser: Parser, *, temperature: float) -> None:
    parser.add_argument("--samples", type=count_of, default=1, help="answers a problem; default: %(default)s")
    parser.add_argument(
        "--temperature", type=temperature_of, default=temperature, help="0 is greedy; default: %(default)s"
    )
    parser.add_argument("--max-new-tokens", type=count_of, default=320, help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=count_of, default=64, help="rows at once, or requests (at most 8); default: %(default)s"
    )
    parser.add_argument("--seed", type=seed_of, default=0, help="default: %(default)s")


def _add_retry_option(parser: Parser) -> None:
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again what failed before; default: it stays as it is"
    )


def _add_unsafe_option(parser: Parser) -> None:
    parser.add_argument(
        "--allow-unsafe-exec", action="store_true", help="run a model's programs even where nothing can confine them"
    )


def _add_cache_option(parser: Parser) -> None:
    """Of exported folders, and of a teacher's latent attention."""
    parser.add_argument(
        "--cache",
        choices=("auto", "exact", "int8"),
        default="auto",
        help="how keys and values are kept; default: as the folder was exported, a teacher's exactly",
    )


def _add_prepacked_option(parser: Parser) -> None:
    parser.add_argument(
        "--prepacked",
        action="store_true",
        help="map the weights from a copy that is packed once for this processor: starts faster, takes disk",
    )


def _add_cache_options(parser: Parser) -> None:
    _add_cache_option(parser)
    parser.add_argument("--cache-rank", type=count_of, metavar="R", help="project each latent to R numbers")
    parser.add_argument(
        "--cache-calibration", type=path_of, metavar="TRACES", help="folder of traces that the projection is fitted to"
    )
