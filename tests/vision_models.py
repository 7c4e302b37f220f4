"""Makes tiny models that also see, each with a prompt that holds an image."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import randomize
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

IMAGE, START, END = 96, 97, 98
"""Tokens: a part of an image, and what Qwen puts around one."""
WORDS = (5, 6, 7, 8, 9, 10, 11, 12)
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = SIGHT | {"image_size": 28, "patch_size": 14}
QWEN = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "video_token_id": 95,
}
AXES = {"mrope_section": [1, 1, 2]}


def llava() -> PreTrainedModel:
    text, vision = {"model_type": "llama"} | TEXT, {"model_type": "clip_vision_model", "projection_dim": 32} | SQUARE
    tokens = {"image_token_index": IMAGE, "image_token_id": IMAGE}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, **tokens))


def paligemma() -> PreTrainedModel:
    text, vision = {"model_type": "gemma", "head_dim": 8} | TEXT, {"model_type": "siglip_vision_model"} | SQUARE
    tokens = {"image_token_index": IMAGE, "image_token_id": IMAGE}
    config = PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, hidden_size=32, **tokens)
    return PaliGemmaForConditionalGeneration(config)


def idefics3() -> PreTrainedModel:
    text = {"model_type": "llama"} | TEXT
    config = Idefics3Config(text_config=text, vision_config=SQUARE, image_token_id=IMAGE, scale_factor=2)
    return Idefics3ForConditionalGeneration(config)


def smolvlm() -> PreTrainedModel:
    text = {"model_type": "llama"} | TEXT
    config = SmolVLMConfig(text_config=text, vision_config=SQUARE, image_token_id=IMAGE, scale_factor=2)
    return SmolVLMForConditionalGeneration(config)


def gemma3() -> PreTrainedModel:
    text = TEXT | {"head_dim": 16}
    config = Gemma3Config(text_config=text, vision_config=SQUARE, mm_tokens_per_image=4, image_token_index=IMAGE)
    return Gemma3ForConditionalGeneration(config)


def qwen2_5_vl() -> PreTrainedModel:
    text = TEXT | {"rope_scaling": {"type": "mrope", **AXES}}
    vision = QWEN | {"patch_size": 14, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


def qwen3_vl() -> PreTrainedModel:
    text = TEXT | {"head_dim": 8, "rope_scaling": {"rope_type": "default", **AXES}}
    vision = QWEN | {"patch_size": 14, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


def internvl() -> PreTrainedModel:
    text, vision = {"model_type": "qwen2"} | TEXT, SIGHT | {"image_size": [28, 28], "patch_size": [7, 7]}
    tokens = {"image_token_id": IMAGE, "image_seq_length": 4, "downsample_ratio": 0.5}
    return InternVLForConditionalGeneration(InternVLConfig(text_config=text, vision_config=vision, **tokens))


def llama4() -> PreTrainedModel:
    text = TEXT | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 64}
    widths = {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    vision = SQUARE | widths | {"pixel_shuffle_ratio": 0.5}
    tokens = {"image_token_index": IMAGE, "image_token_id": IMAGE}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision, **tokens))


KINDS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "llava": (llava, 4),
    "paligemma": (paligemma, 4),
    "idefics3": (idefics3, 1),
    "smolvlm": (smolvlm, 1),
    "gemma3": (gemma3, 4),
    "qwen2_5_vl": (qwen2_5_vl, 4),
    "qwen3_vl": (qwen3_vl, 4),
    "internvl": (internvl, 4),
    "llama4": (llama4, 1),
}
"""How each model is made, and how many tokens an image takes in it."""


def make(kind: str) -> PreTrainedModel:
    """Makes a frozen model, the same one each time."""
    torch.manual_seed(0)  # of what is no parameter
    model = KINDS[kind][0]()
    randomize(model, 0)
    return model.requires_grad_(False).eval()


def prompt(kind: str) -> Tensor:
    """Returns the tokens of a prompt with an image, `[1, T]`."""
    image = [IMAGE] * KINDS[kind][1]
    return torch.tensor([[1, *([START, *image, END] if kind.startswith("qwen") else image), *WORDS]])


def pixels(kind: str, seed: int) -> dict[str, Tensor]:
    """Returns a random image, as a processor of the model would."""
    generator = torch.Generator().manual_seed(seed)
    if kind.startswith("qwen"):
        return {
            "pixel_values": torch.randn(16, 3 * 2 * 14 * 14, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
    images = (1, 1) if kind in ("idefics3", "smolvlm") else (1,)
    return {"pixel_values": torch.randn(*images, 3, 28, 28, generator=generator)}


def read(kind: str, ids: Tensor, prompt_length: int) -> dict[str, Any]:
    """Returns the inputs of a text beside its image: which tokens are of the image, or of the answer."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    elif kind == "paligemma":  # the prompt is read in both directions, the answer in one
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= prompt_length).long()[None]
    elif kind.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs
