"""A chat whose answers come from a server: the same turns as from the model itself, over real connections."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.chat.conversation.author import Author, run_turn
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.exchange import conversation_of, to_json
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.conversation.turn import Turn
from apps.chat.page.dialogue import act, answer
from apps.chat.panels.settings_panel import defaults
from apps.chat.remote_model import load_endpoint
from apps.model import Model, load_model
from tests.apps.conftest import NAME, SUM
from tests.apps.streaming_server import StreamingServer, delta, usage
from tests.house.modules import ROOT
from toolkit.errors import InputError
from toolkit.generation.chat_model import WAITING
from toolkit.generation.generate import GREEDY, Sampling

PATIENCE_S = 120
SHORT = Sampling(temperature=0.0, max_new_tokens=40)


class Ticks:
    """A clock that moves one second at each reading."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def ask(model: Model, question: str = "How many?", sampling: Sampling = GREEDY) -> Turn:
    """Run one whole turn of a fresh conversation."""
    conversation = Conversation()
    messages = conversation.messages(question)
    turn = conversation.ask(question, model.chat_model)
    for _ in run_turn(model.chat_model, messages, turn, sampling, Ticks()):
        pass
    return turn


@pytest.fixture(scope="module")
def served(learned: Path) -> Iterator[str]:
    """Run `toolkit serve` in a process of its own, and yield its address."""
    command = [sys.executable, "-m", "toolkit", "serve", str(learned), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+/v1", process.stdout.readline())
        assert found
        yield found.group()
        process.terminate()


def test_a_served_model_writes_the_turn_that_it_writes_here(served: str, learned: Path) -> None:
    far, here = load_endpoint(served), load_model(learned)
    assert (far.name, far.chat_model.max_length) == ("tiny", 512)
    for question in ("How many times?", "The answer é is"):
        there, expected = ask(far, question, SHORT), ask(here, question, SHORT)
        assert expected.reasoning and there.reasoning.strip() == expected.reasoning.strip()
        assert (there.answer, there.state, there.cut) == (expected.answer, expected.state, expected.cut)
        assert there.tokens == expected.tokens


def go_on(model: Model, conversation: Conversation, turn: Turn, *, until: int | None = None) -> None:
    """Continue the last turn to its end, or up to a number of tokens."""
    messages = conversation.messages(turn.question, turn)
    for _ in run_turn(model.chat_model, messages, turn, GREEDY, Ticks()):
        turn.stop_requested = until is not None and turn.tokens >= until


@pytest.mark.parametrize("at", [3, 9, 16, 24])
def test_a_stopped_turn_goes_on_as_if_it_had_never_paused(served: str, at: int) -> None:
    """The same holds in another process, where the numbers of its pieces mean nothing."""
    whole = ask(load_endpoint(served), NAME[0])
    model, conversation = load_endpoint(served), Conversation()
    turn = conversation.ask(NAME[0], model.chat_model)
    go_on(model, conversation, turn, until=at)
    assert turn.state == "stopped" and turn.can_go_on and 0 < turn.tokens < whole.tokens
    assert (turn.tokens_before_answer is None) == (at < 16), "the cases stop in the thought and in the answer"
    other = load_endpoint(served)
    ask(other, SUM[0])
    assert conversation.resume(turn, other.chat_model) is turn
    go_on(other, conversation, turn)
    assert (turn.reasoning, turn.answer, turn.state) == (*NAME[1:], "done") == (whole.reasoning, whole.answer, "done")
    assert turn.tokens_before_answer == whole.tokens_before_answer


def test_a_thought_is_closed_from_here_and_the_server_answers(served: str) -> None:
    model, conversation = load_endpoint(served), Conversation()
    turn = conversation.ask(NAME[0], model.chat_model)
    messages = conversation.messages(NAME[0], turn)
    for _ in run_turn(model.chat_model, messages, turn, SHORT, Ticks(), thinking_budget=6):
        pass
    assert 0 < len(turn.reasoning) < len(NAME[1]) and NAME[1].startswith(turn.reasoning)
    assert turn.answer and turn.state == "done"


def test_a_chat_of_yesterday_is_continued_by_its_link(served: str, tmp_path: Path) -> None:
    model, tab = load_endpoint(served), Tab()
    panel_values = replace(defaults(model.chat_model.max_length), temperature=0.0).panel_values()
    store = Store(tmp_path, time.time)
    writing = answer(Author(model, store), store, NAME[0], "", tab, *panel_values)
    next(writing)
    tab.conversation.turns[-1].stop_requested = True
    assert [*writing]
    store.close()
    store = Store(tmp_path, time.time)
    found = store.load(1)
    assert found and found.turns[-1].state == "stopped"
    tab.open(found)
    author = Author(load_endpoint(served), store)
    assert [*act(author, store, f"go-on/{found.turns[-1].id}/1", "", tab, *panel_values)]
    store.close()
    assert (found.turns[-1].reasoning, found.turns[-1].answer, found.turns[-1].state) == (*NAME[1:], "done")


def test_a_turn_whose_pieces_were_numbered_before_goes_on(served: str, tmp_path: Path) -> None:
    """Older versions stored a number for each piece of a server's text, and the last number for pieces without text."""
    model, conversation = load_endpoint(served), Conversation()
    turn = conversation.ask(NAME[0], model.chat_model)
    go_on(model, conversation, turn, until=3)
    written = turn.tokens
    assert turn.state == "stopped" and written == turn.remote_tokens > 2
    turn.token_ids, turn.remote_tokens = [*range(written - 1), 2**32 - 1], 0
    store = Store(tmp_path, time.time)
    store.write(conversation)
    store.close()
    store = Store(tmp_path, time.time)
    found = store.load(1)
    assert found and conversation_of(to_json(found)).turns[0].tokens == found.turns[0].tokens == written
    (turn,) = found.turns
    assert found.resume(turn, model.chat_model) is turn
    go_on(model, found, turn)
    assert (turn.reasoning, turn.answer, turn.state, turn.token_ids) == (*NAME[1:], "done", [])
    assert turn.tokens > written
    store.close()


def test_a_chat_with_a_server_is_kept_and_exported_with_its_counts_and_without_ids(tmp_path: Path) -> None:
    with StreamingServer([delta(reasoning="So."), delta(content="It is 5."), delta("stop"), usage(9)]) as server:
        turn = ask(load_endpoint(server.url))
    conversation = Conversation(turns=[turn], all_turns=[turn], title="Five")
    store = Store(tmp_path, time.time)
    store.write(conversation)
    store.close()
    store = Store(tmp_path, time.time)
    found = store.load(1)
    store.close()
    assert found
    for kept in (found.turns[0], conversation_of(to_json(conversation)).turns[0]):
        assert (kept.tokens, kept.reasoning_tokens, kept.token_ids) == (turn.tokens, 1, []) == (9, 1, [])


def test_an_answer_that_a_server_wrote_is_not_gone_on_with_by_a_model_that_runs_here(learned: Path) -> None:
    with StreamingServer([delta(content="Well,"), delta("length")]) as server:
        turn = ask(load_endpoint(server.url))
    with pytest.raises(InputError, match="cannot continue what another model wrote"):
        Conversation(turns=[turn], all_turns=[turn]).resume(turn, load_model(learned).chat_model)


def test_a_server_that_only_begins_answers_is_not_asked_to_go_on() -> None:
    with StreamingServer([delta(content="Well,"), delta("length")]) as server:
        model = load_endpoint(server.url)
        turn = ask(model)
        assert not model.goes_on
        with pytest.raises(InputError, match="cannot continue an answer, which needs `toolkit serve`"):
            list(run_turn(model.chat_model, [], turn, GREEDY, Ticks()))
        assert len(server.bodies) == 1


def test_a_prompt_that_the_server_finds_too_long_is_one_line_with_its_words(served: str) -> None:
    with pytest.raises(InputError, match=r"refuses the chat completion: 400.*context") as caught:
        ask(load_endpoint(served), "e" * 700)
    assert "\n" not in str(caught.value)


def test_a_seed_reaches_the_server(served: str) -> None:
    sampling = Sampling(temperature=2.0, top_p=1.0, max_new_tokens=30, seed=5)
    first, again, other = (ask(load_endpoint(served), sampling=replace(sampling, seed=seed)) for seed in (5, 5, 6))
    assert first.reasoning == again.reasoning != other.reasoning


@pytest.mark.parametrize(
    "pieces",
    [
        [{"reasoning_content": "2 and "}, {"reasoning_content": "3 is 5."}, {"content": "It is "}, {"content": "5."}],
        [{"reasoning": "2 and ", "reasoning_content": "2 and "}, {"reasoning": "3 is 5."}, {"content": "It is 5."}],
        [{"thinking": "2 and 3 is 5."}, {"thinking": "", "content": "It is 5."}],
        [
            {"content": "<thi"},
            {"content": "nk>\n2 and 3 is"},
            {"content": " 5.\n</th"},
            {"content": "ink>\n\nIt is 5."},
        ],
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2 and"}]}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": " "}]}]},
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "3 is 5."}]}]},
            {"content": [{"type": "text", "text": "It is 5."}]},
        ],
        [{"reasoning_details": [{"type": "reasoning.text", "text": "2 and 3 is 5."}]}, {"content": "It is 5."}],
    ],
    ids=["reasoning_content", "reasoning", "thinking", "tags", "parts", "reasoning_details"],
)
def test_a_thought_is_read_from_wherever_servers_put_it(pieces: list[dict[str, Any]]) -> None:
    events = [delta(role="assistant", content=""), *(delta(**piece) for piece in pieces), delta("stop"), usage(20)]
    with StreamingServer([*events, ": a comment", "data: [DONE]"]) as server:
        turn = ask(load_endpoint(server.url))
    assert (turn.reasoning, turn.answer, turn.state, turn.cut) == ("2 and 3 is 5.", "It is 5.", "done", None)
    assert turn.tokens == 20 and server.bodies[0]["messages"] == [{"role": "user", "content": "How many?"}]


