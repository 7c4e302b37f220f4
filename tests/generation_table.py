"""Lists the settings of `generate` that every intervention is tried with, and which interventions refuse them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from conftest import VOCABULARY, add_tiny_adapter, tiny_base, tokens
from references import Texts
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerFast, StaticCache

from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.teachers.reward_model import SeparateRewardModel

NEW, END, REPLACEMENT, THRESHOLD, ALARM = 5, 40, [50, 51], -0.2, 0.7


@cache
def otter() -> OtterModel:
    model = OtterModel(tiny_base(num_hidden_layers=2, max_position_embeddings=64))
    add_tiny_adapter(model, "reward")
    add_tiny_adapter(model, "contrast", seed=2, signal=ContrastConfig(4))
    add_tiny_adapter(model, "draft", seed=3, signal=DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60))
    return model.eval()


@cache
def guarding() -> OtterModel:
    """The same base with a guard."""
    model = OtterModel(tiny_base(num_hidden_layers=2, max_position_embeddings=64))
    add_tiny_adapter(model, "guard", seed=4, signal=GuardConfig(("rude", "threat"), vocabulary_rank=4))
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
    """Makes a tokenizer with a character a token."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(n + 30): n for n in range(3, VOCABULARY)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def prompts(rows: int) -> dict[str, Tensor]:
    """Returns prompts in which words come again; the second is left-padded."""
    ids = torch.tensor([[5, 9, 60, 5, 9, 60, 5], [0, 0, 0, 17, 30, 17, 30]])[:rows]
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@dataclass(frozen=True)
class Setting:
    """A setting has arguments of `generate`.

    Attributes:
        arguments: makes it, of the prompts.
        rows: how many prompts.
        ends: tokens that end a response.
        refused: names of the interventions that refuse it.
        says: what every refusal says, as a regular expression.
        sampled: whether it needs sampling.
    """

    arguments: Callable[[dict[str, Tensor]], dict[str, Any]]
    rows: int = 2
    ends: tuple[int, ...] = ()
    refused: frozenset[str] = frozenset()
    says: str = ""
    sampled: bool = False


def embedded(prompt: dict[str, Tensor]) -> dict[str, Any]:
    return {"inputs_embeds": otter().get_input_embeddings()(prompt["input_ids"]), "input_ids": None}


def spread(prompt: dict[str, Tensor]) -> dict[str, Any]:
    return {"position_ids": 2 * (prompt["attention_mask"].cumsum(dim=-1) - 1).clamp_min(0)}


@torch.no_grad()
def turn_before(prompt: dict[str, Tensor], model: OtterModel | None = None) -> dict[str, Any]:
    """Returns a cache that holds the prompt's first tokens."""
    model = model or otter()
    cache = DynamicCache(config=model.config)
    model(**{name: part[:, :3] for name, part in prompt.items()}, past_key_values=cache)
    return {"past_key_values": cache}


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
LOOPS = frozenset({"search", "replace", "speculative", "medusa", "stream", "rollback"}) | SAMPLING
CROPS_CACHE = frozenset({"search", "speculative", "medusa", "rejection", "cards", "rollback"})
UNEVEN_ROWS = frozenset({"speculative", "medusa", "rejection", "cards", "rollback"})
STOPS = frozenset({"stop", "guard"})
ALL = LOOPS | STOPS | {"guidance", "guidance, top-k", "contrast", "ARGS", "DExperts"}
TOKEN_READERS = frozenset({"best-of-n", "rejection", "cards", "ARGS", "DExperts", "rollback"})

same = lambda **settings: lambda _: settings  # noqa: E731

SETTINGS = {
    "nothing": Setting(same()),
    "one prompt": Setting(same(), rows=1),
    # Lengths and ends
    "max_length": Setting(same(max_length=7 + NEW, max_new_tokens=None)),
    "max_new_tokens=0": Setting(same(max_new_tokens=0), refused=ALL, says="`max_new_tokens` must be greater than 0"),
    "eos_token_id": Setting(same(eos_token_id=END), ends=(END,)),
    "several eos_token_id": Setting(same(eos_token_id=[END, 44, 3]), ends=(END, 44, 3)),
    "eos_token_id, no pad_token_id": Setting(same(eos_token_id=END, pad_token_id=None), ends=(END,), rows=1),
    "min_new_tokens": Setting(same(eos_token_id=list(range(3, 60)), min_new_tokens=3), ends=tuple(range(3, 60))),
    "stop_strings": Setting(
        lambda _: {"stop_strings": [chr(END + 30), chr(44 + 30)], "tokenizer": tokenizer()}, ends=(END, 44)
    ),
    "stop_strings, no tokenizer": Setting(
        same(stop_strings=["a"]), refused=ALL - {"stream"}, says="stop strings, .*tokenizer"
    ),
    "max_time": Setting(same(max_time=1e3)),
    "no pad_token_id": Setting(
        same(pad_token_id=None), refused=STOPS | {"replace", "rollback"}, says="with 2 responses and no pad_token_id:"
    ),
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
    "guidance_scale": Setting(same(guidance_scale=1.5), refused=UNEVEN_ROWS, says="with guidance_scale=1.5:"),
    "negative_prompt_ids": Setting(
        lambda prompt: {"guidance_scale": 1.5, "negative_prompt_ids": prompt["input_ids"].flip(1)[:, :4]},
        rows=1,
        refused=UNEVEN_ROWS,
        says="with guidance_scale=1.5:",
    ),
    # Sampling
    "do_sample": Setting(same(do_sample=True), sampled=True),
    "temperature, top_k, top_p": Setting(same(do_sample=True, temperature=0.7, top_k=20, top_p=0.9), sampled=True),
    "num_return_sequences": Setting(
        same(do_sample=True, num_return_sequences=2),
        sampled=True,
        refused=frozenset({"search", "stream"}),
        says="with num_return_sequences=2:",
    ),
    # Other ways of decoding
    "num_beams": Setting(same(num_beams=3), refused=LOOPS | STOPS, says="with num_beams=3:"),
    "num_beams, sampled": Setting(
        same(num_beams=3, do_sample=True), sampled=True, refused=LOOPS | STOPS, says="with num_beams=3:"
    ),
    "num_beams, all returned": Setting(
        same(num_beams=2, num_return_sequences=2), refused=LOOPS | STOPS, says="with num_beams=2:"
    ),
    "num_beam_groups": Setting(
        same(num_beams=4, num_beam_groups=2, diversity_penalty=1.0), refused=ALL, says="with num_beam_groups:"
    ),
    "force_words_ids": Setting(same(num_beams=2, force_words_ids=[[7]]), refused=ALL, says="with force_words_ids"),
    "penalty_alpha": Setting(same(penalty_alpha=0.6, top_k=4), refused=ALL - SAMPLING, says="with penalty_alpha:"),
    "dola_layers": Setting(same(dola_layers="low"), refused=ALL, says="with dola_layers:"),
    "low_memory": Setting(same(low_memory=True)),
    "low_memory, beams": Setting(
        same(low_memory=True, num_beams=2), refused=ALL, says="with num_beams=2:|`low_memory=True` is not supported"
    ),
    # Drafts
    "assistant_model": Setting(
        lambda _: {"assistant_model": other_base(5)}, rows=1, refused=LOOPS | STOPS, says="with assistant_model:"
    ),
    "the base as assistant": Setting(
        lambda _: {"assistant_model": otter().base_model},
        rows=1,
        refused=LOOPS | STOPS,
        says="with assistant_model:",
    ),
    "the model as assistant": Setting(
        lambda _: {"assistant_model": otter()}, rows=1, refused=LOOPS | STOPS, says="with assistant_model:"
    ),
    "assistant_model, eos": Setting(
        lambda _: {"assistant_model": other_base(5), "eos_token_id": END},
        rows=1,
        refused=LOOPS | STOPS,
        says="with assistant_model:",
        ends=(END,),
    ),
    "prompt_lookup_num_tokens": Setting(
        same(prompt_lookup_num_tokens=3), rows=1, refused=LOOPS | STOPS, says="with prompt_lookup_num_tokens:"
    ),
    "prompt lookup, a batch": Setting(
        same(prompt_lookup_num_tokens=3),
        refused=ALL,
        says="with prompt_lookup_num_tokens:|only supported for batch_size = 1",
    ),
    "prompt lookup, a filled cache": Setting(
        lambda prompt: turn_before(prompt) | {"prompt_lookup_num_tokens": 3},
        rows=1,
        refused=ALL,
        says="with prompt_lookup_num_tokens( and past_key_values that hold tokens)?:",
    ),
    "prompt lookup, stop_strings": Setting(
        lambda _: {"prompt_lookup_num_tokens": 3, "stop_strings": [chr(END + 30)], "tokenizer": tokenizer()},
        rows=1,
        refused=ALL,
        says="with prompt_lookup_num_tokens( and stop_strings or stopping_criteria)?:",
    ),
    "prompt lookup, inputs_embeds": Setting(
        lambda prompt: embedded(prompt) | {"prompt_lookup_num_tokens": 3},
        rows=1,
        refused=ALL,
        says="with prompt_lookup_num_tokens( and inputs_embeds)?:",
    ),
    "prompt lookup, guidance_scale": Setting(
        same(prompt_lookup_num_tokens=3, guidance_scale=1.5),
        rows=1,
        refused=ALL,
        says="with prompt_lookup_num_tokens( and guidance_scale=1.5)?:",
    ),
    "assistant_early_exit": Setting(
        same(assistant_early_exit=1), rows=1, refused=ALL, says="assistant_early_exit: adapters read all blocks"
    ),
    # Inputs and caches
    "no attention_mask": Setting(same(attention_mask=None), rows=1),
    "right padding": Setting(right_padded, refused=ALL, says="prompts padded on the right:"),
    "inputs_embeds": Setting(embedded, refused=TOKEN_READERS, says="with inputs_embeds:"),
    "position_ids": Setting(spread),
    "use_cache=False": Setting(same(use_cache=False)),
    "past_key_values, empty": Setting(lambda _: {"past_key_values": DynamicCache(config=otter().config)}),
    "past_key_values of a turn before": Setting(turn_before, rows=1),
    "past_key_values of new tokens alone": Setting(
        lambda prompt: turn_before(prompt) | {"input_ids": prompt["input_ids"][:, 3:]},
        rows=1,
        refused=CROPS_CACHE | TOKEN_READERS | {"replace"},
        says="with input_ids of the new tokens alone:",
    ),
    "a static past": Setting(static_cache, refused=frozenset({"stream"}), says="StaticCache"),
    "cache_implementation=static": Setting(
        same(cache_implementation="static"), refused=CROPS_CACHE, says="a cache that can be cropped"
    ),
    "cache_implementation=paged": Setting(
        same(cache_implementation="paged"), refused=ALL, says="with cache_implementation='paged'"
    ),
    "past_key_values, a tuple": Setting(
        same(past_key_values=((torch.zeros(1), torch.zeros(1)),)),
        refused=ALL,
        says="tuple of `past_key_values` is not supported",
    ),
    "cache_implementation=dynamic": Setting(same(cache_implementation="dynamic")),
    "prefill_chunk_size": Setting(same(prefill_chunk_size=2), rows=1),
    # Outputs
    "return_dict_in_generate": Setting(same(return_dict_in_generate=True)),
    "output_scores": Setting(
        same(return_dict_in_generate=True, output_scores=True), refused=LOOPS, says="with output_scores:"
    ),
    "output_logits": Setting(
        same(return_dict_in_generate=True, output_logits=True), refused=LOOPS, says="with output_logits:"
    ),
    "output_hidden_states": Setting(
        same(return_dict_in_generate=True, output_hidden_states=True), refused=LOOPS, says="with output_hidden_states:"
    ),
    "output_attentions": Setting(
        same(return_dict_in_generate=True, output_attentions=True), refused=LOOPS, says="with output_attentions:"
    ),
    # Others
    "generation_config": Setting(config_object),
    "an unknown argument": Setting(same(max_new_token=3), refused=ALL, says="not used by the model: .'max_new_token'"),
    "token_healing": Setting(
        lambda _: {"token_healing": True, "tokenizer": tokenizer()}, refused=ALL, says="with token_healing:"
    ),
}

# -- one call ----------------------------------------------------------------------------------------------------

GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def prompt(rows: int = 1) -> dict[str, Tensor]:
    """Returns prompts of words that do not come again."""
    ids = tokens(rows, 6, seed=4)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def texts(prompts: dict[str, Tensor]) -> Texts:
    return Texts(otter(), prompts["input_ids"], prompts["attention_mask"])
