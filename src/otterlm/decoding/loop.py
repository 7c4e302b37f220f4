"""Defines what all decoding loops share: the call by `generate`, the base's decoding, streaming, and results."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from otterlm.errors import OtterError
from otterlm.generation import Generation, Intervention, Supports
from otterlm.masks import token_positions
from otterlm.model import OtterModel

READ = {"attention_mask", "inputs_embeds", "position_ids"}
"""The loops pass these arguments on."""
REPLACED = {
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "synced_gpus",
    "output_attentions",
    "output_hidden_states",
}
"""These arguments change no token. A loop has another cache, and leaves the caller's unchanged."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run holds what `generate` passes to a loop.

    Attributes:
        model: the model that generates.
        generation: the call.
        input_ids: `[B, T]`, the prompts, padded on the left; `[B, 0]` where `inputs` has their embeddings alone.
        processors: take `[B, T]` tokens and `[B, V]` scores.
        criteria: take `[B, T]` tokens and decide which rows end.
        config: complete.
        streamer: receives the response.
        inputs: further arguments of a pass: mask, positions, cache, ...
    """

    model: OtterModel
    generation: Generation
    input_ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    streamer: BaseStreamer | None = None
    inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def new_tokens(self) -> int:
        """Returns how many tokens a response has at most."""
        return self.config.max_length - self.input_ids.shape[1]

    @property
    def user_cache(self) -> Cache | None:
        """Returns the caller's cache, which may serve the next turn."""
        cache: Cache | None = self.inputs.get("past_key_values")
        return cache if getattr(cache, "_is_user_defined", False) else None

    @property
    def prompt_mask(self) -> Tensor:
        """Returns the mask of the prompts, `[B, P]`, 1 at tokens and 0 at padding."""
        mask: Tensor | None = self.inputs.get("attention_mask")
        if mask is not None:
            return mask
        prompt: Tensor | None = self.inputs.get("inputs_embeds")
        prompt = self.input_ids if prompt is None else prompt
        return torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)

    @property
    def prompt_positions(self) -> Tensor:
        """Returns the positions of the prompts' tokens, `[B, P]`.

        Raises:
            OtterError: the positions have several axes, as for images.
        """
        mask, positions = self.prompt_mask, self.inputs.get("position_ids")
        if positions is None:
            return token_positions(mask)
        if positions.dim() != 2:
            raise OtterError(f"this decoding counts positions along one axis, got position_ids {list(positions.shape)}")
        return positions[:, -mask.shape[1] :].expand(len(mask), -1)

    def check_inputs(self) -> None:
        """Checks that a pass takes nothing that the loop does not know.

        Raises:
            OtterError: it does.
        """
        unknown = [name for name, value in self.inputs.items() if value is not None and name not in READ | REPLACED]
        if unknown:
            raise OtterError(f"this decoding cannot be combined with {', '.join(unknown)}: leave it out")

    def show(self, tokens: Tensor) -> None:
        """Gives the streamer, if there is one, the next token of each row, `[B]`."""
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())

    def show_all(self, response: Tensor) -> None:
        """Gives the streamer, if there is one, responses that are complete, `[B, N]`."""
        for tokens in response.T:
            self.show(tokens)

    def sample(self, streamer: BaseStreamer | None = None, **changed: Any) -> Tensor:
        """Decodes as the base does, greedily or by sampling.

        Args:
            streamer: receives the tokens.
            changed: arguments of the base's method that replace this run's.

        Returns:
            `[B, T]`.
        """
        arguments = {
            "input_ids": self.input_ids,
            "logits_processor": self.processors,
            "stopping_criteria": self.criteria,
            "generation_config": self.config,
            "streamer": streamer,
        }
        output = self.model._sample(**(arguments | self.inputs | changed))
        sequences: Tensor = output if isinstance(output, Tensor) else output.sequences
        return sequences


class Loop(Intervention, ABC):
    """The loop decodes for `generate(..., custom_generate=...)`.

    Attributes:
        supports: settings of `generate` that are honoured.
        output: the class of the result where a dict is asked for; its other fields are None where the loop is off.
        samples: how many rows are generated for each that is returned.
    """

    supports = Supports(
        beams=False,
        drafts=False,
        caches=False,
        new_tokens_only=False,
        scores=False,
        synced=False,
        unpadded=False,
    )
    output: ClassVar[type[ModelOutput]]
    samples = 1

    @torch.no_grad()
    def __call__(
        self,
        model: OtterModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **inputs: Any,
    ) -> ModelOutput | Tensor:
        """Returns the sequences, `[B, T]`, or an `output` if a dict is asked for. `generate` calls this."""
        generation = getattr(model, "generation", None)
        if not isinstance(generation, Generation):
            raise OtterError(f"{type(self).__name__} reads signals: generate with the OtterModel")
        run = Run(
            model, generation, input_ids, logits_processor, stopping_criteria, generation_config, streamer, inputs
        )
        if streamer is not None:
            streamer.put(input_ids[:: self.samples].cpu())
        if self.off:
            output = self.output(sequences=run.sample(streamer))
        else:
            output = self.decode(run)
            if streamer is not None:
                streamer.end()
        return output if generation_config.return_dict_in_generate else output.sequences

    @abstractmethod
    def decode(self, run: Run) -> Any:
        """Generates, and returns an `output`, whose `sequences` are `[B, T]`."""