def test_an_answer_that_the_server_does_not_end_ends_at_its_limit() -> None:
    with StreamingServer([delta(content="x ")] * (SHORT.max_new_tokens + 1), hangs=True) as server:
        turn = ask(load_endpoint(server.url), sampling=SHORT)
        assert server.client_left.wait(PATIENCE_S)
    assert (turn.answer, turn.state, turn.cut) == ("x " * SHORT.max_new_tokens, "done", "limit")


def test_a_turn_that_the_server_cuts_has_as_many_tokens_as_the_server_says() -> None:
    events = [delta(content="x ")] * SHORT.max_new_tokens
    with StreamingServer([*events, delta("length"), usage(SHORT.max_new_tokens)]) as server:
        turn = ask(load_endpoint(server.url), sampling=SHORT)
    assert (turn.tokens, turn.cut) == (SHORT.max_new_tokens, "limit")


def test_a_tag_in_a_thought_s_own_field_is_text() -> None:
    thought = ("Where </think> stands, ", "<think> ends.")
    events = [
        *(delta(reasoning_content=piece) for piece in thought),
        delta(content="\n\n"),
        delta(content="Yes. "),
        delta("stop"),
    ]
    with StreamingServer(events) as server:
        turn = ask(load_endpoint(server.url))
    assert (turn.reasoning, turn.answer, turn.tokens_before_answer) == ("".join(thought), "Yes. ", 3)


