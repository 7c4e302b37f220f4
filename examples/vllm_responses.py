"""Samples the base's responses for the second stage of a reward with vLLM, many times faster than Transformers.

    python examples/vllm_responses.py --base smollm2-135m --data pairs.csv --out responses.parquet
    otter train reward --base smollm2-135m --data pairs.csv --value-data responses.parquet --out my-reward

The prompts are those that `otter train reward` would have the base answer. Those that training holds out are answered,
too, and left out there.
"""

import argparse
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

from otterlm.bases import base_folder, load_tokenizer
from otterlm.files import write_files
from otterlm.training.data.rows import read_rows
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.recipes.values import Values, prompts_of


def main() -> None:
    values = Values()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a hub id, a folder, or smollm2-135m")
    parser.add_argument("--data", required=True, help="the pairs or scored texts of the reward")
    parser.add_argument("--out", type=Path, required=True, help="a parquet file")
    parser.add_argument("--prompts", type=int, default=values.value_prompts)
    parser.add_argument("--responses", type=int, default=values.value_responses, help="to each prompt")
    parser.add_argument("--max-prompt-tokens", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=values.value_new_tokens)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    tokenizer = load_tokenizer(arguments.base)
    prompts = prompts_of(read_rows(arguments.data), set(), arguments.prompts)
    encoded = encode_prompts(prompts, tokenizer, arguments.max_prompt_tokens)
    sampling = values.sampling(arguments.max_prompt_tokens, arguments.seed)
    how = SamplingParams(
        n=arguments.responses,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=arguments.max_new_tokens,
    )  # vLLM 0.32 fails on CPUs if many requests have seeds, so the engine has the seed
    longest = arguments.max_prompt_tokens + arguments.max_new_tokens
    engine = LLM(str(base_folder(arguments.base)), max_model_len=longest, seed=arguments.seed, enforce_eager=True)
    answered = engine.generate([{"prompt_token_ids": tokens} for tokens in encoded], how)

    rows = [
        {
            "prompt": [{"role": role, "content": content} for role, content in prompt],
            "prompt_tokens": tokens,
            "response": tokenizer.decode(response.token_ids, skip_special_tokens=True),
            "response_tokens": list(response.token_ids),
        }
        for prompt, tokens, answer in zip(prompts, encoded, answered, strict=True)
        for response in answer.outputs
    ]
    table = pyarrow.Table.from_pylist(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_files(arguments.out.parent, {arguments.out.name: lambda path: pyarrow.parquet.write_table(table, path)})
    print(f"{len(rows)} responses to {len(prompts)} prompts in {arguments.out}")


if __name__ == "__main__":
    main()
