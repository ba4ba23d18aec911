"""The chat page over one exported model: a Gradio page on the loopback address, nothing else reachable.

    browser ── guard (host, policy) ── FastAPI ── /health
                                          └────── / (Gradio) ── run_turn ── decoder (one, behind a lock)

Each browser tab has a `Conversation` of its own; the model answers one turn at a time. No torch is imported, and no
request leaves the machine, of the server or of the page.
"""

from __future__ import annotations

import os

os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1"
)  # before the imports, which read them

import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from apps.conversation import Conversation, Turn, run_turn
from apps.guard import Application, guard
from apps.look import CSS, HEAD, theme
from apps.markup import harmless
from export.session import OnnxDecoder
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.generate import Decoder, Sampling
from toolkit.runs import folder_bytes

LOOPBACK = ("127.0.0.1", "localhost")
MOST_TOKENS = 8192
"""The slider's end, where the model's context is not shorter."""

EXAMPLES = (
    "Find the Greatest Common Divisor (GCD) of these numbers: 84, 36. Give only the GCD as your final answer.",
    "State the final answer to the following arithmetic problem: 57 + 87 + 70 =",
    'How many times does the letter "e" appear in the text: "free the witness"?',
    "Spell this word backward (example: sun -> nus): reason",
)

LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]

Update = tuple[Any, ...]
"""New values of the chatbot, the question box, the status line and the notice."""


@dataclass(kw_only=True)
class Model:
    """A loaded model as the page needs it."""

    name: str
    size_bytes: int
    decoder: Decoder
    chat_format: ChatFormat
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by the turn that the decoder is running."""


def load_model(folder: Path) -> Model:
    """Load an exported folder; raises `InputError` where it is none."""
    return Model(
        name=folder.resolve().name,
        size_bytes=folder_bytes(folder),
        decoder=OnnxDecoder(folder),
        chat_format=ChatFormat.from_folder(folder),
    )


def page_messages(conversation: Conversation, now: float) -> list[dict[str, Any]]:
    """The conversation as the chatbot component takes it; each reasoning is a block of its own, with a title."""
    shown: list[dict[str, Any]] = []
    for turn in conversation.turns:
        shown.append(_message("user", turn.question))
        if turn.reasoning or turn.state == "thinking":
            shown.append(_message("assistant", turn.reasoning) | {"metadata": _thought(turn, now)})
        if turn.answer:
            shown.append(_message("assistant", turn.answer))
        if note := _note(turn):
            shown.append(_message("assistant", f"*{note}*"))
    return shown


def status_line(turn: Turn) -> str:
    """Tokens and speed of a turn, in a few words."""
    if not turn.token_ids:
        return "Reading the question" if turn.running else ""
    counts = ((turn.reasoning_tokens, "reasoning"), (turn.answer_tokens, "answer"))
    text = " + ".join(f"{count:,} {kind}" for count, kind in counts if count) + " tokens"
    return text if turn.tokens_per_s is None else f"{text} · {turn.tokens_per_s:.1f} tokens/s"


def seconds(duration_s: float) -> str:
    """2.1 s, or 1 min 12 s."""
    if duration_s < 59.95:
        return f"{duration_s:.1f} s"
    return f"{round(duration_s) // 60} min {round(duration_s) % 60} s"


def build_page(model: Model) -> gr.Blocks:
    """Lay the page out and connect it to the model."""
    most_tokens = min(MOST_TOKENS, model.decoder.max_length)

    def answer(
        question: str, conversation: Conversation, temperature: float, max_new_tokens: float
    ) -> Iterator[Update]:
        if not question.strip():
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        try:
            messages = conversation.messages(question)
            turn = conversation.ask(question, model.chat_format, model.decoder.max_length)
        except InputError as error:
            yield gr.skip(), gr.skip(), gr.skip(), _notice(str(error))
            return
        idle, running = (
            gr.update(submit_btn="Send", stop_btn=False),
            gr.update(value="", submit_btn=False, stop_btn="Stop"),
        )
        yield page_messages(conversation, time.monotonic()), running, status_line(turn), _notice("")
        while not model.lock.acquire(timeout=0.1):
            if turn.stop_requested:
                turn.end(model.chat_format, time.monotonic())
                yield page_messages(conversation, time.monotonic()), idle, status_line(turn), gr.skip()
                return
            yield gr.skip(), gr.skip(), "The model is answering another tab; this question is next", gr.skip()
        sampling = Sampling(temperature=temperature, max_new_tokens=int(max_new_tokens), seed=secrets.randbelow(2**31))
        try:
            for _ in run_turn(model.decoder, model.chat_format, messages, turn, sampling, time.monotonic):
                yield page_messages(conversation, time.monotonic()), gr.skip(), status_line(turn), gr.skip()
        finally:
            model.lock.release()
        yield page_messages(conversation, time.monotonic()), idle, status_line(turn), gr.skip()

    page = gr.Blocks(title=f"{model.name} · chat", analytics_enabled=False, fill_height=True)
    with page:
        conversation = gr.State(Conversation())
        with gr.Row(elem_id="top"):
            gr.Markdown(_title(model), elem_id="title")
            new_chat = gr.Button("New chat", elem_id="new-chat", size="sm", scale=0, min_width=96)
        chatbot = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            container=False,
            scale=1,
            height="100%",
            layout="panel",
            buttons=["copy"],
            group_consecutive_messages=False,
            latex_delimiters=LATEX_DELIMITERS,
            allow_tags=False,
            sanitize_html=True,
            placeholder="## Ask something\nThe model thinks first, then answers. Both stay on this machine.",
            examples=[{"text": example} for example in EXAMPLES],
        )
        notice = gr.Markdown(elem_id="notice", visible=False)
        question = gr.Textbox(
            elem_id="question",
            show_label=False,
            label="Your question",
            placeholder="Ask a question",
            lines=1,
            max_lines=8,
            submit_btn="Send",
            stop_btn=False,
            autofocus=True,
        )
        status = gr.Markdown("Ready", elem_id="status")
        with gr.Accordion("Settings", open=False, elem_id="settings"), gr.Row():
            temperature = gr.Slider(
                0.0, 1.5, value=0.6, step=0.05, label="Temperature", info="0 always takes the likeliest token"
            )
            max_new_tokens = gr.Slider(
                16,
                most_tokens,
                value=min(2048, most_tokens),
                step=16,
                label="Maximum tokens",
                info="Reasoning and answer",
            )
        settings = [temperature, max_new_tokens]
        shown = [chatbot, question, status, notice]
        asked = gr.on(
            [question.submit],
            answer,
            [question, conversation, *settings],
            shown,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        picked = chatbot.example_select(
            _picked, None, question, queue=False, show_progress="hidden", api_visibility="private"
        ).then(
            answer,
            [question, conversation, *settings],
            shown,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        question.stop(_stop, conversation, None, queue=False, show_progress="hidden", api_visibility="private")
        new_chat.click(
            _new_chat,
            None,
            [conversation, *shown],
            cancels=[asked, picked],
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def build_application(model: Model, hosts: frozenset[str]) -> Application:
    """The page and `/health`, behind the guard."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": model.name}

    mounted = gr.mount_gradio_app(
        api,
        build_page(model),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=0,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    return guard(mounted, hosts)


def serve(model: Model, *, host: str, port: int, open_browser: bool) -> None:
    """Serve the page of a loaded model until interrupted; prints its address first. Port 0 is any free port."""
    if host not in LOOPBACK:
        raise InputError(f"host ({host}) must be one of {', '.join(LOOPBACK)}: the chat has no password")
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"port ({port}) must be free on {host}: {error}; choose another --port, or 0") from error
    port = listener.getsockname()[1]
    application = build_application(model, frozenset(f"{name}:{port}" for name in LOOPBACK))
    address = f"http://{host}:{port}/"
    print(f"{model.name} is ready at {address} (Ctrl+C ends it)", flush=True)
    if open_browser:
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(application, log_level="warning", server_header=False, timeout_graceful_shutdown=1)
    )
    with listener, suppress(KeyboardInterrupt):  # Ctrl+C is how a chat ends
        server.run(sockets=[listener])


