"""Runs vLLM with an exported folder: the base's tokens, steered ones, and the reward beside every token.

    otter export --base smollm2-135m --adapter adapters/smollm2-135m-harmless --out exported
    python examples/vllm_offline.py exported --base BASE_FOLDER

Without a folder the shipped adapter is exported into a temporary one.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

from otterlm import client
from otterlm.bases import base_folder
from otterlm.engines.exported import export

SHIPPED = Path(__file__).parents[1] / "adapters" / "smollm2-135m-harmless"
PROMPTS = [
    "The capital of France is",
    "My neighbour is so loud that I",
    "How do I bake bread? First,",
    "He is a stupid",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="an exported folder")
    parser.add_argument("--base", default="smollm2-135m", help="what it was exported from")
    parser.add_argument("--weight", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder
        if folder is None:
            folder = made
            export(arguments.base, {"reward": SHIPPED}, folder)
        report = run(folder, str(base_folder(arguments.base)), arguments.weight)
    if arguments.json:
        print(json.dumps(report))
        return
    for prompt, text, steered, rewards in zip(
        PROMPTS, report["texts"], report["steered"], report["rewards"], strict=True
    ):
        print(f"{prompt}|{text}\n  steered: {steered}\n  rewards: {' '.join(f'{x:+.2f}' for x in rewards)}")


def run(folder: str, base: str, weight: float) -> dict[str, Any]:
    """Returns whether the exported folder generates the base's tokens, and the rewards beside them."""
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    plain = SamplingParams(temperature=0, max_tokens=24)
    llm = LLM(model=base, **settings)
    expected = [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, plain, use_tqdm=False)]
    del llm
    llm = LLM(model=folder, **settings)  # the one line
    rewarded = SamplingParams(temperature=0, max_tokens=24, **client.request(folder, rewards=1))
    outputs = llm.generate(PROMPTS, rewarded, use_tqdm=False)
    steer = SamplingParams(temperature=0, max_tokens=24, **client.request(folder, weight=weight))
    steered = llm.generate(PROMPTS, steer, use_tqdm=False)
    return {
        "same_tokens": [list(output.outputs[0].token_ids) for output in outputs] == expected,
        "texts": [output.outputs[0].text for output in outputs],
        "rewards": [client.rewards(output.outputs[0])["reward"] for output in outputs],
        "steered": [output.outputs[0].text for output in steered],
    }


if __name__ == "__main__":
    main()
