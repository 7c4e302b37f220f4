"""Writes prompts whose answers may be glad or gloomy, to distil a sentiment from and to measure it on.

    python benchmarks/tone_prompts.py --out runs/sentiment
    PYTHONPATH=benchmarks otter distill --base smollm2-135m --scorer distillation:sentiment \\
        --prompts runs/sentiment/train.jsonl --out runs/sentiment/adapter --layers 11-29:3 --max-new-tokens 48 \\
        --top-p 0.95 --epochs 3 --batch-size 8 --record
    otter bench steering --base smollm2-135m --adapter runs/sentiment/adapter \\
        --data runs/sentiment/test.jsonl --out runs/bench

Half of the prompts ask for a story, a review or an opinion of an everyday thing, in neutral words. The others are
first questions of `hh_helpful`. No thing and no question of the test is in training.
"""

import argparse
import json
import random
from pathlib import Path

from otterlm.bases import load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.files import make_folder, write_text
from otterlm.training.data.prompts import read_prompts

REQUESTS = (
    "Write a short story about {}.",
    "Write a review of {}.",
    "What do you think of {}?",
    "Describe {} in a few sentences.",
    "Write a letter to a friend about {}.",
    "Tell me about {}.",
)
THINGS = [
    "a walk in the rain",
    "a new job",
    "a small hotel",
    "the first day of school",
    "a long flight",
    "an old car",
    "a visit to the dentist",
    "a birthday party",
    "the neighbour's dog",
    "a train station at night",
    "moving to another city",
    "a football match",
    "a restaurant in the old town",
    "a week without a phone",
    "the winter in the north",
    "learning to swim",
    "a film about the sea",
    "a house by the river",
    "a lost key",
    "a summer camp",
    "the office kitchen",
    "a crowded bus",
    "a garden in spring",
    "the last day of a holiday",
    "a cup of coffee",
    "a night in a tent",
    "a broken window",
    "a cooking class",
    "a letter from an uncle",
    "a museum on a Sunday",
    "a storm at sea",
    "an empty street",
    "a new pair of shoes",
    "a phone call from home",
    "a piano lesson",
    "a market in the morning",
    "a mountain hut",
    "a cat on the roof",
    "an exam",
    "a family dinner",
    "a bicycle trip",
    "a hospital visit",
    "a computer game",
    "a village school",
    "a wedding",
    "a job interview",
    "a concert in the park",
    "a day at the beach",
    "a queue at the bank",
    "a library",
    "a snowy road",
    "a farm",
    "the end of the year",
    "a blind date",
    "a chess game",
    "a bakery",
    "a walk through the woods",
    "an airport hotel",
    "a gym",
    "a used book",
]
TEST_THINGS, TEST_QUESTIONS = 10, 20


def lines(prompts: list[str]) -> str:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer, drawn = load_tokenizer(arguments.base), random.Random(0)
    things = list(THINGS)
    drawn.shuffle(things)
    dialogues = read_prompts(arguments.data / "hh_helpful" / "pairs.jsonl.gz")
    questions = list(dict.fromkeys(turns[0][1] for turns in dialogues))
    questions = [text for text in questions if 5 <= len(tokenizer.encode(text)) <= 24]
    drawn.shuffle(questions)
    test = [REQUESTS[number % len(REQUESTS)].format(thing) for number, thing in enumerate(things[:TEST_THINGS] * 2)]
    train = [request.format(thing) for thing in things[TEST_THINGS:] for request in REQUESTS]
    test += questions[:TEST_QUESTIONS]
    train += questions[TEST_QUESTIONS : TEST_QUESTIONS + len(train)]
    drawn.shuffle(test)
    drawn.shuffle(train)
    make_folder(arguments.out)
    for name, prompts in (("test", test), ("train", train)):
        write_text(arguments.out / f"{name}.jsonl", lines(prompts))


if __name__ == "__main__":
    run_script(main)
