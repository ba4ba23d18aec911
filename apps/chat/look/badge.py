"""The badge in the page: whether anything has left this machine, asked anew every few seconds.

The script asks our own server and writes what it says as text. Where the server does not answer, the badge says that
too: the page is then a picture of the past.
"""

from __future__ import annotations

from fastapi import FastAPI

from apps.access.connections import Watch

ROUTE = "/connections"

TEXT = "Checking connections"
"""Of the Markdown component `#badge` until the first answer (a `gr.HTML` would evaluate text as a script)."""

CSS = """
#badge { flex: none; width: auto; min-width: 0; padding: 0; border-width: 0; background: transparent; }
#badge p { margin: 0; display: inline-flex; align-items: center; gap: 7px; font-size: 12.5px; line-height: 1.4; color: var(--body-text-color-subdued); }
#badge p::before { content: ""; flex: none; width: 8px; height: 8px; border-radius: 50%; background: var(--neutral-400); }
#badge [data-state=private]::before { background: #0d9488; }
#badge [data-state=endpoint]::before { background: #2563eb; }
#badge [data-state=warning], #badge [data-state=lost] { color: var(--body-text-color); font-weight: 600; }
#badge [data-state=warning]::before, #badge [data-state=lost]::before { background: #d97706; }
@media (max-width: 600px) { #top { flex-wrap: wrap; } #badge { order: 1; flex-basis: 100%; } }
"""

SCRIPT = f"""<script>
(() => {{
  const show = (said) => {{
    const badge = document.querySelector("#badge p");
    if (badge && !(badge.dataset.state === said.state && badge.textContent === said.text)) {{
      Object.assign(badge, {{ role: "status", title: said.detail, textContent: said.text }});
      badge.dataset.state = said.state;
    }}
    return badge;
  }};
  const lost = {{ state: "lost", text: "The chat has ended", detail: "Its server does not answer any more" }};
  const ask = async () => {{
    let said = lost;
    try {{ said = await (await fetch("{ROUTE}")).json(); }} catch {{ }}
    setTimeout(ask, show(said) ? 3000 : 200);  // the page builds itself after this script has begun
  }};
  ask();
}})();
</script>"""


def add_route(api: FastAPI, watch: Watch) -> None:
    """What the script asks for."""

    @api.get(ROUTE)
    def connections() -> dict[str, str]:
        return {"state": watch.state, "text": watch.text, "detail": watch.detail}
