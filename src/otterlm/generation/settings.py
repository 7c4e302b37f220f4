"""Lists the settings of `generate` that not every intervention can honour.

Each intervention names once which it supports. One check before the first token refuses the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from otterlm.errors import OtterError


@dataclass(frozen=True, slots=True)
class Supports:
    """The fields are the settings that an intervention can be combined with.

    Attributes:
        beams: `num_beams`.
        drafts: `assistant_model`, `prompt_lookup_num_tokens`, `use_mtp`: passes that verify several tokens.
        samples: `num_return_sequences`.
        unconditional: `guidance_scale`, whose second pass follows the text token by token.
        embeddings: `inputs_embeds`.
        new_tokens_only: `input_ids` without the text that `past_key_values` hold.
        caches: `cache_implementation` other than the dynamic one.
        fixed_past: `past_key_values` of a fixed size.
        scores: `output_scores`, `output_logits`, `output_attentions`, `output_hidden_states`.
        synced: `synced_gpus`.
        streamer: `streamer`.
        batch_streamer: `streamer` with several responses.
        guard: a stop by a signal (`RewardStop`, `GuardStop`) among the stopping criteria.
        unpadded: several responses that end apart, without a `pad_token_id`.
    """

    beams: bool = True
    drafts: bool = True
    samples: bool = True
    unconditional: bool = True
    embeddings: bool = True
    new_tokens_only: bool = True
    caches: bool = True
    fixed_past: bool = True
    scores: bool = True
    synced: bool = True
    streamer: bool = True
    batch_streamer: bool = True
    guard: bool = True
    unpadded: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """A request holds the settings of a call of `generate`.

    Attributes:
        config: its generation config, the base's defaults filled in.
        mode: how the base alone would decode.
        arguments: of the call, by name.
        guarded: the names of the interventions that end rows by a signal; empty: none.
    """

    config: GenerationConfig
    mode: GenerationMode
    arguments: dict[str, Any]
    guarded: str

    @property
    def prompt(self) -> Tensor | None:
        """Returns `[B, T]` ids or `[B, T, d]` embeddings; None where generation starts from nothing."""
        names = ("inputs_embeds", "input_ids", "inputs")
        return next((value for name in names if (value := self.arguments.get(name)) is not None), None)

    @property
    def past(self) -> Cache | None:
        """Returns the caller's KV cache, if there is one."""
        past = self.arguments.get("past_key_values")
        return past if isinstance(past, Cache) else None  # Transformers refuses anything else

    @property
    def responses(self) -> int:
        """Returns how many rows are generated."""
        prompts = 1 if self.prompt is None else len(self.prompt)
        return prompts * (self.config.num_return_sequences or 1)


def check(request: Request, supports: Supports, name: str) -> None:
    """Checks that an intervention honours all settings of a call.

    Args:
        request: the call.
        supports: what the intervention can be combined with.
        name: of the intervention.

    Raises:
        OtterError: a setting cannot be honoured.
    """
    for field, setting_in, advice in _SETTINGS:
        if (field is None or not getattr(supports, field)) and (setting := setting_in(request)):
            raise OtterError(f"{name} cannot be combined with {setting}: {advice}")


def _beams(request: Request) -> str:
    beams = request.config.num_beams or 1
    return f"num_beams={beams}" if beams > 1 else ""


_METHODS = {
    GenerationMode.CONTRASTIVE_SEARCH: "penalty_alpha",
    GenerationMode.DOLA_GENERATION: "dola_layers",
    GenerationMode.GROUP_BEAM_SEARCH: "num_beam_groups",
    GenerationMode.CONSTRAINED_BEAM_SEARCH: "force_words_ids or constraints",
}


def _methods(request: Request) -> str:
    custom = request.arguments.get("custom_generate")
    return f"custom_generate={custom!r}" if isinstance(custom, str) else _METHODS.get(request.mode, "")


def _drafts(request: Request) -> str:
    if request.arguments.get("assistant_model") is not None:
        return "assistant_model"
    names = ("prompt_lookup_num_tokens", "use_mtp")
    return next((name for name in names if getattr(request.config, name, None)), "")


def _early_exit(request: Request) -> str:
    return "assistant_early_exit" if request.config.assistant_early_exit is not None else ""


def _paged(request: Request) -> str:
    return "cache_implementation='paged'" if request.config.cache_implementation == "paged" else ""


def _right_padding(request: Request) -> str:
    mask, prompt = request.arguments.get("attention_mask"), request.prompt
    if mask is None or prompt is None or mask.dim() != 2 or mask.shape != prompt.shape[:2]:
        return ""
    return "prompts padded on the right" if bool((mask[:, -1] == 0).any()) else ""


