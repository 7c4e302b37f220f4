"""Proposes drafts for tests: what a file has as the next tokens, now and then a wrong one, and each time another number
of them; and all that heads and lookup guess, whatever they cost. One writes down what the heads read."""

import json
import os
from pathlib import Path
from typing import Any

from otterlm.engines.drafting.step_costs import Cost
from otterlm.engines.vllm.drafts import DraftProposer

TEXTS = "OTTER_TEST_TEXTS"
"""The variable of the environment that names the file: a JSON list of lists of tokens, prompts with what follows."""
STATES = "OTTER_TEST_STATES"
"""The variable of the environment that names the file that states are written to."""


class Oracle:
    """The oracle is a speculative proposer of vLLM, see `otterlm.engines.vllm.drafts.DraftProposer`."""

    def __init__(self, vllm_config: Any) -> None:
        self._texts = json.loads(Path(os.environ[TEXTS]).read_text())
        self._most: int = vllm_config.speculative_config.num_speculative_tokens

    def load_model(self, model: Any) -> None:
        """Needs no model."""

    def propose(self, sampled: list[list[int]], lengths: Any, tokens: Any, **_: Any) -> list[list[int]]:
        """Returns the drafts of each request; none for a text that no text of the file begins with."""
        texts = [row[:length].tolist() for row, length in zip(tokens, lengths[: len(sampled)], strict=False)]
        return [self._drafts(text) if new else [] for new, text in zip(sampled, texts, strict=True)]

    def _drafts(self, text: list[int]) -> list[int]:
        length = len(text)
        following: list[int] = next((each[length:] for each in self._texts if each[:length] == text), [])
        drafts = following[: self._most - length % (self._most + 1)]
        return [token if (length + index) % 7 else token ^ 1 for index, token in enumerate(drafts)]


class Free:
    """Says that drafts cost nothing, see `otterlm.engines.drafting.step_costs.StepCosts`."""

    def wants_plain(self, rows: int) -> bool:
        return False

    def of(self, rows: int) -> Cost:
        return Cost(1e6, 0.0, 0.0)  # what it takes to guess is nothing beside it

    def learn(self, rows: int, drafts: int, seconds: float) -> None:
        """Learns nothing."""


class Eager(DraftProposer):
    """Proposes every guess of the adapter's heads and of the lookup."""

    def __init__(self, vllm_config: Any) -> None:
        super().__init__(vllm_config)
        self._drafting._costs = Free()  # type: ignore[assignment]


class Recorder(Eager):
    """Proposes every guess. It writes each text, and the state that the heads read, as a JSON list a line."""

    def propose(
        self, sampled_token_ids: list[list[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, **_: Any
    ) -> list[list[int]]:
        with Path(os.environ[STATES]).open("a") as file:
            for index, sampled in enumerate(sampled_token_ids):
                if sampled:
                    row = self._model.rows[index][len(sampled) - 1]
                    text = token_ids_cpu[index, : num_tokens_no_spec[index]].tolist()
                    print(json.dumps([text, self._model.sampled[self._name][row, 0].tolist()]), file=file)
        return super().propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
