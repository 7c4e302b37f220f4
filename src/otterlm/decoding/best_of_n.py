"""Best-of-n: n responses are sampled from the base, the one with the highest reward is given."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from otterlm.decoding.checks import check_count, check_weight
from otterlm.decoding.output import RewardedOutput
from otterlm.decoding.prompt import prompt_mask
from otterlm.decoding.scoring import score_sequences
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class BestOfN:
    """A decoding loop for `model.generate(..., do_sample=True, custom_generate=BestOfN(n))`.

    Args:
        n: responses a prompt.
        weight: 0 is the base's own decoding, a negative weight takes the lowest reward.
        adapter_name: whose reward; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range.
    """

    def __init__(self, n: int, weight: float = 1.0, adapter_name: str | None = None) -> None:
        self.n = check_count("n", n)
        self.weight = check_weight(weight)
        self.adapter_name = adapter_name

    @torch.no_grad()
    def __call__(
        self,
        model: OtterModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> RewardedOutput | Tensor:
        """Called by `generate`. Returns the sequences, `[B, T]`, or a `RewardedOutput` if asked for a dict."""
        model.adapter_name(self.adapter_name, Capability.PREFIX)
        if self.weight == 0:
            return model._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
            )
        if not generation_config.do_sample and self.n > 1:
            raise OtterError("best-of-n needs do_sample=True, or all n responses are the same")
        batch, prompt = input_ids.shape
        input_ids, model_kwargs = model._expand_inputs_for_generation(
            expand_size=self.n, input_ids=input_ids, **model_kwargs
        )
        sequences = model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, **model_kwargs
        )
        if not isinstance(sequences, Tensor):
            sequences = sequences.sequences
        mask = torch.cat(
            (prompt_mask(input_ids, model_kwargs), _until_end(sequences[:, prompt:], generation_config)), dim=-1
        )
        rewards = score_sequences(model, sequences, mask, self.adapter_name)  # [B n, T]
        last = mask.shape[1] - 1 - mask.flip(-1).argmax(dim=-1)
        final = rewards.gather(1, last[:, None]).view(batch, self.n)
        best = (self.weight * final).argmax(dim=1) + self.n * torch.arange(batch, device=final.device)
        if generation_config.return_dict_in_generate:
            return RewardedOutput(sequences=sequences[best], rewards=rewards[best, prompt:])
        return sequences[best]


def _until_end(response: Tensor, generation_config: GenerationConfig) -> Tensor:
    """1 up to and with the first end-of-sequence token, 0 after it, `[B, N]`."""
    ends = generation_config._eos_token_tensor
    if ends is None:
        return torch.ones_like(response)
    ended = torch.isin(response, ends.to(response.device)).long()
    return (ended.cumsum(dim=-1) - ended == 0).long()
