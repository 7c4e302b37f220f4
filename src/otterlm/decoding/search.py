"""Search (ARGS, arXiv 2402.01694): the base's top-k next tokens are scored by the prefix reward and one is taken.

ARGS runs a second model on every candidate. Here the k candidates go through the base as one pass of k tokens that do
not see each other; it gives their rewards and, for whichever is taken, the logits of the step after. So a token costs
one pass, and no pass is made twice.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from otterlm.cache import keep_path
from otterlm.decoding.checks import check_count, check_weight
from otterlm.decoding.few_tokens import FewTokens
from otterlm.decoding.output import RewardedOutput
from otterlm.decoding.prompt import read_prompt
from otterlm.errors import OtterError
from otterlm.masks import tree_mask
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class CandidateSearch:
    """A decoding loop for `model.generate(..., custom_generate=CandidateSearch(...))`.

    The score of a candidate is its logit + weight * reward of the prefix that ends with it.

    Args:
        weight: of the reward; 0 is the base's own decoding.
        top_k: candidates a step.
        mode: `greedy` takes the best score, `stochastic` samples from softmax(score / temperature).
        temperature: for `stochastic`.
        adapter_name: whose reward; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range.
    """

    def __init__(
        self,
        weight: float,
        top_k: int = 10,
        mode: str = "greedy",
        temperature: float = 1.0,
        adapter_name: str | None = None,
    ) -> None:
        self.weight = check_weight(weight)
        self.top_k = check_count("top_k", top_k)
        if mode not in ("greedy", "stochastic"):
            raise OtterError(f"mode must be greedy or stochastic, got {mode!r}")
        if not temperature > 0:
            raise OtterError(f"the temperature must be above 0, got {temperature!r}")
        self.mode = mode
        self.temperature = temperature
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
        name = model.adapter_name(self.adapter_name, Capability.PREFIX)
        if self.weight == 0:
            return model._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
            )
        prompt = read_prompt(model, input_ids, model_kwargs, generation_config.max_new_tokens or 0)
        logits, seen, position = prompt.output.logits[:, -1], prompt.seen, prompt.position  # [B, V], [B, P], [B]
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        pad = generation_config._pad_token_tensor
        rewards: list[Tensor] = []
        while unfinished.any():
            scores = logits_processor(input_ids, logits.float())
            likely, candidates = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)  # [B, k]
            k = candidates.shape[1]
            with FewTokens():
                output = model(
                    input_ids=candidates,
                    attention_mask=tree_mask(seen.bool(), torch.eye(k, dtype=torch.bool), model.base_model.dtype),
                    position_ids=position[:, None].expand(-1, k),
                    past_key_values=prompt.cache,
                )
            values = output.signals[name].prefix  # [B, k]
            chosen = self._choose(likely + self.weight * values)  # [B]
            keep_path(prompt.cache, chosen[:, None], k)
            rows = torch.arange(len(chosen), device=chosen.device)
            logits = output.logits[rows, chosen]
            token = candidates[rows, chosen]
            reward = values[rows, chosen]
            if pad is not None:
                token = torch.where(unfinished, token, pad.to(token))
            rewards.append(reward.masked_fill(~unfinished, torch.nan))
            input_ids = torch.cat((input_ids, token[:, None]), dim=-1)
            seen = torch.cat((seen, seen.new_ones(len(seen), 1)), dim=-1)
            position = position + 1
            if streamer is not None:
                streamer.put(token.cpu())
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
        if streamer is not None:
            streamer.end()
        if generation_config.return_dict_in_generate:
            return RewardedOutput(sequences=input_ids, rewards=torch.stack(rewards, dim=1))
        return input_ids

    def _choose(self, scores: Tensor) -> Tensor:
        if self.mode == "greedy":
            return scores.argmax(dim=-1)
        return torch.multinomial((scores / self.temperature).softmax(dim=-1), 1).squeeze(-1)
