"""Lists the settings of `generate` that not every intervention can honour.

Each intervention names once which it supports. One check before the first token refuses the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import SynthIDTextWatermarkingConfig
from transformers.generation.configuration_utils import GenerationMode

from otterlm.errors import OtterError
from otterlm.generation import prompts
from otterlm.generation.request import Request


@dataclass(frozen=True, slots=True)
class Supports:
    """The fields are the settings that an intervention can be combined with.

    Attributes:
        beams: `num_beams`.
        drafts: `assistant_model`, `prompt_lookup_num_tokens`, `use_mtp`: passes that verify several tokens.
        samples: `num_return_sequences`.
        following: `guidance_scale` and SynthID watermarks, whose processors follow the text token by token.
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
    following: bool = True
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


def _drafts_and_more(request: Request) -> str:
    if not (drafts := _drafts(request)):
        return ""
    others = [_following(request), _embeddings(request)]
    if request.read:
        others.append("past_key_values that hold tokens")  # Transformers reads the whole text after them
    if request.config.stop_strings or request.arguments.get("stopping_criteria"):
        others.append("stop_strings or stopping_criteria")  # it calls them after several tokens
    return next((f"{drafts} and {other}" for other in others if other), "")


def _samples(request: Request) -> str:
    samples = request.config.num_return_sequences or 1
    return f"num_return_sequences={samples}" if samples > 1 else ""


def _following(request: Request) -> str:
    scale = request.config.guidance_scale
    if isinstance(request.config.watermarking_config, SynthIDTextWatermarkingConfig):
        return "a SynthID watermark"
    return f"guidance_scale={scale}" if scale not in (None, 1) else ""


def _second_pass(request: Request) -> str:
    arguments, scale = request.arguments, request.config.guidance_scale
    tokens = arguments.get("input_ids") is not None or arguments.get("negative_prompt_ids") is not None
    return (
        "guidance_scale and inputs_embeds alone"
        if scale not in (None, 1) and _embeddings(request) and not tokens
        else ""
    )


def _prompt_penalty(request: Request) -> str:
    """Transformers repeats the tokens of the prompts for no response, so the others would do without the penalty."""
    penalty, several = request.config.encoder_repetition_penalty, _beams(request) or _samples(request)
    return f"encoder_repetition_penalty and {several}" if several and penalty not in (None, 1) else ""


def _embeddings(request: Request) -> str:
    return "inputs_embeds" if request.arguments.get("inputs_embeds") is not None else ""


def _caches(request: Request) -> str:
    kind = request.config.cache_implementation
    return "" if kind in (None, "dynamic") else f"cache_implementation={kind!r}"


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
    return f"{apart} and no pad_token_id" if (apart := request.may_end_apart) and request.pad is None else ""


def _no_pad(request: Request) -> str:
    pad, apart = request.pad, request.may_end_apart
    known = pad is None or 0 <= pad < request.vocabulary
    return "" if known or not apart else f"{apart} that are padded with token {pad}"


_SETTINGS: tuple[tuple[str | None, Callable[[Request], str], str], ...] = (
    (None, _methods, "that is another way of decoding; leave it out"),
    ("beams", _beams, "it follows one path a row; num_beams must be 1"),
    ("drafts", _drafts, "it needs passes that it makes itself, or of one token; leave it out"),
    (None, _early_exit, "adapters read all blocks; use another assistant, or disable_adapter"),
    (None, prompts.no_tensor, "give tensors [B, T], as **tokenizer(texts, return_tensors='pt')"),
    (None, prompts.prompt_size, "it needs a text to begin with; give a token, such as bos_token_id"),
    (None, prompts.unknown_tokens, "the base does not have them; use its own tokenizer"),
    (None, prompts.mask_size, "a mask has a number for every token, and for those in past_key_values"),
    (None, prompts.position_size, "give the position of every token of each prompt, or none"),
    (None, prompts.right_padding, "the last position would be padding; pad on the left (padding_side='left')"),
    (None, _paged, "continuous batching decodes by itself; leave it out"),
    (None, _drafts_and_more, "Transformers verifies drafts from an empty cache, for its own ends alone; leave one out"),
    (None, prompts.read_whole, "the last token is to be read again; crop the cache by one token"),
    (None, prompts.too_small_past, "give a larger cache, or a DynamicCache"),
    (None, _second_pass, "its second pass begins with a token; give input_ids or negative_prompt_ids"),
    (None, _prompt_penalty, "only the first responses would have it; leave one out"),
    (None, _no_pad, "the base has no such token; give another pad_token_id"),
    (None, lambda request: "token_healing" if request.config.token_healing else "", "call heal_tokens on the prompt"),
    ("samples", _samples, "each prompt would give the same response again, or more than one"),
    ("following", _following, "it cannot follow rows apart, or tokens that are taken back; leave it out"),
    ("embeddings", _embeddings, "it reads the prompt's tokens; give input_ids"),
    (
        "new_tokens_only",
        prompts.new_tokens_only,
        "it reads the whole text; give all token ids, also those in past_key_values",
    ),
    ("caches", _caches, "it needs a cache that can be cropped; leave cache_implementation out"),
    ("fixed_past", prompts.fixed_past, "it reads one token more than may fit; give a DynamicCache"),
    ("scores", _scores, "it does not collect them; leave them out"),
    ("synced", lambda request: "synced_gpus" if request.arguments.get("synced_gpus") else "", "it runs on its own"),
    ("streamer", _streamer, "it streams by itself"),
    ("batch_streamer", _batch_streamer, "rows grow at their own pace; stream one response"),
    ("guard", lambda request: request.guarded, "it takes tokens back, or reads several texts at once; leave it out"),
    ("unpadded", _unpadded, "a response that ends early is padded; give pad_token_id"),
)
"""An entry has a field of `Supports` (None: no intervention honours it), a function that names the setting where the
call has it, and advice."""
