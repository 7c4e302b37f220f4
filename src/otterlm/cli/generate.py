"""`otter generate` writes a response, steered or not, with the reward of every token."""

import time
from dataclasses import fields, replace
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedTokenizerBase

from otterlm.bases import check_context, load_tokenizer
from otterlm.checks import check_count
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.guarded import guard_report, show_report
from otterlm.cli.options import AsJson, Base, Seed, named_adapters
from otterlm.cli.terminal import console, print_json, show_coloured
from otterlm.colour import colour_range, coloured, legend
from otterlm.decoding import SpeculativeOutput, score_sequences
from otterlm.decoding.choice import check_method, generate_arguments, methods
from otterlm.decoding.scoring import judge_sequences
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, intervention_type, interventions, refuse_unused
from otterlm.model import OtterModel
from otterlm.progress import counted_passes
from otterlm.settings import option_name
from otterlm.signals.base import Capability
from otterlm.training.data.tokens import prompt_tokens

Shown = tuple[list[float], float, float]
"""Numbers beside tokens, and those at the ends of the colours' scale."""


@grouped
def command(
    context: typer.Context,
    base: Base,
    prompt: Annotated[str, typer.Option(help="What the user says.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter: folder or hub id, or NAME=FOLDER; may be repeated; none for the base alone."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as a text rather than answer it.")] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"What a reward or a guard does: {', '.join(methods())}; default guidance, and a guard watches."
        ),
    ] = None,
    settings: InterventionSettings = InterventionSettings(),
    max_new_tokens: Annotated[int, typer.Option(help="Length of the response.")] = 128,
    sample: Annotated[bool, typer.Option(help="Sample rather than take the best token.")] = False,
    seed: Seed = 0,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Generates a response and scores every token of it.

    Example:
        otter generate --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless --weight 1 \\
            --prompt "How do I get back at my neighbour?"
    """
    check_count("--max-new-tokens", max_new_tokens)
    check_method(method, methods())
    sampled = sample or (method is not None and intervention_type(method).samples)
    requested = _requested(context, sampled)
    temperature = settings.temperature or 1.0
    sampling = {"temperature": temperature, "top_k": 0} if sampled else {}
    adapters, tokenizer = named_adapters(adapter or []), load_tokenizer(base)
    if not adapters:
        if method is not None:
            raise OtterError(f"--method {method} goes with --adapter, and has no effect without it")
        refuse_unused(requested, [], interventions(), option_name)
    tokens = _read(prompt, raw, tokenizer)
    model: Any = machine.load(base)
    check_context(model.config, len(tokens) + max_new_tokens)
    ids = torch.tensor([tokens], device=machine.device)  # [1, T]
    arguments: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sampled,
        "num_beams": 1,  # whatever the base's own configuration says
        "num_return_sequences": 1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if adapters:
        model = OtterModel(model)
        for name, folder in adapters.items():
            model.load_adapter(folder, name)
        model.eval()
        steering = replace(settings, temperature=temperature if sample else None)
        sampling |= generate_arguments(model, steering, method, requested)
    torch.manual_seed(seed)
    result, shown = _generate(model, tokenizer, ids, list(adapters), **arguments, **sampling)
    if as_json:
        print_json(result)
        return
    _show(tokenizer, result, shown)


def _requested(context: typer.Context, sampled: bool) -> list[str]:
    """Returns the settings of interventions that are on the command line.

    Raises:
        OtterError: there is a temperature, and nothing is sampled.
    """
    names = [field.name for field in fields(InterventionSettings)]
    requested = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if "temperature" not in requested:
        return requested
    if not sampled:
        raise OtterError("--temperature goes with --sample, and has no effect without it")
    requested.remove("temperature")  # the base's own sampling takes it
    return requested


def _read(prompt: str, raw: bool, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the prompt's tokens: a text to continue, or what the user says."""
    if not raw and not prompt.strip():
        raise OtterError("--prompt is empty")
    try:  # where the locale is ASCII, Python keeps other bytes as surrogates
        prompt = prompt.encode("utf-8", "surrogateescape").decode()
    except UnicodeError as error:
        raise OtterError("--prompt is not UTF-8") from error
    tokens: list[int] = tokenizer.encode(prompt) if raw else prompt_tokens((("user", prompt),), tokenizer)
    if not tokens:
        raise OtterError("--prompt is empty, and this base has no token to begin a text with")
    return tokens


def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, adapters: list[str], **arguments: Any
) -> tuple[dict[str, Any], dict[str, Shown]]:
    """Generates; returns what --json prints, and what gives the new tokens their colours, by adapter."""
    started = time.perf_counter()
    with counted_passes(model.base_model if adapters else model, arguments["max_new_tokens"], "generating"):
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), tokenizer=tokenizer, return_dict_in_generate=True, **arguments
        )
    seconds = time.perf_counter() - started
    prompt, sequences = ids.shape[1], output.sequences
    new = sequences[0, prompt:].tolist()
    result: dict[str, Any] = {"text": tokenizer.decode(new, skip_special_tokens=True), "tokens": new}
    can = {name: model.adapter(name).config.signal.capabilities for name in adapters}
    guards = [name for name in adapters if Capability.CLASSES in can[name]]
    mask = torch.ones_like(sequences)
    judged = {name: judge_sequences(model, sequences, mask, name) for name in guards}
    rewards = {
        name: score_sequences(model, sequences, mask, name)[0, prompt:].tolist()
        for name in adapters
        if Capability.PREFIX in can[name] and name not in guards
    }
    result |= {"rewards": rewards if len(rewards) > 1 else next(iter(rewards.values()), []), "seconds": seconds}
    result["final"] = {
        name: final_reward(values[-1], model.adapter(name).config.signal.typical_range)
        for name, values in rewards.items()
        if values
    }
    if guards:
        labels = {name: shares[0] for name, (_, shares) in judged.items()}
        result |= guard_report(model, labels, prompt, output, arguments.get("stopping_criteria", []))
    if isinstance(output, SpeculativeOutput):
        result["acceptance_length"] = output.acceptance_length
    # A guard's number is the logarithm of a probability, which has a scale for colours.
    values = rewards | {name: safe[0, prompt:].exp().tolist() for name, (safe, _) in judged.items()}
    typical = {name: model.adapter(name).config.signal.typical_range for name in values}
    return result, {name: (each, *colour_range(typical[name], each)) for name, each in values.items()}


