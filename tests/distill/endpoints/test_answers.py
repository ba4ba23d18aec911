"""Claims about a streamed answer: put together, it is what the server would have sent in one piece."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx2 import ReadError

from distill.endpoints.answers import StreamedAnswer, StreamError
from distill.endpoints.messages import read_message
from distill.endpoints.token_logprobs import read_logprobs
from distill.store.logprobs import Candidate, ServerToken, TokenLogprobs
from toolkit.generation.bounded_response import DONE


def whole(*deltas: dict[str, Any], finish: str | None = "stop", end: bool = True) -> dict[str, Any]:
    answer = StreamedAnswer()
    for delta in deltas:
        answer.take("message", json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
    if finish:
        answer.take("message", json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
    answer.take("message", json.dumps({"choices": [], "usage": {"completion_tokens": 5}}))
    if end:
        answer.take("message", DONE)
    return answer.whole()


@pytest.mark.parametrize(
    ("deltas", "reasoning", "content"),
    [
        (
            [{"reasoning_content": "one "}, {"reasoning_content": "two"}, {"content": "It "}, {"content": "is 4."}],
            "one two",
            "It is 4.",
        ),
        ([{"reasoning": "one"}, {"reasoning": " "}, {"reasoning": "two"}, {"content": "4"}], "one two", "4"),
        ([{"thinking": "hm"}, {"content": "4"}], "hm", "4"),
        ([{"content": "<think>"}, {"content": "hm</th"}, {"content": "ink>4"}], "hm", "4"),
        (
            [
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]},
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "m"}]}]},
                {"content": "4"},
            ],
            "hm",
            "4",
        ),
        ([{"content": "\ud83d"}, {"content": "\ude00 4"}], "", "😀 4"),
        ([{"role": "assistant", "content": ""}, {"content": None}, {"content": "4"}], "", "4"),
        ([{"refusal": "I can"}, {"refusal": "not"}], "", "I cannot"),
    ],
)
def test_pieces_are_read_as_the_whole_message_would_be(
    deltas: list[dict[str, Any]], reasoning: str, content: str
) -> None:
    answer = whole(*deltas)
    read = read_message(answer["choices"][0]["message"], answer["choices"][0]["finish_reason"])
    assert (read.reasoning, read.answer, read.finish_reason) == (reasoning, content, "stop")
    assert answer["usage"] == {"completion_tokens": 5}


def test_a_call_of_a_tool_is_seen() -> None:
    answer = whole({"tool_calls": [{"function": {"name": "f"}}]}, finish="tool_calls")
    assert read_message(answer["choices"][0]["message"], "tool_calls").finish_reason == "tool_calls"


def test_a_second_choice_is_not_mixed_into_the_first() -> None:
    answer = StreamedAnswer()
    for index, text in ((0, "a"), (1, "b"), (0, "c")):
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        answer.take("message", json.dumps({"choices": [choice]}))
    answer.take("message", DONE)
    assert answer.whole()["choices"][0]["message"]["content"] == "ac"


def test_a_stream_that_ends_early_is_no_answer_and_one_without_a_reason_is_if_it_says_that_it_ends() -> None:
    with pytest.raises(ReadError, match="ended before"):
        whole({"content": "It is"}, finish=None, end=False)
    assert whole({"content": "4"}, finish=None)["choices"][0]["finish_reason"] is None
    assert whole({"content": "4"}, end=False)["choices"][0]["finish_reason"] == "stop"


def test_an_error_within_a_stream_and_what_is_no_stream_of_an_answer() -> None:
    with pytest.raises(StreamError, match="out of memory"):
        StreamedAnswer().take("message", '{"error": {"message": "out of memory"}}')
    with pytest.raises(StreamError):
        StreamedAnswer().take("error", '{"message": "gone"}')
    with pytest.raises(ValueError, match=r"Expecting"):
        StreamedAnswer().take("message", "<html>")
    answer = StreamedAnswer()
    answer.take("message", '{"hello": 1}')
    answer.take("message", DONE)
    with pytest.raises(LookupError):
        answer.whole()


def test_a_choice_without_a_number_is_the_first_and_a_stream_without_choices_is_no_answer() -> None:
    answer = StreamedAnswer()
    answer.take("message", '{"choices": [{"index": null, "delta": {"content": "4"}, "finish_reason": "stop"}]}')
    assert answer.whole()["choices"][0]["message"]["content"] == "4"
    empty = StreamedAnswer()
    empty.take("message", '{"choices": [], "usage": {"completion_tokens": 0}}')
    empty.take("message", DONE)
    with pytest.raises(LookupError):
        empty.whole()


NOT_LOGPROBS: list[Any] = [
    {"content": [{"token": "a", "logprob": float("nan")}]},
    {"content": [{"token": "a", "logprob": None}]},
    {"content": [{"token": "a", "logprob": 1e9}]},
    {"content": [{"token": "a", "logprob": -1.0, "bytes": [300]}]},
    {"content": [{"token": ["a"], "logprob": -1.0}]},
    {"content": ["a"]},
    {"tokens": [["a"]], "token_logprobs": [-1.0]},
    {"tokens": ["a", "b"], "token_logprobs": [-1.0]},
    {"tokens": ["a", "b"], "token_logprobs": [-1.0, None]},
]


@pytest.mark.parametrize("found", NOT_LOGPROBS)
def test_log_probabilities_that_are_none_cost_no_answer(found: Any) -> None:
    assert read_logprobs({"choices": [{"logprobs": found}]}) is None


def test_log_probabilities_are_read_in_both_forms() -> None:
    given = {
        "token": " é",
        "logprob": -0.5,
        "bytes": [32, 195, 169],
        "top_logprobs": [{"token": "x", "logprob": -1, "bytes": None}],
    }
    candidate = Candidate(ServerToken(" é", b" \xc3\xa9"), -0.5)
    modern = {"choices": [{"logprobs": {"content": [given]}}]}
    assert read_logprobs(modern) == [TokenLogprobs(candidate, [Candidate(ServerToken("x"), -1.0)])]
    thought = {"content": [given], "reasoning_content": [given | {"token": "t", "bytes": None}]}
    both = [
        TokenLogprobs(each, [Candidate(ServerToken("x"), -1.0)])
        for each in (Candidate(ServerToken("t"), -0.5), candidate)
    ]
    assert read_logprobs({"choices": [{"logprobs": thought}]}) == both, "the thought comes first"
    streamed = StreamedAnswer()
    for part in ({"content": [], "reasoning_content": thought["reasoning_content"]}, {"content": [given]}):
        choice = {"index": 0, "delta": {"content": "x"}, "logprobs": part, "finish_reason": None}
        streamed.take("message", json.dumps({"choices": [choice]}))
    streamed.take("message", json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    streamed.take("message", DONE)
    assert read_logprobs(streamed.whole()) == both
    old = {"tokens": ["a", "b"], "token_logprobs": [None, -2.0], "top_logprobs": [None, {"b": -2.0, "c": -3.0}]}
    assert read_logprobs({"choices": [{"logprobs": old}]}) == [
        TokenLogprobs(Candidate(ServerToken("a"), 0.0), []),
        TokenLogprobs(
            Candidate(ServerToken("b"), -2.0), [Candidate(ServerToken("b"), -2.0), Candidate(ServerToken("c"), -3.0)]
        ),
    ]
    assert read_logprobs({"choices": [{"logprobs": None}]}) == read_logprobs({"choices": [{}]}) == []
