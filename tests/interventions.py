"""Runs every intervention by `generate`, and written out without caches, drafts or streams (`references.py`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import references
import torch
from generation_table import (
    ALARM,
    END,
    GUARDING,
    NEW,
    REPLACEMENT,
    SAMPLING,
    THRESHOLD,
    Setting,
    guarding,
    other_base,
    otter,
    prompts,
    rewarding,
    tokenizer,
    turn_before,
)
from references import Steered, Stopped, Texts, plain
from torch import Tensor
from transformers import DynamicCache

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    DraftTree,
    GuardRollback,
    GuardStop,
    RejectionSampling,
    ReplaceGuarded,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    stream_tokens,
)
from otterlm.decoding.steering import contrast
from otterlm.peers.args import ARGS
from otterlm.peers.cards import CARDS
from otterlm.peers.dexperts import DExperts
from otterlm.peers.medusa import MedusaDecoding, MedusaHeads


@dataclass(frozen=True)
class Call:
    """A call of `generate` has the settings, the prompts, and where responses end."""

    settings: dict[str, Any]
    texts: Texts
    ends: tuple[int, ...]


def drafts_alone(call: Call) -> Any:
    """The stream of the drafts waits until there are drafts again."""
    with otter().use_adapters(["draft"]):
        return otter().generate(**call.settings, custom_generate=SpeculativeDecoding(3))


def guided_drafts(call: Call) -> Any:
    guidance = [RewardGuidance(otter(), 2.0)]
    return otter().generate(**call.settings, custom_generate=SpeculativeDecoding(3), logits_processor=guidance)


def processor(make: Callable[[Call], Any]) -> Callable[[Call], Any]:
    return lambda call: otter().generate(**call.settings, logits_processor=[make(call)])


def loop(make: Callable[[Call], Any]) -> Callable[[Call], Any]:
    return lambda call: otter().generate(**call.settings, custom_generate=make(call))


def base_with(**added: Callable[[Call], Any]) -> Callable[[Call], Tensor]:
    """Makes the base's decoding, with processors or a loop that are written out."""

    def run(call: Call) -> Tensor:
        made = {name: make(call) for name, make in added.items()}
        return otter().base_model.generate(**(plain(call.settings) | made))

    return run


def steered(steer: Callable[[Any, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return base_with(logits_processor=lambda call: [Steered(call.texts, steer)])


def every_token(output: Any, scores: Tensor) -> Tensor:
    return scores + 2.0 * output.signals["reward"].vocabulary()


def rewarded(output: Any, scores: Tensor) -> Tensor:
    chances = scores.softmax(dim=-1)
    return every_token(output, scores).masked_fill(chances < 0.15 * chances.amax(dim=-1, keepdim=True), -torch.inf)


def rewarded_few(output: Any, scores: Tensor) -> Tensor:
    return every_token(output, scores).masked_fill(scores < scores.topk(6).values[:, -1:], -torch.inf)


def contrasted(output: Any, scores: Tensor) -> Tensor:
    return contrast(scores, output.signals["contrast"].difference(), 3.0, 0.9)


def written_out_experts(call: Call) -> Tensor:
    texts = replace(call.texts, positions=None)  # the experts count their own

    def steer(input_ids: Tensor, scores: Tensor) -> Tensor:
        expert, anti = (texts.read(input_ids, other_base(seed)).logits[:, -1] for seed in (5, 6))
        return contrast(scores, expert - anti, 2.0, 0.9)

    return base_with(logits_processor=lambda _: [steer])(call)


def written_out_args(call: Call) -> Tensor:
    texts = replace(call.texts, positions=None)

    def steer(input_ids: Tensor, scores: Tensor) -> Tensor:
        likely, candidates = scores.topk(4, dim=-1)
        rewards = [texts.read(input_ids, rewarding().read, last=candidates[:, n : n + 1])[:, -1] for n in range(4)]
        return torch.full_like(scores, -torch.inf).scatter(1, candidates, likely + torch.stack(rewards, dim=1))

    return base_with(logits_processor=lambda _: [steer])(call)


def streamed(call: Call) -> Tensor:
    response = [step.token for step in stream_tokens(otter(), tokenizer(), **call.settings)]
    ids = call.settings["input_ids"]
    start = torch.empty(1, 0, dtype=torch.long) if ids is None else ids
    return torch.cat((start, torch.tensor([response])), dim=-1)


def stopped(call: Call) -> tuple[Tensor, Tensor]:
    settings = plain(call.settings)
    stop = Stopped(call.texts, THRESHOLD, call.ends, padded=settings["pad_token_id"] is not None)
    criteria = [*settings.pop("stopping_criteria", []), stop]
    sequences = otter().base_model.generate(**settings, stopping_criteria=criteria)
    assert stop.stopped is not None
    return sequences, stop.stopped


def guarded(call: Call) -> tuple[Tensor, Tensor]:
    settings = plain(call.settings)
    texts = replace(call.texts, otter=guarding())
    stop = references.Alarmed(texts, ALARM, call.ends, padded=settings["pad_token_id"] is not None)
    criteria = [*settings.pop("stopping_criteria", []), stop]
    sequences = guarding().base_model.generate(**settings, stopping_criteria=criteria)
    assert stop.stopped is not None
    return sequences, stop.stopped


def rolled_back(call: Call) -> Tensor:
    loop = references.rolled_back(replace(call.texts, otter=guarding()), ALARM, 1, 2, 3.0)
    return base_with(custom_generate=lambda _: loop)(call)


def replaced(call: Call, ended: Callable[[Call], tuple[Tensor, Tensor]] = stopped) -> Tensor:
    sequences, gone = ended(call)
    start = 0 if call.settings["input_ids"] is None else call.settings["input_ids"].shape[1]
    rows = [
        torch.cat((row[:start], torch.tensor(REPLACEMENT))) if one else row
        for row, one in zip(sequences, gone, strict=True)
    ]
    pad = call.settings["pad_token_id"]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END if pad is None else pad)


def drafted(call: Call, **steering: Callable[[Call], Any]) -> Tensor:
    """The base's own; samples are drawn row after row."""
    if not call.settings["do_sample"]:
        return base_with(**steering)(call)
    sampled = base_with(custom_generate=lambda call: references.sampled_by_row(call.texts, coins=False), **steering)
    return sampled(call)


def drafted_and_guided(call: Call) -> Tensor:
    return drafted(call, logits_processor=lambda call: [Steered(call.texts, rewarded)])


@cache
def medusa_heads(right: bool) -> MedusaHeads:
    """As the base's unembedding, which is sometimes right, or never: samples are drawn row after row only where no
    draft is kept."""
    heads = MedusaHeads(otter().base_model, 3)
    if not right:
        heads.vocabulary = torch.ones_like(heads.vocabulary)
    return heads


def medusa(call: Call) -> MedusaDecoding:
    return MedusaDecoding(medusa_heads(not call.settings["do_sample"]), DraftTree.chain(2))


def experts(call: Call) -> DExperts:
    return DExperts(other_base(5), other_base(6), call.texts.ids, call.texts.mask)


TAKE_ALL: dict[str, Any] = {"entropy": 0.0, "shortest": 1}
rejected_none = base_with(custom_generate=lambda call: references.sampled_by_row(call.texts, coins=True))

INTERVENTIONS: dict[str, tuple[Callable[[Call], Any], Callable[[Call], Tensor]]] = {
    "guidance": (processor(lambda _: RewardGuidance(otter(), 2.0)), steered(rewarded)),
    "guidance, top-k": (processor(lambda _: RewardGuidance(otter(), 2.0, 6, min_p=0.0)), steered(rewarded_few)),
    "contrast": (processor(lambda _: ContrastGuidance(otter(), 3.0)), steered(contrasted)),
    "DExperts": (processor(experts), written_out_experts),
    "ARGS": (
        processor(lambda call: ARGS(rewarding(), 1.0, 4, attention_mask=call.texts.mask)),
        written_out_args,
    ),
    "stop": (
        lambda call: otter().generate(**call.settings, stopping_criteria=[RewardStop(otter(), THRESHOLD)]),
        lambda call: stopped(call)[0],
    ),
    "guard": (
        lambda call: guarding().generate(**call.settings, stopping_criteria=[GuardStop(guarding(), ALARM)]),
        lambda call: guarded(call)[0],
    ),
    "replace guarded": (
        lambda call: guarding().generate(**call.settings, custom_generate=ReplaceGuarded(REPLACEMENT, ALARM)),
        lambda call: replaced(call, guarded),
    ),
    "rollback": (
        lambda call: guarding().generate(**call.settings, custom_generate=GuardRollback(3.0, 1, 2, ALARM)),
        rolled_back,
    ),
    "replace": (loop(lambda _: ReplaceStopped(THRESHOLD, REPLACEMENT)), replaced),
    "search": (
        loop(lambda _: CandidateSearch(2.0, 4, min_p=0.0)),
        base_with(custom_generate=lambda call: references.search(call.texts, 2.0, 4)),
    ),
    "best-of-n": (
        loop(lambda _: BestOfN(3)),
        lambda call: references.best_of(call.texts, plain(call.settings), 3, call.ends),
    ),
    "rejection": (loop(lambda _: RejectionSampling(-1e9, **TAKE_ALL)), rejected_none),
    "cards": (loop(lambda _: CARDS(rewarding(), -1e9, **TAKE_ALL)), rejected_none),
    "speculative": (loop(lambda _: SpeculativeDecoding()), drafted),
    "drafts alone": (drafts_alone, drafted),
    "guided drafts": (guided_drafts, drafted_and_guided),
    "medusa": (loop(medusa), drafted),
    "stream": (streamed, lambda call: base_with()(replace(call, settings=call.settings | {"tokenizer": tokenizer()}))),
}


def call_of(intervention: str, setting: Setting) -> Call:
    prompt = prompts(1 if intervention == "stream" else setting.rows)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    changed = setting.arguments(prompt)
    past = changed.get("past_key_values")
    if intervention in GUARDING and isinstance(past, DynamicCache) and past.get_seq_length():
        changed |= turn_before(prompt, guarding(), past.get_seq_length())
    settings |= prompt | changed
    if intervention in SAMPLING and not setting.sampled:
        settings |= {"do_sample": True, "top_k": 0}
    known = 0 if settings["input_ids"] is None else prompt["input_ids"].shape[1]
    mask: Any = changed.get("attention_mask")
    mask = prompt["attention_mask"] if getattr(mask, "shape", None) != prompt["input_ids"].shape else mask.long()
    texts = Texts(otter(), prompt["input_ids"], mask, changed.get("position_ids"), known)
    return Call(settings, texts, setting.ends)
