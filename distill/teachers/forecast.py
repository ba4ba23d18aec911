"""Says what a job would take, from the traces of a sample of it: requests, tokens, time and money."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from distill.endpoints.budget import cost_of
from distill.endpoints.servers.server import ServerSettings
from toolkit.progress import duration
from toolkit.records import Trace
from toolkit.terminal import counted

SAMPLE = 20
"""Requests that are asked to know what all would take."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What all requests of a job would take, those of the sample included."""

    requests: int
    asked: int
    """The traces that it rests on."""
    prompt_tokens: float | None
    completion_tokens: float | None
    """None if the teacher does not count them."""
    seconds: float | None
    """At the sample's rate, which grows with more requests in flight; None if nothing was asked."""
    cost: float | None
    """At the dearest server's prices; None without prices."""

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        said = f"{counted(self.requests, 'request')}, of which {self.asked} were asked"
        if self.prompt_tokens is not None and self.completion_tokens is not None:
            said += f"; about {self.prompt_tokens:,.0f} tokens of prompts and {self.completion_tokens:,.0f} of answers"
        else:
            said += (
                "; what they cost is unknown, since the teacher does not count tokens (a server may with --no-stream)"
            )
        if self.seconds is not None:
            said += f"; at most {duration(self.seconds)} at this rate"
        return said + ("" if self.cost is None else f"; it costs about {self.cost:,.2f}")


def forecast(
    traces: Iterable[Trace], requests: int, servers: Sequence[ServerSettings], *, asked: int, seconds: float
) -> Forecast:
    """Extrapolate from a sample; `asked`: how many of its traces were asked now, within so many seconds."""
    sample = list(traces)
    prompts = [trace.prompt_tokens for trace in sample if trace.prompt_tokens is not None]
    answers = [trace.completion_tokens for trace in sample if trace.completion_tokens is not None]
    prompt_tokens = mean(prompts) * requests if prompts else None
    completion_tokens = mean(answers) * requests if answers else None
    priced = [server for server in servers if server.price_out is not None or server.price_in is not None]
    is_known = priced and prompt_tokens is not None and completion_tokens is not None
    return Forecast(
        requests=requests,
        asked=len(sample),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        seconds=seconds * requests / asked if asked else None,
        cost=max(cost_of(server, prompt_tokens or 0, completion_tokens or 0) for server in priced)
        if is_known
        else None,
    )
