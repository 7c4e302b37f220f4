"""`otter generate`: a response, steered or not, with the reward of every token."""

import time
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedTokenizerBase

from otterlm.bases import check_context, load_tokenizer
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.interventions import METHODS, Intervention
from otterlm.cli.options import AsJson, Base, Seed, named_adapters
from otterlm.cli.terminal import console, print_json, show_coloured
from otterlm.colour import coloured
from otterlm.decoding import score_sequences
from otterlm.decoding.checks import check_count
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.packing import prompt_tokens


@grouped
def command(
    base: Base,
    prompt: Annotated[str, typer.Option(help="What the user says.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter: folder or hub id, or NAME=FOLDER; may be repeated; none for the base alone."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as a text rather than answer it.")] = False,
    weight: Annotated[float, typer.Option(help="Of the reward; 0 gives the base's tokens.")] = 1.0,
    method: Annotated[str, typer.Option(help=f"What a reward does: {', '.join(METHODS)}.")] = "guidance",
    top_k: Annotated[int, typer.Option(help="Candidates a step (guidance, search) or responses (best-of-n).")] = 10,
    alpha: Annotated[float, typer.Option(help="Of the contrast; 0 gives the base's tokens.")] = 2.0,
    top_p: Annotated[float, typer.Option(help="The nucleus of the base that a contrast chooses from.")] = 0.9,
    drafts: Annotated[int, typer.Option(help="Drafts that a pass verifies at most.")] = 3,
    confidence: Annotated[float, typer.Option(help="Chance that a draft needs to be verified; 0 verifies all.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the response.")] = 128,
    sample: Annotated[bool, typer.Option(help="Sample rather than take the best token.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample.")] = 1.0,
    seed: Seed = 0,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Generates a response and scores every token of it."""
    check_count("--max-new-tokens", max_new_tokens)
    wanted = Intervention(method, weight, top_k, alpha, top_p, drafts, confidence, temperature)
    sampled = sample or method == "best-of-n"
    if not raw and not prompt.strip():
        raise OtterError("--prompt is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # bytes of another encoding
        raise OtterError("--prompt is not UTF-8")
    adapters = named_adapters(adapter or [])
    tokenizer = load_tokenizer(base)
    tokens = tokenizer.encode(prompt) if raw else prompt_tokens((("user", prompt),), tokenizer)
    if not tokens:
        raise OtterError("--prompt is empty, and this base has no token to begin a text with")
    model: Any = machine.load(base)
    ids = torch.tensor([tokens], device=machine.device)
    check_context(model.config, ids.shape[1] + max_new_tokens)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sampled}
    if sampled:
        settings |= {"temperature": temperature, "top_k": 0}
    kinds: dict[str, str] = {}
    if adapters:
        model = OtterModel(model)
        for name, folder in adapters.items():
            kinds[name] = model.adapter(model.load_adapter(folder, name)).config.signal.type
        model.eval()
        settings |= (wanted if sample else replace(wanted, temperature=None)).settings(model)
    torch.manual_seed(seed)
    started = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        **settings,
    )
    seconds = time.perf_counter() - started
    new = output.sequences[0, ids.shape[1] :].tolist()
    rewards = {
        name: score_sequences(model, output.sequences, torch.ones_like(output.sequences), name)[
            0, len(tokens) :
        ].tolist()
        for name, kind in kinds.items()
        if kind == "reward"
    }
    result: dict[str, Any] = {"text": tokenizer.decode(new, skip_special_tokens=True), "tokens": new}
    result |= {"rewards": rewards if len(rewards) > 1 else next(iter(rewards.values()), []), "seconds": seconds}
    if "draft" in kinds.values():
        result["acceptance_length"] = output.acceptance_length
    if as_json:
        print_json(result)
        return
    _show(tokenizer, result, rewards)


def _show(tokenizer: PreTrainedTokenizerBase, result: dict[str, Any], rewards: dict[str, list[float]]) -> None:
    """Prints a response, once for each reward, whose colours it has."""
    new, text = result["tokens"], result["text"]
    for name, values in rewards.items():
        if len(rewards) > 1:
            console.print(f"{name}:", style="dim")
        show_coloured(coloured(tokenizer, new, values), text)
    if not rewards:
        print(text)
    drafted = f", {result['acceptance_length'] or 1:.2f} tokens a pass" if "acceptance_length" in result else ""
    speed = len(new) / result["seconds"]
    console.print(f"{len(new)} tokens, {speed:.1f} tokens/s{drafted}", style="dim", soft_wrap=True)
