"""Lists settings of `generate` that every intervention is tried with, and which interventions refuse them: where
responses end, how tokens are chosen, and other ways of decoding."""

import torch
from generation_table import ALL, END, LOOPS, NEW, REPLACING, SAMPLING, STOPS, UNEVEN_ROWS, Setting, same, tokenizer
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

SETTINGS: dict[str, Setting] = {
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
        same(pad_token_id=None), refused=STOPS | REPLACING | {"rollback"}, says="with 2 responses and no pad_token_id:"
    ),
    "eos_token_id, a tensor": Setting(lambda _: {"eos_token_id": torch.tensor([END, 44, 3])}, ends=(END, 44, 3)),
    "eos_token_id=-1": Setting(same(eos_token_id=-1)),
    "eos_token_id=-1, no pad_token_id": Setting(
        same(eos_token_id=-1, pad_token_id=None),
        refused=STOPS | REPLACING | {"rollback"},
        says="with 2 responses that are padded with token -1:",
    ),
    "pad_token_id=-1": Setting(
        same(eos_token_id=END, pad_token_id=-1), refused=ALL - {"stream"}, ends=(END,), says="padded with token -1:"
    ),
    "pad_token_id, unknown": Setting(
        same(eos_token_id=END, pad_token_id=500), refused=ALL - {"stream"}, ends=(END,), says="padded with token 500:"
    ),
    "min_length": Setting(same(eos_token_id=list(range(3, 60)), min_length=10), ends=tuple(range(3, 60))),
    "max_length of less than the prompt": Setting(
        same(max_length=3, max_new_tokens=None), refused=ALL, says="`max_length` is set to 3"
    ),
    # Processors
    "remove_invalid_values": Setting(same(remove_invalid_values=True)),
    "exponential_decay_length_penalty": Setting(
        same(exponential_decay_length_penalty=(1, 1.5), eos_token_id=END), ends=(END,)
    ),
    "encoder_repetition_penalty": Setting(
        same(encoder_repetition_penalty=1.7), refused=frozenset({"best-of-n"}), says="with encoder_repetition_penalty:"
    ),
    "encoder_repetition_penalty, beams": Setting(
        same(encoder_repetition_penalty=1.7, num_beams=2),
        refused=ALL,
        says="with (encoder_repetition_penalty and )?num_beams=2:",
    ),
    "encoder_no_repeat_ngram_size": Setting(same(encoder_no_repeat_ngram_size=1)),
    "watermarking_config": Setting(lambda _: {"watermarking_config": WatermarkingConfig(bias=4.0)}),
    "a SynthID watermark": Setting(
        lambda _: {
            "watermarking_config": SynthIDTextWatermarkingConfig(keys=[654, 400, 836], ngram_len=3),
            "do_sample": True,
            "top_k": 0,
        },
        sampled=True,
        refused=UNEVEN_ROWS,
        says="with a SynthID watermark:",
    ),
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
    "min_p, typical_p, cutoffs": Setting(
        same(do_sample=True, min_p=0.01, typical_p=0.95, epsilon_cutoff=1e-4, eta_cutoff=1e-4, top_h=0.9), sampled=True
    ),
    "num_return_sequences, greedy": Setting(
        same(num_return_sequences=2), refused=ALL - SAMPLING, says="Greedy methods|with num_return_sequences=2:"
    ),
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
    "num_beams, early_stopping, length_penalty": Setting(
        same(num_beams=3, early_stopping=True, length_penalty=0.5, eos_token_id=list(range(3, 30))),
        refused=LOOPS | STOPS,
        says="with num_beams=3:",
        ends=tuple(range(3, 30)),
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
}
