"""Options for a teacher on this machine: in which precision it loads, and how its authors sample it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import Options
from toolkit.cli.options.values import Parser
from toolkit.errors import InputError
from toolkit.terminal import say

if TYPE_CHECKING:
    from toolkit.generation.generate import Sampling

LOAD_IN = ("8bit", "4bit")
"""As `distill.local.quantized` has them, whose import would slow down every help."""
USUAL = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling of a model whose authors name none: R1's."""


def add_load_option(parser: Parser) -> None:
    parser.add_argument(
        "--load-in",
        choices=LOAD_IN,
        help="load the teacher's linear layers in 8 bits or in NF4 with bitsandbytes; default: bf16, or fp32 where the "
        "machine has no bf16",
    )


def check_load_option(options: Options, teacher: str) -> None:
    """Raise `InputError` if --load-in is given with a teacher behind a server, which has loaded it already."""
    from toolkit.sources.model_names import is_endpoint

    if options.load_in and is_endpoint(teacher):
        raise InputError(
            f"--load-in {options.load_in} is for a teacher on this machine, not for {teacher!r}; leave it out"
        )


def own_or_given_sampling(options: Options, model: str, folder: Path | None) -> Sampling:
    """Return the sampling of the options; what they leave open is as the model's folder names it, or as usual."""
    from toolkit.generation.generate import Sampling

    given = {name: value for name in USUAL if (value := getattr(options, name, None)) is not None}
    return Sampling(
        **(USUAL | own_if_left_out(given, model, folder) | given),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )


def own_if_left_out(given: dict[str, float], model: str, folder: Path | None) -> dict[str, Any]:
    """Return the sampling that a model's folder names, without what is given, and say so."""
    if folder is None or not folder.is_dir():
        return {}
    from distill.local.own_sampling import GENERATION_CONFIG, in_words, own_sampling

    own = {name: value for name, value in own_sampling(folder).items() if name not in given}
    if own:
        say(f"sampling: as the {GENERATION_CONFIG} of {model} says: {in_words(own)}")
    return own
