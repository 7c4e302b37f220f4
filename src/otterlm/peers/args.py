"""Implements ARGS (arXiv 2402.01694): a reward model scores the base's top-k candidates at every step.

As published it reads every candidate's whole text again. With a KV cache it reads k tokens a step: that is RAD (arXiv
2310.09520), and the stronger rival.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from otterlm.cache import keep_path
from otterlm.checks import check_chance, check_count, check_weight
from otterlm.decoding.rows import repeated
from otterlm.decoding.steering import plausible
from otterlm.decoding.transposed_linear import TransposedLinear
from otterlm.errors import OtterError
from otterlm.generation import Intervention, Supports
from otterlm.masks import token_positions, tree_mask
from otterlm.training.teachers.reward_model import SeparateRewardModel


class ARGS(Intervention, LogitsProcessor):
    """Adds weight * reward of the prefix with each candidate to the logits.

    It serves one call of a base's `generate`. Greedy decoding is ARGS-greedy, sampling is ARGS-stochastic.

    Args:
        reward_model: scores the candidates.
        weight: of the reward; 0 leaves the scores untouched.
        top_k: candidates a step; other tokens are ruled out.
        cached: whether the reward model has a KV cache (RAD) or reads every text again (ARGS as published).
        attention_mask: `[B, P]` of the prompts, 0 at padding; all ones by default.
        min_p: candidates have at least this share of the likeliest one's probability; 0: any.
        pad_token_id: what `generate` writes after a text that has ended; such a text is not read again.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = Supports(embeddings=False, new_tokens_only=False)

    def __init__(
        self,
        reward_model: SeparateRewardModel,
        weight: float,
        top_k: int = 10,
        cached: bool = True,
        attention_mask: Tensor | None = None,
        min_p: float = 0.0,
        pad_token_id: int | None = None,
    ) -> None:
        self.reward_model = reward_model
        self.weight = check_weight("weight", weight)
        self.off = self.weight == 0
        self.top_k = check_count("top_k", top_k)
        self.cached = cached
        self.min_p = check_chance("min_p", min_p)
        self._prompt_mask = attention_mask
        self._pad = pad_token_id
        self._turned = TransposedLinear(reward_model.classifier)
        self._cache: DynamicCache | None = None
        self._tried: Tensor | None = None  # [B, T + k], what is in the cache: the text and its rival next tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps `[B, T]` tokens so far and `[B, V]` scores of the next to `[B, V]`."""
        if self.off:
            return scores
        likely, candidates, rewards = self.rate(input_ids, scores)
        guided = likely + self.weight * rewards.to(likely)
        if self.min_p > 0:
            guided = guided.masked_fill(~plausible(likely, self.min_p), -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(-1, candidates, guided)

    def rate(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the scores of the candidates, the likeliest first, their ids and their rewards, each `[B, k]`."""
        likely, candidates = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)
        mask = torch.ones_like(input_ids)
        if self._prompt_mask is not None:
            prompt = self._prompt_mask.shape[1]
            if input_ids.shape[1] < prompt:
                raise OtterError(f"the prompt has {input_ids.shape[1]} tokens, but its attention_mask has {prompt}")
            mask[:, :prompt] = repeated(self._prompt_mask, len(mask))
        rewards = (self._over_cache if self.cached else self._without_cache)(input_ids, candidates, mask)
        return likely, candidates, rewards

    def _without_cache(self, input_ids: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        k = candidates.shape[1]
        texts = torch.cat((input_ids.repeat_interleave(k, dim=0), candidates.reshape(-1, 1)), dim=-1)  # [B k, T + 1]
        masks = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=-1).repeat_interleave(k, dim=0)
        read = self.reward_model.read(input_ids=texts, attention_mask=masks, position_ids=token_positions(masks))
        return read[:, -1].view(-1, k)

    def _over_cache(self, input_ids: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        positions = token_positions(mask)
        if not self._keep_chosen(input_ids):
            self._cache = DynamicCache()
            self.reward_model.read(
                input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=self._cache
            )
        k = candidates.shape[1]
        rivals = torch.eye(k, dtype=torch.bool)
        with self._turned:
            read = self.reward_model.read(
                input_ids=candidates,
                attention_mask=tree_mask(mask.bool(), rivals, self.reward_model.classifier.dtype),
                position_ids=(positions[:, -1:] + 1).expand(-1, k),
                past_key_values=self._cache,
            )
        self._tried = torch.cat((input_ids, candidates), dim=-1)
        return read

    def _keep_chosen(self, input_ids: Tensor) -> bool:
        """Keeps the chosen ones of the last step's candidates in the cache.

        Returns:
            False if the text is not their continuation.
        """
        if self._tried is None or self._cache is None:
            return False
        before = input_ids.shape[1] - 1
        known, candidates = self._tried[:, :before], self._tried[:, before:]
        if known.shape != input_ids[:, :-1].shape or not torch.equal(known, input_ids[:, :-1]):
            return False
        right = candidates == input_ids[:, -1:]  # [B, k]
        ended = input_ids[:, -1] == self._pad  # whatever of these is kept, nothing depends on it
        if candidates.shape[1] == 0 or not (right.any(dim=1) | ended).all():
            return False
        keep_path(self._cache, right.int().argmax(dim=1, keepdim=True), candidates.shape[1])
        return True