def test_what_may_begin_a_tag_is_kept_where_the_turn_is_stopped() -> None:
    with StreamingServer([delta(content="<thi")], hangs=True) as server:
        model, conversation = load_endpoint(server.url), Conversation()
        turn = conversation.ask("?", model.chat_model)
        for _ in run_turn(model.chat_model, conversation.messages("?"), turn, GREEDY, Ticks()):
            turn.stop_requested = turn.tokens > 0
    assert (turn.state, turn.answer) == ("stopped", "<thi")


def test_stop_is_seen_between_events_without_a_text() -> None:
    with StreamingServer([delta()] * 20, hangs=True) as server:
        speaking: Any = load_endpoint(server.url).chat_model.stream([{"role": "user", "content": "?"}], SHORT)
        assert [next(speaking) for _ in range(30)] == [WAITING] * 30
        speaking.close()
        assert server.client_left.wait(PATIENCE_S)


@pytest.mark.parametrize("events", [[delta(content="Well,")], []], ids=["between pieces", "before the first"])
def test_stop_ends_the_request(events: list[dict[str, object]]) -> None:
    with StreamingServer(events, hangs=True) as server:
        model = load_endpoint(server.url)
        conversation = Conversation()
        turn = conversation.ask("?", model.chat_model)
        for _ in run_turn(model.chat_model, conversation.messages("?"), turn, GREEDY, Ticks()):
            turn.stop_requested = turn.answer == "Well," or (not events and bool(server.bodies))
        assert server.client_left.wait(PATIENCE_S)
    assert (turn.state, turn.answer) == ("stopped", "Well," if events else "")


@pytest.mark.parametrize(
    ("events", "status", "words"),
    [
        (["no such model"], 404, "404 Not Found: 'no such model'"),
        (["data: {"], 200, r"sends no chunks of a chat completion, but '\{'"),
        ([{"error": {"message": "out of memory"}}], 200, "broke off: .*out of memory"),
        ([delta(content="It is")], 200, "broke off: the server sent no finish_reason"),
    ],
)
def test_a_server_that_fails_is_one_line_and_its_words_are_kept(
    events: list[dict[str, object] | str], status: int, words: str
) -> None:
    with StreamingServer(events, status=status) as server:
        model = load_endpoint(server.url)
        conversation = Conversation()
        turn = conversation.ask("?", model.chat_model)
        with pytest.raises(InputError, match=words):
            list(run_turn(model.chat_model, conversation.messages("?"), turn, GREEDY, Ticks()))
    assert (turn.state, turn.answer) == ("stopped", "It is" if "finish_reason" in words else "")