def run_chat(folder: Path, *, host: str = "127.0.0.1", port: int, open_browser: bool) -> None:
    """Load an exported folder and serve its chat until interrupted.

    Raises `InputError` where the folder is no export, the host no loopback address or the port taken.
    """
    serve(load_model(folder), host=host, port=port, open_browser=open_browser)


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": harmless(text)}]}


def _thought(turn: Turn, now: float) -> dict[str, str]:
    """Title and state of a reasoning block; one without a state stays open, so that a stopped thought is seen."""
    duration = seconds(turn.thinking_s(now))
    if turn.state == "thinking":
        return {"title": f"Thinking… {duration}", "status": "pending"}
    tokens = f"{turn.reasoning_tokens:,} tokens"
    if turn.tokens_before_answer is None:
        return {"title": f"Stopped thinking after {duration} · {tokens}"}
    return {"title": f"Thought for {duration} · {tokens}", "status": "done"}


def _note(turn: Turn) -> str | None:
    """What a reader must know about how a turn ended; None where the model finished it."""
    if turn.state == "stopped":
        return "Stopped. What was written so far is kept."
    if turn.cut == "limit":
        return f"Cut at {len(turn.token_ids):,} tokens, the maximum in the settings."
    if turn.cut == "context":
        return "Cut: the model's context is full. Start a new chat to go on."
    return None


def _notice(text: str) -> dict[str, Any]:
    return gr.update(value=harmless(text), visible=bool(text))


def _title(model: Model) -> str:
    facts = (
        f"{model.size_bytes / 1e6:,.0f} MB · context {model.decoder.max_length:,} tokens · runs on this machine only"
    )
    return f"# {harmless(model.name)}\n{facts}"


def _picked(event: gr.SelectData) -> str:
    return str(event.value["text"])


def _stop(conversation: Conversation) -> None:
    if conversation.turns:
        conversation.turns[-1].stop_requested = True


def _new_chat() -> tuple[Any, ...]:
    return Conversation(), [], gr.update(submit_btn="Send", stop_btn=False), "Ready", _notice("")
