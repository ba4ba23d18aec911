"""The server over a real tiny model that has learned two conversations by heart, asked by OpenAI's own client."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from apps.access.address import listen
from apps.access.bounded_body import MOST_BODY_BYTES
from apps.server.row import StopFilter
from apps.server.run_server import allowed_hosts, build_application, run_server
from apps.server.scheduler import PIECE_BETWEEN_STEPS
from apps.server.service import Service
from export.runtime.decoder import OnnxDecoder
from export.runtime.kernels.library import kernels_name
from export.runtime.rows.prefix import FEW_ROWS
from export.runtime.rows.row_pool import Row
from tests.apps.conftest import NAME, SUM
from tests.apps.in_thread import serving
from tests.processes import modules_loaded_by, wait_until
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, split_completion
from toolkit.generation.generate import Sampling, complete
from toolkit.runs import file_digest

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
KEY = "a key"
BEGUN = {"role": "assistant", "content": "It", "prefix": True}
Say = dict[str, Any]


@contextmanager
def serving_model(folder: Path, *, parallel: int, queue: int) -> Iterator[tuple[str, Service]]:
    """Yield the address of a server, `host:port`, and its service."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        service = Service(folder, parallel=parallel, queue=queue, api_key=KEY)
        application = build_application(service, "127.0.0.1", port)
        with closing(service.scheduler), serving(application, listener):
            yield f"127.0.0.1:{port}", service


@pytest.fixture(scope="module")
def served(learned: Path) -> Iterator[tuple[str, Service]]:
    with serving_model(learned, parallel=3, queue=1) as started:
        yield started


@pytest.fixture(scope="module")
def address(served: tuple[str, Service]) -> str:
    return served[0]


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)


def chat(client: openai.OpenAI, question: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"temperature": 0, **options})


def metric(service: Service, name: str) -> float:
    lines = service.metrics.text().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def test_a_whole_answer_has_its_reasoning_beside_it_and_counts_both(client: openai.OpenAI, learned: Path) -> None:
    answer = chat(client, SUM[0])
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (SUM[2], "stop")
    assert choice.message.reasoning_content == choice.message.reasoning == SUM[1]
    chat_format = ChatFormat.from_folder(learned)
    ids, mask = chat_format.training_ids([{"role": "user", "content": SUM[0]}], *SUM[1:])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids) - sum(mask), sum(mask))
    thought = len(chat_format.encode(SUM[1] + "\n</think>"))
    assert answer.usage.completion_tokens_details.reasoning_tokens == thought
    assert [model.id for model in client.models.list()] == ["tiny"]


def streamed(client: openai.OpenAI, question: str, **options: Any) -> tuple[str, str, list[Any]]:
    """Return the reasoning, the answer and all chunks of a stream."""
    chunks = list(chat(client, question, stream=True, **options))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning == "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    return reasoning, "".join(delta.content or "" for delta in deltas), chunks


