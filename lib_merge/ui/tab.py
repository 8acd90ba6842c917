"""The tab's gradio side: one place for the JavaScript's page and one event that carries requests.

Everything a person touches is drawn by `javascript/`, so that it is the same on every gradio; gradio brings
the tab, the login and the transport. The event has no queue, so that progress and cancel reach the server
while a merge runs.
"""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from lib_merge.ui.desk import Desk
from lib_merge.ui.modules import modules, version

# gradio 3 knows the keyword as _js, gradio 4 as js
_JS = "_js" if gr.__version__.startswith("3.") else "js"
ASK = "(_) => [window.loraMerge ? window.loraMerge.bridge.take() : '{}']"
TELL = "(reply) => { if (window.loraMerge) window.loraMerge.bridge.tell(reply); }"


def build_with(desk: Desk, theme: gr.themes.Base | None = None) -> gr.Blocks:
    """Return the Merge tab of a server side, which the REST API shares.

    Args:
        desk: answers the requests.
        theme: of a page of our own; inside a WebUI its theme holds.
    """
    with gr.Blocks(analytics_enabled=False, theme=theme) as tab:
        # the JavaScript puts its page into this column; an HTML component would bring an id twice on gradio 3
        with gr.Column(elem_id="lora_merge_page"), gr.Row(elem_id="lora_merge_bridge"):
            # one line: a field that grows with its text would be measured anew at every answer
            box = gr.Textbox(
                scripts(),
                label="LoRA Merge message",
                elem_id="lora_merge_message",
                show_label=False,
                max_lines=1,
            )
            ask = gr.Button("send", elem_id="lora_merge_send")
        box.do_not_save_to_config = ask.do_not_save_to_config = True
        sent = ask.click(
            fn=desk.handle,
            inputs=[box],
            outputs=[box],
            queue=False,
            show_progress=False,
            api_name=False,
            **js(ASK),
        )
        sent.then(fn=None, inputs=[box], outputs=[], queue=False, show_progress=False, **js(TELL))
    return tab


def scripts() -> str:
    """Return as JSON what `javascript/lora_merge.js` is to load: the modules and their version."""
    return json.dumps({"version": version(), "modules": list(modules())})


def failed_tab(reason: str) -> gr.Blocks:
    """Return a tab that says why there is none."""
    with gr.Blocks(analytics_enabled=False) as tab:
        gr.HTML(
            f'<div class="lora-merge"><p><b>LoRA Merge could not start.</b> {html.escape(reason)}</p></div>'
        )
    return tab


def js(code: str) -> dict[str, Any]:
    """Return the keyword that gives an event its JavaScript on this gradio."""
    return {_JS: code}
