"""Every intervention with every setting of `generate`: honoured, or refused in one line; nothing else.

Honoured means: the tokens are those of the intervention written out (`references.py`), which knows no cache, no drafts
and no stream of states. A setting that only makes generation faster is left out of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import references
import torch
from conftest import VOCABULARY, add_tiny_adapter, refused, tiny_base
from references import Steered, Stopped, Texts, plain
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast, StaticCache

from otterlm.config import ContrastConfig, DraftConfig
from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    DraftTree,
    RejectionSampling,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    stream_tokens,
)
from otterlm.decoding.contrast import contrast
from otterlm.model import OtterModel
from otterlm.peers.args import ARGS
from otterlm.peers.cards import CARDS
from otterlm.peers.dexperts import DExperts
from otterlm.peers.medusa import MedusaDecoding, MedusaHeads
from otterlm.peers.reward_model import SeparateRewardModel

NEW, END, REPLACEMENT, THRESHOLD = 5, 40, [50, 51], -0.2


@cache
def otter() -> OtterModel:
    model = OtterModel(tiny_base(num_hidden_layers=2, max_position_embeddings=64))
    add_tiny_adapter(model, "reward")
    add_tiny_adapter(model, "contrast", seed=2, signal=ContrastConfig(4))
    add_tiny_adapter(model, "draft", seed=3, signal=DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60))
    return model.eval()


@cache
def other_base(seed: int) -> Any:
    return tiny_base(num_hidden_layers=2, max_position_embeddings=64, seed=seed)


@cache
def rewarding() -> SeparateRewardModel:
    model = SeparateRewardModel.of(other_base(3)).requires_grad_(False).eval()
    torch.nn.init.normal_(model.classifier.score.weight, generator=torch.Generator().manual_seed(7))
    return model


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A character a token."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(n + 30): n for n in range(3, VOCABULARY)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def prompts(rows: int) -> dict[str, Tensor]:
    """Prompts in which words come again; the second is left-padded."""
    ids = torch.tensor([[5, 9, 60, 5, 9, 60, 5], [0, 0, 0, 17, 30, 17, 30]])[:rows]
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


# -- the settings ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A setting of `generate`.

    Attributes:
        arguments: makes it, of the prompts.
        rows: how many prompts.
        ends: tokens that end a response.
        refused: names of the interventions that refuse it.
        sampled: whether it needs sampling.
    """

    arguments: Callable[[dict[str, Tensor]], dict[str, Any]]
    rows: int = 2
    ends: tuple[int, ...] = ()
    refused: frozenset[str] = frozenset()
    sampled: bool = False


def embedded(prompt: dict[str, Tensor]) -> dict[str, Any]:
    return {"inputs_embeds": otter().get_input_embeddings()(prompt["input_ids"]), "input_ids": None}


def spread(prompt: dict[str, Tensor]) -> dict[str, Any]:
    return {"position_ids": 2 * (prompt["attention_mask"].cumsum(dim=-1) - 1).clamp_min(0)}


@torch.no_grad()
def turn_before(prompt: dict[str, Tensor]) -> dict[str, Any]:
    """A cache that holds the prompt's first tokens."""
    kept = DynamicCache(config=otter().config)
    otter()(**{name: part[:, :3] for name, part in prompt.items()}, past_key_values=kept)
    return {"past_key_values": kept}


def static_cache(_: dict[str, Tensor]) -> dict[str, Any]:
    return {"past_key_values": StaticCache(config=otter().config, max_cache_len=32)}


def right_padded(prompt: dict[str, Tensor]) -> dict[str, Any]:
    mask = prompt["attention_mask"].clone()
    mask[:, -1] = 0
    return {"attention_mask": mask}


