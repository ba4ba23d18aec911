"""What a recipe's keys are called in TRL (and transformers, PEFT), LLaMA-Factory, ms-swift, axolotl and open-r1.

Someone who writes such a name is told ours. The same names stand in docs/reference/knobs.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "model": "student",
        "base_model": "student",
        "model_name_or_path": "student",
        "teacher_model_name_or_path": "teacher",
        "dataset": "problems or traces",
        "datasets": "problems or traces",
        "dataset_name": "problems or traces",
        "max_length": "max_tokens",
        "max_seq_length": "max_tokens",
        "cutoff_len": "max_tokens",
        "sequence_len": "max_tokens",
        "max_completion_length": "max_new_tokens, of a student rl.max_new_tokens",
        "num_generations": "samples, of a student rl.samples",
        "num_train_epochs": "train.epochs",
        "num_epochs": "train.epochs",
        "max_steps": "train.max_updates",
        "per_device_train_batch_size": "train.batch_examples",
        "micro_batch_size": "train.batch_examples",
        "batch_size": "train.batch_examples",
        "gradient_accumulation_steps": "train.accumulation_steps",
        "lr": "train.learning_rate",
        "optim": "train.optimizer",
        "adam_beta1": "train.beta1",
        "adam_beta2": "train.beta2",
        "adam_epsilon": "train.epsilon",
        "lr_scheduler": "train.schedule",
        "lr_scheduler_type": "train.schedule",
        "min_lr_rate": "train.min_lr_share",
        "cosine_min_lr_ratio": "train.min_lr_share",
        "lr_scheduler_kwargs": "train.min_lr_share and train.decay_share",
        "warmup_ratio": "train.warmup_share",
        "peft_type": "train.lora_rank, above 0",
        "use_peft": "train.lora_rank, above 0",
        "adapter": "train.lora_rank, above 0",
        "tuner_type": "train.lora_rank, 0 for all weights",
        "train_type": "train.lora_rank, 0 for all weights",
        "finetuning_type": "train.lora_rank, 0 for all weights",
        "lora_r": "train.lora_rank",
        "r": "train.lora_rank",
        "lora_target": "train.lora_targets",
        "lora_target_modules": "train.lora_targets",
        "target_modules": "train.lora_targets",
        "use_rslora": "train.lora_rslora",
        "peft_use_rslora": "train.lora_rslora",
        "use_dora": "train.lora_dora",
        "peft_use_dora": "train.lora_dora",
        "neftune_noise_alpha": "train.neftune_noise",
        "label_smoothing_factor": "train.label_smoothing",
        "completion_only_loss": "train.loss_on",
        "assistant_only_loss": "train.loss_on",
        "train_on_prompt": "train.loss_on",
        "train_on_inputs": "train.loss_on",
        "packing": "train.row_tokens; rows are padding-free always",
        "sample_packing": "train.row_tokens; rows are padding-free always",
        "padding_free": "train.row_tokens; rows are padding-free always",
        "eval_steps": "train.evaluate_every",
        "evals_per_epoch": "train.evaluations",
        "load_best_model_at_end": "train.keep_best",
        "save_steps": "train.checkpoint_every_updates",
        "save_total_limit": "train.checkpoints_kept",
        "logging_steps": "train.log_every",
        "report_to": "train.trackers",
        "load_in_4bit": "train.quantization: nf4",
        "quantization_bit": "train.quantization: nf4",
        "quant_bits": "train.quantization: nf4",
        "kl_coef": "rl.kl_coefficient",
        "steps_per_generation": "rl.turns_at_once",
        "data_seed": "seed",
    }
)

OTHER_VALUES: Mapping[str, str] = MappingProxyType(
    {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw": "paged_adamw_32bit",
        "cosine_with_min_lr": "cosine",
        "cosine_warmup_with_min_lr": "cosine",
        "constant_with_warmup": "constant",
        "warmup_stable_decay": "wsd",
    }
)
"""What values of `optim` and `lr_scheduler_type` are called here; a warm-up and a least rate have keys of their own."""
