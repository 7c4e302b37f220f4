"""For those who ask an engine: arguments for offline requests, and what comes back, offline and over HTTP."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from otterlm.engines.exported import read_kinds
from otterlm.engines.vllm.channels import rewards_of
from otterlm.engines.vllm.settings import PREFIX, sampling_arguments


def request(folder: str | Path, **settings: Any) -> dict[str, Any]:
    """Arguments for `vllm.SamplingParams`.

    Args:
        folder: that was exported.
        settings: as in `otterlm.engines.vllm.settings`, without `otter_` before them: `weight=2.0, rewards=1`.

    Raises:
        OtterError: one is unknown or out of range, or no adapter fits.
    """
    config: Any = AutoConfig.from_pretrained(folder)
    arguments = {PREFIX + name: value for name, value in settings.items()}
    needs = sampling_arguments(arguments, read_kinds(config), config.otter_channels, config.vocab_size)
    return {"extra_args": arguments, **needs}


def rewards(folder: str | Path, output: Any) -> dict[str, list[float]]:
    """The rewards beside the tokens of an offline `CompletionOutput` that was asked for with `rewards=1`: of each
    token, that of the text it was chosen after."""
    config: Any = AutoConfig.from_pretrained(folder)
    return rewards_of(output.logprobs or (), config.otter_channels)


def read(stream: Iterable[Any]) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Yields (text, rewards) of each piece of a stream of the `openai` package, whose request had `otter_rewards`.

    Args:
        stream: what `client.chat.completions.create(..., stream=True, extra_body={"vllm_xargs": {"otter_rewards": 1}})`
            gives, or `client.completions.create`.
    """
    for chunk in stream:
        for choice in chunk.choices:
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            signals = (choice.model_extra or {}).get("otter", {}).get("rewards", {})
            if text or signals:
                yield text or "", signals
