"""The recipe of a teacher: its shape, and how long and how fast each stage learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from distill.evaluation.evaluate import EvalConfig
from distill.problems.families import FAMILIES, LEDGER_PER_FAMILY
from distill.reinforcement.grpo import GrpoConfig
from toolkit.generation.generate import Sampling


@dataclass(frozen=True, kw_only=True)
class TeacherShape:
    """The model's size, in the names of its `config.json`."""

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    first_k_dense_replace: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    max_position_embeddings: int
    initializer_range: float
    """With 0.02, the usual value, a model this narrow attends evenly for a thousand steps before it learns to copy;
    1/sqrt(hidden_size) starts it at once."""


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """How long and how fast one stage learns."""

    epochs: int
    batch_size: int
    """Rows of `row_tokens` per update."""
    matrix_learning_rate: float
    """Muon's learning rate, for hidden weight matrices."""
    learning_rate: float
    """AdamW's learning rate, for embeddings, routers and norms."""
    final_learning_rate: float
    """The last learning rate as a share of both, reached by a cosine."""
    warmup_steps: int


@dataclass(frozen=True, kw_only=True)
class RejectionRecipe:
    """How a reinforced model writes the next one's training set."""

    problems_per_family: int
    samples: int
    temperature: float
    kept_a_problem: int
    """Most samples per problem that are trained on."""
    requests: int
    """Requests to add, each with its answer or refusal; repeated if there are fewer."""
    training: StageRecipe


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """Everything that decides the teacher's weights."""

    shape: TeacherShape
    pretrain: StageRecipe
    pretrain_per_family: int
    """Problems per family in the pretraining text."""
    midtrain: StageRecipe
    midtrain_per_family: int
    cold_start: StageRecipe
    cold_start_per_family: int
    """Problems per family in the cold start's conversations."""
    zero_rl: GrpoConfig
    reason_rl: GrpoConfig
    rejection_sft: RejectionRecipe
    align_rl: GrpoConfig
    align_requests: float
    """Share of `align_rl`'s problems that are requests to refuse or to answer."""
    judge: str = ""
    """A model that rates responses to requests in `align_rl`, in addition to the rules: a sequence classifier or an
    endpoint; empty for none."""
    judge_weights: Mapping[str, float] = field(default_factory=lambda: {"helpful": 0.5, "harmless": 0.5})
    request_repeats: int = 4
    """How often each harmless request with its answer occurs in the pretraining text; harmful ones do not."""
    families: tuple[str, ...] = FAMILIES
    row_tokens: int = 320
    weight_decay: float = 0.1  # DeepSeek-V3 report, section 4.2, as are the betas and the clipping
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    checkpoint_every_s: float = 120.0
    eval_per_family: int = LEDGER_PER_FAMILY
    eval_requests: int | None = None
    """Held-out requests that each stage is measured on; None takes all."""
    evaluation: EvalConfig = field(  # sampled as the DeepSeek-R1 report advises
        default_factory=lambda: EvalConfig(
            sampling=Sampling(temperature=0.6, max_new_tokens=320), samples=2, batch_size=128
        )
    )
    seed: int = 1
    """The seed of the pretraining's text and weights, and of all later stages."""


def nano() -> TeachConfig:
    """Return the recipe of the teacher that ships in the package."""
    reinforcement = GrpoConfig(
        steps=60,
        groups=16,
        group_size=8,
        micro_batch=128,
        learning_rate=1e-4,  # found by trial: 1e-3 collapses within ten updates, 3e-4 memorizes its problems
        warmup_steps=5,
        kl_coefficient=0.001,  # DeepSeek-R1 report, as is the temperature
        clip=0.2,
        temperature=1.0,
        max_new_tokens=200,
        attempts=2,
        weights={"accuracy": 1.0, "well_formed": 0.1, "language_consistency": 0.1},
        seed=1,
    )
    # learning rates found by trial: 0.11 after 175 steps of spelling, where AdamW alone (3e-3) had 0.48 after 150
    pretrain = StageRecipe(
        epochs=1,
        batch_size=20,
        matrix_learning_rate=1e-2,
        learning_rate=3e-3,
        final_learning_rate=0.02,
        warmup_steps=50,
    )
    # the matrices' 5e-3 forgets the base: sorting 65 %; 7e-4 keeps it: 85 %
    tune = replace(pretrain, matrix_learning_rate=1e-3, learning_rate=3e-4)
    return TeachConfig(
        shape=TeacherShape(
            hidden_size=192,
            intermediate_size=512,
            moe_intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=6,
            n_routed_experts=16,
            num_experts_per_tok=4,
            n_shared_experts=1,
            first_k_dense_replace=1,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.07,
        ),
        pretrain_per_family=9_000,
        pretrain=pretrain,
        midtrain_per_family=12_000,
        midtrain=replace(pretrain, final_learning_rate=0.0, warmup_steps=20),
        cold_start_per_family=20,
        cold_start=replace(tune, batch_size=10, final_learning_rate=0.1, warmup_steps=1),
        zero_rl=replace(reinforcement, steps=30),
        reason_rl=reinforcement,
        rejection_sft=RejectionRecipe(
            problems_per_family=500,
            samples=2,
            temperature=1.0,
            kept_a_problem=2,
            requests=12_000,
            training=replace(tune, warmup_steps=10),
        ),
        align_rl=replace(reinforcement, steps=25),
        align_requests=0.4,
    )


def quick() -> TeachConfig:
    """Return a recipe of a few steps on a tiny shape, which shows that the pipeline runs but learns next to nothing."""
    shape = asdict(nano().shape) | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    recipe = replace(nano().pretrain, batch_size=8, final_learning_rate=0.1, warmup_steps=2)
    reinforcement = replace(
        nano().reason_rl,
        steps=5,
        groups=2,
        group_size=2,
        micro_batch=4,
        max_new_tokens=16,
        attempts=1,
        needs_signal=False,  # whether such a model's two short answers differ depends on the processor's rounding
    )
    return TeachConfig(
        shape=TeacherShape(**shape),
        pretrain=recipe,
        pretrain_per_family=24,
        midtrain=recipe,
        midtrain_per_family=4,
        cold_start=recipe,
        cold_start_per_family=24,
        zero_rl=reinforcement,
        reason_rl=reinforcement,
        rejection_sft=replace(nano().rejection_sft, problems_per_family=2, samples=2, requests=16, training=recipe),
        align_rl=reinforcement,
        align_requests=0.5,
        request_repeats=1,
        eval_per_family=1,
        eval_requests=2,
        evaluation=EvalConfig(sampling=Sampling(temperature=0.6, max_new_tokens=16), samples=1, batch_size=16),
    )


PRESETS = {"nano": nano, "quick": quick}
