"""Options for a teacher behind servers: which ones, how fast, at what cost, and how the questions are put."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.cli.options.command import Options
from toolkit.cli.options.shared import OWN_OR
from toolkit.cli.options.values import (
    Parser,
    add_flag,
    count_of,
    factor_of,
    money_of,
    name_of,
    share_of,
    top_k_of,
)
from toolkit.errors import InputError

if TYPE_CHECKING:
    from distill.collecting.asking import Asking
    from distill.endpoints.remote_teacher import Serving

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""Words that servers know for `reasoning_effort`, each some of them."""
FOR_SERVERS = (
    *("requests_per_minute", "tokens_per_minute", "price_in", "price_out", "max_cost", "max_tokens_total"),
    *("no_stream", "batch_api", "effort", "thinking", "top_logprobs", "extra_body"),
)
"""Options that a model on this machine cannot heed."""
SERVED = ("concurrency", "requests_per_minute", "tokens_per_minute", "price_in", "price_out")
"""Options that a row of a file of servers can set for its server alone."""


def add_teachers_option(parser: Parser) -> None:
    parser.add_argument(
        "--teacher",
        type=name_of,
        action="append",
        help="model that answers: a folder, a known name, a hub id, an endpoint, or a file of endpoints (JSONL, JSON, "
        "CSV, TSV with the column url); repeat it for several endpoints of one model; default: builtin",
    )


def add_asking_options(parser: Parser) -> None:
    """Add what shapes an answer besides the usual sampling options."""
    group = parser.add_argument_group("how the questions are put")
    group.add_argument("--top-p", type=share_of, help=f"nucleus of the sampling; default: {OWN_OR.format(0.95)}")
    group.add_argument(
        "--top-k", type=top_k_of, help=f"likeliest tokens to choose from; default: {OWN_OR.format('all')}"
    )
    group.add_argument(
        "--min-p",
        type=share_of,
        help=f"least probability, as a share of the likeliest token's; default: {OWN_OR.format('0')}",
    )
    group.add_argument(
        "--repetition-penalty",
        type=factor_of,
        help=f"divisor for tokens that occurred before; default: {OWN_OR.format('1, which is none')}",
    )
    group.add_argument("--system", default="", metavar="TEXT", help="system prompt of problems that have none")
    group.add_argument(
        "--prompt-template",
        default="{question}",
        metavar="TEXT",
        help="user message, with {question} where the question goes; default: the question alone",
    )
    group.add_argument("--effort", choices=EFFORTS, default="", help="reasoning effort asked of a server")
    group.add_argument(
        "--thinking", choices=("on", "off"), help="switch the thinking of a model that has a switch; default: as it is"
    )
    group.add_argument(
        "--top-logprobs", type=top_k_of, default=0, metavar="K", help="keep the K likeliest candidates of each token"
    )
    group.add_argument(
        "--extra-body", default="", metavar="JSON", help="further fields of each request, such as '{\"top_a\": 0.1}'"
    )


def add_serving_options(parser: Parser) -> None:
    """Add how servers are asked, which changes no answer."""
    group = parser.add_argument_group("servers")
    group.add_argument(
        "--concurrency",
        type=count_of,
        default=64,
        help="most requests in flight at each server, at most 1024; fewer where it is slow; default: %(default)s",
    )
    group.add_argument("--requests-per-minute", type=factor_of, metavar="N", help="most requests to each server")
    group.add_argument("--tokens-per-minute", type=factor_of, metavar="N", help="most tokens of each server")
    group.add_argument(
        "--first-token-timeout", type=factor_of, metavar="S", help="seconds until an answer begins; default: 600"
    )
    group.add_argument(
        "--stall-timeout", type=factor_of, default=120.0, metavar="S", help="seconds between tokens; default: 120"
    )
    add_flag(group, "--no-stream", "ask for answers in one piece, which takes less of this machine's processor")
    add_flag(group, "--batch-api", "send the requests in files and collect the answers later (OpenAI's batch API)")
    add_flag(group, "--dry-run", "ask twenty questions, say what all would take, and stop")
    group.add_argument("--price-in", type=money_of, metavar="P", help="price of a million tokens of prompts")
    group.add_argument("--price-out", type=money_of, metavar="P", help="price of a million tokens of answers")
    group.add_argument("--max-cost", type=money_of, metavar="M", help="stop before the traces cost more than this")
    group.add_argument("--max-tokens-total", type=count_of, metavar="N", help="stop before they take more tokens")
    group.add_argument(
        "--limit", type=count_of, metavar="N", help="stop when so many requests have an answer, earlier ones included"
    )


def asking_of(options: Options) -> Asking:
    from distill.collecting.asking import Asking, extra_body_of

    return Asking(
        system=options.system,
        template=options.prompt_template,
        effort=options.effort,
        thinking=None if options.thinking is None else options.thinking == "on",
        top_logprobs=options.top_logprobs,
        extra_body=extra_body_of(options.extra_body) if options.extra_body else {},
    )


def serving_of(options: Options) -> tuple[str, Serving]:
    """Return the teacher's argument, which is its first server's address if it has several, and its servers."""
    from distill.endpoints.answers import STALL_S, Patience
    from distill.endpoints.budget import SpendingLimits
    from distill.endpoints.remote_teacher import Serving
    from distill.endpoints.server_list import is_server_list, servers_of
    from toolkit.generation.bounded_response import silence_s
    from toolkit.sources.model_names import is_endpoint

    teachers: list[str] = options.teacher or ["builtin"]
    is_served = all(map(is_endpoint, teachers)) or (len(teachers) == 1 and is_server_list(teachers[0]))
    if not is_served:
        if len(teachers) > 1:
            strange = next(teacher for teacher in teachers if not is_endpoint(teacher))
            raise InputError(f"--teacher is given {len(teachers)} times, but {strange!r} is no address of a server")
        for name in FOR_SERVERS:
            if getattr(options, name):
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} is for a teacher behind a server, not for {teachers[0]!r}; leave it out")
        return teachers[0], Serving()
    if options.batch_api and (len(teachers) > 1 or is_server_list(teachers[0])):
        raise InputError(f"--batch-api is for one server, not for {', '.join(teachers)}; give its address alone")
    servers = servers_of(teachers, {name: getattr(options, name) for name in SERVED})
    first = servers[0]
    serving = Serving(
        servers=servers,
        limits=SpendingLimits(cost=options.max_cost, tokens=options.max_tokens_total),
        batch_api=options.batch_api,
        is_streamed=not options.no_stream,
        patience=Patience(
            first_event_s=options.first_token_timeout or silence_s(), stall_s=options.stall_timeout or STALL_S
        ),
    )
    return first.url + (f"#{first.model}" if first.model else ""), serving
