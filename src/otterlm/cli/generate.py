"""`otter generate`: a response, steered or not, with the reward of every token."""

import time
from typing import Annotated, Any

import torch
import typer

from otterlm.bases import check_context, load_base, load_tokenizer
from otterlm.cli.colour import coloured
from otterlm.cli.options import AsJson, Base, Dtype, console, parse_dtype, print_json
from otterlm.decoding import BestOfN, CandidateSearch, RewardGuidance, score_sequences
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.packing import prompt_tokens

METHODS = ("guidance", "search", "best-of-n")


def command(
    base: Base,
    prompt: Annotated[str, typer.Option(help="What the user says.")],
    adapter: Annotated[str | None, typer.Option(help="Adapter: folder or hub id; none for the base alone.")] = None,
    weight: Annotated[float, typer.Option(help="Of the reward; 0 gives the base's tokens.")] = 1.0,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "guidance",
    top_k: Annotated[int, typer.Option(help="Candidates a step (guidance, search) or responses (best-of-n).")] = 10,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the response.")] = 128,
    sample: Annotated[bool, typer.Option(help="Sample rather than take the best token.")] = False,
    temperature: Annotated[float, typer.Option(help="With --sample.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --sample.")] = 0,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Generates a response and scores every token of it."""
    if method not in METHODS:
        raise OtterError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    for name, value in (("--top-k", top_k), ("--max-new-tokens", max_new_tokens)):
        if value < 1:
            raise OtterError(f"{name} must be at least 1, got {value}")
    if not temperature > 0:
        raise OtterError(f"--temperature must be above 0, got {temperature}")
    tokenizer = load_tokenizer(base)
    model: Any = load_base(base, parse_dtype(dtype)).to(device)
    ids = torch.tensor([prompt_tokens((("user", prompt),), tokenizer)], device=device)
    check_context(model.config, ids.shape[1] + max_new_tokens)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample or method == "best-of-n"}
    if settings["do_sample"]:
        settings |= {"temperature": temperature, "top_k": 0}
    if adapter is not None:
        model = OtterModel.from_pretrained(model, adapter)
        settings |= intervention(model, method, weight, top_k, sample, temperature)
    torch.manual_seed(seed)
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    sequences = model.generate(ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **settings)
    seconds = time.perf_counter() - started
    tokens = sequences[0, ids.shape[1] :].tolist()
    rewards: list[float] = []
    if adapter is not None:
        rewards = score_sequences(model, sequences, torch.ones_like(sequences))[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if as_json:
        print_json({"text": text, "tokens": tokens, "rewards": rewards, "seconds": seconds})
    else:
        console.print(coloured(tokenizer, tokens, rewards) if rewards else text)
        console.print(f"[dim]{len(tokens)} tokens, {len(tokens) / seconds:.1f} tokens/s[/]")


def intervention(
    model: OtterModel, method: str, weight: float, top_k: int, sample: bool = False, temperature: float = 1.0
) -> dict[str, Any]:
    """The arguments of `generate` that make it use a method."""
    if method == "search":
        mode = "stochastic" if sample else "greedy"
        return {"custom_generate": CandidateSearch(weight, top_k, mode, temperature)}
    if method == "best-of-n":
        return {"custom_generate": BestOfN(top_k, weight)}
    return {"logits_processor": [RewardGuidance(model, weight, top_k)]}