def test_streams_beside_each_other_say_what_they_say_alone(client: openai.OpenAI) -> None:
    found: dict[str, tuple[str, str]] = {}

    def run(question: str) -> None:
        found[question] = streamed(client, question)[:2]

    threads = [threading.Thread(target=run, args=(question,)) for question in (SUM[0], NAME[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {SUM[0]: SUM[1:], NAME[0]: NAME[1:]}


def test_a_stream_ends_with_its_usage_where_that_is_asked_for(client: openai.OpenAI) -> None:
    *_, chunks = streamed(client, SUM[0], stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage == chat(client, SUM[0]).usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]


@pytest.mark.parametrize("stop", ["count l", ["zzz", "I count"], ["Ada. I", "My name is Ada. I c"]])
def test_an_answer_ends_before_the_stop_string_that_is_whole_first(
    client: openai.OpenAI, stop: str | list[str]
) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    written = next(NAME[2][:i] for i in range(len(NAME[2])) if NAME[2][:i].endswith(tuple(stops)))
    expected = next(written.removesuffix(text) for text in stops if written.endswith(text))
    assert streamed(client, NAME[0], stop=stop)[:2] == (NAME[1], expected)
    choice = chat(client, NAME[0], stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (expected, "stop")


def test_a_stop_string_is_found_however_the_text_is_cut() -> None:
    text, stop = "aabaabaac, and on", ("aabaac", "xyz")
    for size in range(1, len(text)):
        stopper = StopFilter(stop)
        shown = "".join(stopper.feed(text[i : i + size]) for i in range(0, len(text), size)) + stopper.finish()
        assert shown == text[: text.find("aabaac")] and stopper.is_done
    stopper = StopFilter(stop)
    assert stopper.feed("an aaba") + stopper.feed("b") + stopper.finish() == "an aabab" and not stopper.is_done


def test_both_names_of_the_limit_cut_an_answer(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(client, SUM[0], **{name: 4})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 4)
        assert answer.choices[0].message.content == "" and SUM[1].startswith(answer.choices[0].message.reasoning)


def test_a_seed_says_the_same_again_and_choices_differ(client: openai.OpenAI) -> None:
    options: Say = {"temperature": 2.0, "top_p": 1.0, "max_tokens": 20, "n": 2}
    first, again, other = (chat(client, SUM[0], seed=seed, **options) for seed in (7, 7, 8))
    texts = [[choice.message.reasoning for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] and texts[0] != texts[2] and texts[0][0] != texts[0][1]


def test_log_probabilities_are_those_of_the_runner(client: openai.OpenAI, learned: Path) -> None:
    chat_format, decoder = ChatFormat.from_folder(learned), OnnxDecoder(learned)
    prompt = chat_format.question_ids(SUM[0])
    logprobs = chat(client, SUM[0], logprobs=True, top_logprobs=2).choices[0].logprobs
    tokens = [*logprobs.reasoning_content, *(dict(token) for token in logprobs.content)]
    ids = [*prompt]
    for token in tokens[:6]:
        logits_V = decoder.start([ids])[0].astype(np.float64)
        logprobs_V = logits_V - np.logaddexp.reduce(logits_V)
        best, second = np.argsort(-logprobs_V)[:2]
        assert [other["token"] for other in token["top_logprobs"]] == [
            chat_format.tokenizer.decode([i], skip_special_tokens=False) for i in (best, second)
        ]
        assert token["logprob"] == pytest.approx(logprobs_V[best], abs=0.02)
        ids.append(int(best))
    assert "".join(token["token"] for token in tokens) == f"{SUM[1]}\n</think>\n\n{SUM[2]}"


def test_an_answer_follows_a_json_schema_and_its_reasoning_does_not(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    message = chat(client, SUM[0], response_format=wanted).choices[0].message
    value = json.loads(message.content)
    assert value.keys() == {"sum", "sure"} and 0 <= value["sum"] <= 99 and isinstance(value["sure"], bool)
    assert message.reasoning == SUM[1]


@pytest.mark.parametrize(
    ("begun", "reasoning", "answer"),
    [
        ({"reasoning_content": "Names are"}, " short.", NAME[2]),
        ({"reasoning_content": "Names are short.", "content": ""}, None, NAME[2]),
        ({"reasoning": "Names are short.", "content": "My name is"}, None, " Ada. I count letters."),
    ],
    ids=["in the thought", "before the answer", "in the answer"],
)
@pytest.mark.parametrize("by_message", [True, False], ids=["prefix", "continue_final_message"])
def test_a_turn_goes_on_with_what_it_is_given(
    client: openai.OpenAI, begun: Say, reasoning: str | None, answer: str, by_message: bool
) -> None:
    mark: Say = {"prefix": True} if by_message else {}
    messages: Any = [{"role": "user", "content": NAME[0]}, {"role": "assistant", **begun, **mark}]
    body = None if by_message else {"continue_final_message": True, "add_generation_prompt": False}
    whole = chat(client, NAME[0])
    response = client.chat.completions.create(model="tiny", messages=messages, temperature=0, extra_body=body)
    said: Any = response.choices[0].message
    assert (said.reasoning_content, said.content, response.choices[0].finish_reason) == (reasoning, answer, "stop")
    assert response.usage and response.usage.total_tokens == whole.usage.total_tokens
    stream = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, extra_body=body, stream=True
    )
    assert "".join(event.choices[0].delta.content or "" for event in stream) == answer


def test_a_server_says_that_its_model_goes_on(client: openai.OpenAI) -> None:
    listed: Any = client.models.list().data[0]
    assert listed.capabilities == {"prefix": True}


def test_a_plain_completion_goes_on_with_text_or_ids(client: openai.OpenAI, learned: Path) -> None:
    chat_format = ChatFormat.from_folder(learned)
    prompt = chat_format.render([{"role": "user", "content": SUM[0]}])
    expected = f"{SUM[1]}\n</think>\n\n{SUM[2]}"
    for form in (prompt, chat_format.encode(prompt)):
        answer = client.completions.create(model="tiny", prompt=form, temperature=0, max_tokens=99, logprobs=1)
        (choice,) = answer.choices
        assert (choice.text, choice.finish_reason) == (expected, "stop")
        assert choice.logprobs is not None and "".join(choice.logprobs.tokens or ()) == expected
    stream = client.completions.create(model="tiny", prompt=[prompt, prompt], temperature=0, stream=True)
    texts = {0: "", 1: ""}
    for chunk in stream:
        for part in chunk.choices:
            texts[part.index] += part.text
    assert texts[0] == texts[1] and texts[0] and expected.startswith(texts[0])


@pytest.mark.parametrize("by_id", [False, True])
def test_an_echoed_prompt_has_the_log_probabilities_of_the_runner(
    client: openai.OpenAI, learned: Path, by_id: bool
) -> None:
    chat_format = ChatFormat.from_folder(learned)
    prompt = chat_format.render([{"role": "user", "content": f"{SUM[0]} " * 40}])  # read in several pieces
    ids = chat_format.encode(prompt)
    body = {"return_tokens_as_token_ids": by_id}
    for _ in range(2):  # what a row still holds from before has no logits
        answer = client.completions.create(
            model="tiny", prompt=ids, temperature=0, max_tokens=3, echo=True, logprobs=2, extra_body=body
        )
    (choice,) = answer.choices
    logits_TV = OnnxDecoder(learned).score(ids).astype(np.float64)
    logprobs_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)
    found: Any = choice.logprobs
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    expected = [logprobs_TV[place, id] for place, id in enumerate(ids[1:])]
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=0.05)
    best = chat_format.tokenizer.decode([int(logprobs_TV[9].argmax())], skip_special_tokens=False)
    assert next(iter(found.top_logprobs[10])) == (f"token_id:{logprobs_TV[9].argmax()}" if by_id else best)
    assert len({*map(len, (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset))}) == 1
    assert choice.text.startswith(prompt) and found.text_offset[len(ids)] == len(prompt)
    if by_id:
        assert found.tokens[: len(ids)] == [f"token_id:{id}" for id in ids]
    else:
        assert "".join(found.tokens) == choice.text


def test_a_prompt_is_echoed_without_log_probabilities_too(client: openai.OpenAI) -> None:
    (choice,) = client.completions.create(model="tiny", prompt="2 and", max_tokens=1, echo=True).choices
    assert choice.text.startswith("2 and") and choice.logprobs is None
    with pytest.raises(openai.BadRequestError, match="echo is not supported where the answer is streamed"):
        client.completions.create(model="tiny", prompt="2 and", max_tokens=1, echo=True, stream=True)


def test_the_tokens_of_a_stream_stand_where_those_of_a_whole_text_do(client: openai.OpenAI, learned: Path) -> None:
    prompt = ChatFormat.from_folder(learned).render([{"role": "user", "content": SUM[0]}])
    options: Any = {"model": "tiny", "prompt": prompt, "temperature": 1.5, "max_tokens": 20, "n": 2, "seed": 3}
    whole = client.completions.create(**options, logprobs=0)
    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in client.completions.create(**options, logprobs=0, stream=True):
        for part in chunk.choices:
            offsets[part.index] += (part.logprobs and part.logprobs.text_offset) or []
    assert offsets == {choice.index: choice.logprobs and choice.logprobs.text_offset for choice in whole.choices}
    assert offsets[0][0] == 0 and offsets[0][-1] > 0


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", None),
        ({"extra_body": {"top_p": "high"}}, "top_p", None),
        ({"n": 0}, "n", None),
        ({"n": 5}, "n", None),
        ({"stop": [""]}, "stop", None),
        ({"extra_body": {"logprobs": 1}}, "logprobs", None),
        ({"extra_body": {"response_format": {"type": "xml"}}}, "response_format", None),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "what"}}}},
            "response_format",
            None,
        ),
        ({"extra_body": {"messages": [{"role": "robot", "content": "?"}]}}, "messages[0]", None),
        ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter"),
        ({"extra_body": {"continue_final_message": True}}, "messages", None),
        ({"extra_body": {"messages": [BEGUN, {"role": "user", "content": "?"}]}}, "messages", None),
        ({"extra_body": {"messages": [BEGUN | {"reasoning_content": 5}]}}, "messages", None),
        (
            {"extra_body": {"messages": [BEGUN]}, "response_format": {"type": "json_object"}},
            "response_format",
            None,
        ),
    ],
)
def test_a_wrong_value_is_a_structured_400(client: openai.OpenAI, options: Say, param: str, code: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, SUM[0], **options)
    error: Any = caught.value.body
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_a_prompt_beyond_the_context_is_refused_with_both_counts(client: openai.OpenAI, learned: Path) -> None:
    question = "long " * 300
    count = len(ChatFormat.from_folder(learned).question_ids(question))
    with pytest.raises(openai.BadRequestError, match=rf"\({count} tokens\).*\(512 tokens\)") as caught:
        chat(client, question)
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_field_is_refused_and_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    taken: Say = {"store": False, "user": "me", "logit_bias": {}, "presence_penalty": 0}
    assert chat(client, SUM[0], extra_body=taken).choices[0].message.content == SUM[2]
    with pytest.raises(openai.BadRequestError, match="unknown field mood") as caught:
        chat(client, SUM[0], extra_body={"mood": "good"})
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError, match="this server has only 'tiny'"):
        client.completions.create(model="gpt", prompt="?")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2, "extra_body": {"top_k": 1}},
        {"temperature": 2, "extra_body": {"min_p": 1}},
        {"temperature": 1e-308},
        {"temperature": 5e-324, "top_p": 0},
    ],
)
def test_what_leaves_only_the_likeliest_token_is_greedy(client: openai.OpenAI, options: Say) -> None:
    assert chat(client, SUM[0], **options).choices[0].message.content == SUM[2]