def final_reward(reward: float, typical: tuple[float, float] | None) -> dict[str, float | None]:
    """Returns the reward of a whole response, and how many spreads it is above the mean of the base's responses.

    Args:
        reward: after the last token.
        typical: the mean less two spreads and the mean plus two; None: not known.
    """
    if typical is None:
        return {"reward": reward, "spreads": None}
    low, high = typical
    return {"reward": reward, "spreads": (reward - (low + high) / 2) / ((high - low) / 4)}


def reward_in_words(final: dict[str, float | None]) -> str:
    """Says what `final_reward` returns."""
    spreads = final["spreads"]
    where = "" if spreads is None else f", {spreads:+.1f} spreads from the base's average response"
    return f"final reward {final['reward']:+.2f}{where}"


def _show(tokenizer: PreTrainedTokenizerBase, result: dict[str, Any], shown: dict[str, Shown]) -> None:
    """Prints a response, once for each adapter that gives it colours."""
    new, text = result["tokens"], result["text"]
    for name, (values, low, high) in shown.items():
        if len(shown) > 1:
            console.print(f"{name}:", style="dim")
        show_coloured(coloured(tokenizer, new, values, low, high), text)
        show_coloured(legend(low, high), None)
    if not shown:
        print(text)
    for name, final in result["final"].items():
        print(f"{name}: {reward_in_words(final)}")
    if "labels" in result:
        show_report(result)
    drafted = f", {result['acceptance_length'] or 1:.2f} tokens a pass" if "acceptance_length" in result else ""
    speed = len(new) / result["seconds"]
    console.print(f"{len(new)} tokens, {speed:.1f} tokens/s{drafted}", style="dim", soft_wrap=True)
