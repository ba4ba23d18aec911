"""Handles Ctrl+C and SIGTERM (`toolkit.cli.main`) during training: acknowledged at once, obeyed after the update.

    first   a line on stderr says when training ends and what is kept; an event is set, which the journal checks
    second  ends training at once; the last checkpoint stays

Python runs a signal handler between two of its own instructions. A backward pass is a single call into C++ that takes
many seconds for a large batch, so it is made to call Python at each parameter.

A kill asks nobody, so a checkpoint is whole or passed over (`WholeCheckpoints`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed, nn

from toolkit.runs import process_rank
from toolkit.terminal import say


@contextmanager
def postponed_interrupt(interrupted: threading.Event, promise: Callable[[], str]) -> Iterator[None]:
    """Within the context, the first Ctrl+C sets the event and prints the promise; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)
        if process_rank():
            return  # the first of several processes speaks for all
        with suppress(RuntimeError):  # the stream is in the middle of another line
            say(promise())

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def heard_in_backward(model: nn.Module) -> Iterator[None]:
    """Within the context, a backward pass on a CPU handles signals after each gradient, not only at its end.

    On GPUs the backward pass runs in threads of its own, and processes that train together must finish an update.
    """
    alone_on_cpu = not torch.cuda.is_available() and not distributed.is_initialized()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and alone_on_cpu]
    hooks = [parameter.register_post_accumulate_grad_hook(_run_python) for parameter in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run_python(parameter: Tensor) -> None:
    """Do nothing: entering Python is enough for pending signals to be handled."""


class WholeCheckpoints:
    """Lets trainers of several processes write a checkpoint's state, by which it counts as whole, when all of them have
    written their parts; else one that is killed meanwhile leaves a checkpoint that cannot be read."""

    args: Any

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]  # the last part that each process writes
        if self.args.world_size > 1:
            distributed.barrier()