def test_a_repetition_penalty_counts_the_prompt_and_what_was_drawn(client: openai.OpenAI, learned: Path) -> None:
    chat_format = ChatFormat.from_folder(learned)
    sampling = Sampling(temperature=0, repetition_penalty=5.0, max_new_tokens=20)
    prompt = chat_format.question_ids(SUM[0])
    (sampled,) = complete(OnnxDecoder(learned), [prompt], sampling, chat_format.stop_ids)
    expected = split_completion(chat_format.decode(sampled.ids), opened=True)
    for name in ("repetition_penalty", "repeat_penalty"):
        message = chat(client, SUM[0], max_tokens=20, extra_body={name: 5}).choices[0].message
        assert (message.reasoning or "", message.content) == (expected.reasoning, expected.answer)
    assert expected.reasoning != SUM[1]


def test_a_json_object_follows_the_schema_that_comes_with_it(client: openai.OpenAI) -> None:
    wanted = {"response_format": {"type": "json_object", "schema": SCHEMA}}
    value = json.loads(chat(client, SUM[0], extra_body=wanted).choices[0].message.content)
    assert value.keys() == {"sum", "sure"} and 0 <= value["sum"] <= 99


def watch(service: Service) -> tuple[list[str], threading.Event]:
    """The pool's calls by name as they begin, and what steps wait for."""
    calls: list[str] = []
    go_on = threading.Event()
    pool: Any = service.scheduler.pool
    read, step = pool.read, pool.step

    def watched_read(row: Row, tokens_T: list[int]) -> Any:
        calls.append("read")
        return read(row, tokens_T)

    def watched_step(rows: list[Row], tokens_B: list[int]) -> Any:
        calls.append("step")
        go_on.wait(60)
        return step(rows, tokens_B)

    pool.read, pool.step = watched_read, watched_step
    return calls, go_on


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(learned: Path) -> None:
    with serving_model(learned, parallel=2, queue=1) as (address, service):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
        calls, go_on = watch(service)
        first = chat(client, NAME[0], stream=True)
        wait_until(lambda: calls == ["read", "step"])
        second = client.completions.create(model="tiny", prompt=[5] * 300, max_tokens=1, stream=True)
        go_on.set()
        assert "".join(c.delta.content or "" for chunk in first for c in chunk.choices) == NAME[2]
        assert len([chunk.choices[0].finish_reason for chunk in second if chunk.choices[0].finish_reason]) == 1
    reads = [i for i, call in enumerate(calls) if call == "read"]
    assert len(reads) == 1 + -(-300 // PIECE_BETWEEN_STEPS)
    assert all(calls[i + 1] == "step" for i in reads)


@pytest.mark.parametrize("length", [33, 40, 41, 72, 73, 136, 137, 300])
def test_a_prompt_s_last_piece_is_no_few_tokens_which_kernels_round_in_another_way(learned: Path, length: int) -> None:
    """Beside another row, alone, and from a cache: what a prompt is read as hangs on the prompt alone."""
    with serving_model(learned, parallel=2, queue=1) as (address, service):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
        pieces: list[int] = []
        pool: Any = service.scheduler.pool
        read = pool.read

        def noted_read(row: Row, tokens_T: list[int]) -> Any:
            pieces.append(len(tokens_T))
            return read(row, tokens_T)

        pool.read = noted_read
        _, go_on = watch(service)
        first = chat(client, NAME[0], stream=True)
        wait_until(lambda: metric(service, "toolkit_generated_tokens_total") == 1)
        prompt = [5 + i % 7 for i in range(length)]
        counts = [sum(pieces)]
        other = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, stream=True)
        go_on.set()
        assert list(other) and list(first)
        counts.append(sum(pieces))
        assert counts[1] - counts[0] == length
        again = client.completions.create(model="tiny", prompt=prompt, max_tokens=1)
        assert again.usage and again.usage.prompt_tokens_details
        cached = again.usage.prompt_tokens_details.cached_tokens or 0
        assert sum(pieces) - counts[1] + cached == length and cached == (length - FEW_ROWS - 1 if length > 40 else 0)
        assert min(pieces) > FEW_ROWS


