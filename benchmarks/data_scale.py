"""Measures what data costs before the first step of training: memory, and seconds, with a base too small to count.

Pairs of random words are written to the disk. They are read, tokenized, packed and trained on as `otter train reward`
does, up to the first steps.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardTrainingConfig
from otterlm.training.data.tokens import Limits
from otterlm.training.recipes import Run
from otterlm.training.recipes.reward import RewardRecipe
from otterlm.training.recipes.values import Values
from otterlm.training.trainer import TrainingConfig

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class FirstSteps(BaseException):
    """Is raised after the first steps, where the measurement ends."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=500, help="of a text: half of them are the prompt's")
    parser.add_argument("--steps", type=int, default=3, help="of training")
    parser.add_argument("--workers", type=int, default=0, help="processes that encode")
    parser.add_argument("--no-probe-start", action="store_true", help="leave out the probe, which reads 16,384 pairs")
    parser.add_argument("--folder", type=Path, help="for the data and the run; by default one that is removed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["OTTER_HOME"] = folder  # tokens that an earlier run left would cost nothing
        probe = not arguments.no_probe_start
        result = measured(Path(folder), arguments.pairs, arguments.tokens, arguments.steps, arguments.workers, probe)
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def measured(folder: Path, pairs: int, tokens: int, steps: int, workers: int, probe: bool) -> dict[str, float]:
    """Returns the numbers of one run.

    `peak_rss_mb` is of the whole process; `start_rss_mb`, of which most is PyTorch's, was there before the data.
    """
    words, path = vocabulary(), folder / "pairs.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(words, pairs, tokens // 2))
    base, tokenizer = tiny_base(words)
    recipe = RewardRecipe(
        str(path),
        workers=workers,
        learning=RewardTrainingConfig(probe_start=probe),
        limits=Limits(tokens // 2 + 16, tokens // 2 + 16),
        values=Values(values=False),
    )
    shape = OtterConfig(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
        signal=RewardConfig(vocabulary_rank=4, vocabulary_hidden=8),
    )
    run = Run(folder / "out", TrainingConfig(batch_size=16))
    start_rss, start, cpu = peak_rss_mb(), time.perf_counter(), time.process_time()
    seconds: list[tuple[float, float]] = []
    hooks = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: _note(optimizer, seconds)),
        register_optimizer_step_post_hook(lambda optimizer, *_: _stop(optimizer, seconds, steps)),
    ]
    try:
        recipe.train(base, tokenizer, recipe.read(), shape, run)
    except FirstSteps:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    before = seconds[0][0] - start
    return {
        "pairs": pairs,
        "peak_rss_mb": round(peak_rss_mb()),
        "start_rss_mb": round(start_rss),
        "seconds_before_first_step": round(before, 2),
        "seconds_per_thousand_pairs": round(1000 * before / pairs, 3),
        "cpu_seconds_before_first_step": round(seconds[0][1] - cpu, 2),
        "data_mb": round(path.stat().st_size / 2**20, 1),
    }


def _note(optimizer: torch.optim.Optimizer, seconds: list[tuple[float, float]]) -> None:
    if isinstance(optimizer, torch.optim.AdamW):  # not the probe's
        seconds.append((time.perf_counter(), time.process_time()))


def _stop(optimizer: torch.optim.Optimizer, seconds: list[tuple[float, float]], steps: int) -> None:
    if isinstance(optimizer, torch.optim.AdamW) and len(seconds) >= steps:
        raise FirstSteps


def peak_rss_mb() -> float:
    """Returns the most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def vocabulary(count: int = 2000) -> list[str]:
    """Returns words, each of which becomes one token."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return sorted({"".join(draw.choices(letters, k=draw.randint(3, 8))) for _ in range(count)})


def records(words: list[str], pairs: int, length: int) -> Iterator[dict[str, str]]:
    """Yields pairs of random words, whose lengths vary by a fifth."""
    draw = random.Random(1)
    for _ in range(pairs):
        sizes = [max(1, round(length * draw.uniform(0.8, 1.2))) for _ in range(3)]
        prompt, chosen, rejected = (" ".join(draw.choices(words, k=size)) for size in sizes)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def tiny_base(words: list[str]) -> tuple[PreTrainedModel, Any]:
    """Makes a random base of two narrow blocks, and a byte-level tokenizer that knows the words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" " + " ".join(words)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).requires_grad_(False).eval(), tokenizer


if __name__ == "__main__":
    run_script(main)
