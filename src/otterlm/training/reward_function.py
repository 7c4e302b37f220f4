"""Gives a trained reward to programs that train a policy by a function of its completions, such as TRL's GRPO."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.data.rows import parse_row
from otterlm.training.data.tokens import Limits, RowEncoder
from otterlm.training.evaluation.scoring import score_ends


class RewardFunction:
    """The function computes an adapter's reward at the end of completions, as TRL calls its `reward_funcs`.

    >>> GRPOTrainer(model=policy, reward_funcs=RewardFunction(otter, tokenizer), train_dataset=prompts, ...)

    Args:
        model: a base with a reward. It may be another than the policy's.
        tokenizer: that base's. The chat template is used as in training.
        adapter_name: may be left out where there is one.
        limits: tokens of a prompt and of a completion, as in the adapter's training.
        batch_size: completions a pass.

    Attributes:
        __name__: what logs call the reward.
    """

    def __init__(
        self,
        model: OtterModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter_name: str | None = None,
        limits: Limits = Limits(),
        batch_size: int = 8,
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._adapter_name, self._limits, self._batch_size = adapter_name, limits, batch_size
        self.__name__ = f"otter_{adapter_name or 'reward'}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns the reward of each completion.

        Args:
            prompts: texts, each what a user says, or lists of messages.
            completions: texts or lists of messages, one a prompt.
            columns: what else TRL passes of the data set and the trainer; not read.

        Raises:
            OtterError: there are more of one than of the other, or one cannot be read.
        """
        if len(prompts) != len(completions):
            raise OtterError(f"there are {len(prompts)} prompts and {len(completions)} completions: give one each")
        rows = [
            parse_row({"prompt": prompt, "completion": _messages(completion), "score": 0.0}, f"completion {number}")
            for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1)
        ]
        examples = list(RowEncoder(self._tokenizer, self._limits).examples(enumerate(rows)))
        if len(examples) < len(rows):
            raise OtterError("a completion has no token to judge: the tokenizer has no end-of-sequence token for it")
        scored = score_ends(self._model, examples, self._batch_size, self._adapter_name)
        return [rewards[-1] for row in scored for rewards in row.rewards]


def _messages(completion: Any) -> Any:
    """Returns a completion as messages: a policy may write any text, also one that a file would hold as a dialogue."""
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
