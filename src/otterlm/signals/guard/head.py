"""The guard signal is the probability of every label for every prefix, in the same pass, and what each next token would
change about it.

A vocabulary head for each label predicts the change of the label's logit by the next token, as the reward's does
(arXiv 2407.04615): logit(v | s) = logit(s) + f(E[v]) . g(s). So a guard steers: log P(harmless) of every next token is
added to its logit, which at weight 1 is Bayes' rule for "the text stays harmless" (FUDGE, arXiv 2104.05218).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.signals.curve import on_curve
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.vocabulary import vocabulary_head


class GuardHead(nn.Module):
    """Reads the labels from the widened state.

    A label has one output for the text, and one more for the passage where passages were marked in the data. They are
    two outputs because after an offence they differ: the text stays offensive to its end, which is what a stop asks,
    and the passage is over, which is what a highlight asks. Neither can be computed from the other.

    With a delay of k tokens a passage has k + 1 outputs, of the latest token and of each of the k before it: the
    first says what is known at once, the others what each further token changes.

    Args:
        config: of the signal.
        width: d + d'.
        base_width: d, the width of the unembedding's rows.
        dtype, device: of the parameters.
    """

    def __init__(self, config: GuardConfig, width: int, base_width: int, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.prefix = nn.Linear(width, len(config.labels), **factory)
        self.spans: nn.Linear | None = None
        if config.spans:
            self.spans = nn.Linear(width, len(config.spans) * (1 + config.span_delay), **factory)
        rank, hidden = config.vocabulary_rank, config.vocabulary_hidden
        made = (vocabulary_head(width, rank, hidden, base_width, **factory) for _ in config.labels)
        self.vocabulary = nn.ModuleList(head for head in made if head is not None)

    def initialize(self) -> None:
        """Sets every logit to 0."""
        for linear in (self.prefix, self.spans):
            if linear is not None:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        heads: Any = self.vocabulary
        for head in heads:
            head.initialize()

    def forward(self, state: Tensor, unembedding: Tensor) -> "GuardSignal":
        """Maps `[B, T, d + d']` and the base's unembedding, `[V, d]`, to the labels."""
        return GuardSignal(self, state, unembedding)


