"""Says what in the prompt of a call of `generate` cannot be honoured, or would be misread without a word."""

from torch import Tensor
from transformers.cache_utils import StaticLayer

from otterlm.generation.request import Request, token_numbers


def no_tensor(request: Request) -> str:
    """Names a prompt or a mask that is not a tensor, or a prompt without rows."""
    prompt, mask = request.prompt, request.arguments.get("attention_mask")
    for name, value in (("a prompt", prompt), ("an attention_mask", mask)):
        if value is not None and not isinstance(value, Tensor):
            return f"{name} that is a {type(value).__name__}"
    return f"a prompt {list(prompt.shape)}" if prompt is not None and prompt.dim() < 2 else ""


def prompt_size(request: Request) -> str:
    """Names a prompt that holds nothing."""
    prompt = request.prompt
    if prompt is None:
        return ""
    if not prompt.shape[0]:
        return "no prompts"
    return "" if prompt.shape[1] else "a prompt of no tokens"


def unknown_tokens(request: Request) -> str:
    """Names token ids that have no embedding."""
    prompt = request.prompt
    if prompt is None or prompt.dim() != 2:
        return ""
    least, most = int(prompt.min()), int(prompt.max())
    return f"token {most if least >= 0 else least}" if least < 0 or most >= request.vocabulary else ""


def mask_size(request: Request) -> str:
    """Names a mask that is not of the prompts. Transformers cuts a longer one, and repeats one for other rows."""
    mask, prompt = request.arguments.get("attention_mask"), request.prompt
    if mask is None or prompt is None or mask.dim() != 2:
        return ""
    lengths = {prompt.shape[1], prompt.shape[1] + request.read}
    fits = len(mask) == len(prompt) and mask.shape[1] in lengths
    return "" if fits else f"an attention_mask {list(mask.shape)} of prompts {list(prompt.shape[:2])}"


def position_size(request: Request) -> str:
    """Names positions that are not of the prompts."""
    positions, prompt = request.arguments.get("position_ids"), request.prompt
    if positions is None or prompt is None:
        return ""
    fits = positions.shape[-1] in {prompt.shape[1], prompt.shape[1] + request.read} and positions.dim() > 1
    fits = fits and positions.shape[-2] in {1, len(prompt)}
    return "" if fits else f"position_ids {list(positions.shape)} of prompts {list(prompt.shape[:2])}"


def right_padding(request: Request) -> str:
    """Names prompts whose last position is padding, by their mask, or by the one that Transformers makes."""
    mask, prompt, config = request.arguments.get("attention_mask"), request.prompt, request.config
    if prompt is None:
        return ""
    if mask is not None:
        last = mask[:, -1] if mask.dim() == 2 and mask.shape == prompt.shape[:2] else None
    else:  # Transformers makes one of the pad tokens
        pads = prompt.dim() == 2 and config.pad_token_id is not None
        pads = pads and request.pad not in token_numbers(config.eos_token_id)
        last = prompt[:, -1] != request.pad if pads else None
    return "prompts padded on the right" if last is not None and bool((last == 0).any()) else ""


def read_whole(request: Request) -> str:
    """Names a cache that leaves no token to be read. Transformers would read such a prompt again, after itself."""
    mask, prompt = request.arguments.get("attention_mask"), request.prompt
    if not request.read or prompt is None:
        return ""
    whole = mask is None or mask.shape[-1] == prompt.shape[1]
    return "past_key_values that hold the whole prompt" if whole and request.read >= prompt.shape[1] else ""


def new_tokens_only(request: Request) -> str:
    """Names a prompt that follows the text in the cache."""
    mask, prompt = request.arguments.get("attention_mask"), request.prompt
    if mask is None or prompt is None or not request.read:
        return ""
    return "input_ids of the new tokens alone" if prompt.shape[1] < mask.shape[-1] else ""


def fixed_past(request: Request) -> str:
    """Names a cache of a fixed size."""
    past = request.past
    return f"a {type(past).__name__}" if past is not None and past.is_compileable else ""


def too_small_past(request: Request) -> str:
    """Names a cache of a fixed size in which the longest response does not fit."""
    layers = [] if request.past is None else request.past.layers
    sizes = [layer.max_cache_len for layer in layers if isinstance(layer, StaticLayer) and not layer.is_sliding]
    needed = request.longest - 1  # the last token is not read
    return f"a cache of {min(sizes)} tokens where {needed} are needed" if sizes and min(sizes) < needed else ""
