"""The list of conversations beside the page: search, open, rename, delete, export and import.

Handlers change the `Store` and return what the page then shows. Deleting asks for confirmation on the page. An export
is a download from this server; a file to import is read in the browser and sent as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from fastapi import FastAPI, Response

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.exchange import conversation_of, to_json, to_markdown
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.page.updates import NOTHING, SKIP, at_rest, follow, listed, refused
from apps.chat.view.events import quiet
from apps.chat.view.markup import harmless, plain
from export.runtime.rows.prefix_cache import forget_prefixes
from toolkit.errors import InputError

# HTML goes into Markdown components: Gradio's HTML component evaluates templates, which the page's policy forbids.
FILE_INPUT = '<label class="file">Choose a file<input type="file" id="import-file" accept=".json,.md,.txt"></label>'


@dataclass(frozen=True, kw_only=True)
class Sidebar:
    """The components that handlers read or write."""

    search: gr.Textbox
    listing: gr.Radio
    actions: gr.Row
    rename: gr.Button
    delete: gr.Button
    export: gr.Button
    bring_in: gr.Button
    panels: dict[str, gr.Column]
    title: gr.Textbox
    save: gr.Button
    question: gr.Markdown
    really: gr.Button
    keep: gr.Button
    downloads: gr.Markdown
    text: gr.Textbox
    read: gr.Button


def lay_out() -> Sidebar:
    """Lay out the sidebar, closed; the page's script opens it if there is room."""
    with gr.Sidebar(open=False, width=288, elem_id="sidebar"):
        search = gr.Textbox(show_label=False, label="Search", placeholder="Search all chats", elem_id="search", lines=1)
        listing = gr.Radio(show_label=False, label="Chats", elem_id="conversations", visible=False)
        with gr.Row(elem_id="conversation-actions") as actions:
            rename, delete, export, bring_in = (
                gr.Button(name, size="sm", min_width=60, elem_id=f"{name.lower()}-chat")
                for name in ("Rename", "Delete", "Export", "Import")
            )
        with gr.Column(visible=False) as renaming:
            title = gr.Textbox(label="Title", elem_id="title-box", lines=1)
            save = gr.Button("Save", size="sm", elem_id="save-title")
        with gr.Column(visible=False) as deleting:
            question = gr.Markdown(elem_id="delete-question")
            with gr.Row():
                really = gr.Button("Delete", size="sm", variant="stop", min_width=60, elem_id="really-delete")
                keep = gr.Button("Keep", size="sm", min_width=60, elem_id="keep-chat")
        with gr.Column(visible=False) as exporting:
            downloads = gr.Markdown(elem_classes="downloads", sanitize_html=False)
        with gr.Column(visible=False) as importing:
            gr.Markdown(FILE_INPUT, sanitize_html=False)
            text = gr.Textbox(label="or paste it", elem_id="import-text", lines=3, max_lines=6)
            read = gr.Button("Import", size="sm", elem_id="read-import")
    panels = {"rename": renaming, "delete": deleting, "export": exporting, "import": importing}
    return Sidebar(
        search=search,
        listing=listing,
        actions=actions,
        rename=rename,
        delete=delete,
        export=export,
        bring_in=bring_in,
        panels=panels,
        title=title,
        save=save,
        question=question,
        really=really,
        keep=keep,
        downloads=downloads,
        text=text,
        read=read,
    )


