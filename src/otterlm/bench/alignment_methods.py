"""Makes the methods of the alignment bench: the base, Otter's guidance and search, ARGS, and CARDS."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bench.answering import SAMPLING, Method
from otterlm.bench.args_rival import CALIBRATION, args_settings, load_rival
from otterlm.decoding import CandidateSearch, RejectionSampling, RewardGuidance
from otterlm.decoding.scoring import score_sequences
from otterlm.identity import Identity, of_inserted, of_weights
from otterlm.masks import token_positions
from otterlm.model import OtterModel
from otterlm.peers.cards import CARDS
from otterlm.signals.base import Capability
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.teachers.continuations import continue_greedily, pad_left

BASE, SAMPLED = "base", "base, sampled"


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale is the mean and the standard deviation of a model's rewards on the base's responses."""

    mean: float
    spread: float

    @classmethod
    def of(cls, rewards: Tensor) -> "Scale":
        """Measures rewards of every prefix, `[B, T]`, of texts padded on the left, at their ends."""
        ends = rewards[:, -1]
        return cls(float(ends.mean()), float(ends.std()))

    def acceptance(self) -> dict[str, Any]:
        """Returns when CARDS accepts a segment: one spread above the mean, within 0.7 spreads."""
        return {"threshold": self.mean + self.spread, "beta": 0.7 * self.spread}


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of one model are read by several methods.

    Attributes:
        model: an `OtterModel` or a separate reward model.
        scale: of its rewards.
        parameters: beside the base.
        weights: a digest of what was trained.
        top_k: candidates a step.
    """

    model: Any
    scale: Scale
    parameters: int
    weights: Identity
    top_k: int

    def method(
        self, generator: PreTrainedModel | OtterModel, steer: Callable[[Tensor], dict[str, Any]], **settings: float
    ) -> Method:
        """Makes a method that reads these rewards."""
        depends = {"rewards": self.weights, "scale": asdict(self.scale), "top_k": self.top_k}
        return Method(generator, steer, self.parameters, depends | settings)


def methods_of(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: str | Path,
    reward_model: str | Path,
    prompts: Sequence[Prompt],
    weights: Sequence[float],
    top_k: int = 10,
    new_tokens: int = 64,
    max_prompt_tokens: int = 96,
) -> dict[str, Method]:
    """Makes the base's, Otter's and its rivals' methods, by name.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer.
        adapter: a reward adapter.
        reward_model: a separate reward model, trained on the same data.
        prompts: their first `CALIBRATION` measure the scale of rewards.
        weights: of the rewards, in spreads; every steered method appears with each.
        top_k: candidates a step.
        new_tokens, max_prompt_tokens: as for `otterlm.bench.alignment.answer_all`.

    Raises:
        OtterError: the adapter does not fit or has no reward, or the reward model is none.
    """
    otter = OtterModel.from_pretrained(base, adapter)
    otter.adapter_name(None, Capability.PREFIX)
    separate = load_rival(reward_model, base)
    ids, mask = _calibration_texts(base, tokenizer, prompts, new_tokens, max_prompt_tokens)
    ours = Scale.of(score_sequences(otter, ids, mask))
    theirs = Scale.of(separate.read(input_ids=ids, attention_mask=mask, position_ids=token_positions(mask)).detach())
    stream = otter.adapter()
    inserted = Rewards(otter, ours, stream.extra_parameters(base.config.vocab_size), of_inserted(stream), top_k)
    copied = Rewards(separate, theirs, sum(p.numel() for p in separate.parameters()), of_weights(separate), top_k)
    methods = {BASE: Method(base, lambda mask: {}), SAMPLED: Method(base, lambda mask: SAMPLING)}
    for weight in weights:
        methods |= _steered(base, inserted, copied, weight, tokenizer.pad_token_id or 0)
    return methods | _rejecting(base, inserted, copied)


def _calibration_texts(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int,
    max_prompt_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Returns the first prompts with the base's greedy responses, `[B, T]`, and their mask."""
    encoded = encode_prompts(prompts[:CALIBRATION], tokenizer, max_prompt_tokens)
    responses = continue_greedily(base, tokenizer, encoded, new_tokens)
    texts = [prompt + response for prompt, response in zip(encoded, responses, strict=True)]
    return pad_left(texts, tokenizer.pad_token_id or 0, base.device)


def _steered(base: PreTrainedModel, inserted: Rewards, copied: Rewards, weight: float, pad: int) -> dict[str, Method]:
    """Makes guidance and search with the adapter's rewards, and ARGS with the copy's, at one weight in spreads. All
    choose from the same k candidates."""
    otter, top_k = inserted.model, inserted.top_k
    otter_weight = weight * otter.adapter().config.signal.unit / inserted.scale.spread
    args = args_settings(copied.model, weight / copied.scale.spread, top_k, 0.0, pad)

    def guidance(mask: Tensor) -> dict[str, Any]:
        return {"logits_processor": [RewardGuidance(otter, otter_weight, top_k, min_p=0.0)]}

    def search(mask: Tensor) -> dict[str, Any]:
        return {"custom_generate": CandidateSearch(otter_weight, top_k, min_p=0.0)}

    return {
        f"Otter, guidance, weight {weight:g}": inserted.method(otter, guidance, weight=weight),
        f"Otter, search, weight {weight:g}": inserted.method(otter, search, weight=weight),
        f"ARGS, weight {weight:g}": copied.method(base, args, weight=weight),
    }


def _rejecting(base: PreTrainedModel, inserted: Rewards, copied: Rewards) -> dict[str, Method]:
    """Makes CARDS with the adapter's rewards, and with the copy's."""

    def otter_settings(mask: Tensor) -> dict[str, Any]:
        return SAMPLING | {"custom_generate": RejectionSampling(**inserted.scale.acceptance())}

    def cards_settings(mask: Tensor) -> dict[str, Any]:
        return SAMPLING | {"custom_generate": CARDS(copied.model, **copied.scale.acceptance())}

    return {
        "CARDS, Otter's reward": inserted.method(inserted.model, otter_settings),
        "CARDS": copied.method(OtterModel(base), cards_settings),
    }
