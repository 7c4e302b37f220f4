"""Refuses an object that is no base, and says what it is and what to pass instead; finds a base's decoder."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from otterlm.errors import OtterError


def decoder_of(base: Any) -> Any:
    """Returns the part of a base that makes states of tokens.

    Transformers' `get_decoder` is asked first. Some models return themselves, or another part that has this name.
    Llama 4 that also sees returns a causal language model, which has a decoder in turn.
    """
    decoder = base.get_decoder()
    if decoder is not base and isinstance(decoder, PreTrainedModel):
        return decoder if decoder.get_output_embeddings() is None else decoder_of(decoder)
    inside = (child for child in base.children() if isinstance(child, PreTrainedModel))
    return next(inside, decoder)


def check_causal(base: Any) -> None:
    """Checks that `base` is a causal language model of Transformers.

    Raises:
        OtterError: it is something else.
    """
    kind = f"class {base.__name__}" if isinstance(base, type) else type(base).__name__
    load = "load one with AutoModelForCausalLM.from_pretrained or otterlm.bases.load_base"
    if hasattr(base, "_orig_mod"):
        raise OtterError("the base is compiled by torch.compile: wrap it as it was, then compile the OtterModel")
    if not isinstance(base, nn.Module):
        inside = isinstance(getattr(base, "model", None), nn.Module)
        raise OtterError(f"a base is a model, not a {kind}: " + (f"give the {kind}'s .model" if inside else load))
    model: Any = base
    if isinstance(inner := getattr(model, "module", None), nn.Module):
        raise OtterError(f"{kind} wraps a model: give its .module ({type(inner).__name__})")
    if kind == "OtterModel":
        raise OtterError("the base is an OtterModel already: insert more with add_adapter or load_adapter")
    if not all(hasattr(model, name) for name in ("config", "get_decoder", "can_generate")):
        raise OtterError(f"{kind} is not a language model of Transformers: {load}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise OtterError(f"{kind} is an encoder-decoder model; Otter reads decoder-only ones: {load}")
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise OtterError(f"{kind} is not a causal language model (it predicts no next token): {load}")
    if decoder_of(model) is model:
        raise OtterError(f"{kind} does not say which of its parts is the decoder, which Otter reads: {load}")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise OtterError(
            f"{kind} puts virtual tokens before the text ({model.active_peft_config.peft_type.value}), so that signals "
            "would be of other positions: use a base without them, or with LoRA"
        )


_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "use_cache")


def forward_signature() -> inspect.Signature:
    """Returns the signature of a forward pass that Transformers' `Trainer` reads.

    It keeps the columns of a dataset that are named here, and knows by `labels` that there is a loss.
    """
    positional, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("self", positional), inspect.Parameter(_INPUTS[0], positional, default=None)]
    parameters += [inspect.Parameter(name, named, default=None) for name in _INPUTS[1:]]
    return inspect.Signature([*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
