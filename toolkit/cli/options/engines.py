"""Options for a job on many machines: Ray's workers, or a part of the job for each task of an array."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from toolkit.cli.options.command import Options
from toolkit.cli.options.values import Parser, count_of, name_of
from toolkit.errors import InputError

if TYPE_CHECKING:
    from distill.collecting.part import Part
    from distill.teachers.respondent import Respondent

HERE, RAY, RAY_VLLM = "here", "ray", "ray-vllm"


def add_engine_options(parser: Parser) -> None:
    group = parser.add_argument_group("many machines")
    group.add_argument(
        "--engine",
        choices=(HERE, RAY, RAY_VLLM),
        default=HERE,
        help="what sends the requests: this process; workers of Ray, into the same store; or, for a model folder, "
        "vLLM in Ray's processor, where vLLM is installed; default: %(default)s",
    )
    group.add_argument(
        "--workers",
        type=count_of,
        metavar="N",
        help="Ray's workers, which divide --concurrency and the rates of each server; default: one for each GPU if the "
        "teacher is a model folder, else one for each machine",
    )
    group.add_argument(
        "--gpus-per-worker", type=count_of, metavar="N", help="GPUs that hold the model together with vLLM; default: 1"
    )
    add_ray_address(group)
    group.add_argument(
        "--shard",
        type=name_of,
        metavar="I/N",
        help="answer only the I-th of N parts of the requests, counted from 1; toolkit traces merge puts them together",
    )


def add_ray_address(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--ray-address",
        type=name_of,
        metavar="HOST:PORT",
        help="Ray cluster to use: auto, or its address; default: RAY_ADDRESS, or else a cluster on this machine that "
        "ends with the command",
    )


def part_of(options: Options) -> Part | None:
    from distill.collecting.part import Part

    return None if options.shard is None else Part.of(options.shard)


def check_engine(options: Options) -> None:
    """Refuse what the options alone show to be wrong, before anything slow."""
    if options.engine != HERE and options.batch_api:
        raise InputError("--batch-api sends all requests at once and needs no --engine; leave one of them out")
    if options.engine == HERE:
        for name in ("workers", "gpus_per_worker", "ray_address"):
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} is for --engine ray; add that, or leave it out")
        return
    from distill.engines.ray_cluster import check_address, check_ray
    from distill.engines.vllm_processor import check_vllm

    check_ray()
    if options.engine == RAY_VLLM:
        check_vllm()
    elif options.gpus_per_worker is not None:
        raise InputError("--gpus-per-worker is for --engine ray-vllm; use that, or leave the option out")
    check_address(ray_address(options))


def with_engine(teacher: Respondent, options: Options) -> Respondent:
    """Return a teacher that answers by the engine of the options; a dry run's few questions need no workers."""
    if options.engine == HERE or (options.engine == RAY and options.dry_run):
        return teacher
    from distill.engines.ray_teacher import RayTeacher
    from distill.engines.vllm_processor import vllm_teacher

    if options.engine == RAY_VLLM:
        gpus = options.gpus_per_worker or 1
        return vllm_teacher(teacher, workers=options.workers, gpus=gpus, address=ray_address(options))
    return RayTeacher(teacher, workers=options.workers, address=ray_address(options))


def ray_address(options: Options) -> str:
    """Return the address of the options or of the environment; empty for a cluster on this machine."""
    return options.ray_address or os.environ.get("RAY_ADDRESS", "")