class GuardSignal:
    """Holds the labels of one forward pass. Everything is computed when it is read.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`.
        labels: the names of the labels, L of them.
    """

    def __init__(self, head: GuardHead, state: Tensor, unembedding: Tensor) -> None:
        self.state = state
        self.labels = head.config.labels
        self._head = head
        self._config = head.config
        self._unembedding = unembedding

    @property
    def logits(self) -> Tensor:
        """Returns those of every label after every prefix that ends in this pass, `[B, T, L]` float32."""
        return self._head.prefix(self.state).float()

    @property
    def probabilities(self) -> Tensor:
        """Returns those of every label, `[B, T, L]` float32; they sum to 1 where labels exclude each other."""
        return self.logits.softmax(dim=-1) if self._config.exclusive else self.logits.sigmoid()

    @property
    def span_logits(self) -> Tensor:
        """Returns those of tokens being inside a passage, `[B, T, 1 + k, S]` float32, of each label of
        `GuardConfig.spans`: after every prefix, of its last token and of each of the k before it. A token's later
        logit is the one before, changed by what the next token's state says of it."""
        if self._head.spans is None:
            return self.state.new_empty((*self.state.shape[:-1], 1, 0), dtype=torch.float32)
        shape = (1 + self._config.span_delay, len(self._config.spans))
        first, *changes = self._head.spans(self.state).float().unflatten(-1, shape).unbind(dim=-2)  # [B, T, S] each
        logits = [first]
        for change in changes:
            logits.append(change + F.pad(logits[-1], (0, 0, 1, 0))[:, :-1])
        return torch.stack(logits, dim=-2)

    @property
    def span_probabilities(self) -> Tensor:
        """Returns those of the last token of every prefix being inside a passage, `[B, T, S]` float32."""
        return self.span_logits[..., 0, :].sigmoid()

    @property
    def calibrated(self) -> Tensor:
        """Returns the share of texts that had each offence at this probability, `[B, T, offences]` float32.

        Raises:
            OtterError: the adapter was not calibrated.
        """
        if not self._config.calibrations:
            raise OtterError("this adapter was not calibrated: run otter calibrate")
        probabilities = self.probabilities
        return torch.stack(
            [
                on_curve(each.curve, probabilities[..., self.labels.index(each.label)])
                for each in self._config.calibrations
            ],
            dim=-1,
        )

    @property
    def numbers(self) -> Tensor:
        """Returns what the vocabulary heads predict one token later, `[B, T, L]` float32: the logits."""
        return self.logits

    @property
    def prefix(self) -> Tensor:
        """Returns the log-probability that the text is harmless, `[B, T]` float32: a reward, the higher the better."""
        return log_without(self.logits, self._config)

    def beside(self, token: int, before: "GuardSignal") -> float:
        """Returns the probability that the text that ends with the token is harmless."""
        return float(self.prefix[0, -1].exp())

    def vocabulary(self, tokens: Tensor | None = None, position: int = -1, label: str | None = None) -> Tensor:
        """Returns the expected log-probability that the text stays harmless after each next token.

        Args:
            tokens: `[B, k]` token ids to score; None: the whole vocabulary.
            position: index of the prefix's last token in this pass.
            label: the one offence to stay clear of; None: all.

        Returns:
            `[B, k]` or `[B, V]`, float32.

        Raises:
            OtterError: the adapter was trained without vocabulary heads.
        """
        if not self._head.vocabulary:
            raise OtterError("this guard has no vocabulary heads (vocabulary_rank is 0): it cannot steer")
        state = self.state[:, position]
        if tokens is None:
            heads = [head(state, self._unembedding) for head in self._head.vocabulary]  # [B, V] each
            gains = torch.stack(heads, dim=-1)
        else:
            gains = self.gains(state.unsqueeze(1), tokens)
        return log_without(self.logits[:, position, None] + gains, self._config, label)

    def gains(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Returns how much each token is expected to change the logits of the prefix that ends in a state.

        Args:
            state: `[..., 1, d + d']`, or `[n, d + d']` with one token each.
            tokens: `[..., k]`, or `[n]`.

        Returns:
            `[..., k, L]` or `[n, L]`, float32.
        """
        heads: Any = self._head.vocabulary
        return torch.stack([head.of_tokens(state, tokens, self._unembedding) for head in heads], dim=-1)


def late_logits(logits: Tensor, start: int, end: int) -> Tensor:
    """Returns the logits of a text's tokens being inside a passage, each as late as the text allows.

    Args:
        logits: `[T, 1 + k, S]`, see `GuardSignal.span_logits`.
        start, end: of the text's n tokens in the pass.

    Returns:
        `[n, S]`.
    """
    tokens = torch.arange(start, end, device=logits.device)
    read = (tokens + logits.shape[1] - 1).clamp_max(end - 1)
    return logits[read, read - tokens]


def log_without(logits: Tensor, config: GuardConfig, label: str | None = None) -> Tensor:
    """Returns the log-probability that a text is without an offence.

    Of several independent offences the likeliest counts: how they depend on each other is not known.

    Args:
        logits: `[..., L]`.
        config: which labels exclude each other.
        label: the offence; None: all of them.

    Returns:
        `[...]`.

    Raises:
        OtterError: there is no such offence.
    """
    if label is not None and label not in config.offences:
        raise OtterError(f"the guard has no offence {label!r}; it has: {', '.join(config.offences)}")
    if config.exclusive:
        others = config.harmless if label is None else tuple(name for name in config.labels if name != label)
        return logits.log_softmax(dim=-1)[..., [config.labels.index(name) for name in others]].logsumexp(dim=-1)
    without = F.logsigmoid(-logits)
    return without.amin(dim=-1) if label is None else without[..., config.labels.index(label)]
