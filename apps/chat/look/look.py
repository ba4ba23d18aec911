"""How the chat page looks: a theme of system fonts, a style sheet and an icon; all of it is sent by our own server."""

from __future__ import annotations

import gradio as gr

from apps.chat.look import reading
from apps.chat.look.clipboard import CLIPBOARD_SCRIPT
from apps.chat.look.shortcuts import SHORTCUT_SCRIPT

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%230f766e'/%3E"
    "%3Cpath d='M9 11h14M9 16h9M9 21h5' stroke='white' stroke-width='2.6' stroke-linecap='round'/%3E%3C/svg%3E"
)

HEAD = f'<link rel="icon" href="{ICON}">{CLIPBOARD_SCRIPT}{SHORTCUT_SCRIPT}{reading.SCRIPT}'

CSS = (
    reading.CSS
    + """
/* One column, as high as the window: only the conversation scrolls. */
.gradio-container .main.app { box-sizing: border-box; height: 100dvh; max-width: 860px; margin: 0 auto; padding: 0 20px; }
.gradio-container .main.app .wrap, .gradio-container main.contain { height: 100%; min-height: 0; }
main.contain > .column { height: 100%; min-height: 0; gap: 0; flex-wrap: nowrap; }

#top { align-items: center; padding: 14px 0 12px; border-bottom: 1px solid var(--border-color-primary); flex: none; }
#title h1 { font-size: 17px; line-height: 1.3; margin: 0; font-weight: 650; letter-spacing: -0.01em; }
#title a { color: inherit; }
#title p { font-size: 13px; margin: 2px 0 0; color: var(--body-text-color-subdued); }
#new-chat { border: 1px solid var(--border-color-primary); background: transparent; border-radius: 999px; }
#new-chat:hover { background: var(--background-fill-secondary); }

/* Gradio writes border-style into the elements: a border goes by its width. */
#chat, #settings, #status, #title, main.contain > .column > .form { border-width: 0; }
main.contain > .column > .form { flex: none; overflow: visible; background: transparent; box-shadow: none; } /* around the question alone */

#chat { background: transparent; min-height: min(140px, 20dvh); border-radius: 0; }
#chat .top-panel { display: none; }
#chat .panel-wrap { background: transparent; }
#chat .message-row { padding: 0; margin: 0; background: transparent; }
#chat .message-row .message { background: transparent; border: none; box-shadow: none; margin: 0; padding: 0; }
#chat .message-content, #chat .message-content p { line-height: 1.65; }
#chat .user-row { margin: 18px 0 6px; }
#chat .user-row .message {
  width: fit-content; max-width: 85%; margin-left: auto; padding: 10px 16px;
  border-radius: 18px 18px 4px 18px; background: var(--color-accent-soft);
}
#chat .bot-row { margin: 0; }
#chat .message-wrap { padding: 0 2px; margin-bottom: 8px; }
#chat .bot-row .message:has(> [data-testid=bot] > .message-content) { padding-top: 10px; }

/* Copying shows itself to the pointer and to the keyboard; on a touch screen it is always there. */
#chat .message-buttons { padding: 0; margin: 2px 0 0; min-height: 24px; }
#chat .message-buttons .icon-button-wrapper { margin: 0; padding: 0; border: none; background: transparent; box-shadow: none; }
#chat .message-buttons-right .icon-button-wrapper { margin-left: auto; }
@media (hover: hover) {
  #chat .message-buttons { opacity: 0; transition: opacity 0.12s; }
  #chat .message-row:hover .message-buttons, #chat .message-buttons:focus-within { opacity: 1; }
}
#chat .bot-row:has(.thought-group) .message-buttons { min-height: 0; height: 0; overflow: visible; }
#chat .bot-row:has(.thought-group) .icon-button-wrapper { position: absolute; right: 4px; top: 7px; }

/* Reasoning is quieter than the answer, and of one width with it. */
#chat .thought-group {
  margin: 0; padding: 8px 14px; border: 1px solid var(--border-color-primary); border-radius: 12px;
  background: var(--background-fill-secondary);
}
#chat .thought-group .title .md p { font-size: 13.5px; font-weight: 500; font-variant-numeric: tabular-nums; margin: 0; }
#chat .thought-group .loading-spinner { display: none; } /* the title counts; sixty turns a second cost a model its time */
#chat .thought-group .arrow { width: 18px; height: 18px; margin: 0 6px 0 -4px; }
#chat .thought-group .content, #chat .thought-group .content-preview { margin: 8px 0 4px 16px; max-height: none; }
#chat .thought-group .content-preview { max-height: 13em; }
#chat .thought-group .message-content, #chat .thought-group .message-content * { font-size: 14px; line-height: 1.6; }

/* What a model wrote to be loaded from elsewhere, and what is too long to be formatted. */
#chat .remote { padding: 1px 9px; border: 1px dashed var(--border-color-accent); border-radius: 999px; font-size: 13px; cursor: help; white-space: nowrap; }
#chat .host { font-size: 12px; color: var(--body-text-color-subdued); }
#chat .host::before { content: "("; } #chat .host::after { content: ")"; }
#chat code.language-long { white-space: pre-wrap; overflow-wrap: anywhere; font-family: inherit; }
#chat .code_wrap:has(.language-long)::before {
  content: "Too long to be formatted. Copying takes all of it."; display: block; padding-bottom: 6px; font-size: 12.5px;
  color: var(--body-text-color-subdued);
}
#chat .message-content { overflow-wrap: anywhere; }
#chat .message-content table { display: block; width: fit-content; max-width: 100%; overflow-x: auto; border-width: 0; }
#chat .message-content :is(th, td) { overflow-wrap: normal; word-break: normal; }
#chat .message-content :is(th, td):not([align]) { text-align: start; }
#chat .message-content [align=left] { text-align: left; }
#chat .message-content [align=center] { text-align: center; }
#chat .message-content [align=right] { text-align: right; }
#chat .message-content li:has(> input[type=checkbox]) { list-style: none; }
#chat .message-content input:checked { background-color: var(--primary-600); border-color: var(--primary-600); } /* its tick is white */
#chat .katex-display { overflow: auto hidden; }

#chat .message-content p > em:only-child { font-size: 13.5px; color: var(--body-text-color-subdued); }
#chat .message-wrap:has(.placeholder-content), #chat .placeholder-content { height: 100%; }
#chat .panel-wrap:has(.placeholder-content), #chat .wrapper { height: 100%; }
#chat .placeholder-content { justify-content: center; }
#chat .placeholder { flex-grow: 0; height: auto; text-align: center; }
#chat .placeholder h2 { font-size: 24px; margin: 0 0 6px; letter-spacing: -0.02em; }
#chat .placeholder p { margin: 0; color: var(--body-text-color-subdued); }
#chat .examples { padding: 24px 0 8px; gap: 10px; width: 100%; max-width: 100%; margin: 0; grid-template-columns: 1fr 1fr; }
#chat .example { padding: 12px 16px; border-radius: 14px; border: 1px solid var(--border-color-primary); }
#chat .example:hover { transform: none; border-color: var(--color-accent); }
#chat .example-text-content { margin: 0; }
#chat .example-text { font-size: 14px; line-height: 1.45; }

#notice { flex: none; margin: 8px 0; padding: 10px 14px; border-radius: 12px; border: 1px solid #d97706; background: #f59e0b1f; }
#question { /* against the form's own reset of its children */
  margin-top: 8px; padding: 5px 5px 5px 10px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary) !important; border-radius: 24px !important;
}
#question:focus-within { border-color: var(--color-accent) !important; }
#question textarea { background: transparent; border: none; box-shadow: none; font-size: 16px; padding: 7px 8px; }
#question .submit-button, #question .stop-button { height: 36px; padding: 0 16px; border-radius: 18px; font-weight: 600; font-size: 14px; }
#question .submit-button { background: var(--primary-700); color: white; }
#question .stop-button { background: var(--body-text-color); color: var(--body-background-fill); }
#status { flex: none; padding: 6px 12px 0; min-height: 26px; }
#status p { font-size: 12.5px; margin: 0; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
#ledger { flex: none; order: 1; gap: 6px; padding: 6px 12px 0; }
#ledger .bar { display: flex; height: 4px; border-radius: 2px; overflow: hidden; background: var(--border-color-primary); }
#ledger .bar i { --part: var(--neutral-400); background: var(--part); min-width: 0; }
#ledger .bar .history { --part: var(--primary-400); } #ledger .bar .question { --part: var(--primary-600); }
#ledger .bar .reserve { background: repeating-linear-gradient(135deg, var(--neutral-400) 0 3px, transparent 3px 6px); }
#ledger .legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-top: 4px; font-size: 12.5px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
#ledger .legend * { color: inherit; } #ledger .legend b { font-weight: 600; } #ledger .legend .total { margin-right: auto; }
#ledger .overflow p { margin: 8px 0 0; padding: 8px 12px; font-size: 13.5px; border-radius: 10px; border: 1px solid #d97706; background: #f59e0b1f; }
#ledger p { margin: 4px 0 0; font-size: 12.5px; }
#ledger .bar .written { --part: var(--primary-400); }
#ledger:has(.writing) #ways-out { display: none; }
.leaving { max-height: 7.5em; overflow-y: auto; margin: 6px 0 0; padding: 4px 12px 4px 28px; font-size: 12.5px; overflow-wrap: anywhere; }
#ways-out { gap: 8px; flex-wrap: wrap; justify-content: flex-start; }
#ways-out button { border: 1px solid var(--border-color-primary); border-radius: 999px; background: transparent; }
#ways-out:not(:has(button:not(.hidden))) { display: none; }
#feedback { flex: none; order: 1; gap: 8px; } #feedback-note p { margin: 6px 12px 0; font-size: 13px; }
#correction { padding: 12px; border: 1px solid var(--border-color-primary); border-radius: 14px; gap: 10px; }
#chat .bot-row:has(.thought-group) :is([aria-label="Like"], [aria-label="Dislike"]) { display: none; }
#settings { order: 2; flex: 0 1 auto; min-height: 40px; overflow: hidden auto !important; background: transparent; padding: 4px 12px 12px; } /* scrolls where it is higher than what the others leave */
#settings > button { font-size: 13px; color: var(--body-text-color-subdued); }
#spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
#shortcuts { margin: auto; padding: 22px 26px; border: 1px solid var(--border-color-primary); border-radius: 16px; max-width: min(440px, 92vw);
  background: var(--body-background-fill); color: var(--body-text-color); font-family: var(--font); }
#shortcuts::backdrop { background: #0006; }
#shortcuts h2 { margin: 0 0 12px; font-size: 17px; } #shortcuts table { width: 100%; border-collapse: collapse; font-size: 14px; }
#shortcuts td { padding: 7px 0; } #shortcuts td:last-child { text-align: right; white-space: nowrap; padding-left: 16px; }
#shortcuts kbd { padding: 2px 8px; border: 1px solid var(--border-color-primary); border-radius: 6px; font: 12.5px var(--font-mono); }
#shortcuts button { margin-top: 14px; padding: 7px 18px; border-radius: 999px; border: 0; background: var(--primary-700); color: white; font-weight: 600; cursor: pointer; }
:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; } #question textarea:focus-visible { outline: none; }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
@media (max-width: 600px) {
  .leaving { max-height: 3em; }
  .column:has(.leaving) #question textarea { max-height: 72px; overflow-y: auto !important; } /* what helps stays in sight */
  .gradio-container .main.app { padding: 0 12px; }
  #chat .examples { grid-template-columns: 1fr; }
  #chat .user-row .message { max-width: 92%; }
}
"""
)


def theme() -> gr.themes.Base:
    """Teal on warm grey, light and dark, with no font to load."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONT,
        font_mono=FONT_MONO,
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
