"""`otter generate`: a response, steered or not, with the reward of every token."""

import time
from typing import Annotated, Any

import torch
import typer

from otterlm.bases import check_context, load_tokenizer
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.interventions import METHODS, Intervention
from otterlm.cli.options import AsJson, Base, console, print_json
from otterlm.colour import coloured
from otterlm.decoding import score_sequences
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.packing import prompt_tokens


@grouped
def command(
    base: Base,
    prompt: Annotated[str, typer.Option(help="What the user says.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter: folder or hub id; may be repeated, one of a kind; none for the base alone."),
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
    seed: Annotated[int, typer.Option(help="With --sample.")] = 0,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Generates a response and scores every token of it."""
    if method not in METHODS:
        raise OtterError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    for name, value in (("--top-k", top_k), ("--max-new-tokens", max_new_tokens), ("--drafts", drafts)):
        if value < 1:
            raise OtterError(f"{name} must be at least 1, got {value}")
    if not temperature > 0:
        raise OtterError(f"--temperature must be above 0, got {temperature}")
    tokenizer = load_tokenizer(base)
    model: Any = machine.load(base)
    tokens = tokenizer.encode(prompt) if raw else prompt_tokens((("user", prompt),), tokenizer)
    if not tokens:
        raise OtterError("the prompt is empty")
    ids = torch.tensor([tokens], device=machine.device)
    check_context(model.config, ids.shape[1] + max_new_tokens)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sample or method == "best-of-n",
        "num_beams": 1,  # whatever the base's own configuration says
    }
    if settings["do_sample"]:
        settings |= {"temperature": temperature, "top_k": 0}
    kinds: set[str] = set()
    if adapter:
        model = OtterModel(model)
        for folder in adapter:
            kinds.add(model.adapter(model.load_adapter(folder)).config.signal.type)
        model.eval()
        wanted = Intervention(method, weight, top_k, alpha, top_p, drafts, confidence, temperature if sample else None)
        settings |= wanted.settings(model)
    torch.manual_seed(seed)
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=mask,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        **settings,
    )
    seconds = time.perf_counter() - started
    sequences = output.sequences
    new = sequences[0, ids.shape[1] :].tolist()
    rewards: list[float] = []
    if "reward" in kinds:
        rewards = score_sequences(model, sequences, torch.ones_like(sequences))[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    result: dict[str, Any] = {"text": text, "tokens": new, "rewards": rewards, "seconds": seconds}
    if "draft" in kinds:
        result["acceptance_length"] = output.acceptance_length
    if as_json:
        print_json(result)
        return
    console.print(coloured(tokenizer, new, rewards) if rewards else text)
    drafted = f", {result['acceptance_length'] or 1:.2f} tokens a pass" if "draft" in kinds else ""
    console.print(f"[dim]{len(new)} tokens, {len(new) / seconds:.1f} tokens/s{drafted}[/]")
