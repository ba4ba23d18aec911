"""The stages of a teacher, in the order in which they run and are told of."""

STAGES = ("pretrain", "zero_rl", "cold_start", "reason_rl", "rejection_sft", "align_rl")
FOLLOWS = {
    "zero_rl": "pretrain",
    "cold_start": "pretrain",
    "reason_rl": "cold_start",
    "rejection_sft": "pretrain",
    "align_rl": "rejection_sft",
}
"""The stage whose model each stage starts from (DeepSeek-R1 report, section 2.3)."""
WRITER = "reason_rl"
"""The stage whose model writes the training set of `rejection_sft`."""
TITLES = {
    "pretrain": "pretrained",
    "zero_rl": "R1-Zero",
    "cold_start": "cold start",
    "reason_rl": "+ reason_rl",
    "rejection_sft": "+ rejection_sft",
    "align_rl": "+ align_rl",
}
"""What a table calls them."""