def test_a_repeatable_server_cuts_always_alike_and_steps_each_row_alone(learned: Path) -> None:
    service = Service(learned, parallel=3, queue=3, api_key=KEY, repeatable=True)
    with listen("127.0.0.1", 0) as listener, closing(service.scheduler):
        port = listener.getsockname()[1]
        pool: Any = service.scheduler.pool
        calls: list[tuple[int, int]] = []
        read = pool.read

        def noted_read(row: Row, tokens_T: list[int]) -> Any:
            calls.append((row.prefix.length, len(tokens_T)))
            return read(row, tokens_T)

        pool.read, pool.step = noted_read, None  # rows are not stepped together
        with serving(build_application(service, "127.0.0.1", port), listener):
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
            prompts = [[5 + i % 7 for i in range(300)], [6 + i % 7 for i in range(200)]]
            answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=4, temperature=0)
            assert {(begin, count) for begin, count in calls if count > 1} == {
                (0, 128),
                (128, 128),
                (256, 44),
                (128, 72),
            }
            assert {count for begin, count in calls if begin >= 300} == {1}
            again = client.completions.create(model="tiny", prompt=[*prompts[0], 7, 8], max_tokens=1)
            assert again.usage and again.usage.prompt_tokens_details
            assert again.usage.prompt_tokens_details.cached_tokens == 256, "whole pieces are taken from the cache"
            alone = [client.completions.create(model="tiny", prompt=p, max_tokens=4, temperature=0) for p in prompts]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]


