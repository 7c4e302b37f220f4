"""Tries a stream in every causal architecture of the installed Transformers, tiny and random.

python tests/architectures.py [NAME ...]    the rows of some types, or of all
"""

import sys
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent))

import transformers
from conftest import add_tiny_adapter, randomize, tiny_otter, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.gemma3n import modeling_gemma3n

from otterlm.errors import OtterError
from otterlm.verification import CASES

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "decoder_layers", "encoder_layers"), 3),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "sliding_window"), 64),
    "tie_word_embeddings": False,
    "is_decoder": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Experts.
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    # Latent attention.
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim", "index_topk"), 8),
    "qk_rope_head_dim": 8,
    "index_n_heads": 2,
    # Linear attention and Mamba.
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "state_size"), 8),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # What sees and hears.
    "depth": 1,
    "num_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    **dict.fromkeys(("out_hidden_size", "adapter_in_dim", "adapter_out_dim", "adapter_input_size"), 32),
    "rotary_dim": 4,
}
"""Of whatever has such a field, and of its parts."""

LATENT = {"num_key_value_heads": 4}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
INDEXED = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8} | {
    "indexer_compress_ratio": 2
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TYPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"), LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), LINEAR),
    **dict.fromkeys(("kimi_linear", "bailing_hybrid"), LINEAR | LATENT),
    "qwen4_exp_text": LINEAR | INDEXED,
    "dots3_note_vision_encoder": {"num_hidden_layers": 42},  # the last have settings of their own
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2}, "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24}},
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA2 | {"layer_types": ["mamba", "attention", "mamba"]},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 32, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba"]},
    "blt": {"encoder_hash_byte_group_vocab": 97},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "xlnet": {"d_head": 8},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {"pronunciation_vocab_size": 97, "shape_vocab_size": 97},
}
"""What single ones need beside."""


def small(config: Any) -> dict[str, Any]:
    """Returns settings that make a configuration, and those in it, small."""
    fields = set(vars(config)) | set(type(config).attribute_map)
    settings = {name: value for name, value in SIZES.items() if name in fields}
    for name, part in vars(config).items():
        if isinstance(part, PretrainedConfig):
            settings[name] = small(part) | ({"model_type": part.model_type} if part.model_type else {})
    return settings | TYPES.get(config.model_type, {})


def without_eyes(config: Any) -> Any:
    """Makes a part of Gemma 3n; its eyes, which need the package timm and see no text, are left out."""
    return torch.nn.Identity() if config.model_type == "gemma3n_vision" else AutoModel.from_config(config)


def tiny_model(name: str) -> PreTrainedModel:
    """Makes a frozen random model of a type, the same one each time."""
    config = AutoConfig.for_model(name, **small(AutoConfig.for_model(name)))
    with patch.object(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=without_eyes)):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, 0)
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Outcome:
    """The outcome says how one type is read.

    Attributes:
        taps: how its blocks are read, `inside` or `edge`; empty where they are not.
        result: `=` where all is equal, bit for bit; else what differs, or why it is refused.
    """

    taps: str
    result: str


def outcome(name: str) -> Outcome:
    """Compares a type with two random adapters and without, in all cases of `otter verify`."""
    try:
        plain = tiny_model(name)
    except Exception as error:
        return Outcome("", f"refused: Transformers makes none ({short(error, 50)})")
    try:
        otter = tiny_otter(tiny_model(name), layers=(0, 2), head_dim=8)
    except OtterError as error:
        return Outcome("", f"refused: {short(str(error).split(EDGE)[-1])}")
    add_tiny_adapter(otter, "other", seed=2, layers=(1,), hidden_size=16, head_dim=8)
    ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
    ids[1, :4], mask[1, :4] = 0, 0
    with torch.no_grad():
        wrong = [case for case, run in CASES.items() if not torch.equal(run(otter, ids, mask), run(plain, ids, mask))]
    return Outcome(otter.adapter("reward").config.taps or "", "differs: " + ", ".join(wrong) if wrong else "=")


HEADING = "## Every causal architecture"
EDGE = "nor can its blocks be read at their edge: "
"""After these words an error says why."""


def short(why: object, width: int = 75) -> str:
    """Returns the first words of a reason, on one line and without what would end a table's cell."""
    return textwrap.shorten(str(why).strip().replace("|", "/"), width, placeholder=" ...")


def table(outcomes: dict[str, Outcome]) -> str:
    """Returns the part of docs/exactness.md on all types."""
    exact = sum(each.result == "=" for each in outcomes.values())
    what = (
        f"All {len(outcomes)} types that `AutoModelForCausalLM` of Transformers {transformers.__version__} knows, as "
        f"tiny random models in fp32, in the same cases. {exact} are exact. The second column says how blocks are "
        "read, see [families](families.md). BERT and its like are built as decoders (`is_decoder`). Made by `make "
        "exactness`, checked by the slow tests."
    )
    lines = [HEADING, "", *textwrap.wrap(what, 100, break_on_hyphens=False), ""]
    lines += ["| type | taps | |", "|---|---|---|"]
    lines += [f"| {name} | {each.taps} | {each.result} |" for name, each in outcomes.items()]
    return "\n".join(lines) + "\n"


def all_outcomes(names: Iterable[str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) -> dict[str, Outcome]:
    """Returns the outcomes of all types, by name."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    return {name: outcome(name) for name in sorted(names)}


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        (result,) = all_outcomes([name]).values()
        print(name, result.taps, result.result, sep=" | ", flush=True)
