"""Options for students that one process or one GPU is too small for."""

from __future__ import annotations

import os
from argparse import _ActionsContainer
from functools import partial
from typing import TYPE_CHECKING, Any

from toolkit.cli.options.command import Options
from toolkit.cli.options.engines import HERE, RAY, add_ray_address, ray_address
from toolkit.cli.options.values import Parser, add_flag, count_of
from toolkit.errors import InputError

if TYPE_CHECKING:
    from distill.planning.memory_check import CheckMemory, Division
    from distill.training.train import Train
    from distill.training.train_config import TrainConfig

OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "adafactor", "muon", "sgd")
"""As `distill.training.train_config` has them, whose import would slow down every help."""


def add_scale_options(parser: Parser) -> None:
    group = parser.add_argument_group("larger students")
    add_memory_options(group)
    group.add_argument(
        "--processes", type=count_of, metavar="N", help="train on N processes of this machine, one for each GPU"
    )
    add_flag(
        group, "--fsdp", "give each process a shard of the weights, gradients and optimizer instead of copies (FSDP2)"
    )
    group.add_argument(
        "--engine",
        choices=(HERE, RAY),
        default=HERE,
        help="what starts the processes that train: this command, or Ray Train on a cluster; default: %(default)s",
    )
    group.add_argument("--workers", type=count_of, metavar="N", help="Ray's workers, one for each GPU; default: 1")
    add_ray_address(group)
    add_flag(group, "--force", "train even if toolkit plan counts more memory than this machine has free")


def add_memory_options(parser: _ActionsContainer) -> None:
    """Add what lets a student take less memory; `recipe_changes` reads it."""
    parser.add_argument(
        "--quantization",
        choices=("nf4",),
        help="keep the weights below adapters in four bits (QLoRA, by bitsandbytes); needs --lora",
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="what updates the weights; in 8 bits its state takes half, and paged ones, which need a GPU, move it to "
        "the machine's memory at need; default: adamw",
    )
    add_flag(
        parser,
        "--gradient-checkpointing",
        "compute activations again in the backward pass instead of keeping them, for long examples",
    )


def recipe_changes(options: Options) -> dict[str, Any]:
    """Return the values of the recipe that the options set."""
    names = ("quantization", "optimizer", "gradient_checkpointing")
    return {f"train.{name}": value for name in names if (value := getattr(options, name))}


def check_scale(options: Options) -> None:
    """Refuse what the options alone show to be wrong, before anything slow."""
    if options.engine == RAY:
        from distill.engines.ray_cluster import check_address, check_ray

        if options.processes:
            raise InputError("--processes are of this machine and --engine ray has --workers; leave one of them out")
        check_ray()
        check_address(ray_address(options))
        return
    for name in ("workers", "ray_address"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for --engine ray; add that, or leave it out")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and options.processes:
        raise InputError(f"torchrun has started {started} processes already; leave --processes out")
    if options.fsdp and max(started, options.processes or 1) == 1:
        raise InputError("--fsdp divides a student among processes, and there is one; add --processes 2 or more")


def check_training(options: Options, recipe: TrainConfig, *, alone: str = "") -> None:
    """Refuse what the options and the recipe together show to be wrong, before the teacher is asked.

    `alone`: what one process does by itself, in a person's words; empty if all of the training may be divided.
    """
    from distill.launching.shared_job import check_processes
    from distill.launching.torchrun import processes_started

    in_ray, started = options.engine == RAY, processes_started()
    processes = (options.workers or 1) if in_ray else options.processes or started
    if alone and (in_ray or processes > 1):
        asked, remedy = f"--processes {processes} asks", "leave --processes out"
        if in_ray:
            asked, remedy = "--engine ray asks", "leave --engine out"
        elif started > 1:
            asked, remedy = f"torchrun, which started {started}, asks", "start the command without torchrun"
        raise InputError(f"{alone} trains in one process, and {asked} for several; {remedy}")
    check_processes(recipe, processes, sharded=options.fsdp, here=not in_ray and started == 1)


def memory_check(options: Options, recipe: TrainConfig, *, max_tokens: int | None) -> CheckMemory | None:
    """Return what refuses a student that this machine is too small for; None with --force or Ray's machines.

    `max_tokens`: the longest example; None if there are no examples.
    """
    from distill.planning.memory_check import check_least

    if options.force or options.engine == RAY:
        return None
    return partial(check_least, train=recipe, max_tokens=max_tokens, division=_division(options))


def trainer_of(options: Options) -> Train:
    """Return what trains the student as the options say, if the machine is large enough."""
    if options.engine == RAY:
        from distill.launching.ray_train import by_ray

        return by_ray(workers=options.workers or 1, sharded=options.fsdp, address=ray_address(options))
    if options.force:
        return _trainer_here(options)
    from distill.planning.memory_check import within_memory

    return within_memory(_trainer_here(options), _division(options))


def _trainer_here(options: Options) -> Train:
    from distill.launching.torchrun import by_torchrun, processes_started

    if processes_started() > 1:
        return by_torchrun(sharded=options.fsdp)
    if options.processes and options.processes > 1:
        from distill.launching.processes import by_processes

        return by_processes(options.processes, sharded=options.fsdp)
    from distill.training.train import train

    return train


def _division(options: Options) -> Division:
    from distill.launching.torchrun import processes_started
    from distill.planning.memory_check import Division

    started = processes_started()
    everywhere = started if started > 1 else options.processes or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere)) if started > 1 else everywhere
    return Division(here=here, shards=everywhere if options.fsdp else 1, everywhere=everywhere)
