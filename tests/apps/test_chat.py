"""The page shows a conversation, the command refuses what it cannot open, and its import chain is light."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import Store
from apps.chat.conversation.turn import Turn
from apps.chat.run_chat import run_chat, serve
from apps.chat.view.page_messages import page_messages, seconds, status_line
from apps.model import Model
from tests.apps.scripted import EXAMPLES, ScriptedDecoder
from tests.processes import modules_loaded_by
from toolkit.errors import InputError
from toolkit.formats.chat_format import TURN_END, ChatFormat
from toolkit.generation.chat_model import LocalChatModel, TurnReader
from toolkit.records import FinishReason


@pytest.fixture
def model(tiny_student: Path) -> Model:
    chat_format = ChatFormat.from_folder(tiny_student)
    decoder = ScriptedDecoder(chat_format, max_length=512, step_s=0.0)
    return Model(name="scripted", size_bytes=1, chat_model=LocalChatModel(decoder, chat_format))


def thought(turn: Turn, now: float = 0.0) -> dict[str, str]:
    _, reasoning, *_ = page_messages(Conversation(turns=[turn]), now)
    metadata: dict[str, str] = reasoning["metadata"]
    return metadata


def test_the_reasoning_block_is_titled_with_its_state_and_duration() -> None:
    turn = Turn(question="?", context_room=100, state="thinking", reasoning="So", token_ids=[1] * 84)
    assert thought(turn, now=1.26) == {"title": "Thinking… 1.3 s", "status": "pending"}
    turn.state, turn.answer, turn.answering_at, turn.tokens_before_answer = "answering", "12", 2.1, 84
    assert thought(turn, now=9.0) == {"title": "Thought for 2.1 s · 84 tokens", "status": "done"}


def test_a_stopped_thought_stays_open_and_says_so() -> None:
    turn = Turn(question="?", context_room=100, state="stopped", reasoning="So", token_ids=[1, 2], ended_at=0.5)
    assert thought(turn) == {"title": "Stopped thinking after 0.5 s · 2 tokens"}
    *_, note = page_messages(Conversation(turns=[turn]), 0.0)
    assert "Stopped" in note["content"][0]["text"]


def test_a_turn_without_an_answer_says_why() -> None:
    def note(**facts: Any) -> str:
        turn = Turn(
            question="?", context_room=100, state="done", reasoning="So", token_ids=[1] * 9, ended_at=0.5, **facts
        )
        text: str = page_messages(Conversation(turns=[turn]), 0.0)[-1]["content"][0]["text"]
        return text

    assert "without an answer" in note()
    assert "9 tokens, the maximum" in note(cut="limit")
    assert "context is full" in note(cut="context")


def test_text_reaches_the_page_with_its_white_space() -> None:
    turn = Turn(question="?", context_room=100, state="done", answer="  a\n\tb\n")
    *_, answer = page_messages(Conversation(turns=[turn]), 0.0)
    assert answer["content"] == [{"type": "text", "text": "  a\n\tb\n"}]


def test_the_status_line_tells_tokens_and_speed() -> None:
    turn = Turn(question="?", context_room=100, state="waiting")
    assert status_line(turn) == "Reading the question"
    turn.state, turn.reasoning, turn.token_ids, turn.tokens_before_answer = "done", "So", [1] * 1001, 990
    turn.started_at, turn.first_token_at, turn.last_token_at = 0.75, 1.0, 26.0
    assert status_line(turn) == "990 reasoning + 11 answer tokens · 40.0 tokens/s · first token after 0.25 s"


def test_short_durations_have_a_decimal_and_longer_ones_read_as_those_of_the_progress() -> None:
    assert [seconds(s) for s in (0.04, 59.94, 59.96, 72.4)] == ["0.0 s", "59.9 s", "1 min 0 s", "1 min 12 s"]


def test_the_example_questions_are_worded_like_the_problems() -> None:
    gcd, chain_sum, letter_counting, spell_backward = EXAMPLES
    import reasoning_gym

    for family, example in (("gcd", gcd), ("chain_sum", chain_sum), ("letter_counting", letter_counting)):
        question = reasoning_gym.create_dataset(family, size=1, seed=0)[0]["question"]
        assert question.split()[:4] == example.split()[:4]
    assert spell_backward.startswith("Spell this word backward (example: sun -> nus): ")


def test_a_folder_that_is_no_export_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="toolkit export") as caught:
            run_chat(folder, tmp_path / "chats", port=0, window="none")
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_host_beyond_the_loopback_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"host 0\.0\.0\.0 is open to others.*use 127\.0\.0\.1, localhost"):
        serve([model], Store(tmp_path, time.time), host="0.0.0.0", port=0, window="none")


def test_a_port_that_is_taken_is_refused(model: Model, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} on 127\.0\.0\.1 cannot be opened.*another --port"):
            serve([model], Store(tmp_path, time.time), host="127.0.0.1", port=port, window="none")


def test_the_import_chain_of_the_chat_holds_no_torch() -> None:
    loaded = modules_loaded_by("import apps.chat.run_chat")
    assert {"gradio", "onnxruntime", "tokenizers"} <= loaded
    assert loaded.isdisjoint({"torch", "transformers", "onnx", "trl", "peft", "distill"})


def test_importing_the_chat_switches_every_call_home_off() -> None:
    script = (
        "import apps.chat.run_chat, os, gradio.analytics as a, huggingface_hub.constants as h;"
        "print(a.analytics_enabled(), h.HF_HUB_OFFLINE, h.HF_HUB_DISABLE_TELEMETRY, "
        "os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True", "True", "1"]


def test_a_thought_that_the_model_closed_was_not_stopped_though_no_answer_followed(model: Model) -> None:
    cases: tuple[tuple[str, FinishReason], ...] = (("\n</think>\n\n", "stop"), ("\n</think>\n", "length"), ("", "stop"))
    for ending, reason in cases:
        conversation = Conversation()
        chat_model = model.chat_model
        assert isinstance(chat_model, LocalChatModel)
        turn = conversation.ask("?", chat_model)
        turn.start(chat_model, 0.0)
        reader = TurnReader(chat_model.chat_format)
        ids = chat_model.chat_format.encode(f"So.{ending}{TURN_END if reason == 'stop' else ''}")
        for i, token_id in enumerate(ids):
            is_last = i + 1 == len(ids)
            turn.take(reader.read(token_id, reason if is_last else None), 0.1)
        turn.end(0.2)
        assert (turn.state, turn.reasoning, turn.answer) == ("done", "So.", "")
        assert thought(turn)["title"] == f"Thought for 0.2 s · {len(ids)} tokens", ending
