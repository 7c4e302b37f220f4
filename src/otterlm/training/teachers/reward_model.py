"""Trains the separate reward model of ARGS (arXiv 2402.01694): a copy of the base, fine-tuned, with a scalar head.

Or it is LoRA beside the base's weights, which takes little space but a second pass all the same.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from otterlm.bases import load_tokenizer
from otterlm.causal import decoder_of
from otterlm.errors import OtterError, reason
from otterlm.identity import Identity, of_tokenizer, of_weights
from otterlm.signals.reward.losses import bradley_terry, preference_accuracy
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.packing import Batch
from otterlm.training.data.tokens import Limits, dialogue_tokens
from otterlm.training.teachers.lora import insert_lora, merge_lora


class SeparateRewardModel(nn.Module):
    """A reward model has the base's size. As an objective, it is Bradley-Terry on the last token.

    Args:
        classifier: a sequence classifier of Transformers with one label, whose score head reads every position.

    Attributes:
        identity: what its training depends on, see `otterlm.identity`: the weights that it starts from.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier
        self.identity: Identity = {"base": of_weights(classifier)}

    @classmethod
    def of(cls, base: PreTrainedModel, shared: bool = False) -> Self:
        """Copies a language model, with a score head of zeros.

        Args:
            base: the language model.
            shared: let the copy have the base's weights, frozen, where two do not fit.
        """
        config = copy.deepcopy(base.config)
        config.num_labels = 1
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config, dtype=base.dtype)
        same = {id(weight): weight for weight in base.parameters()} if shared else {}
        setattr(classifier, classifier.base_model_prefix, copy.deepcopy(decoder_of(base), same))
        classifier.score.to_empty(device=base.device)
        nn.init.zeros_(classifier.score.weight)
        return cls(classifier.requires_grad_(not shared))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Loads a trained reward model, frozen, from `save_pretrained` or any sequence classifier with one label.

        Raises:
            OtterError: there is no model, or it has more labels or another kind of head.
        """
        try:
            load = AutoModelForSequenceClassification.from_pretrained
            classifier, loading = load(folder, dtype=dtype, output_loading_info=True)
        except Exception as error:
            raise OtterError(f"{folder} is not a reward model: {reason(error)}") from error
        if classifier.num_labels != 1 or not hasattr(classifier, "score"):
            raise OtterError(f"{folder} is not a reward model: it must have one label and a score for every position")
        if loading["missing_keys"]:  # Transformers makes them up
            raise OtterError(f"{folder} is not a reward model: it lacks {min(loading['missing_keys'])}")
        return cls(classifier.requires_grad_(False).eval())

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the classifier, as Transformers does."""
        self.classifier.save_pretrained(folder)

    @classmethod
    def lora(cls, base: PreTrainedModel, rank: int = 16, recompute: bool = True, shared: bool = False) -> Self:
        """Makes a reward model with LoRA on all linear layers, trained beside the head alone, see `insert_lora`.

        `merge` folds LoRA into the weights: into the base's own, if they are shared.

        Args:
            base: the language model.
            rank, recompute: see `insert_lora`.
            shared: see `of`.
        """
        model = cls.of(base, shared)
        insert_lora(model.classifier.base_model, rank, recompute)
        model.classifier.score.float().requires_grad_(True)
        model.identity |= {"lora": rank}
        return model

    def merge(self) -> Self:
        """Folds LoRA into the weights, see `merge_lora`."""
        merge_lora(self.classifier)
        return self

    def read(self, **inputs: Any) -> Tensor:
        """Returns the reward of every prefix, `[B, T]` float32; arguments are the decoder's."""
        state = self.classifier.base_model(**inputs).last_hidden_state
        return self.classifier.score(state.to(self.classifier.score.weight.dtype)).squeeze(-1).float()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss and the accuracy on packed pairs."""
        rewards = self.read(**batch.inputs(self.classifier.dtype))
        return {
            "loss": bradley_terry(rewards, batch, prefixes=False),
            "accuracy": preference_accuracy(rewards.detach(), batch),
        }


class Preference:
    """Rates responses by a reward model, on its tokens.

    Args:
        folder: a sequence classifier with one label, and its tokenizer.
        dtype, device: in which precision and where it runs.

    Attributes:
        identity: digests of its weights and its tokenizer, see `otterlm.identity`.

    Raises:
        OtterError: the folder holds no reward model.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> None:
        self._tokenizer = load_tokenizer(str(folder))
        self._model, self._device = SeparateRewardModel.from_pretrained(folder, dtype).to(device), device
        self.identity: Identity = {"model": of_weights(self._model), "tokenizer": of_tokenizer(self._tokenizer)}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], limits: Limits) -> list[float]:
        """Returns the reward of each response, as a whole."""
        rewards: list[float] = []
        for prompt, response in zip(prompts, responses, strict=True):
            before, after = dialogue_tokens(Dialogue(prompt, response), self._tokenizer, limits)
            tokens = torch.tensor([before + after], device=self._device)
            rewards.append(float(self._model.read(input_ids=tokens)[0, -1]))
        return rewards
