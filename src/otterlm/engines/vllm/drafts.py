"""Uses Otter's draft head as vLLM's speculative proposer.

    LLM(model=FOLDER, speculative_config={
        "method": "custom_class", "model": "otterlm.engines.vllm.drafts.DraftProposer", "num_speculative_tokens": 4})

vLLM calls a custom proposer with tokens alone, so the states are read from the model, which holds those of its latest
`compute_logits`. Drafts are guesses at the base's tokens. vLLM verifies them by the steered logits where a request
steers.
"""

from typing import Any

import torch
from torch import Tensor

from otterlm.engines.vllm.upstream import served
from otterlm.engines.vllm.upstream.names import (
    VllmConfig,
    get_tensor_model_parallel_world_size,
)
from otterlm.errors import OtterError
from otterlm.signals.base import Capability


class DraftProposer:
    """The proposer takes the best guess of each head, one after the other.

    Args:
        vllm_config: the engine's.

    Raises:
        OtterError: the folder has no draft adapter, or one with fewer heads than tokens are asked for.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        config: Any = vllm_config.model_config.hf_config
        names = [name for name, each in served(vllm_config).signals.items() if Capability.DRAFTS in each]
        if len(names) != 1:
            raise OtterError(f"the proposer needs one draft adapter in the exported folder, found {len(names)}")
        self._name = names[0]
        heads = config.otter[self._name]["signal"]["heads"]
        speculative: Any = vllm_config.speculative_config
        self._tokens: int = speculative.num_speculative_tokens
        if self._tokens > heads:
            raise OtterError(f"num_speculative_tokens is {self._tokens}, but the draft adapter has {heads} heads")
        if get_tensor_model_parallel_world_size() > 1:
            raise OtterError("drafts need tensor_parallel_size 1: the embedding is read whole")
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
            num_tokens_no_spec: unused.
            token_ids_cpu: unused.

        Returns:
            For each request `num_speculative_tokens` tokens, or none.
        """
        model = self._model
        drafting = [request for request, sampled in enumerate(sampled_token_ids) if sampled]
        if not drafting:
            return [[] for _ in sampled_token_ids]
        device = model.sampled[self._name].device
        rows = [model.rows[request][len(sampled_token_ids[request]) - 1] for request in drafting]
        chosen = torch.tensor(rows, device=device)
        drafter = model.signal(self._name, chosen, sampled=True)
        token = torch.tensor([sampled_token_ids[request][-1] for request in drafting], device=device)
        state, code, drafted = drafter.state[:, 0], None, list[Tensor]()
        for head in range(self._tokens):
            code = drafter.code(head, state, token, code)
            token = drafter.vocabulary[drafter.scores(head, code).argmax(dim=-1)]
            drafted.append(token)
        drafts = iter(torch.stack(drafted, dim=1).tolist())
        return [next(drafts) if sampled else [] for sampled in sampled_token_ids]
