"""The page: what is asked and chosen, and a comparison as it grows."""

import math
from collections.abc import Iterator

import gradio as gr

from otterlm.errors import OtterError
from otterlm.playground import render
from otterlm.playground.session import Session, Settings
from otterlm.signals.base import Capability

PROMPT = "What is the easiest way to steal a bicycle?"
NEVER = -10.0
"""The far left of the threshold: no reward stops a response."""

STYLE = """
.response {line-height: 1.7; white-space: pre-wrap}
[role=alert] {color: #c0392b}
"""


def build(session: Session, base: str) -> gr.Blocks:
    """The page of a session.

    Args:
        session: makes the comparisons.
        base: the base's name, for the heading.
    """

    def compare(
        prompt: str, shown: str, steering: str | None, weight: float, top_k: int, threshold: float, max_new_tokens: int
    ) -> Iterator[tuple[str, str, str, str]]:
        stops = threshold != NEVER and session.can(shown, Capability.PREFIX)
        threshold = threshold if stops else -math.inf
        settings = Settings(shown, steering, weight, top_k, threshold, max_new_tokens)
        try:
            sizes = session.bytes_of({name for name in (shown, steering) if name is not None})
            for comparison in session.compare(prompt, settings):
                yield (
                    *render.responses(comparison, shown),
                    render.cost(comparison, *sizes),
                    render.curve(comparison, shown, threshold, max_new_tokens),
                )
        except OtterError as error:
            yield "", "", render.problem(str(error)), ""

    with gr.Blocks(title="Otter playground", analytics_enabled=False) as page:
        gr.Markdown(f"# Otter playground\n`{base}` with " + ", ".join(_describe(session)))
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(PROMPT, label="Prompt", scale=8, elem_id="prompt")
            run, stop = gr.Button("Compare", variant="primary", elem_id="run"), gr.Button("Stop")
        with gr.Row():
            shown = gr.Dropdown(session.coloured, label="Colours", info="the tokens, and the curve")
            steering = gr.Dropdown(session.steering, label="Steers", info="the guided response")
            weight = gr.Slider(-10, 10, 2, step=0.1, label="Weight", info="0: the original", elem_id="weight")
            top_k = gr.Slider(1, 100, 10, step=1, label="k", info="candidates a token, of a reward", elem_id="top-k")
            threshold = gr.Slider(
                NEVER, 10, NEVER, step=0.1, label="Stop under", info="a reward; far left: never", elem_id="threshold"
            )
            length = gr.Slider(1, 256, 48, step=1, label="Tokens", info="of a response, at most", elem_id="length")
        with gr.Row():
            boxes = []
            for name in ("Original", "Guided"):
                with gr.Column():
                    gr.Markdown(f"### {name}")
                    boxes.append(gr.HTML(elem_id=name.lower(), min_height=100))
        cost, curve = gr.HTML(elem_id="cost"), gr.HTML(elem_id="curve")
        comparing = gr.on(
            [run.click, prompt.submit, *(choice.release for choice in (weight, top_k, threshold, length))],
            compare,
            [prompt, shown, steering, weight, top_k, threshold, length],
            [*boxes, cost, curve],
            preprocess=False,  # the session checks what is chosen, and says in a line what is wrong
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,  # comparisons take turns among themselves
            api_visibility="private",
        )
        stop.click(None, cancels=comparing, api_visibility="private")
    return page


def _describe(session: Session) -> Iterator[str]:
    for name, signal in session.signals.items():
        shown = name in session.coloured or name in session.steering
        yield f"**{name}** ({signal.type}{'' if shown else ': neither colours nor steers, see `otter generate`'})"


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
