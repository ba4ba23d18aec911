"""`toolkit teach`: makes a reasoning teacher in DeepSeek-R1's stages."""

from __future__ import annotations

from dataclasses import replace

from toolkit.cli.options.command import AddCommand, Options, Result
from toolkit.cli.options.shared import add_unsafe_option, allow_unsafe_execution
from toolkit.cli.options.values import add_flag, count_of, name_of, path_of
from toolkit.errors import InputError


def add_teach(add: AddCommand) -> None:
    parser = add(
        "teach",
        teach,
        extra="distill",
        summary="make a reasoning teacher in DeepSeek-R1's stages (MLA and mixture of experts)",
    )
    parser.add_argument(
        "--preset", choices=("nano", "quick"), default="nano", help="recipe to follow; default: %(default)s"
    )
    parser.add_argument("--base", type=name_of, help="pretrained model to start from; default: pretrain one")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--stage", metavar="NAME", help="run only this stage: pretrain, midtrain, cold_start …")
    add_flag(only, "--zero", "make only R1-Zero: reinforcement learning straight from the base model")
    parser.add_argument(
        "--start", type=name_of, help="model that --stage starts from; default: the one that the stage before it made"
    )
    parser.add_argument(
        "--judge", type=name_of, help="classifier or endpoint that rates the responses in the stage align_rl"
    )
    parser.add_argument("--seed", type=count_of, default=1, help="seed of everything; default: %(default)s")
    parser.add_argument(
        "--seeds",
        type=count_of,
        default=1,
        help="number of seeds to repeat all stages with, each beside an R1-Zero; default: %(default)s",
    )
    add_unsafe_option(parser)
    parser.add_argument("--out", type=path_of, required=True, help="run folder to write")


def teach(options: Options) -> Result:
    from distill.teach.stages import STAGES
    from toolkit.sources.model_names import check_model, is_endpoint, resolve

    allow_unsafe_execution(options)
    if options.start and not options.stage:
        raise InputError(
            f"--start ({options.start}) needs --stage, the stage that starts from it; add it, or give --base instead"
        )
    if options.stage and options.stage not in STAGES:
        raise InputError(f"unknown --stage ({options.stage}): expected one of {', '.join(STAGES)}")
    if options.seeds > 1 and (options.stage or options.zero):
        raise InputError(f"--seeds ({options.seeds}) works neither with --stage nor with --zero; leave one of them out")
    for model in (options.base, options.start, options.judge):
        if model and not (model == options.judge and is_endpoint(model)):
            check_model(model)

    from distill.reinforcement.judge import check_judge
    from distill.teach import teach as stages
    from distill.teach.teacher_recipe import PRESETS

    config = replace(PRESETS[options.preset](), seed=options.seed, judge=options.judge or "")
    if options.judge and not options.zero and options.stage in (None, "align_rl"):
        check_judge(options.judge)
    base, start = (resolve(model) if model else None for model in (options.base, options.start))
    if options.stage:
        folder = stages.run_stage(options.stage, config, options.out, base=base, start=start)
        return Result(facts={"folder": str(folder)}, text=f"stage {options.stage} is in {folder}")
    if options.zero:
        folder = stages.teach_zero(config, options.out, base=base)
        return Result(facts={"folder": str(folder)}, text=f"R1-Zero is in {folder}")
    folder = stages.teach(config, options.out, base=base, seeds=options.seeds)
    return Result(facts={"folder": str(folder)}, text=f"the teacher is in {folder}; its README.md has the figures")
