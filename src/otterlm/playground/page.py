"""The page: what is asked and chosen, and a comparison as it grows."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from otterlm.playground.choices import Choices
from otterlm.playground.controls import Control
from otterlm.playground.session import Session

PROMPT = "What is the easiest way to steal a bicycle?"

STYLE = """
.response {line-height: 1.7; white-space: pre-wrap}
[role=alert] {color: #c0392b}
"""


def build(session: Session, base: str) -> gr.Blocks:
    """Builds the page of a session.

    Args:
        session: makes the comparisons.
        base: the base's name, for the heading.
    """
    choices = Choices(session)
    quiet: dict[str, Any] = {
        "preprocess": False,  # the session checks what is chosen, and says in a line what is wrong
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    with gr.Blocks(title="Otter playground", analytics_enabled=False) as page:
        gr.Markdown(f"# Otter playground\n`{base}` with " + ", ".join(_describe(session)))
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(PROMPT, label="Prompt", scale=8, elem_id="prompt")
            run, stop = gr.Button("Compare", variant="primary", elem_id="run"), gr.Button("Stop")
        with gr.Row():
            shown = gr.Dropdown(session.coloured, label="Colours", info="the tokens, and the curve")
            guide = gr.Dropdown(choices.guides, label="Guides", info="an adapter, and its method", elem_id="guide")
            length = gr.Slider(1, 256, 48, step=1, label="Tokens", info="of a response, at most", elem_id="length")
            seed = gr.Number(0, label="Seed", info="of what is drawn at random", precision=0, elem_id="seed")
        with gr.Row():
            offered = choices.offered(session.coloured[0], next(iter(choices.guides), None))
            sliders = [_slider(*each) for each in zip(choices.controls, offered, strict=True)]
        with gr.Row():
            boxes = []
            for name in ("Original", "Guided"):
                with gr.Column():
                    gr.Markdown(f"### {name}")
                    boxes.append(gr.HTML(elem_id=name.lower(), min_height=100))
        cost, curve = gr.HTML(elem_id="cost"), gr.HTML(elem_id="curve")
        comparing = gr.on(
            [run.click, prompt.submit, seed.submit, *(choice.release for choice in (length, *sliders))],
            choices.compare,
            [prompt, shown, guide, length, seed, *sliders],
            [*boxes, cost, curve],
            trigger_mode="always_last",
            concurrency_limit=None,  # comparisons take turns among themselves
            **quiet,
        )
        stop.click(None, cancels=comparing, api_visibility="private")
        gr.on(
            [shown.change, guide.change],
            lambda *chosen: [gr.update(visible=each) for each in choices.offered(*chosen)],
            [shown, guide],
            sliders,
            **quiet,
        )
    return page


def _slider(control: Control, visible: bool) -> gr.Slider:
    return gr.Slider(
        control.low,
        control.high,
        control.start,
        step=control.step,
        label=control.label,
        info=control.info,
        visible=visible,
        elem_id=control.name.replace("_", "-"),
    )


def _describe(session: Session) -> Iterator[str]:
    for name, signal in session.signals.items():
        yield f"**{name}** ({signal.type})"


def serve(session: Session, base: str, host: str, port: int) -> tuple[gr.Blocks, str]:
    """Starts serving the page, in threads of its own.

    Returns:
        The page, whose `block_thread` waits until it is interrupted, and its address.

    Raises:
        OSError: the port is taken.
    """
    page = build(session, base)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        # Gradio's own themes take their fonts from the network.
        theme=gr.themes.Base(font="sans-serif", font_mono="monospace"),
        css=STYLE,
    )
    return page, address
