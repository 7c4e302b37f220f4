"""Fits a probe with attention of its own on a block's states, the kind that SingProbe is (vLLM pull request 54892).

Each head weighs the tokens so far by a learned query, and adds up a learned value of each; the sum over the heads is
the logit of an offence. The base stays frozen and the probe sees one block.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

HEADS = 8
EPOCHS = 40
PATIENCE = 3
"""Epochs without a better loss on the texts held out that end the fit."""
BATCH = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1


class AttentionProbe(nn.Module):
    """The probe gives every prefix of a text a logit.

    Args:
        width: d of the states.
        heads: how many.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.query = nn.Linear(width, heads, bias=False)
        self.value = nn.Linear(width, heads)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """Maps states, `[B, T, d]`, to the logit after each token, `[B, T]`."""
        scaled = (states - self.mean) / self.scale
        scores = self.query(scaled) / math.sqrt(states.shape[-1])  # [B, T, H]
        length = states.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()  # [T, T]
        weights = scores[:, None].masked_fill(~seen[None, :, :, None], -math.inf).softmax(dim=2)  # [B, T, T, H]
        return torch.einsum("bijh,bjh->bi", weights, self.value(scaled))


def fit_attention_probe(states: Sequence[Tensor], truth: Tensor, held: Tensor, seed: int = 0) -> AttentionProbe:
    """Fits a probe: every prefix of a text learns the text's label.

    Args:
        states: of each text, `[N, d]`.
        truth: `[n]` bool, of each text.
        held: `[n]` bool, the texts that decide when to stop.
        seed: of the initialisation and of the order.

    Returns:
        The probe with the best loss on the texts held out.
    """
    torch.manual_seed(seed)
    probe = AttentionProbe(states[0].shape[-1])
    every = torch.cat([each.float() for each, out in zip(states, held.tolist(), strict=True) if not out])
    probe.mean.copy_(every.mean(dim=0))
    probe.scale.copy_(every.std(dim=0, correction=0).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(probe.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    learned, decided = (side.nonzero().squeeze(1) for side in (~held, held))
    best, best_loss, waited = probe.state_dict(), math.inf, 0
    for _ in range(EPOCHS):
        order = learned[torch.randperm(len(learned))]
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            _loss(probe, states, truth, rows).backward()
            optimizer.step()
        with torch.no_grad():
            parts = decided.split(BATCH)
            loss = sum(float(_loss(probe, states, truth, rows)) * len(rows) for rows in parts) / len(decided)
        if loss < best_loss:
            best, best_loss, waited = {name: value.clone() for name, value in probe.state_dict().items()}, loss, 0
        else:
            waited += 1
            if waited == PATIENCE:
                break
    probe.load_state_dict(best)
    return probe.eval()


def _loss(probe: AttentionProbe, states: Sequence[Tensor], truth: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean over texts of the mean over prefixes of the cross-entropy."""
    chosen = [states[int(row)].float() for row in rows]
    lengths = torch.tensor([len(each) for each in chosen])
    logits = probe(pad_sequence(chosen, batch_first=True))  # [B, T]
    inside = torch.arange(logits.shape[1]) < lengths[:, None]
    labels = truth[rows].float()[:, None].expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return ((losses * inside).sum(dim=1) / lengths).mean()