def config_object(prompt: dict[str, Tensor]) -> dict[str, Any]:
    made = GenerationConfig(repetition_penalty=1.5, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    made.pad_token_id = 0
    return {"generation_config": made, "max_new_tokens": NEW}


SAMPLING = frozenset({"best-of-n", "rejection", "cards"})
LOOPS = frozenset({"search", "replace", "speculative", "medusa", "stream"}) | SAMPLING
OWN_CACHE = frozenset({"search", "speculative", "medusa", "rejection", "cards"})
OWN_PACE = frozenset({"speculative", "medusa", "rejection", "cards"})
ALL = LOOPS | {"guidance", "guidance, top-k", "contrast", "stop", "ARGS", "DExperts"}
TOKEN_READERS = frozenset({"best-of-n", "rejection", "cards", "ARGS", "DExperts"})

same = lambda **settings: lambda _: settings  # noqa: E731

SETTINGS = {
    "nothing": Setting(same()),
    "one prompt": Setting(same(), rows=1),
    # Lengths and ends
    "max_length": Setting(same(max_length=7 + NEW, max_new_tokens=None)),
    "max_new_tokens=0": Setting(same(max_new_tokens=0), refused=ALL),
    "eos_token_id": Setting(same(eos_token_id=END), ends=(END,)),
    "several eos_token_id": Setting(same(eos_token_id=[END, 44, 3]), ends=(END, 44, 3)),
    "eos_token_id, no pad_token_id": Setting(same(eos_token_id=END, pad_token_id=None), ends=(END,), rows=1),
    "min_new_tokens": Setting(same(eos_token_id=list(range(3, 60)), min_new_tokens=3), ends=tuple(range(3, 60))),
    "stop_strings": Setting(
        lambda _: {"stop_strings": [chr(END + 30), chr(44 + 30)], "tokenizer": tokenizer()}, ends=(END, 44)
    ),
    "stop_strings, no tokenizer": Setting(same(stop_strings=["a"]), refused=ALL - {"stream"}),
    "max_time": Setting(same(max_time=1e3)),
    "no pad_token_id": Setting(same(pad_token_id=None), refused=frozenset({"replace", "stop"})),
    # Processors
    "repetition_penalty": Setting(same(repetition_penalty=1.7)),
    "no_repeat_ngram_size": Setting(same(no_repeat_ngram_size=2)),
    "bad_words_ids": Setting(same(bad_words_ids=[[n] for n in range(3, 50)])),
    "suppress_tokens": Setting(same(suppress_tokens=list(range(3, 50)))),
    "begin_suppress_tokens": Setting(same(begin_suppress_tokens=list(range(3, 50)))),
    "forced_eos_token_id": Setting(same(forced_eos_token_id=8)),
    "sequence_bias": Setting(same(sequence_bias=[[[11], 9.0], [[11, 12], 9.0]])),
    "renormalize_logits": Setting(same(renormalize_logits=True)),
    "prefix_allowed_tokens_fn": Setting(
        same(prefix_allowed_tokens_fn=lambda row, ids: list(range(10 + 30 * row, 40 + 30 * row)))
    ),
    "guidance_scale": Setting(same(guidance_scale=1.5), refused=OWN_PACE),
    "negative_prompt_ids": Setting(
        lambda prompt: {"guidance_scale": 1.5, "negative_prompt_ids": prompt["input_ids"].flip(1)[:, :4]},
        rows=1,
        refused=OWN_PACE,
    ),
    # Sampling
    "do_sample": Setting(same(do_sample=True), sampled=True),
    "temperature, top_k, top_p": Setting(same(do_sample=True, temperature=0.7, top_k=20, top_p=0.9), sampled=True),
    "num_return_sequences": Setting(
        same(do_sample=True, num_return_sequences=2), sampled=True, refused=frozenset({"search", "stream"})
    ),
    # Other ways of decoding
    "num_beams": Setting(same(num_beams=3), refused=LOOPS | {"stop"}),
    "num_beams, sampled": Setting(same(num_beams=3, do_sample=True), sampled=True, refused=LOOPS | {"stop"}),
    "num_beams, all returned": Setting(same(num_beams=2, num_return_sequences=2), refused=LOOPS | {"stop"}),
    "num_beam_groups": Setting(same(num_beams=4, num_beam_groups=2, diversity_penalty=1.0), refused=ALL),
    "force_words_ids": Setting(same(num_beams=2, force_words_ids=[[7]]), refused=ALL),
    "penalty_alpha": Setting(same(penalty_alpha=0.6, top_k=4), refused=ALL - SAMPLING),
    "dola_layers": Setting(same(dola_layers="low"), refused=ALL),
    "low_memory": Setting(same(low_memory=True)),
    "low_memory, beams": Setting(same(low_memory=True, num_beams=2), refused=ALL),
    # Drafts
    "assistant_model": Setting(lambda _: {"assistant_model": other_base(5)}, rows=1, refused=LOOPS | {"stop"}),
    "the base as assistant": Setting(
        lambda _: {"assistant_model": otter().base_model}, rows=1, refused=LOOPS | {"stop"}
    ),
    "the model as assistant": Setting(lambda _: {"assistant_model": otter()}, rows=1, refused=LOOPS | {"stop"}),
    "assistant_model, eos": Setting(
        lambda _: {"assistant_model": other_base(5), "eos_token_id": END}, rows=1, refused=LOOPS | {"stop"}, ends=(END,)
    ),
    "prompt_lookup_num_tokens": Setting(same(prompt_lookup_num_tokens=3), rows=1, refused=LOOPS | {"stop"}),
    "prompt lookup, a batch": Setting(same(prompt_lookup_num_tokens=3), refused=ALL),
    "prompt lookup, a filled cache": Setting(
        lambda prompt: turn_before(prompt) | {"prompt_lookup_num_tokens": 3}, rows=1, refused=ALL
    ),
    "prompt lookup, stop_strings": Setting(
        lambda _: {"prompt_lookup_num_tokens": 3, "stop_strings": [chr(END + 30)], "tokenizer": tokenizer()},
        rows=1,
        refused=ALL,
    ),
    "prompt lookup, inputs_embeds": Setting(
        lambda prompt: embedded(prompt) | {"prompt_lookup_num_tokens": 3}, rows=1, refused=ALL
    ),
    "prompt lookup, guidance_scale": Setting(same(prompt_lookup_num_tokens=3, guidance_scale=1.5), rows=1, refused=ALL),
    "assistant_early_exit": Setting(same(assistant_early_exit=1), rows=1, refused=ALL),
    # Inputs and caches
    "no attention_mask": Setting(same(attention_mask=None), rows=1),
    "right padding": Setting(right_padded, refused=ALL),
    "inputs_embeds": Setting(embedded, refused=TOKEN_READERS),
    "position_ids": Setting(spread),
    "use_cache=False": Setting(same(use_cache=False)),
    "past_key_values, empty": Setting(lambda _: {"past_key_values": DynamicCache(config=otter().config)}),
    "past_key_values of a turn before": Setting(turn_before, rows=1),
    "past_key_values of new tokens alone": Setting(
        lambda prompt: turn_before(prompt) | {"input_ids": prompt["input_ids"][:, 3:]},
        rows=1,
        refused=OWN_CACHE | TOKEN_READERS | {"replace"},
    ),
    "a static past": Setting(static_cache, refused=frozenset({"stream"})),
    "cache_implementation=static": Setting(same(cache_implementation="static"), refused=OWN_CACHE),
    "cache_implementation=paged": Setting(same(cache_implementation="paged"), refused=ALL),
    "past_key_values, a tuple": Setting(same(past_key_values=((torch.zeros(1), torch.zeros(1)),)), refused=ALL),
    "cache_implementation=dynamic": Setting(same(cache_implementation="dynamic")),
    "prefill_chunk_size": Setting(same(prefill_chunk_size=2), rows=1),
    # Outputs
    "return_dict_in_generate": Setting(same(return_dict_in_generate=True)),
    "output_scores": Setting(same(return_dict_in_generate=True, output_scores=True), refused=LOOPS),
    "output_logits": Setting(same(return_dict_in_generate=True, output_logits=True), refused=LOOPS),
    "output_hidden_states": Setting(same(return_dict_in_generate=True, output_hidden_states=True), refused=LOOPS),
    "output_attentions": Setting(same(return_dict_in_generate=True, output_attentions=True), refused=LOOPS),
    # Others
    "generation_config": Setting(config_object),
    "an unknown argument": Setting(same(max_new_token=3), refused=ALL),
    "token_healing": Setting(lambda _: {"token_healing": True, "tokenizer": tokenizer()}, refused=ALL),
}

# -- the interventions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of `generate`: the settings, the prompts, and where responses end."""

    settings: dict[str, Any]
    texts: Texts
    ends: tuple[int, ...]


def processor(make: Callable[[Call], Any]) -> Callable[[Call], Any]:
    return lambda call: otter().generate(**call.settings, logits_processor=[make(call)])


def loop(make: Callable[[Call], Any]) -> Callable[[Call], Any]:
    return lambda call: otter().generate(**call.settings, custom_generate=make(call))


def base_with(**added: Callable[[Call], Any]) -> Callable[[Call], Tensor]:
    """The base's own decoding, with processors or a loop that are written out."""

    def run(call: Call) -> Tensor:
        made = {name: make(call) for name, make in added.items()}
        return otter().base_model.generate(**(plain(call.settings) | made))

    return run


def steered(steer: Callable[[Any, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return base_with(logits_processor=lambda call: [Steered(call.texts, steer)])


def rewarded(output: Any, scores: Tensor) -> Tensor:
    return scores + 2.0 * output.signals["reward"].vocabulary()


def rewarded_few(output: Any, scores: Tensor) -> Tensor:
    return rewarded(output, scores).masked_fill(scores < scores.topk(6).values[:, -1:], -torch.inf)


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


def replaced(call: Call) -> Tensor:
    sequences, gone = stopped(call)
    start = 0 if call.settings["input_ids"] is None else call.settings["input_ids"].shape[1]
    rows = [
        torch.cat((row[:start], torch.tensor(REPLACEMENT))) if one else row
        for row, one in zip(sequences, gone, strict=True)
    ]
    pad = call.settings["pad_token_id"]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END if pad is None else pad)


def drafted(call: Call) -> Tensor:
    """The base's own; samples are drawn row after row."""
    if not call.settings["do_sample"]:
        return base_with()(call)
    return base_with(custom_generate=lambda call: references.sampled_by_row(call.texts, coins=False))(call)


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
    "guidance, top-k": (processor(lambda _: RewardGuidance(otter(), 2.0, 6)), steered(rewarded_few)),
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
    "replace": (loop(lambda _: ReplaceStopped(THRESHOLD, REPLACEMENT)), replaced),
    "search": (
        loop(lambda _: CandidateSearch(2.0, 4)),
        base_with(custom_generate=lambda call: references.search(call.texts, 2.0, 4)),
    ),
    "best-of-n": (
        loop(lambda _: BestOfN(3)),
        lambda call: references.best_of(call.texts, plain(call.settings), 3, call.ends),
    ),
    "rejection": (loop(lambda _: RejectionSampling(-1e9, **TAKE_ALL)), rejected_none),
    "cards": (loop(lambda _: CARDS(rewarding(), -1e9, **TAKE_ALL)), rejected_none),
    "speculative": (loop(lambda _: SpeculativeDecoding()), drafted),
    "medusa": (loop(medusa), drafted),
    "stream": (streamed, lambda call: base_with()(replace(call, settings=call.settings | {"tokenizer": tokenizer()}))),
}


def call_of(intervention: str, setting: Setting) -> Call:
    prompt = prompts(1 if intervention == "stream" else setting.rows)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    changed = setting.arguments(prompt)
    settings |= prompt | changed
    if intervention in SAMPLING and not setting.sampled:
        settings |= {"do_sample": True, "top_k": 0}
    given = 0 if settings["input_ids"] is None else prompt["input_ids"].shape[1]
    texts = Texts(otter(), prompt["input_ids"], prompt["attention_mask"], changed.get("position_ids"), given)
    return Call(settings, texts, setting.ends)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_a_setting_is_honoured_or_refused(intervention: str, name: str) -> None:
    setting = SETTINGS[name]
    call = call_of(intervention, setting)
    run, write_out = INTERVENTIONS[intervention]
    if intervention in setting.refused:
        refused(lambda: run(call))
        return
    medusa_heads(False)  # takes random numbers once
    torch.manual_seed(0)
    found = run(call)
    torch.manual_seed(0)
    # The settings are made anew, for a cache was filled; and the text is given whole.
    call = call_of(intervention, setting)
    if call.settings["input_ids"] is not None:
        call.settings["input_ids"] = call.texts.ids
    expected = write_out(call)
    found = found if isinstance(found, Tensor) else found.sequences
    start = expected.shape[1] - found.shape[1]  # of a prompt whose first tokens were in a cache
    assert torch.equal(found, expected[:, start:]), (found, expected)
