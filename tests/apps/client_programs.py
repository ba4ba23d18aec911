"""What a client's user would write, for each client; runs in an environment of theirs and imports nothing of ours.

    python client_programs.py CLIENT URL KEY MODEL QUESTION JSON_QUESTION > said.json

The output is what each way of asking returned: a text, or the fields of an object.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Said = dict[str, Any]


def sum_of() -> Any:
    """A pydantic model of an answer, as users declare one."""
    pydantic: Any = importlib.import_module("pydantic")
    return pydantic.create_model("Sum", sum=(int, ...), sure=(bool, ...))


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def with_openai(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    library: Any = importlib.import_module("openai")
    client = library.OpenAI(base_url=url, api_key=key, max_retries=0)
    chat = client.chat.completions
    stream = list(chat.create(model=model, messages=messages(question), stream=True))
    parsed = chat.parse(model=model, messages=messages(json_question), response_format=sum_of())
    text = client.completions.create(model=model, prompt="Once", max_tokens=3)
    return {
        "whole": chat.create(model=model, messages=messages(question)).choices[0].message.content,
        "streamed": "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices),
        "parsed": parsed.choices[0].message.parsed.model_dump(),
        "model": client.models.retrieve(model).id,
        "tokens of a text": text.usage.completion_tokens,
    }


def with_litellm(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    library: Any = importlib.import_module("litellm")
    options = {"model": f"openai/{model}", "api_base": url, "api_key": key, "messages": messages(question)}
    stream = list(library.completion(**options, stream=True))
    return {
        "whole": library.completion(**options, user="me", temperature=0.5).choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
    }


def with_langchain(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    library: Any = importlib.import_module("langchain_openai")
    chat = library.ChatOpenAI(model=model, base_url=url, api_key=key, max_retries=0)
    structured = chat.with_structured_output(sum_of(), method="json_schema")
    return {
        "whole": chat.invoke(question).content,
        "streamed": "".join(chunk.content for chunk in chat.stream(question)),
        "parsed": structured.invoke(json_question).model_dump(),
    }


def with_instructor(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    library: Any = importlib.import_module("instructor")
    openai: Any = importlib.import_module("openai")
    client = library.from_openai(openai.OpenAI(base_url=url, api_key=key), mode=library.Mode.MD_JSON)
    asked = {"model": model, "messages": messages(json_question), "max_retries": 0}
    return {"parsed": client.chat.completions.create(**asked, response_model=sum_of()).model_dump()}


def with_pydantic_ai(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    library: Any = importlib.import_module("pydantic_ai")
    models: Any = importlib.import_module("pydantic_ai.models.openai")
    providers: Any = importlib.import_module("pydantic_ai.providers.openai")
    chat = models.OpenAIChatModel(model, provider=providers.OpenAIProvider(base_url=url, api_key=key))
    native = library.Agent(chat, output_type=library.NativeOutput(sum_of()))
    return {
        "whole": library.Agent(chat).run_sync(question).output,
        "parsed": native.run_sync(json_question).output.model_dump(),
    }


def with_llm(url: str, key: str, model: str, question: str, json_question: str) -> Said:
    with tempfile.TemporaryDirectory() as folder:
        entry = f"- model_id: ours\n  model_name: {model}\n  api_base: {url}\n  api_key_name: ours\n"
        Path(folder, "extra-openai-models.yaml").write_text(entry)
        command = [sys.executable, "-m", "llm", "prompt", "-m", "ours", "--key", key, question]
        environment = {**os.environ, "LLM_USER_PATH": folder}

        def said(*options: str) -> str:
            done = subprocess.run([*command, *options], env=environment, stdout=subprocess.PIPE, text=True, check=True)
            return done.stdout.removesuffix("\n")

        return {"whole": said("--no-stream"), "streamed": said()}


CLIENTS: dict[str, Callable[[str, str, str, str, str], Said]] = {
    "openai": with_openai,
    "litellm": with_litellm,
    "langchain-openai": with_langchain,
    "instructor": with_instructor,
    "pydantic-ai-slim": with_pydantic_ai,
    "llm": with_llm,
}


if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](*sys.argv[2:])))
