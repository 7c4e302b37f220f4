"""Measures what passes of a few tokens cost on this machine, once, and keeps the numbers in the user's cache folder."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from otterlm.cache import remove_last
from otterlm.decoding.deferred_stream import DeferredStream
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.transposed_linear import TransposedLinear
from otterlm.errors import OtterError
from otterlm.families.facts import context_length
from otterlm.files import write_text
from otterlm.fingerprint import fingerprint
from otterlm.identity import Identity, identity, of_config, of_data
from otterlm.masks import tree_mask
from otterlm.model import OtterModel
from otterlm.smollm2 import cache_folder

MOST = 8
"""Passes of up to so many tokens are measured."""
CONTEXT = 64
"""Passes are measured after so many tokens, or fewer where the base's context is shorter."""
ROUNDS, SECONDS = 7, 6.0
"""Each pass is timed so often, in turn with the others; a slow base no longer than so many seconds, but twice."""


@dataclass(frozen=True, slots=True)
class PassCosts:
    """The costs are in seconds.

    Attributes:
        plain: of a pass of one token by the base alone.
        passes: of a pass of 1, 2, ... `MOST` tokens of each row, with the adapters' streams.
        head: of one level of drafts.
    """

    plain: float
    passes: tuple[float, ...]
    head: float


def pass_costs(model: OtterModel, adapter_name: str, rows: int) -> PassCosts:
    """Returns the costs of passes, from the cache folder or measured.

    They belong to a base, its dtype, the adapters that are on, the device, the number of threads and of rows. A file
    that is damaged is measured anew; a folder that cannot be written only costs the next process the measurement.

    Args:
        model: with the adapters.
        adapter_name: of the drafts.
        rows: of the batch.
    """
    this = _identity(model, adapter_name, rows)
    known = _known.setdefault(model, {})
    key = of_data([sorted(this.items())])["sha256"]
    if key not in known:
        path = cache_folder() / "pass-costs" / f"{key[:32]}.json"
        known[key] = _read(path, this) or _write(path, this, measure(model, adapter_name, rows))
    return known[key]


_known: WeakKeyDictionary[OtterModel, dict[str, PassCosts]] = WeakKeyDictionary()


def _identity(model: OtterModel, adapter_name: str, rows: int) -> Identity:
    base, device = model.base_model, model.device
    return identity(
        "costs of passes",
        base=of_data(fingerprint(base)),
        dtype=str(base.dtype),
        attention=base.config._attn_implementation,
        adapters={name: of_config(model.adapter(name).config) for name in model.active_adapters},
        drafts=adapter_name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}",
        host=platform.node(),
        threads=torch.get_num_threads(),
        rows=rows,
        versions=[torch.__version__, transformers.__version__],
    )


def _read(path: Path, this: Identity) -> PassCosts | None:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["identity"] != this or len(saved["costs"]["passes"]) != MOST:
            return None
        return PassCosts(**saved["costs"] | {"passes": tuple(map(float, saved["costs"]["passes"]))})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, this: Identity, costs: PassCosts) -> PassCosts:
    with suppress(OtterError):
        write_text(path, json.dumps({"identity": this, "costs": asdict(costs)}))
    return costs


@torch.no_grad()
def measure(model: OtterModel, adapter_name: str, rows: int) -> PassCosts:
    """Measures the costs of passes: the medians of several rounds, in which all take turns."""
    longest = (context_length(model.config) or CONTEXT + MOST) - MOST
    context = max(1, min(CONTEXT, longest))
    ids = torch.ones(rows, context, dtype=torch.long, device=model.device)
    cache, alone = DynamicCache(), DynamicCache()
    prompt = {"input_ids": ids, "attention_mask": _mask(ids, 0), "logits_to_keep": 1}
    drafter: Any = model(**prompt, past_key_values=cache).signals[adapter_name]
    deferred = DeferredStream(model, adapter_name)
    turned = TransposedLinear(model, model.base_model)
    deferred.run(**prompt, past_key_values=alone)

    def plain() -> None:
        deferred.run(input_ids=ids[:, :1], attention_mask=_mask(ids, 1), past_key_values=alone)
        remove_last(alone, 1)

    def tree(size: int) -> None:
        shape = DraftTree.chain(size - 1)
        with turned if size > 1 else nullcontext():
            model(
                input_ids=ids[:, :size],
                attention_mask=tree_mask(_mask(ids, 0).bool(), shape.ancestors, model.base_model.dtype),
                position_ids=context + torch.arange(size, device=ids.device).expand(rows, -1),
                past_key_values=cache,
            )
        remove_last(cache, size)

    def head() -> None:
        code = drafter.code(0, drafter.state[:, -1:], ids[:, :1], None)
        drafter.scores(0, code).softmax(dim=-1).topk(min(4, len(drafter.vocabulary)))

    calls: list[Callable[[], None]] = [plain, head, *(lambda size=size: tree(size) for size in range(1, MOST + 1))]
    seconds = _take_turns(calls, model.device)
    return PassCosts(seconds[0], tuple(seconds[2:]), seconds[1])


def _mask(ids: Tensor, more: int) -> Tensor:
    return ids.new_ones(len(ids), ids.shape[1] + more)


def _take_turns(calls: list[Callable[[], None]], device: torch.device) -> list[float]:
    """Returns the median seconds of each call. The first round warms up and does not count."""
    taken: list[list[float]] = [[] for _ in calls]
    begun = time.perf_counter()
    for number in range(ROUNDS + 1):
        if number > 2 and time.perf_counter() - begun > SECONDS:
            break
        for call, times in zip(calls, taken, strict=True):
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]
