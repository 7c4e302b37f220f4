"""Sends vLLM with an exported folder a request without settings of Otter, alone and beside others with rewards and a
guard. It gets the same tokens, and the same log probabilities, to the bit, as beside others without settings.

    otter export --base smollm2-135m --adapter adapters/smollm2-135m-harmless --out exported
    python examples/vllm_innocent.py exported

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
from otterlm.engines.exported import export

SHIPPED = Path(__file__).parents[1] / "adapters" / "smollm2-135m-harmless"
INNOCENT = "The capital of France is"
ROUNDING = 1e-3
"""The log probabilities may differ by this: a CPU's products of one row and of four round differently."""
OTHERS = ["My neighbour is so loud that I", "How do I bake bread? First,", "He is a stupid"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="an exported folder")
    parser.add_argument("--base", default="smollm2-135m", help="what the shipped adapter is exported with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder
        if folder is None:
            folder = temporary
            export(arguments.base, {"reward": SHIPPED}, folder)
        report = run(folder)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"the same tokens: {report['same_tokens']}, the same log probabilities: {report['same_logprobs']}")
    for reward, logprobs in zip(report["rewards"], report["logprobs"], strict=True):
        best = max(logprobs, key=logprobs.get)
        print(f"{reward:+.2f}  {best!r} {logprobs[best]:.2f}")


def run(folder: str) -> dict[str, Any]:
    """Returns whether the innocent request gets the same response, and what a request with rewards gets."""
    llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=512, enable_prefix_caching=False)
    plain = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
    innocent = SamplingParams(**plain, logprobs=5)
    asking = [
        SamplingParams(**plain, **client.request(folder, rewards=1), logprobs=5),
        SamplingParams(**plain, **client.request(folder, threshold=0.0)),
        SamplingParams(**plain, **client.request(folder, rewards=1, threshold=-0.5)),
    ]
    alone = llm.generate([INNOCENT], innocent, use_tqdm=False)[0].outputs[0]
    beside, *others = (
        output.outputs[0] for output in llm.generate([INNOCENT, *OTHERS], [innocent, *asking], use_tqdm=False)
    )
    # The same other prompts, without settings. A guard ends a response while its next token is computed.
    silent = [
        SamplingParams(**plain | {"max_tokens": len(other.token_ids) + (other.finish_reason == "stop")})
        for other in others
    ]
    among = llm.generate([INNOCENT, *OTHERS], [innocent, *silent], use_tqdm=False)[0].outputs[0]
    same_tokens = list(alone.token_ids) == list(beside.token_ids) == list(among.token_ids)
    return {
        "same_tokens": same_tokens,
        "same_logprobs": same_tokens and numbers(beside) == numbers(among) and apart(beside, alone) < ROUNDING,
        "apart_from_alone": apart(beside, alone) if same_tokens else None,
        "ended": [other.stop_reason for other in others],
        "rewards": client.rewards(others[0])["reward"],
        "logprobs": [{entry.decoded_token: entry.logprob for entry in step.values()} for step in others[0].logprobs],
    }


def apart(one, other) -> float:
    """Returns the largest difference between the log probabilities that two responses have in common."""
    pairs = zip(numbers(one), numbers(other), strict=True)
    return max(abs(first[token] - second[token]) for first, second in pairs for token in first.keys() & second.keys())


def numbers(output) -> list[dict[int, float]]:
    """Returns the log probabilities beside each token, by token id."""
    return [{token: entry.logprob for token, entry in step.items()} for step in output.logprobs]


if __name__ == "__main__":
    main()
