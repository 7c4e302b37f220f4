"""`otter demo` shows what the shipped adapters do, and what each costs."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.demo import contrast, draft, guard, reward, sentiment
from otterlm.cli.options import AsJson
from otterlm.cli.terminal import print_json
from otterlm.decoding.choice import check_method, methods
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, intervention_type
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.smollm2 import SMOLLM2

METHODS = [
    name
    for name in methods()
    if not intervention_type(name).samples and Capability.CLASSES not in intervention_type(name).needs
]
"""What a reward does here: the responses are greedy."""
SHIPPED = Path("adapters")
PARTS = {"sentiment": sentiment, "reward": reward, "contrast": contrast, "draft": draft, "guard": guard}
FOLDERS = {
    "sentiment": "smollm2-135m-sentiment",
    "reward": "smollm2-135m-harmless",
    "contrast": "smollm2-135m-detox",
    "draft": "smollm2-135m-draft",
    "guard": "smollm2-135m-guard",
}
OPTIONAL = {"sentiment", "guard"}
"""The parts that are left out where their adapter is not there: folders of older versions lack them."""


def command(
    adapters: Annotated[Path, typer.Option(help="Folder with the adapters for smollm2-135m.")] = SHIPPED,
    method: Annotated[str, typer.Option(help=f"How a reward steers: {', '.join(METHODS)}.")] = "guidance",
    weight: Annotated[float, typer.Option(help="Strength of the rewards, and of the guard.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Strength of the contrast.")] = 2.0,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a response.", min=1)] = 48,
    as_json: AsJson = False,
) -> None:
    """Shows the shipped adapters, each beside the base alone.

    Two rewards and a contrast steer SmolLM2-135M, drafts speed it up, and a guard stops it.

    Example:
        otter demo --method search --weight 2
    """
    check_method(method, METHODS)
    steering = InterventionSettings(weight, alpha=alpha)  # which checks them, before anything is loaded
    there = {name: part for name, part in PARTS.items() if (adapters / FOLDERS[name]).is_dir()}
    for name, folder in FOLDERS.items():
        if name not in there and name not in OPTIONAL:
            raise OtterError(f"{adapters / folder}: no such adapter; run in Otter's checkout, or give --adapters")
    tokenizer, base = load_tokenizer(SMOLLM2), load_base(SMOLLM2)
    base.generate(torch.tensor([[1]]), max_new_tokens=4, do_sample=False)  # warm up, so that the first is timed fairly
    settings: dict[str, Any] = {"method": method, "steering": steering, "max_new_tokens": max_new_tokens}
    report: dict[str, Any] = {}
    for name, part in there.items():
        model = OtterModel.from_pretrained(base, adapters / FOLDERS[name])
        report[name] = part.run(model, tokenizer, **settings)
        if not as_json:
            part.show(report[name], tokenizer)
    if as_json:
        print_json(report)
        return
    for name, part in report.items():
        speeds = ", ".join(f"{speed:.1f} tokens/s {what}" for what, speed in part["tokens_per_second"].items())
        inserted, of = part["plan"]["inserted_parameters"], part["plan"]["base_parameters"]
        print(f"{name}: {inserted:,} inserted parameters beside {of:,} ({inserted / of:.1%}); {speeds}")
    _close(report)


def _close(report: dict[str, Any]) -> None:
    """Prints three lines: what was measured, that nothing was changed, and where to read on."""
    prompts = report["reward"]["prompts"]
    higher = sum(entry["guided"]["rewards"][-1] > entry["original"]["rewards"][-1] for entry in prompts)
    drafted = [entry["drafted"]["acceptance_length"] for entry in report["draft"]["prompts"]]
    seen = [
        f"guidance ended with a higher reward on {higher} of {len(prompts)} prompts",
        f"drafts gave {sum(drafted) / len(drafted):.2f} tokens a pass",
    ]
    if "guard" in report:
        labels = [entry["stopped"]["label"] for entry in report["guard"]["prompts"]]
        seen.append(f"the guard stopped {sum(label is not None for label in labels)} of {len(labels)} texts")
    print(f"\nYou saw: {', '.join(seen)}.")
    print("The base was frozen all the time: `otter verify --quick` proves that its logits stay the same.")
    print("Go on with your own data (docs/tutorial.md), in a browser (otter playground) or with the README's Python.")
