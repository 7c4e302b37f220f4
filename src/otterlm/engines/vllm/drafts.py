"""Uses Otter's draft head, and a lookup, as vLLM's speculative proposer.

    LLM(model=FOLDER, speculative_config={
        "method": "custom_class", "model": "otterlm.engines.vllm.drafts.DraftProposer", "num_speculative_tokens": 4})

vLLM calls a custom proposer with tokens alone, so the states are read from the model, which holds those of its latest
`compute_logits`. Drafts are guesses at the base's tokens. vLLM verifies them by the steered logits where a request
steers. How many there are in a step is decided in `otterlm.engines.drafting`.
"""

from typing import Any

import torch

from otterlm.engines.drafting import Drafting, Running
from otterlm.engines.vllm.upstream import served
from otterlm.engines.vllm.upstream.names import (
    VllmConfig,
    get_tensor_model_parallel_world_size,
)
from otterlm.errors import OtterError
from otterlm.signals.base import Capability


class DraftProposer:
    """The proposer gives each request the drafts that pay: none, or up to `num_speculative_tokens`.

    Args:
        vllm_config: the engine's.

    Raises:
        OtterError: the folder has not one draft adapter, or several processes share the model.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        config: Any = vllm_config.model_config.hf_config
        names = [name for name, each in served(vllm_config).signals.items() if Capability.DRAFTS in each]
        if len(names) != 1:
            raise OtterError(f"the proposer needs one draft adapter in the exported folder, found {len(names)}")
        if get_tensor_model_parallel_world_size() > 1:
            raise OtterError("drafts need tensor_parallel_size 1: the embedding is read whole")
        self._name = names[0]
        signal = config.otter[self._name]["signal"]
        speculative: Any = vllm_config.speculative_config
        accuracy = [row[0] for row in signal["accuracy"]] or [1.0] * signal["heads"]
        self._drafting = Drafting(accuracy, speculative.num_speculative_tokens)
        self._limits = vllm_config.model_config
        self._model: Any = None

    def load_model(self, model: Any) -> None:
        """Stores the model that vLLM has loaded."""
        self._model = model

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, **_: Any
    ) -> list[list[int]]:
        """Drafts after the tokens that were just accepted.

        Args:
            sampled_token_ids: of each request; empty while its prompt is read.
            num_tokens_no_spec: how many tokens each request's text has.
            token_ids_cpu: `[requests, T]`, the texts.

        Returns:
            For each request at most `num_speculative_tokens` tokens, and no more than its text has room for.
        """
        model, step = self._model, self._model.step
        going = [index for index, sampled in enumerate(sampled_token_ids) if sampled]
        running = [
            Running(
                step.requests[index],
                token_ids_cpu[index, : num_tokens_no_spec[index]],
                len(sampled_token_ids[index]),
                len(model.rows[index]) - 1,
                index not in step.seeded,
            )
            for index in going
        ]

        def heads() -> Any:
            rows = [model.rows[index][len(sampled_token_ids[index]) - 1] for index in going]
            return model.signal(self._name, torch.tensor(rows, device=model.sampled[self._name].device), sampled=True)

        whole = step.tokens == sum(map(len, model.rows)) and len(going) == len(sampled_token_ids)
        drafts = iter(self._drafting.propose(running, heads, whole))
        longest = self._limits.max_model_len - 1  # a token of the base's own follows the drafts
        return [
            next(drafts)[: max(0, longest - int(length))] if sampled else []
            for sampled, length in zip(sampled_token_ids, num_tokens_no_spec, strict=False)
        ]
