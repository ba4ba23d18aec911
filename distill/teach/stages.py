"""The stages of a teacher, in the order in which they run and are reported."""

STAGES = ("pretrain", "midtrain", "zero_rl", "cold_start", "reason_rl", "rejection_sft", "align_rl")
BASE = "midtrain"
"""The stage whose model is the base of all later ones; all seeds share it and the stages before it."""
FOLLOWS = {
    "midtrain": "pretrain",
    "zero_rl": BASE,
    "cold_start": BASE,
    "reason_rl": "cold_start",
    "rejection_sft": BASE,
    "align_rl": "rejection_sft",
}
"""The stage whose model each stage starts from (DeepSeek-R1 report, section 2.3)."""
WRITER = "reason_rl"
"""The stage whose model writes the training set of `rejection_sft`."""
TITLES = {
    "pretrain": "pretrained",
    "midtrain": "base",
    "zero_rl": "R1-Zero",
    "cold_start": "cold start",
    "reason_rl": "+ reason_rl",
    "rejection_sft": "+ rejection_sft",
    "align_rl": "+ align_rl",
}
"""The names of the stages in tables."""
