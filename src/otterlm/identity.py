"""Identifies the runs that files belong to, by the base, the data and the settings that their numbers depend on.

Checkpoints, recordings, responses, continuations and results of benches hold an identity. A run resumes from them only
if its identity is the same. Otherwise it is refused, and the message names what differs.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError, reason

FORMAT = 2
"""The format of identities. It rises when a run of this version would not end as a run of the version before it did."""

SAMPLES = 16
"""So many numbers of every parameter are compared. Fine-tuned copies differ from their base in all matrices."""

SHOWN = 4
"""A message names at most so many differences."""

Identity = dict[str, Any]
"""JSON can hold an identity. A digest is a mapping with `sha256` and perhaps one more value, which messages show."""


def identity(kind: str, **parts: Any) -> Identity:
    """Returns the identity of a file that a run can resume from.

    Args:
        kind: what it is, such as `checkpoint`.
        parts: everything that its numbers depend on.
    """
    plain: Identity = json.loads(json.dumps({"format": FORMAT, "kind": kind, **parts}))
    return plain


class DataDigest:
    """The digest of data is made item by item: how many there are, and a hash of the `repr` of their list."""

    def __init__(self) -> None:
        self._count, self._hash = 0, hashlib.sha256(b"[")

    def add(self, item: object) -> None:
        """Takes one more item."""
        self._hash.update(f"{', ' if self._count else ''}{item!r}".encode())
        self._count += 1

    @property
    def identity(self) -> Identity:
        """Returns the digest of the items so far."""
        closed = self._hash.copy()
        closed.update(b"]")
        return {"count": self._count, "sha256": closed.hexdigest()}


def of_data(items: Iterable[object]) -> Identity:
    """Returns a digest of data, see `DataDigest`. Data that knows its digest, as `identity`, is not read for it."""
    known: Identity | None = getattr(items, "identity", None)
    if known is not None:
        return known
    digest = DataDigest()
    for item in items:
        digest.add(item)
    return digest.identity


@torch.no_grad()
def of_weights(*modules: nn.Module) -> Identity:
    """Returns a digest of models: the dtype, and a hash of their settings and a few numbers of every parameter.

    It is finer than `otterlm.fingerprint`, which fine-tuned copies may share with their base.
    """
    parameters = [parameter for module in modules for parameter in _parameters(module)]
    samples = [(tuple(parameter.shape), _sample(parameter)) for parameter in parameters]
    dtype = next((str(p.dtype).removeprefix("torch.") for p in parameters if p.is_floating_point()), "none")
    settings = [_settings(module.config.to_dict()) for module in modules if isinstance(module, PreTrainedModel)]
    return {"dtype": dtype, "sha256": hashlib.sha256(repr([samples, settings]).encode()).hexdigest()}


_NO_SETTINGS = ("transformers_version", "dtype", "architectures", "use_cache", "return_dict", "quantization_config")


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns what a model computes with beside its weights, such as the base of its rotary positions.

    Special tokens are left out: they change the data instead.
    """
    return [
        (name, _settings(value) if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) else value)
        for name, value in sorted(config.items())
        if name not in _NO_SETTINGS and not name.startswith(("_", "output_")) and not name.endswith("_token_id")
    ]


def _parameters(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        stored = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, parameter in module.named_parameters(recurse=False):
            # accelerate keeps an offloaded weight elsewhere; torchao's stand for others, and FSDP's for parts.
            weight = stored[name] if parameter.is_meta and stored is not None else parameter.data
            if type(weight) is not Tensor:
                weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight.dequantize()
            yield weight
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:  # some quantised layers hold their weights so
                yield buffer


def _sample(parameter: Tensor) -> list[float]:
    return parameter.flatten()[:: max(1, parameter.numel() // SAMPLES)].double().tolist()


def of_config(config: OtterConfig) -> Identity:
    """Returns an adapter's shape and signal. Its base is identified by `of_weights`."""
    left_out = ["base_model_name_or_path", "base_fingerprint", "version", "peft_type"]
    if config.taps != "edge":
        left_out.append("taps")  # former runs did not say that they read blocks inside
    return {name: value for name, value in json.loads(config.to_json()).items() if name not in left_out}


def of_inserted(adapter: Any) -> Identity:
    """Returns a digest of a trained `otterlm.adapter.Adapter`: its weights, and its configuration with what training
    measured, such as a draft's accuracy."""
    return {"weights": of_weights(adapter), "config": of_config(adapter.config)}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Identity:
    """Returns a digest of a tokenizer: vocabulary, rules, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # of the latest call, not of the tokenizer
        rules.pop(state, None)
    return {"sha256": of_data([rules, sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])["sha256"]}


def check(path: Path, saved: object, wanted: Identity, partial: bool = False) -> None:
    """Checks that a file belongs to this run.

    Args:
        path: of the file.
        saved: the identity that it holds.
        wanted: this run's identity.
        partial: whether only the parts that `wanted` has are compared.

    Raises:
        OtterError: the file belongs to another run; the message names what differs.
    """
    advice = "delete it, or choose another folder"
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise OtterError(f"{path} belongs to a run of another version of otter-lm: {advice}")
    if partial:
        saved = {name: value for name, value in saved.items() if name in wanted}
    differences = list(_differences(saved, wanted))
    if differences:
        more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise OtterError(f"{path} belongs to another run, with other {', '.join(differences[:SHOWN])}{more}: {advice}")


def read_checked(path: Path, wanted: Identity) -> dict[str, Any]:
    """Reads a JSON file whose `identity` must be this run's.

    Raises:
        OtterError: it belongs to another run, or is damaged.
    """
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        held = saved["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OtterError(f"{path} is damaged ({reason(error)}): delete it") from error
    check(path, held, wanted)
    return saved


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yields what differs, in words, as in `base` or `learning_rate (0.001 there, 0.002 now)`."""
    for name in dict.fromkeys([*wanted, *saved]):
        there, now = saved.get(name), wanted.get(name)
        if there == now:
            continue
        digests = [isinstance(value, dict) and "sha256" in value for value in (there, now)]
        if isinstance(there, dict) and isinstance(now, dict) and not any(digests):
            yield from _differences(there, now, f"{within}{name}.")
            continue
        shown = [_shown(value) for value in (there, now)]
        differ = shown[0] != shown[1] and all(len(text) <= 60 for text in shown)
        yield f"{within}{name} ({shown[0]} there, {shown[1]} now)" if differ else f"{within}{name}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        value = next((part for name, part in value.items() if name != "sha256"), "")
    return "none" if value is None else str(value)