def test_a_full_queue_is_429_and_a_client_that_leaves_frees_its_row(learned: Path) -> None:
    with serving_model(learned, parallel=1, queue=1) as (address, service):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
        _, go_on = watch(service)
        first = chat(client, SUM[0], stream=True)
        wait_until(lambda: metric(service, "toolkit_generated_tokens_total") == 1)
        second = chat(client, NAME[0], stream=True)
        assert (metric(service, "toolkit_rows_running"), metric(service, "toolkit_rows_waiting")) == (1, 1)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client, SUM[0])
        assert int(caught.value.response.headers["retry-after"]) > 0
        first.close()
        wait_until(lambda: service.scheduler._steppers[0].turn.is_cancelled)
        go_on.set()
        assert "".join(c.delta.content or "" for chunk in second for c in chunk.choices) == NAME[2]
        wait_until(lambda: metric(service, "toolkit_rows_running") == 0)
        assert metric(service, 'toolkit_rows_ended_total{outcome="cancelled"}') == 1
        assert metric(service, 'toolkit_rows_ended_total{outcome="done"}') == 1


def test_a_chat_s_second_question_is_read_from_where_the_first_ended(learned: Path) -> None:
    with serving_model(learned, parallel=2, queue=1) as (address, service):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
        messages: Any = [{"role": "user", "content": f"{SUM[0]} " * 20}]
        answers = []
        for _ in range(2):
            answers.append(client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=9))
            messages += [{"role": "assistant", "content": SUM[2]}, {"role": "user", "content": NAME[0]}]
        first, second = (answer.usage for answer in answers)
        assert first and second and first.prompt_tokens_details and second.prompt_tokens_details
        assert first.prompt_tokens_details.cached_tokens == 0
        cached = second.prompt_tokens_details.cached_tokens or 0
        assert first.prompt_tokens - 10 < cached < second.prompt_tokens
        assert metric(service, "toolkit_cached_tokens_total") == cached
        assert metric(service, "toolkit_prompt_tokens_total") == first.prompt_tokens + second.prompt_tokens - cached
        assert metric(service, f'toolkit_kernels_info{{kernels="{kernels_name()}"}}') == 1


