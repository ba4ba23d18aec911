"""Records a training run while it runs: one loss per line, progress on the terminal, checkpoints to resume from.

    loss.jsonl    {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_s", "flops_per_s",
                  "mfu"}, and `MORE`
    checkpoints/  lets an interrupted run resume; removed by whoever saves the run's result

The last update is always logged, since a run's summary is its last line. A run that resumes from a checkpoint first
cuts the file back to it, so each step occurs once. If several processes train together, the first one writes, and all
save or stop together.

Tokens are those of the examples in all processes, prompts included and padding excluded; FLOP/s and model FLOP
utilization (`toolkit.model.flops`) count what those tokens need, but for those that are computed with another example's
(`distill.training.packed_rows`). For reinforcement they are a lower bound: sampling,
the reference's pass and attention are not counted.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.utils import deterministic
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from distill.training.interrupts import heard_in_backward, postponed_interrupt
from toolkit.errors import InputError
from toolkit.machine.allocator import give_freed_memory_back
from toolkit.model.flops import peak_flops, training_flops
from toolkit.model.loading import not_finite
from toolkit.progress import Progress, duration
from toolkit.runs import given_name, replace_text
from toolkit.terminal import say

LOSS = "loss.jsonl"
CHECKPOINTS, CHECKPOINTS_KEPT = "checkpoints", 1
SHARDS = "shards"
"""The folder in a checkpoint of processes that hold shards."""
VALIDATION_LOSS = "validation_loss"
MORE = (
    VALIDATION_LOSS,
    "max_violation",
    "reward",
    "reward_std",
    "differing",
    "kl",
    "entropy",
    "completions/mean_length",
    "graded",
)
"""Fields that only some runs log: students, mixtures of experts, reinforcement, distillation by logits."""
MORE_BY_LAYER = ("max_violation_by_layer",)
SAMPLED = "sampled/"
"""The prefix of what reinforcement measures on its samples."""
UPDATES_A_TRIM = 4
"""Updates between which memory that was freed is kept. Batches of other lengths leave holes that the next cannot use,
so that a process takes twice its memory after some hundred updates if it never gives them back."""
COUNTED_ROWS = 1000

Value = TypeVar("Value")


def journaled(folder: Path, seed: int) -> dict[str, Any]:
    """Return the arguments of a trainer whose run a journal records."""
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "save_strategy": "no",  # the journal asks for checkpoints, by the clock
        "save_total_limit": CHECKPOINTS_KEPT,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
    }


class TrainingJournal(TrainerCallback):
    """Writes the losses, shows progress, and asks for a checkpoint now and then and at an interrupt."""

    def __init__(
        self,
        path: Path,
        *,
        tokens: int,
        checkpoint_every_s: float,
        interrupted: threading.Event,
        checkpoint_every_updates: int = 0,
        computed_share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`tokens`: of the whole run, all epochs; 0 if the trainer counts them while it samples.
        `checkpoint_every_updates`: 0 leaves checkpoints to the clock. `computed_share`: the share of the tokens so far
        that was computed; what examples begin with may be computed once for several of them."""
        self._path = path
        self._tokens = tokens
        self._computed_share = computed_share
        self._checkpoint_every_s = checkpoint_every_s
        self._checkpoint_every_updates = checkpoint_every_updates
        self._interrupted = interrupted
        self._in_hand = self._updates = self._nominal = 0
        self._progress: Progress | None = None
        self._validation = ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        """Cut the log back to the checkpoint from which training resumes."""
        if _anywhere(args.device, self._interrupted.is_set())[0]:
            raise KeyboardInterrupt
        self._nominal = self._updates = max(state.max_steps, state.global_step)
        self._in_hand = state.global_step + 1
        self._first_step = self._saved_step = state.global_step
        self._first_tokens = self._tokens_so_far(state)
        self._flops_per_token = training_flops(model, _context(train_dataloader.dataset))
        dtype = torch.bfloat16 if args.bf16 else next(model.parameters()).dtype
        self._peak_flops = peak_flops(args.device, dtype) * args.world_size
        self._begun_at = self._saved_at = time.monotonic()
        if state.is_world_process_zero:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            replace_text(self._path, "".join(line + "\n" for line in kept))
            if state.global_step:
                run = given_name(self._path.parent)
                say(f"resuming {run} at update {state.global_step} of {self._updates}")
            self._progress = Progress("train", self._updates, done=state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        if state.global_step % UPDATES_A_TRIM == 0:
            give_freed_memory_back()
        self._updates = state.max_steps  # fewer than at first, where a deadline comes before
        if self._progress:
            self._progress.expect(self._updates)
            self._progress.advance()
        control.should_log |= state.global_step == state.max_steps  # the last line is the run's summary
        now = time.monotonic()
        is_due = now - self._saved_at >= self._checkpoint_every_s
        if self._checkpoint_every_updates and state.global_step % self._checkpoint_every_updates == 0:
            is_due = True
        is_interrupted, is_due = _anywhere(args.device, self._interrupted.is_set(), is_due)
        if is_interrupted or is_due or state.global_step == state.max_steps:  # saving the result takes time
            refuse_diverged(model, state.global_step, args)
            control.should_save = True
            self._saved_at = now
        if is_interrupted:
            self._interrupted.set()
            control.should_training_stop = True
        self._in_hand = state.global_step + 1

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_step = state.global_step

    def promise(self) -> str:
        """Say when training ends if it is interrupted now, and what is kept."""
        if not self._in_hand:
            return "interrupted: training ends once the checkpoint is read; a second interrupt ends it at once"
        made = self._in_hand - 1 - self._first_step
        update_s = (time.monotonic() - self._begun_at) / made if made else 0.0
        within = f", within about {duration(update_s)}" if update_s >= 1 else ""
        return (
            f"interrupted: training ends once update {min(self._in_hand, self._updates)} of {self._updates} is saved"
            f"{within}, and the same command resumes from there; a second interrupt ends it at once and keeps "
            + (f"the updates up to {self._saved_step}" if self._saved_step else "no update")
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["grad_norm"]):  # the trainer's logged loss leaves out losses that are not finite
            raise diverged("gradient's norm", state.global_step, logs["grad_norm"], args)
        if not self._progress:
            return
        elapsed_s = time.monotonic() - self._begun_at
        tokens = self._tokens_so_far(state)
        tokens_per_s = (tokens - self._first_tokens) / elapsed_s
        flops_per_s = tokens_per_s * self._flops_per_token * self._computed_share()
        record = {
            "step": state.global_step,
            "epoch": logs["epoch"],
            "loss": logs["loss"],
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "tokens": round(tokens),
            "tokens_per_s": round(tokens_per_s, 1),
            "flops_per_s": round(flops_per_s),
            "mfu": round(flops_per_s / self._peak_flops, 4),
        }
        more = [name for name in logs if name in MORE or name.startswith(SAMPLED)]
        record |= {name: round(logs[name], 4) for name in more}
        record |= {name: [round(value, 4) for value in logs[name]] for name in MORE_BY_LAYER if name in logs}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if VALIDATION_LOSS in logs:
            self._validation = f" (validation {logs[VALIDATION_LOSS]:.3f})"
        self._progress.advance(
            0,
            f"loss {logs['loss']:.3f}{self._validation}  {tokens_per_s:.0f} tokens/s  {self._utilization(flops_per_s)}",
        )

    def _utilization(self, flops_per_s: float) -> str:
        return f"{flops_per_s / 1e9:.0f} GFLOP/s, {100 * flops_per_s / self._peak_flops:.0f} % of the peak"

    def _tokens_so_far(self, state: TrainerState) -> float:
        if not self._tokens:
            return float(state.num_input_tokens_seen)
        tokens: float = state.global_step * self._tokens / self._nominal
        return tokens

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress:
            self._progress.close()


def _context(dataset: Any) -> float:
    """Estimate the mean sequence length per token from the first rows; 0 if rows are made during training."""
    lengths = [len(ids) for ids in dataset[:COUNTED_ROWS].get("input_ids", [])]
    return sum(length**2 for length in lengths) / max(sum(lengths), 1)


def _anywhere(device: torch.device, *claims: bool) -> list[bool]:
    """Return which of the claims hold in any of the processes."""
    if not distributed.is_initialized():
        return list(claims)
    found = torch.tensor(claims, dtype=torch.int32, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [bool(claim) for claim in found]


def run_trainer(
    trainer: Trainer,
    folder: Path,
    *,
    tokens: int,
    checkpoint_every_s: float,
    checkpoint_every_updates: int = 0,
    computed_share: Callable[[], float] = lambda: 1.0,
    by_clock: bool = False,
    trackers: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Train to the end, from the folder's last checkpoint if there is one.

    `tokens`, `computed_share`: see `TrainingJournal`. `by_clock`: whether a run may end before all of the trainer's
    updates, so that a checkpoint says which was the last. `trackers` are called after the journal. Returns the updates,
    epochs and tokens of the whole run, the seconds of this call, and the first and the last logged loss. Raises
    `KeyboardInterrupt` after writing a checkpoint if it was interrupted.
    """
    interrupted = threading.Event()
    journal = TrainingJournal(
        folder / LOSS,
        tokens=tokens,
        checkpoint_every_s=checkpoint_every_s,
        checkpoint_every_updates=checkpoint_every_updates,
        computed_share=computed_share,
        interrupted=interrupted,
    )
    trainer.remove_callback(PrinterCallback)
    for callback in (journal, *trackers):
        trainer.add_callback(callback)
    _leave_tied_to_their_sources(trainer.model)
    with postponed_interrupt(interrupted, journal.promise), heard_in_backward(trainer.model), repeatable():
        begun = time.monotonic()
        checkpoint = of_the_first(_last_checkpoint(folder / CHECKPOINTS))
        if checkpoint and by_clock and of_the_first(_is_of_the_last_update(checkpoint)):
            trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0  # another update would follow
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - begun
    if interrupted.is_set():
        raise KeyboardInterrupt
    lines = (folder / LOSS).read_text(encoding="utf-8").splitlines() if trainer.is_world_process_zero() else []
    first, last = of_the_first([json.loads(line) for line in (lines[0], lines[-1])] if lines else [{}, {}])
    return {
        "updates": last["step"],
        "epochs": round(last["epoch"], 4),
        "tokens": last["tokens"],
        "seconds": seconds,
        "first_loss": first["loss"],
        "final_loss": last["loss"],
    }


def diverged(what: str, step: int, value: float, args: TrainingArguments) -> InputError:
    """Return the error of a run that diverged, which names the last good checkpoint: none is written of bad weights."""
    last = _last_checkpoint(Path(args.output_dir))
    kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written before"
    return InputError(
        f"training diverged: the {what} of update {step} is {value}; lower the learning rate, or check the training "
        f"set; {kept}"
    )


def refuse_diverged(model: nn.Module, step: int, args: TrainingArguments) -> None:
    """Raise `InputError` if a weight is not a finite number."""
    if name := not_finite(model):
        raise diverged(f"weights ({name})", step, math.nan, args)


def check_shards(checkpoint: Path, *, sharded: bool) -> None:
    """Raise `InputError` if a checkpoint is of processes that hold shards and this run's do not, or the reverse."""
    if (checkpoint / SHARDS).is_dir() == sharded:
        return
    held, wanted, remedy = "shards (--fsdp)", "a whole student", "add --fsdp"
    if sharded:
        held, wanted, remedy = wanted, held, "leave --fsdp out"
    raise InputError(
        f"{given_name(checkpoint)} holds {held}, and this training wants {wanted}; {remedy} to resume it, or choose "
        "another --out"
    )


def _leave_tied_to_their_sources(model: nn.Module) -> None:
    """Declare that checkpoints lack tied weights; otherwise the trainer warns about them when it resumes."""
    if isinstance(model, PreTrainedModel):  # adapters are read in another way
        model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}


def of_the_first(value: Value) -> Value:
    """Return the first process' value in all of them, since that process owns the shared folder."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def _last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written completely."""
    found = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_of_the_last_update(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint's state, which the trainer writes last, is there and not cut short."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def repeatable() -> Iterator[None]:
    """Within the context, a step on a CPU gives the same bits each time.

    Otherwise several threads sum the gradient of `x[indices]`, which routes tokens to experts, in a random order
    (`index_put_` with accumulate). On a GPU nothing changes: runs there need not repeat exactly.
    """
    before = torch.are_deterministic_algorithms_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(not torch.cuda.is_available() or before, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a costly guard against bugs
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
