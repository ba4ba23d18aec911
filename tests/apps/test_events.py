"""A page's events tell the browser only what is new, and not too fast."""

from __future__ import annotations

import time
from itertools import pairwise

import gradio as gr

from apps.chat.view.events import GAP_S, News

SKIP = gr.skip()


def test_updates_come_in_their_order_and_a_gap_apart() -> None:
    news = News()
    told = [(news.of([number]), time.monotonic()) for number in range(4)]
    assert [update for update, _ in told] == [(0,), (1,), (2,), (3,)]
    gaps = [later - at for (_, at), (_, later) in pairwise(told)]
    assert min(gaps) > 0.9 * GAP_S


def test_a_component_is_told_only_what_is_new() -> None:
    news = News()
    told = [news.of(update) for update in (("1 token", "a"), ("2 tokens", "a"), (SKIP, "a"), ("2 tokens", "b"))]
    assert told == [("1 token", "a"), ("2 tokens", SKIP), (SKIP, SKIP), (SKIP, "b")]
