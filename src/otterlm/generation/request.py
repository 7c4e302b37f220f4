"""Reads the settings of a call of `generate`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

DEFAULT = 20
"""So many new tokens Transformers generates where nothing says how many."""


def token_numbers(tokens: Any) -> list[int]:
    """Returns the token ids of a setting: one, several, a tensor of them, or None."""
    numbers: list[int] = [] if tokens is None else torch.as_tensor(tokens).flatten().tolist()
    return numbers


@dataclass(frozen=True, slots=True)
class Request:
    """A request holds the settings of a call of `generate`.

    Attributes:
        config: its generation config, the base's defaults filled in.
        mode: how the base alone would decode.
        arguments: of the call, by name.
        vocabulary: how many tokens the base has.
        guarded: the names of the interventions that end rows by a signal; empty: none.
    """

    config: GenerationConfig
    mode: GenerationMode
    arguments: dict[str, Any]
    vocabulary: int
    guarded: str

    @property
    def prompt(self) -> Tensor | None:
        """Returns `[B, T]` ids or `[B, T, d]` embeddings; None where generation starts from nothing."""
        names = ("inputs_embeds", "input_ids", "inputs")
        return next((value for name in names if (value := self.arguments.get(name)) is not None), None)

    @property
    def past(self) -> Cache | None:
        """Returns the caller's KV cache, if there is one."""
        past = self.arguments.get("past_key_values")
        return past if isinstance(past, Cache) else None  # Transformers refuses anything else

    @property
    def read(self) -> int:
        """Returns how many tokens the caller's KV cache holds."""
        return 0 if self.past is None else int(self.past.get_seq_length())

    @property
    def longest(self) -> int:
        """Returns how many tokens a text has at most, with those in the caller's KV cache."""
        mask, prompt, new = self.arguments.get("attention_mask"), self.prompt, self.config.max_new_tokens
        text = 0 if prompt is None else prompt.shape[1]
        if new is None:
            return max(text, self.config.max_length or text + DEFAULT)
        return max(text, 0 if mask is None else mask.shape[-1]) + int(new)

    @property
    def pad(self) -> int | None:
        """Returns the token that follows a response which ends early, None where there is none."""
        pad, ends = self.config.pad_token_id, token_numbers(self.config.eos_token_id)
        return token_numbers(pad)[0] if pad is not None else ends[0] if ends else None

    @property
    def may_end_apart(self) -> str:
        """Names the responses, where there are several and one may end before another does; empty otherwise."""
        ends: Any = self.guarded or self.config.stop_strings or self.arguments.get("stopping_criteria")
        ends = ends or any(token >= 0 for token in token_numbers(self.config.eos_token_id))
        return f"{self.responses} responses" if self.responses > 1 and ends else ""

    @property
    def responses(self) -> int:
        """Returns how many rows are generated."""
        prompts = 1 if self.prompt is None else len(self.prompt)
        return prompts * (self.config.num_return_sequences or 1)
