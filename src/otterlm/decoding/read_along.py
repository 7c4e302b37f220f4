"""Runs models beside a generation, to read their next-token logits.

DExperts runs two such models beside the base, and Otter runs none. The base itself, with other prompts, is a contrast
that needs no training.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from otterlm.checks import check_share, check_weight
from otterlm.decoding.prompt import read_once
from otterlm.decoding.rows import repeated
from otterlm.decoding.steering import contrast
from otterlm.errors import OtterError
from otterlm.generation import Intervention, Supports
from otterlm.masks import token_positions


class ReadAlongModel:
    """Computes a model's next-token logits after another prompt and the tokens generated so far, with a KV cache.

    Args:
        model: the model that reads along.
        prompt: `[B, P]` token ids that replace the generation's prompt, padded on the left.
        attention_mask: `[B, P]`, 0 at padding; all ones by default.
    """

    def __init__(self, model: PreTrainedModel, prompt: Tensor, attention_mask: Tensor | None = None) -> None:
        self._model = model
        self._prompt = prompt
        self._mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
        self._read = prompt[:, :0]  # the tokens, prompt and generated, that are in the cache
        self._cache: DynamicCache | None = None

    @torch.no_grad()
    def logits(self, generated: Tensor) -> Tensor:
        """Maps `[B, N]` tokens generated so far to `[B, V]` logits.

        Only tokens that were not read before are passed through the model. B may be a multiple of the prompts, as it is
        with beams.

        Raises:
            OtterError: B is no multiple of the prompts.
        """
        prompt, prompt_mask = (repeated(part, len(generated)) for part in (self._prompt, self._mask))
        whole = torch.cat((prompt, generated), dim=-1)
        mask = torch.cat((prompt_mask, prompt_mask.new_ones(generated.shape)), dim=-1)
        known = self._read.shape[1]
        if self._cache is None or whole.shape[1] <= known or not torch.equal(whole[:, :known], self._read):
            self._cache, known = self._start(prompt, prompt_mask)
        new = whole[:, known:]
        output = self._model(
            input_ids=new,
            attention_mask=mask,
            position_ids=token_positions(mask)[:, -new.shape[1] :],
            past_key_values=self._cache,
            logits_to_keep=1,
        )
        self._read = whole
        return output.logits[:, -1]

    def _start(self, prompt: Tensor, prompt_mask: Tensor) -> tuple[DynamicCache, int]:
        """Returns a KV cache, and how many tokens are in it.

        Equal prompts that follow each other, as `num_return_sequences` makes them, are read once.
        """
        _, counts = torch.cat((prompt, prompt_mask), dim=-1).unique_consecutive(dim=0, return_counts=True)
        samples = int(counts[0])
        if samples == 1 or not bool((counts == samples).all()):
            return DynamicCache(config=self._model.config), 0
        cache = read_once(self._model, prompt[::samples], prompt_mask[::samples], samples)
        return cache, prompt.shape[1] - 1


class TwoModelContrast(Intervention, LogitsProcessor):
    """Adds alpha * (expert - anti-expert) to the logits, where both are models that read along.

    It serves one call of a base's `generate`. With two fine-tuned models this is DExperts (arXiv 2105.03023). With the
    base twice, after a good and a bad system prompt, it is adversarial contrastive decoding (arXiv 2406.16743).

    Args:
        expert, anti_expert: the models that read along.
        prompt_length: tokens of the generation's prompt, padding included.
        alpha: how far; 0 leaves the scores untouched.
        top_p: see `ContrastGuidance`.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = Supports(embeddings=False, new_tokens_only=False)

    def __init__(
        self, expert: ReadAlongModel, anti_expert: ReadAlongModel, prompt_length: int, alpha: float, top_p: float = 0.9
    ) -> None:
        self.expert = expert
        self.anti_expert = anti_expert
        self.prompt_length = prompt_length
        self.alpha = check_weight("alpha", alpha)
        self.off = self.alpha == 0
        self.top_p = check_share("top_p", top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps `[B, T]` tokens so far and `[B, V]` scores of the next to `[B, V]`."""
        if self.off:
            return scores
        if input_ids.shape[1] < self.prompt_length:
            raise OtterError(f"the prompt has {input_ids.shape[1]} tokens, not {self.prompt_length} as was said")
        generated = input_ids[:, self.prompt_length :]
        difference = self.expert.logits(generated) - self.anti_expert.logits(generated)
        return contrast(scores, difference.to(scores), self.alpha, self.top_p)
