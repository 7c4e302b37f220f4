"""Samples n responses from the base and returns the one with the highest reward (best-of-n)."""

from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from otterlm.checks import check_count, check_weight
from otterlm.decoding.ending import SignalStop
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.output import RewardedOutput
from otterlm.decoding.scoring import score_sequences
from otterlm.errors import OtterError
from otterlm.generation import Request
from otterlm.interventions import CANDIDATES, InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class BestOfN(Loop):
    """The loop decodes for `model.generate(..., do_sample=True, custom_generate=BestOfN(n))`.

    A streamer is shown the response that was chosen, once it is.

    Args:
        n: responses a prompt.
        weight: 0 is the base's decoding, a negative weight takes the lowest reward.
        adapter_name: of the reward; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range, or n responses are not sampled.
    """

    supports = replace(Loop.supports, caches=True, synced=True, embeddings=False)
    output = RewardedOutput

    def __init__(self, n: int, weight: float = 1.0, adapter_name: str | None = None) -> None:
        self.n = check_count("n", n)
        self.weight = check_weight("weight", weight)
        self.adapter_name = adapter_name
        self.off = self.weight == 0
        self.samples = 1 if self.off else self.n

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.PREFIX)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        if not request.config.do_sample and self.samples > 1:
            raise OtterError("best-of-n needs do_sample=True, or all n responses are the same")
        if self.samples > 1 and request.config.encoder_repetition_penalty not in (None, 1):
            raise OtterError("best-of-n cannot be combined with encoder_repetition_penalty: only some would have it")

    def prepare(self, request: Request) -> dict[str, Any]:
        """Has `generate` prepare n rows for each response."""
        arguments, n = request.arguments, self.samples
        if n == 1:
            return {}
        changed: dict[str, Any] = {"num_return_sequences": n * (request.config.num_return_sequences or 1)}
        if (allowed := arguments.get("prefix_allowed_tokens_fn")) is not None:
            changed["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row // n, ids)
        if (
            (positions := arguments.get("position_ids")) is not None
            and positions.dim() == 2
            and request.prompt is not None
        ):
            changed["position_ids"] = positions.expand(len(request.prompt), -1)
        for name in ("negative_prompt_ids", "negative_prompt_attention_mask"):
            if (value := arguments.get(name)) is not None:
                changed[name] = value.repeat_interleave(changed["num_return_sequences"], dim=0)
        return changed

    def decode(self, run: Run) -> RewardedOutput:
        """Samples, scores and chooses, see `Loop`."""
        run.check_inputs()  # the pass that scores makes its own
        prompt = run.input_ids.shape[1]
        changed: dict[str, Any] = {}
        if run.user_cache is not None:
            # It has a row for each prompt, and stays for the next turn.
            changed["past_key_values"] = DynamicCache(config=run.model.config.get_text_config(decoder=True))
        sequences = run.sample(**changed)  # [B n, T]
        lengths = run.generation.lengths
        assert lengths is not None
        response = torch.arange(prompt, sequences.shape[1], device=sequences.device) < lengths[:, None]
        mask = torch.cat((run.prompt_mask, response.to(run.prompt_mask)), dim=-1)
        first = run.prompt_positions
        behind = first[:, -1:] + 1 + torch.arange(response.shape[1], device=first.device)
        positions = torch.cat((first, behind), dim=-1)
        rewards = score_sequences(run.model, sequences, mask, self.adapter_name, positions)  # [B n, T]
        final = rewards.gather(1, lengths[:, None] - 1).view(-1, self.n)  # [B, n]
        best = (self.weight * final).argmax(dim=1) + self.n * torch.arange(len(final), device=final.device)  # [B]
        for criterion in run.criteria:
            if isinstance(criterion, SignalStop):
                criterion.keep(best)
        run.show_all(sequences[best, prompt:])
        return RewardedOutput(sequences=sequences[best], rewards=rewards[best, prompt:])


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> BestOfN:
    """Makes the best-of-n of the registry, see `otterlm.interventions`."""
    return BestOfN(settings.top_k or CANDIDATES, settings.weight, adapter_name)
