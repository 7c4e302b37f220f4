"""Tokens per second of plain Transformers generation, the base alone against the base with an adapter, in turn."""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from otterlm.bases import load_base, load_tokenizer
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.model import OtterModel
from otterlm.training.packing import prompt_tokens

PROMPT = "Tell me about the rivers of Europe."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    model = OtterModel.from_pretrained(base, arguments.adapter)
    ids = torch.tensor([prompt_tokens((("user", PROMPT),), tokenizer)])
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "base": (base, {}),
        "stream": (model, {}),
        "guidance": (model, {"logits_processor": [RewardGuidance(model, 1.0, top_k=10)]}),
        "search k=10": (model, {"custom_generate": CandidateSearch(1.0, top_k=10)}),
    }
    for batch in arguments.batch:
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for repeat in range(arguments.repeats + 1):
            for name, (generator, settings) in methods.items():
                n = arguments.new_tokens
                started = time.perf_counter()
                generator.generate(
                    ids.repeat(batch, 1),
                    attention_mask=torch.ones(batch, ids.shape[1], dtype=torch.long),
                    max_new_tokens=n,
                    min_new_tokens=n,
                    do_sample=False,
                    **settings,
                )
                if repeat:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
        for name, values in seconds.items():
            ratios = [alone / own for alone, own in zip(seconds["base"], values, strict=True)]
            speed = batch * arguments.new_tokens / statistics.median(values)
            row = {"method": name, "batch": batch, "tokens_per_second": round(speed, 2)}
            row |= {"of_base": round(statistics.median(ratios), 3), "range": [round(f(ratios), 3) for f in (min, max)]}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
