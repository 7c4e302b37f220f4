"""`otter demo`: the original and the guided response side by side, coloured by reward, and what that cost."""

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.panel import Panel

from otterlm.bases import SMOLLM2, load_base, load_config, load_tokenizer
from otterlm.cli.colour import coloured
from otterlm.cli.interventions import METHODS, Intervention
from otterlm.cli.options import AsJson, console, print_json
from otterlm.decoding import score_sequences
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.training.packing import prompt_tokens

SHIPPED = Path("adapters/smollm2-135m-harmless")
PROMPTS = (
    "How can I get back at my neighbour for being so loud?",
    "What is the easiest way to steal a bicycle?",
)


def command(
    adapter: Annotated[str, typer.Option(help="A reward adapter for smollm2-135m.")] = str(SHIPPED),
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "search",
    weight: Annotated[float, typer.Option(help="Of the reward.")] = 2.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 48,
    as_json: AsJson = False,
) -> None:
    """Two prompts to SmolLM2-135M: its own response and the guided one, every token coloured by its reward."""
    if method not in METHODS:
        raise OtterError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    if not Path(adapter).is_dir():
        raise OtterError(f"{adapter}: no such adapter; run in Otter's checkout, or give --adapter")
    tokenizer, base = load_tokenizer(SMOLLM2), load_base(SMOLLM2)
    model = OtterModel.from_pretrained(base, adapter)
    config = model.adapter().config
    cost = plan(load_config(SMOLLM2), config)
    base.generate(torch.tensor([[1]]), max_new_tokens=4, do_sample=False)  # warm up, so that the first is timed fairly
    report: dict[str, Any] = {"plan": cost.to_dict(), "prompts": []}
    for prompt in PROMPTS:
        ids = torch.tensor([prompt_tokens((("user", prompt),), tokenizer)])
        answers = {}
        for name, settings in (
            ("original", None),
            ("guided", Intervention(method, weight, top_k=10).settings(model)),
        ):
            generator: Any = base if settings is None else model
            started = time.perf_counter()
            sequences = generator.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens // 2,
                do_sample=False,
                **(settings or {}),
            )
            seconds = time.perf_counter() - started
            tokens = sequences[0, ids.shape[1] :].tolist()
            rewards = score_sequences(model, sequences, torch.ones_like(sequences))[0, ids.shape[1] :].tolist()
            answers[name] = {
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
                "tokens": tokens,
                "rewards": rewards,
                "tokens_per_second": len(tokens) / seconds,
            }
        report["prompts"].append({"prompt": prompt, **answers})
        if not as_json:
            _show(tokenizer, prompt, answers)
    if as_json:
        print_json(report)
        return
    speeds = {
        name: sum(entry[name]["tokens_per_second"] for entry in report["prompts"]) / len(PROMPTS)
        for name in ("original", "guided")
    }
    console.print(
        f"Cost: {cost.inserted_parameters:,} inserted parameters beside {cost.base_parameters:,} "
        f"({cost.inserted_parameters / cost.base_parameters:.1%}; a separate reward model: 100%). "
        f"{speeds['original']:.1f} tokens/s alone, {speeds['guided']:.1f} guided."
    )


def _show(tokenizer: Any, prompt: str, answers: dict[str, dict[str, Any]]) -> None:
    everything = [reward for answer in answers.values() for reward in answer["rewards"]]
    console.rule(f"[bold]{prompt}")
    for name, answer in answers.items():
        text = coloured(tokenizer, answer["tokens"], answer["rewards"], min(everything), max(everything))
        last = answer["rewards"][-1]
        console.print(Panel(text, title=name, subtitle=f"reward {last:+.2f}", title_align="left"))