def post(address: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Return status and body for a request that no client library would send."""
    connection = http.client.HTTPConnection(address, timeout=60)
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
    connection.request("POST", "/v1/chat/completions", body, sent)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_who_has_no_key_or_another_host_or_no_json_is_refused(address: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="another"), SUM[0])
    assert post(address, b"{}", Host="evil.example")[0] == 421
    assert post(address, b"{}", **{"Content-Type": "text/plain"})[0] == 415
    for body in (b"{", b"[]", b'{"messages": "\xff"}', b"[" * 100_000):
        status, answer = post(address, body)
        assert status == 400 and json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_a_body_of_100_megabytes_is_refused_before_it_is_read(address: str) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: application/json\r\n"
    host, port = address.split(":")
    for rest in ("Content-Length: 100000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall((head + rest).encode())
            if "chunked" in rest:
                piece = b"x" * 65536
                for _ in range(MOST_BODY_BYTES // len(piece) + 1):
                    raw.sendall(b"10000\r\n" + piece + b"\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_address_beyond_the_loopback_needs_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOOLKIT_API_KEY", raising=False)
    with pytest.raises(
        InputError, match=r"--host \(0\.0\.0\.0\) needs a key, since only 127\.0\.0\.1, localhost and ::1 do without"
    ):
        run_server(tmp_path, host="0.0.0.0", port=0, api_key=None, parallel=1, queue=1)
    assert allowed_hosts("127.0.0.1", 9) == {"127.0.0.1:9", "localhost:9"}
    assert {"127.0.0.1:9", f"{socket.gethostname().lower()}:9"} <= allowed_hosts("0.0.0.0", 9)


def test_the_import_chain_of_the_server_holds_neither_torch_nor_gradio() -> None:
    loaded = modules_loaded_by("import apps.server.run_server")
    assert loaded.isdisjoint({"torch", "transformers", "onnx", "gradio", "distill", "openai"})


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_a_text_that_the_tokenizer_fails_on_is_a_structured_400(learned: Path, tmp_path: Path, route: str) -> None:
    folder = Path(shutil.copytree(learned, tmp_path / "copy"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    never_ends = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [never_ends, tokenizer["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": steps}))
    manifest = json.loads((folder / "manifest.json").read_text())
    written = {"bytes": (folder / "tokenizer.json").stat().st_size, "sha256": file_digest(folder / "tokenizer.json")}
    manifest["outputs"]["tokenizer.json"] = written
    (folder / "manifest.json").write_text(json.dumps(manifest))
    text = "a" * 60 + "!"
    body = {"prompt": text} if route == "completions" else {"messages": [{"role": "user", "content": text}]}
    with serving_model(folder, parallel=1, queue=1) as (address, _):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.BadRequestError, match="tokenizer fails on a text") as caught:
            client.post(f"/{route}", body={"model": "copy", **body}, cast_to=object)
        assert caught.value.type == "invalid_request_error"
