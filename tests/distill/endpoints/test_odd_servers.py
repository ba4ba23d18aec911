"""Claims about servers that answer in odd ways: what is an answer is kept, and limits hold all the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.endpoints import chat_requests
from distill.endpoints.budget import Budget, SpendingLimits
from distill.endpoints.servers.server import ServerSettings
from tests.http_server import HttpServer, QuietHandler
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.records import Message, Trace, read_records

THOUGHT = "Twice the number is the number and itself."
Said = tuple[str, bytes, bool]
"""The type of a body, the body, and whether the connection lives on after it."""


class OddServer(HttpServer):
    """Answers each question as `say` does, which is told how often it was asked before."""

    def __init__(self, say: Callable[[str, int], Said], status: int = 200) -> None:
        self.say, self.status = say, status
        self.asked: Counter[str] = Counter()


class _Handler(QuietHandler):
    owner: OddServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked has ended
            super().handle()

    def do_GET(self) -> None:
        self._send(200, "application/json", b'{"data": [{"id": "odd"}]}')

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        kind, content, lives = self.owner.say(question, self.owner.asked[question])
        self.owner.asked[question] += 1
        self._send(self.owner.status, kind, content, more=0 if lives else 100)
        self.close_connection = self.close_connection or not lives

    def _send(self, status: int, kind: str, content: bytes, more: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Location", "http://127.0.0.1:9/v2")
        self.send_header("Content-Length", str(len(content) + more))
        self.end_headers()
        self.wfile.write(content)


OddServer.handler = _Handler


def whole(usage: dict[str, Any] | None = None) -> bytes:
    message = {"role": "assistant", "reasoning_content": THOUGHT, "content": "It is 4."}
    counted = {} if usage is None else {"usage": usage}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **counted}).encode()


def events(*, ends: bool = True) -> bytes:
    deltas: list[tuple[dict[str, str], str | None]] = [
        *(({"reasoning_content": f"{word} "}, None) for word in THOUGHT.split()),
        ({"content": "It is 4."}, None),
        *([({}, "stop")] if ends else []),
    ]
    chunks = ({"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas)
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.01)
    asked = tmp_path / "asked.csv"
    asked.write_text("question,answer\n" + "".join(f"What is {n} plus {n}?,{2 * n}\n" for n in range(40)))
    return [
        *["traces", "--include-test", "--max-new-tokens", "100", "--problems"],
        str(asked),
        "--out",
        str(tmp_path / "run"),
    ]


def traces_of(words: list[str]) -> list[Trace]:
    return read_records(Path(words[words.index("--out") + 1]) / "traces.jsonl", Trace)


@pytest.mark.parametrize(
    "said",
    [
        ("text/event-stream", events(), False),
        ("Text/Event-Stream; Charset=UTF-8", events() + b"data: [DONE]\n\n", True),
        ("text/plain", events() + b"data: [DONE]\n\n", True),
        ("application/json; charset=hex", whole(), True),
    ],
)
def test_an_answer_that_has_its_end_is_kept_and_not_paid_for_again(words: list[str], said: Said) -> None:
    with OddServer(lambda question, before: said) as server:
        assert main([*words, "--teacher", server.url]) == 0
        assert len(server.asked) == 40 and set(server.asked.values()) == {1}
    assert {(trace.reasoning.strip(), trace.answer) for trace in traces_of(words)} == {(THOUGHT, "It is 4.")}


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_in_an_encoding_that_is_none_is_one_line(
    words: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with OddServer(lambda question, before: ("text/html; charset=hex", b"no room", True), status) as server:
        assert main([*words, "--teacher", server.url]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("toolkit: ")]
    assert len(said) == 1 and "'no room'" in said[0]


def test_a_redirect_says_where_it_leads(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with OddServer(lambda question, before: ("text/plain", b"", True), 307) as server:
        assert main([*words, "--teacher", server.url]) == 2
    said = capsys.readouterr().err
    assert "'http://127.0.0.1:9/v2'; redirects are not followed: give the address that it leads to" in said


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": None}, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_a_limit_holds_where_the_server_does_not_count(
    words: list[str], usage: dict[str, Any] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with OddServer(lambda question, before: ("application/json", whole(usage), True)) as server:
        limited = [*words, "--teacher", server.url, "--max-tokens-total", "2000"]
        assert main(limited) == 0
        asked = sum(server.asked.values())
        assert 0 < asked < 40
        assert main(limited) == 0
        assert sum(server.asked.values()) == asked, "the same command spends no more"
    said = capsys.readouterr()
    assert said.err.count("does not count tokens; for the limits, 2 bytes count as one") == 1
    assert "--max-tokens-total 2000 stopped it" in said.out
    assert all(trace.completion_tokens is None for trace in traces_of(words))


def test_a_limit_holds_for_broken_answers_and_their_prompts(words: list[str]) -> None:
    def say(question: str, before: int) -> Said:
        if before or int(question.split()[2]) % 2:
            return "application/json", whole({"prompt_tokens": 20, "completion_tokens": 50}), True
        return "text/event-stream", events(ends=False) * 5, False

    with OddServer(say) as server:
        assert main([*words, "--teacher", server.url, "--max-tokens-total", "3000"]) == 0
        broken, kept = sum(not int(question.split()[2]) % 2 for question in server.asked), len(traces_of(words))
    pieces = 5 * (len(THOUGHT.split()) + 1)
    assert 0 < kept < 40 and broken > 0 and broken * (20 + pieces) + kept * 70 <= 3000


def settings(**more: Any) -> ServerSettings:
    return replace(ServerSettings(url="http://127.0.0.1:9/v1", model="m"), **more)


def test_what_a_server_adds_to_prompts_and_answers_is_reserved_once_it_is_known() -> None:
    budget = Budget(SpendingLimits(tokens=10_000), [settings()])
    asked: list[Message] = [{"role": "user", "content": "1" * 200}]
    before = budget.bound_of(settings(), asked, 100)
    assert before.tokens >= 300, "each digit may be a token"
    trace = Trace(
        problem_id="p",
        sample=0,
        reasoning="a",
        answer="b",
        finish_reason="stop",
        closed=True,
        prompt_tokens=1200,
        reasoning_tokens=None,
        completion_tokens=300,
        teacher="t@d",
        request_hash="0" * 16,
    )
    budget.take_answer(settings(), trace, asked, 100)
    assert budget.bound_of(settings(), asked, 100).tokens == 1500


@pytest.mark.parametrize("prices", [{}, {"price_in": 1.0}, {"price_out": 1.0}])
def test_money_is_limited_only_with_both_prices(prices: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --price-in and --price-out"):
        Budget(SpendingLimits(cost=1.0), [settings(**prices)])
    Budget(SpendingLimits(cost=1.0), [settings(price_in=0.0, price_out=1.0)])


def test_a_server_that_ignores_the_log_probabilities_is_said_once(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with OddServer(lambda question, before: ("application/json", whole(), True)) as server:
        assert main([*words, "--teacher", server.url, "--top-logprobs", "3"]) == 0
    assert capsys.readouterr().err.count("gives no log-probabilities that can be read") == 1
    assert len(traces_of(words)) == 40