def connect(sidebar: Sidebar, store: Store, tab: gr.State, shown: list[Any], recount: dict[str, Any]) -> None:
    """Connect the sidebar's events; `shown` are the components of an `Update`, `recount` follows a change of chat."""
    private = quiet(sidebar.listing)
    panels = list(sidebar.panels.values())
    names = list(sidebar.panels)
    here = [sidebar.search, tab]

    def only(name: str | None) -> list[Any]:
        return [gr.update(visible=name == panel) for panel in names]

    def search(words: str, tab: Tab) -> Any:
        return listed(store, words, tab.conversation)

    def open_chat(number: int | None, words: str, tab: Tab) -> Iterator[tuple[Any, ...]]:
        found = store.load(number) if number is not None else None
        if found is None or found is tab.conversation:
            yield *NOTHING[:-1], listed(store, words, tab.conversation), *only(None)
            return
        tab.open(found)
        told = only(None)
        for update in follow(store, words, tab):
            yield *update, *told
            told = [SKIP] * len(panels)

    def start_rename(tab: Tab) -> tuple[Any, ...]:
        return tab.conversation.title, *only("rename" if tab.conversation.id is not None else None)

    def rename(title: str, words: str, tab: Tab) -> tuple[Any, ...]:
        try:
            store.rename(tab.conversation, title)
        except InputError as error:
            gr.Warning(harmless(str(error)))
        return listed(store, words, tab.conversation), *only(None)

    def start_delete(tab: Tab) -> tuple[Any, ...]:
        text = f"Delete “{plain(tab.conversation.title)}”? This cannot be undone."
        return text, *only("delete" if tab.conversation.id is not None else None)

    def delete(words: str, tab: Tab) -> tuple[Any, ...]:
        left, fresh = tab.conversation, Conversation()
        tab.end_turn()
        tab.open(fresh)
        try:
            store.delete(left)
        except InputError as error:
            tab.open(left)
            return *at_rest(left, listed(store, words, left), str(error)), *only(None)
        forget_prefixes()  # all of them: finding those with this chat's words is not worth it
        return *at_rest(fresh, listed(store, words, fresh)), *only(None)

    def start_export(tab: Tab) -> tuple[Any, ...]:
        number = tab.conversation.id
        links = " ".join(
            f'<a href="/chats/{number}.{ending}" download>{name}</a>'
            for ending, name in (("json", "JSON, with every version"), ("md", "Markdown, to read"))
        )
        return links, *only("export" if number is not None else None)

    def bring_in(text: str, words: str, tab: Tab) -> tuple[Any, ...]:
        try:
            found = conversation_of(text)
            store.write(found)
        except InputError as error:
            return *refused(str(error)), SKIP, *only("import")
        tab.open(found)
        return *at_rest(found, listed(store, words, found)), "", *only(None)

    opens: dict[str, Any] = private | {"concurrency_limit": None}
    sidebar.search.change(search, here, sidebar.listing, queue=False, **private)
    several = {"trigger_mode": "multiple"}  # a chat can be opened while an earlier event still follows one
    sidebar.listing.input(open_chat, [sidebar.listing, *here], [*shown, *panels], **opens | several).then(**recount)
    sidebar.rename.click(start_rename, tab, [sidebar.title, *panels], queue=False, **private)
    for event in (sidebar.save.click, sidebar.title.submit):
        event(rename, [sidebar.title, *here], [sidebar.listing, *panels], queue=False, **private)
    sidebar.delete.click(start_delete, tab, [sidebar.question, *panels], queue=False, **private)
    sidebar.really.click(delete, here, [*shown, *panels], **opens).then(**recount)
    sidebar.keep.click(lambda: only(None), None, panels, queue=False, **private)
    sidebar.export.click(start_export, tab, [sidebar.downloads, *panels], queue=False, **private)
    sidebar.bring_in.click(lambda: only("import"), None, panels, queue=False, **private)
    sidebar.read.click(bring_in, [sidebar.text, *here], [*shown, sidebar.text, *panels], **opens).then(**recount)


def add_downloads(api: FastAPI, store: Store) -> None:
    """Add the route that exports a conversation as a file."""

    @api.get("/chats/{number}.{ending}")
    def download(number: int, ending: Literal["json", "md"]) -> Response:
        conversation = store.load(number)
        if conversation is None:
            return Response("This chat no longer exists.\n", status_code=404, media_type="text/plain")
        text = to_json(conversation) if ending == "json" else to_markdown(conversation)
        media_type = "application/json" if ending == "json" else "text/markdown; charset=utf-8"
        name = re.sub(r"[^A-Za-z0-9]+", "-", conversation.title).strip("-")[:50] or "chat"
        headers = {"content-disposition": f'attachment; filename="{name}.{ending}"', "cache-control": "no-store"}
        return Response(text, media_type=media_type, headers=headers)
