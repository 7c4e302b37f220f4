"""Fits a reward's vocabulary head to the tokens that matter for guidance: the base's own likeliest next ones.

In training the vocabulary head only meets tokens that the data goes on with. Guidance asks it about others. What it
should say of them the prefix head knows: so at some places of every text the base's k likeliest next tokens are read,
side by side and unseen by each other, and the vocabulary head is fitted to how much each changes the reward. The stream
stays as it is, so its states are read once and the fit itself takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from otterlm.masks import additive, branch_mask
from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.signals.base import Capability
from otterlm.signals.low_rank import LowRankHead
from otterlm.training.data.packing import Batch, Example, collate, followed_tokens, length_buckets


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a vocabulary head can be fitted to.

    Attributes:
        states: `[n, d + d']`, the widened states of the places.
        tokens: `[n, k]` int64, the base's likeliest next tokens there.
        gains: `[n, k]` float32, the prefix reward after each, less that of the place.
    """

    states: Tensor
    tokens: Tensor
    gains: Tensor


@torch.no_grad()
def read_candidates(
    model: OtterModel,
    examples: Sequence[Example],
    k: int = 8,
    places: int = 8,
    seed: int = 0,
    batch_size: int = 8,
    adapter_name: str | None = None,
) -> Candidates:
    """Reads candidates at random places of packed examples; two passes a batch.

    Args:
        model: with the trained adapter.
        examples: pairs or scored texts.
        k: candidates a place.
        places: how many of each example.
        seed: of the places.
        batch_size: examples a pass.
        adapter_name: whose reward; may be left out where there is one.
    """
    name = model.adapter_name(adapter_name, Capability.ADDS)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for group in track(list(length_buckets(examples, batch_size)), "reading candidates"):
        found.append(_read(model, name, collate(group).to(model.device), k, places, generator))
    return Candidates(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _read(
    model: OtterModel, name: str, batch: Batch, k: int, places: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    base, decoder = model.base_model, model.base_model.get_decoder()
    chosen = _choose(batch, places, generator)  # [B, places]
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]
    mask, cache = branch_mask(batch.segments, base.dtype), DynamicCache()

    def read(input_ids: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        stream = model.stream_passes([name])[name]
        with model.visit(stream):
            hidden = decoder(
                input_ids=input_ids, position_ids=positions, attention_mask=mask, past_key_values=cache
            ).last_hidden_state
        assert stream.state is not None
        return hidden, stream.state

    hidden, state = read(batch.input_ids, batch.position_ids, mask)
    likely = base.get_output_embeddings()(hidden[rows, chosen]).topk(k, dim=-1).indices  # [B, places, k]
    # Each candidate sees what its place sees, and itself.
    seen = mask[rows, 0, chosen].repeat_interleave(k, dim=1)[:, None]  # [B, 1, places k, T]
    own = additive(torch.eye(places * k, dtype=torch.bool, device=mask.device), base.dtype)
    positions = (batch.position_ids[rows, chosen] + 1).repeat_interleave(k, dim=1)
    _, after = read(likely.flatten(1), positions, torch.cat((seen, own.expand(len(chosen), 1, -1, -1)), dim=-1))
    head = model.adapter(name).head.prefix
    before = state[rows, chosen]  # [B, places, d + d']
    gains = head(after).view(*likely.shape) - head(before)
    return before.flatten(0, 1).cpu(), likely.flatten(0, 1).cpu(), gains.float().flatten(0, 1).cpu()


def _choose(batch: Batch, places: int, generator: torch.Generator) -> Tensor:
    """Random tokens that a response token follows, `[B, places]`; with repeats where there are fewer."""
    row, _, parent = followed_tokens(batch)
    chosen = []
    for index in range(len(batch.rows)):
        own = parent[row == index].unique().cpu()
        if not len(own):
            own = torch.zeros(1, dtype=torch.long)
        order = torch.randperm(len(own), generator=generator)
        chosen.append(own[order.repeat(-(-places // len(own)))[:places]])
    return torch.stack(chosen).to(batch.input_ids.device)


def fit_vocabulary(
    head: LowRankHead,
    unembedding: Tensor,
    candidates: Candidates,
    epochs: int = 20,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Fits a vocabulary head by least squares (AdamW, linear decay) and leaves it in `head`.

    Args:
        head: of the adapter the candidates were read with.
        unembedding: the base's, `[V, d]`.
        candidates: what to fit to; a tenth is held out.
        epochs, batch_size, learning_rate, seed: of the fit.

    Returns:
        The share of the variance of the held-out gains, around each place's mean, that the head explains: what counts
        for choosing among candidates.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(candidates.states), generator=generator)
    held, kept = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :]
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = epochs * -(-len(kept) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
    device = unembedding.device

    def predicted(places: Tensor) -> Tensor:
        return head.of_tokens(
            candidates.states[places].to(device)[:, None], candidates.tokens[places].to(device), unembedding
        )

    with torch.enable_grad():
        for _ in range(epochs):
            for places in kept[torch.randperm(len(kept), generator=generator)].split(batch_size):
                loss = F.mse_loss(predicted(places), candidates.gains[places].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        gains, said = candidates.gains[held], predicted(held).cpu()
    gains, said = (values - values.mean(dim=1, keepdim=True) for values in (gains, said))
    return float(1 - (gains - said).square().sum() / gains.square().sum().clamp_min(1e-12))