def _drafts_and_more(request: Request) -> str:
    if not (drafts := _drafts(request)):
        return ""
    others = [_unconditional(request), _embeddings(request)]
    if request.past is not None and request.past.get_seq_length():
        others.append("past_key_values that hold tokens")  # Transformers reads the whole text after them
    if request.config.stop_strings or request.arguments.get("stopping_criteria"):
        others.append("stop_strings or stopping_criteria")  # it calls them after several tokens
    return next((f"{drafts} and {other}" for other in others if other), "")


def _samples(request: Request) -> str:
    samples = request.config.num_return_sequences or 1
    return f"num_return_sequences={samples}" if samples > 1 else ""


def _unconditional(request: Request) -> str:
    scale = request.config.guidance_scale
    return f"guidance_scale={scale}" if scale not in (None, 1) else ""


def _embeddings(request: Request) -> str:
    return "inputs_embeds" if request.arguments.get("inputs_embeds") is not None else ""


def _new_tokens_only(request: Request) -> str:
    past, prompt = request.past, request.prompt
    if past is None or prompt is None or not (read := int(past.get_seq_length())):
        return ""
    mask = request.arguments.get("attention_mask")
    whole = read + 1 if mask is None else mask.shape[1]
    return "input_ids of the new tokens alone" if prompt.shape[1] < whole else ""


def _caches(request: Request) -> str:
    kind = request.config.cache_implementation
    return "" if kind in (None, "dynamic") else f"cache_implementation={kind!r}"


def _fixed_past(request: Request) -> str:
    past = request.past
    return f"a {type(past).__name__}" if past is not None and past.is_compileable else ""


def _scores(request: Request) -> str:
    if not request.config.return_dict_in_generate:
        return ""
    names = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    return ", ".join(name for name in names if getattr(request.config, name))


def _streamer(request: Request) -> str:
    return "streamer" if request.arguments.get("streamer") is not None else ""


def _batch_streamer(request: Request) -> str:
    return f"a streamer of {request.responses} responses" if _streamer(request) and request.responses > 1 else ""


def _unpadded(request: Request) -> str:
    config, arguments = request.config, request.arguments
    padded = config.pad_token_id is not None or config.eos_token_id is not None
    ends = bool(request.guarded) or config.stop_strings or arguments.get("stopping_criteria")
    several = request.responses > 1 and ends and not padded
    return f"{request.responses} responses and no pad_token_id" if several else ""


_SETTINGS: tuple[tuple[str | None, Callable[[Request], str], str], ...] = (
    (None, _methods, "that is another way of decoding; leave it out"),
    ("beams", _beams, "it follows one path a row; num_beams must be 1"),
    ("drafts", _drafts, "it needs passes that it makes itself, or of one token; leave it out"),
    (None, _early_exit, "adapters read all blocks; use another assistant, or disable_adapter"),
    (None, _right_padding, "the last position would be padding; pad on the left (padding_side='left')"),
    (None, _paged, "continuous batching decodes by itself; leave it out"),
    (None, _drafts_and_more, "Transformers verifies drafts from an empty cache, for its own ends alone; leave one out"),
    (None, lambda request: "token_healing" if request.config.token_healing else "", "call heal_tokens on the prompt"),
    ("samples", _samples, "each prompt would give the same response again, or more than one"),
    ("unconditional", _unconditional, "its second pass cannot follow tokens that are taken back; leave it out"),
    ("embeddings", _embeddings, "it reads the prompt's tokens; give input_ids"),
    ("new_tokens_only", _new_tokens_only, "it reads the whole text; give all token ids, also those in past_key_values"),
    ("caches", _caches, "it needs a cache that can be cropped; leave cache_implementation out"),
    ("fixed_past", _fixed_past, "it reads one token more than may fit; give a DynamicCache"),
    ("scores", _scores, "it does not collect them; leave them out"),
    ("synced", lambda request: "synced_gpus" if request.arguments.get("synced_gpus") else "", "it runs on its own"),
    ("streamer", _streamer, "it streams by itself"),
    ("batch_streamer", _batch_streamer, "rows grow at their own pace; stream one response"),
    ("guard", lambda request: request.guarded, "it takes tokens back, or reads several texts at once; leave it out"),
    ("unpadded", _unpadded, "a response that ends early is padded; give pad_token_id"),
)
"""An entry has a field of `Supports` (None: no intervention honours it), a function that names the setting where the
call has it, and advice."""
