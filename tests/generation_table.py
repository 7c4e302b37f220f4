"""Makes models, prompts and caches for calls of `generate`, and says which interventions are alike."""

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
def turn_before(prompt: dict[str, Tensor], model: OtterModel | None = None, tokens: int = 3) -> dict[str, Any]:
    """Returns a cache that holds the prompt's first tokens."""
    model = model or otter()
    cache = DynamicCache(config=model.config)
    model(**{name: part[:, :tokens] for name, part in prompt.items()}, past_key_values=cache)
    return {"past_key_values": cache}


def static_cache(_: dict[str, Tensor]) -> dict[str, Any]:
    return {"past_key_values": StaticCache(config=otter().config, max_cache_len=32)}


def mask_of(**numbers: Any) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """Makes a setting of the prompts' mask: its number at an index, or its type."""

    def make(prompt: dict[str, Tensor]) -> dict[str, Any]:
        mask = prompt["attention_mask"].clone()
        if "hidden" in numbers:
            mask[:, numbers["hidden"]] = 0
        return {"attention_mask": mask.to(numbers.get("dtype", mask.dtype))}

    return make


def ones(*shape: int) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda _: {"attention_mask": torch.ones(shape, dtype=torch.long)}


def part_of(rows: int | None, tokens: int | None) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """Makes a setting of the first rows and tokens of the prompts."""
    return lambda prompt: {name: part[:rows, :tokens] for name, part in prompt.items()}


def config_object(prompt: dict[str, Tensor]) -> dict[str, Any]:
    made = GenerationConfig(repetition_penalty=1.5, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    made.pad_token_id = 0
    return {"generation_config": made, "max_new_tokens": NEW}


SAMPLING = frozenset({"best-of-n", "rejection", "cards"})
DRAFTS = frozenset({"speculative", "drafts alone", "guided drafts", "medusa"})
REPLACING = frozenset({"replace", "replace guarded"})
LOOPS = frozenset({"search", "stream", "rollback"}) | REPLACING | DRAFTS | SAMPLING
UNEVEN_ROWS = frozenset({"rejection", "cards", "rollback"}) | DRAFTS
CROPS_CACHE = frozenset({"search"}) | UNEVEN_ROWS
STOPS = frozenset({"stop", "guard"})
ALL = LOOPS | STOPS | {"guidance", "guidance, top-k", "contrast", "ARGS", "DExperts"}
GUARDING = frozenset({"guard", "rollback", "replace guarded"})
TOKEN_READERS = frozenset({"best-of-n", "rejection", "cards", "ARGS", "DExperts", "rollback"})

same = lambda **settings: lambda _: settings  # noqa: E731

# -- one call ----------------------------------------------------------------------------------------------------

GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def prompt(rows: int = 1) -> dict[str, Tensor]:
    """Returns prompts of words that do not come again."""
    ids = tokens(rows, 6, seed=4)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def texts(prompts: dict[str, Tensor]) -> Texts:
    return Texts(otter(), prompts["input_ids"], prompts["attention_mask"])
