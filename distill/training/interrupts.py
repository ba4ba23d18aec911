"""Ctrl+C, or SIGTERM (`toolkit.cli.main`), while a model is trained: heard at once, and answered when the update in
hand is done.

    first   a line on stderr says what ends when and what is kept; the event is set, which the journal looks at
    second  ends at once, with what the last checkpoint kept

Python runs a signal's handler between two steps of its own. A backward pass is one call of C++, and of a large batch it
takes many seconds; so it is made to call Python at each parameter.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
from torch import Tensor, distributed, nn

from toolkit.terminal import say


@contextmanager
def postponed_interrupt(interrupted: threading.Event, promise: Callable[[], str]) -> Iterator[None]:
    """Within, the first Ctrl+C sets the event and says what is promised; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)
        with suppress(RuntimeError):  # of a stream that is in the midst of another line, and hangs in it
            say(promise())

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def heard_in_backward(model: nn.Module) -> Iterator[None]:
    """Within, a backward pass on a CPU hears a signal as soon as the gradient of a parameter is there, not at its end
    alone.

    On GPUs it runs in threads of its own, and of processes that train together none may end in the midst of an update.
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
    """Nothing more: Python handles what was signalled on the way here."""
