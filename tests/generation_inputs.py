"""Lists more settings, as `generation_settings.py` does: drafts, prompts and caches, and what is returned."""

import torch
from generation_table import (
    ALL,
    CROPS_CACHE,
    END,
    LOOPS,
    REPLACING,
    STOPS,
    TOKEN_READERS,
    Setting,
    config_object,
    embedded,
    mask_of,
    ones,
    other_base,
    otter,
    part_of,
    same,
    spread,
    static_cache,
    tokenizer,
    turn_before,
)
from transformers import BatchEncoding, DynamicCache, StaticCache

SETTINGS: dict[str, Setting] = {
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
    "assistant_model, few tokens": Setting(
        lambda _: {
            "assistant_model": other_base(5),
            "num_assistant_tokens": 2,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.4,
        },
        rows=1,
        refused=LOOPS | STOPS,
        says="with assistant_model:",
    ),
    "use_mtp": Setting(same(use_mtp=True), rows=1, refused=ALL, says="with use_mtp:|num_mtp_layers"),
    # Inputs and caches
    "a prompt of the tokenizer": Setting(
        lambda prompt: {"input_ids": BatchEncoding(dict(prompt)), "attention_mask": None},
        refused=ALL,
        says="with a prompt that is a BatchEncoding:|got BatchEncoding",
    ),
    "a list": Setting(
        lambda prompt: {"input_ids": prompt["input_ids"].tolist(), "attention_mask": None},
        refused=ALL,
        says="with a prompt that is a list:|got list",
    ),
    "a mask that is a list": Setting(
        lambda prompt: {"attention_mask": prompt["attention_mask"].tolist()},
        refused=ALL,
        says="with an attention_mask that is a list:",
    ),
    "a prompt without rows": Setting(
        lambda prompt: {"input_ids": prompt["input_ids"][0], "attention_mask": None},
        refused=ALL,
        says="with a prompt .7.:|got .7.",
    ),
    "no prompts": Setting(part_of(0, None), refused=ALL, says="with no prompts:|takes one prompt"),
    "prompts of no tokens": Setting(part_of(None, 0), refused=ALL, says="with a prompt of no tokens:"),
    "unknown tokens": Setting(
        lambda prompt: {"input_ids": prompt["input_ids"] + 500}, refused=ALL, says="with token 5\\d\\d:"
    ),
    "a mask with holes": Setting(mask_of(hidden=4)),
    "a mask of bools": Setting(mask_of(dtype=torch.bool)),
    "a mask of floats": Setting(mask_of(dtype=torch.float)),
    "a longer mask": Setting(ones(2, 9), refused=ALL, says="with an attention_mask .2, 9. of prompts"),
    "a shorter mask": Setting(ones(2, 5), refused=ALL, says="with an attention_mask .2, 5. of prompts"),
    "a mask of other rows": Setting(ones(3, 7), refused=ALL, says="with an attention_mask .3, 7. of prompts"),
    "no attention_mask, padding": Setting(same(attention_mask=None)),
    "no attention_mask, right padding": Setting(
        lambda prompt: {"input_ids": torch.nn.functional.pad(prompt["input_ids"], (0, 1)), "attention_mask": None},
        refused=ALL,
        says="prompts padded on the right:",
    ),
    "position_ids, one row": Setting(lambda prompt: {"position_ids": torch.arange(7)[None] * prompt["attention_mask"]}),
    "position_ids of fewer tokens": Setting(
        lambda _: {"position_ids": torch.arange(3)[None]}, refused=ALL, says="with position_ids .1, 3. of prompts"
    ),
    "no attention_mask": Setting(same(attention_mask=None), rows=1),
    "right padding": Setting(mask_of(hidden=-1), refused=ALL, says="prompts padded on the right:"),
    "inputs_embeds": Setting(embedded, refused=TOKEN_READERS, says="with inputs_embeds:"),
    "position_ids": Setting(spread),
    "use_cache=False": Setting(same(use_cache=False)),
    "past_key_values, empty": Setting(lambda _: {"past_key_values": DynamicCache(config=otter().config)}),
    "past_key_values of a turn before": Setting(turn_before, rows=1),
    "past_key_values of new tokens alone": Setting(
        lambda prompt: turn_before(prompt) | {"input_ids": prompt["input_ids"][:, 3:]},
        rows=1,
        refused=CROPS_CACHE | TOKEN_READERS | REPLACING,
        says="with input_ids of the new tokens alone:",
    ),
    "past_key_values of the whole prompt": Setting(
        lambda prompt: turn_before(prompt, tokens=7),
        rows=1,
        refused=ALL,
        says="with past_key_values that hold the whole prompt:",
    ),
    "past_key_values of new tokens alone, no mask": Setting(
        lambda prompt: turn_before(prompt) | {"input_ids": prompt["input_ids"][:, 4:], "attention_mask": None},
        rows=1,
        refused=ALL,
        says="with past_key_values that hold the whole prompt:",
    ),
    "a static past, too small": Setting(
        lambda _: {"past_key_values": StaticCache(config=otter().config, max_cache_len=9)},
        refused=ALL,
        says="with a cache of 9 tokens where 11 are needed:|StaticCache",
    ),
    "inputs_embeds and input_ids": Setting(
        lambda prompt: {"inputs_embeds": otter().get_input_embeddings()(prompt["input_ids"])},
        refused=TOKEN_READERS,
        says="with inputs_embeds:",
    ),
    "inputs_embeds, guidance_scale": Setting(
        lambda prompt: embedded(prompt) | {"guidance_scale": 1.5},
        rows=1,
        refused=ALL,
        says="with guidance_scale(=1.5| and inputs_embeds alone):|with inputs_embeds:",
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
    "max_cache_len": Setting(
        same(cache_implementation="static", max_cache_len=64), refused=CROPS_CACHE, says="a cache that can be cropped"
    ),
    "prefill_chunk_size": Setting(same(prefill_chunk_size=2)),
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
    "synced_gpus": Setting(same(synced_gpus=True), refused=ALL, says="synced_gpus|process group"),
    "generation_config": Setting(config_object),
    "an unknown argument": Setting(same(max_new_token=3), refused=ALL, says="not used by the model: .'max_new_token'"),
    "token_healing": Setting(
        lambda _: {"token_healing": True, "tokenizer": tokenizer()}, refused=ALL, says="with token_healing:"
    ),
}
