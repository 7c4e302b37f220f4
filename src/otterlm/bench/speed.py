"""Compares inference acceleration by drafts of Otter and of Medusa and by prompt lookup with the base by itself.

Decoding is greedy, one sequence at a time, with all methods in turn on every prompt. Every output is compared with the
base's.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bench.report import machine
from otterlm.decoding import DraftTree, SpeculativeDecoding
from otterlm.errors import OtterError, reason
from otterlm.identity import Identity, identity, of_data, of_inserted, of_weights
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaDecoding, MedusaHeads
from otterlm.resumable import run_resumable
from otterlm.signals.base import Capability
from otterlm.signals.draft.objective import measured_accuracy
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.evaluation.bootstrap import median_interval
from otterlm.training.teachers.continuations import of_generation

BASE = "base"
PROMPTS = (
    "Explain in a few words how rain is made.",
    "Write a Python function that returns the largest of three numbers.",
    "Translate into French: The otter sleeps on its back.",
    "A train goes 60 km in 45 minutes. How fast is it in km/h? Think step by step.",
    "Summarise: Otters live along rivers. They eat fish, and they build no dams; beavers do.",
    "Give me three ideas for a birthday party.",
)
"""The default prompts, of the kinds that Spec-Bench (arXiv 2401.07851) has."""


MEDUSA_DRAFTS = 4
"""Medusa verifies so many drafts where no number is asked for: the best guess of each head."""


@dataclass(frozen=True, slots=True)
class SpeedMethod:
    """A method generates responses.

    Attributes:
        model: the model that generates.
        settings: of its `generate`.
        extra_parameters: beside the base, derived ones included.
        depends: what its drafts depend on, beside the base.
    """

    model: PreTrainedModel | OtterModel
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra_parameters: int = 0
    depends: Identity = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """A row is one method over all prompts.

    Attributes:
        method: its name.
        extra_parameters: beside the base.
        extra_space_saved: 1 - those / those of a separate model of the base's size.
        tokens_per_second, base_tokens_per_second: medians over the prompts.
        speed_over_base: median over the prompts of the base's seconds / the method's.
        speed_over_base_ci95: its interval.
        extra_time_saved: 1 - 1 / speed_over_base, of the base's time.
        acceptance_length: mean tokens a pass; None where passes are not counted.
        identical: prompts with the base's tokens.
        prompts: how many there are.
    """

    method: str
    extra_parameters: int
    extra_space_saved: float
    tokens_per_second: float
    base_tokens_per_second: float
    speed_over_base: float
    speed_over_base_ci95: list[float]
    extra_time_saved: float
    acceptance_length: float | None
    identical: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


def methods_of(
    base: PreTrainedModel,
    adapters: Mapping[str, str | Path],
    medusa: Path | None,
    drafts: Sequence[int | None],
    confidences: Sequence[float] = (0.0,),
) -> dict[str, SpeedMethod]:
    """Makes the methods: the base, adapters and Medusa heads with trees of several sizes, and prompt lookup.

    Args:
        base: the frozen model.
        adapters: folders of draft adapters, by name.
        medusa: folder with `heads.safetensors` and `metrics.json` of trained heads; None: without.
        drafts: sizes of the draft trees; None: what `SpeculativeDecoding` does by default, and `MEDUSA_DRAFTS`.
        confidences: see `SpeculativeDecoding`; with each of the sizes.

    Raises:
        OtterError: an adapter does not fit or does not draft, or the heads are not of this base.
    """
    methods = {BASE: SpeedMethod(base)}
    for name, folder in adapters.items():
        model = OtterModel.from_pretrained(base, folder, name)
        adapter = model.adapter(model.adapter_name(None, Capability.DRAFTS))
        extra = adapter.extra_parameters(base.config.vocab_size)
        for size, confidence in product(drafts, confidences):
            loop = {"custom_generate": SpeculativeDecoding(size, confidence=confidence)}
            depends = {"adapter": of_inserted(adapter)}
            methods[f"{name}, {_label(size, confidence)}"] = SpeedMethod(model, loop, extra, depends)
            if size is not None:
                alone = {"custom_generate": SpeculativeDecoding(size, confidence=confidence, lookup=False)}
                label = f"{name}, {_label(size, confidence)} without lookup"
                methods[label] = SpeedMethod(model, alone, extra, depends)
    if medusa is not None:
        heads, accuracy = _medusa(base, medusa)
        for size, confidence in product([size or MEDUSA_DRAFTS for size in drafts], confidences):
            loop = {"custom_generate": MedusaDecoding(heads, DraftTree.best(accuracy, size), confidence)}
            extra = sum(p.numel() for p in heads.parameters())
            depends = {"heads": of_weights(heads), "accuracy": of_data(accuracy)}
            methods[f"Medusa, {_label(size, confidence)}"] = SpeedMethod(OtterModel(base), loop, extra, depends)
    # A method of Transformers: drafts are what followed the same tokens earlier in the text.
    methods["prompt lookup"] = SpeedMethod(base, {"prompt_lookup_num_tokens": 10})
    return methods


def _label(size: int | None, confidence: float) -> str:
    above = f" above {confidence:g}" if confidence else ""
    return ("drafts that pay" if size is None else f"{size} drafts") + above


def _medusa(base: PreTrainedModel, folder: Path) -> tuple[MedusaHeads, tuple[tuple[float, ...], ...]]:
    """Loads trained heads and measures how often their guesses are right."""
    heads = MedusaHeads(base)
    try:
        load_model(heads, str(folder / "heads.safetensors"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise OtterError(f"{folder} does not hold Medusa heads of this base: {reason(error)}") from error
    return heads, measured_accuracy(metrics, len(heads.blocks))


def measure(
    methods: Mapping[str, SpeedMethod],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int = 64,
    max_prompt_tokens: int = 512,
    path: Path | None = None,
) -> list[SpeedRow]:
    """Generates with all methods in turn.

    Args:
        methods: by name, `BASE` among them.
        tokenizer: the base's.
        prompts: as chat turns.
        new_tokens: at most so many are generated after each.
        max_prompt_tokens: a longer prompt keeps its end.
        path: see `otterlm.resumable.run_resumable`.

    Raises:
        OtterError: `path` belongs to another run.
    """
    base = methods[BASE].model
    encoded = encode_prompts(prompts, tokenizer, max_prompt_tokens)

    def one(prompt: list[int]) -> dict[str, Any]:
        ids = torch.tensor([prompt], device=base.device)
        return {name: _generate(method, ids, new_tokens, tokenizer.pad_token_id) for name, method in methods.items()}

    this = identity(
        "speed bench",
        **of_generation(base),
        methods={name: method.depends for name, method in methods.items()},
        prompts=of_data(encoded),
        new_tokens=new_tokens,
        machine=machine(),
    )
    results = run_resumable(encoded, one, path, this, "measuring", warm_up=lambda: one(encoded[0]))
    return [_row(name, method, results, base) for name, method in methods.items()]


def _generate(method: SpeedMethod, ids: torch.Tensor, new_tokens: int, pad: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    output = method.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=pad,
        **method.settings,
    )
    return {
        "seconds": time.perf_counter() - started,
        "tokens": output.sequences[0, ids.shape[1] :].tolist(),
        "acceptance_length": getattr(output, "acceptance_length", None),
    }


def _row(name: str, method: SpeedMethod, results: list[dict[str, Any]], base: Any) -> SpeedRow:
    def speed(of: str) -> float:
        return statistics.median(len(each[of]["tokens"]) / each[of]["seconds"] for each in results)

    ratios = [each[BASE]["seconds"] / each[name]["seconds"] for each in results]
    ratio = statistics.median(ratios)
    lengths = [each[name]["acceptance_length"] for each in results if each[name]["acceptance_length"]]
    return SpeedRow(
        method=name,
        extra_parameters=method.extra_parameters,
        extra_space_saved=1 - method.extra_parameters / sum(p.numel() for p in base.parameters()),
        tokens_per_second=speed(name),
        base_tokens_per_second=speed(BASE),
        speed_over_base=ratio,
        speed_over_base_ci95=median_interval(ratios),
        extra_time_saved=1 - 1 / ratio,
        acceptance_length=statistics.mean(lengths) if lengths else None,
        identical=sum(each[name]["tokens"] == each[BASE]["tokens"] for each in results),
        prompts=len(results),
    )
