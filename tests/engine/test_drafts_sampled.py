"""vLLM's rejection sampler gives samples of the steered distribution, and of the base's beside them. No engine runs."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engines import deviation
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from otterlm.decoding.steering import guide
from otterlm.engines.settings import Settings
from otterlm.engines.vllm.rows import rows_of
from otterlm.engines.vllm.steering import Steering
from otterlm.engines.vllm.upstream import install_worker
from otterlm.engines.vllm.upstream.wrapping import FIELD, shared
from otterlm.signals.base import Capability

VOCABULARY, REQUESTS, TEMPERATURE = 12, 9000, 0.7
SETTINGS = Settings(steer="reward", weight=1.5, top_k=6, min_p=0.0)


class Stub(Steering):
    """Steers by given settings of requests, with a model that has given rewards."""

    def __init__(self, model: Any, settings: dict[int, Settings]) -> None:
        config = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={}))
        super().__init__(config)
        shared(config).model = model
        self._settings = settings

    @property
    def _served(self) -> Any:
        return SimpleNamespace(signals={"reward": Capability.PREFIX | Capability.ADDS})


def metadata(drafts: list[list[int]]) -> SpecDecodeMetadata:
    """Lays out drafts as vLLM's runner does."""
    made = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
    rows = rows_of(made.num_draft_tokens)
    made.target_logits_indices = torch.tensor([row for each in rows for row in each[:-1]])
    made.bonus_logits_indices = torch.tensor([each[-1] for each in rows])
    return made


def sampling(processor: Steering) -> SamplingMetadata:
    none = torch.zeros(REQUESTS)
    return SamplingMetadata(
        temperature=torch.full((REQUESTS,), TEMPERATURE),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=torch.full((REQUESTS,), 8, dtype=torch.int32),
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[] for _ in range(REQUESTS)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors([processor]),
    )


def chances(logits: Tensor, rewards: Tensor | None) -> Tensor:
    """Returns the probability of each token, `[V]`, by the formulas."""
    scores = logits[None].clone()
    if rewards is not None:
        of = lambda tokens: rewards[None].gather(-1, tokens)  # noqa: E731
        scores = guide(scores, of, SETTINGS.weight, SETTINGS.top_k)
    scores = scores.masked_fill(scores < scores.topk(8).values[:, -1:], -torch.inf)
    return (scores / TEMPERATURE).softmax(dim=-1)[0]


def follow(rows: list[list[int]], drafts: list[int], position: int) -> Iterator[int]:
    """Yields the tokens at a position after accepted drafts."""
    yield from (row[position] for row in rows if row[:position] == drafts[:position] and len(row) > position)


@pytest.mark.parametrize("count", [1, 2])
def test_each_position_is_sampled_from_its_own_distribution(count: int) -> None:
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    install_worker()
    torch.manual_seed(count)
    logits, rewards = torch.randn(2, 3, VOCABULARY) * 1.5  # of the positions after no, one and two drafts
    both = [torch.minimum(chances(logits[at], rewards[at]), chances(logits[at], None)) for at in range(count)]
    guesses = [int(each.argmax()) for each in both]  # likely with and without steering
    drafts = [[*guesses[: count if request % 3 else 0]] for request in range(REQUESTS)]  # every third has none
    positions = torch.tensor([position for each in drafts for position in range(len(each) + 1)])
    model = SimpleNamespace(
        states={"reward": positions},
        rows=rows_of([len(each) for each in drafts]),
        signal=lambda _, index: SimpleNamespace(vocabulary=lambda: rewards[positions[index]]),
        rewards=lambda signal, tokens: (
            signal.vocabulary() if tokens is None else signal.vocabulary().gather(-1, tokens)
        ),
        unit=lambda _: 1.0,
    )
    steered = Stub(model, dict.fromkeys(range(0, REQUESTS, 2), SETTINGS))
    sampler = RejectionSampler(Sampler())
    setattr(sampler, FIELD, steered)
    raw = logits[positions]
    output = sampler(metadata(drafts), None, raw.clone(), sampling(steered)).sampled_token_ids.tolist()
    rows = [[token for token in row if token >= 0] for row in output]
    for start, reward in ((0, rewards), (1, None)):
        ours = [rows[request] for request in range(start, REQUESTS, 2) if drafts[request]]
        for position in range(count + 1):
            expected = chances(logits[position], None if reward is None else reward[position])
            other = chances(logits[position], rewards[position] if reward is None else None)
            tokens = list(follow(ours, guesses, position))
            assert len(tokens) > 50
            table = {token: share for token, share in enumerate(expected.tolist()) if share > 0}
            assert deviation(tokens, table) < 4, (start, position)
            assert (expected - other).abs().sum() > 0.2
        alone = [rows[request][0] for request in range(start, REQUESTS, 2) if not drafts[request]]
        expected = chances(logits[0], None if reward is None else reward[0])
        assert deviation(alone, {token: share for token, share in enumerate(expected.tolist()) if share > 0}) < 4
