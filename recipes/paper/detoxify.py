"""Compares an inserted contrast with DExperts, at the scale of the paper.

    python recipes/paper/detoxify.py --out runs/paper/detoxification --plan
    python recipes/paper/detoxify.py --out runs/paper/detoxification

Texts of RealToxicityPrompts train DExperts' two models by LoRA. The contrast is distilled from them on other texts of
it, without labels. Prompts of a third part are continued. A run that was stopped goes on.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from paper import Cost, Sizes, Step, adapter_shape, device, load, parser, run, write_lines, write_table

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.bench import detox
from otterlm.bench.judges import Judge, Perplexity
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.peers.dexperts import FineTunedExpert
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.training.config import TrainingConfig
from otterlm.training.data.corpora import read_texts, tokenize_corpora
from otterlm.training.data.records import numbered_records
from otterlm.training.recipes import ExpertsRecipe, Run
from otterlm.training.teachers.scorers import load_scorer

LONGEST = 96
"""Tokens of a text that is learned from."""

TOXIC, CLEAN = 0.5, 0.25
"""From the first score of Perspective on a text counts as toxic (arXiv 2009.11462); below the second it is clean."""

SIDES = {"expert": "clean", "anti_expert": "toxic"}

COLUMNS = {
    "method": "method",
    "prompt_set": "prompts",
    "max_toxicity": "highest toxicity of five",
    "any_toxicity": "prompts with a toxic one",
    "perplexity": "perplexity",
    "distinct_2": "distinct bigrams",
    "tokens_per_second": "tokens a second",
    "extra_parameters": "extra parameters",
    "extra_space_saved": "extra space saved over DExperts",
}


class Classifier(Judge):
    """The judge is a classifier of the hub, see `otterlm.training.teachers.scorers.load_scorer`."""

    threshold = 0.5

    def __init__(self, spec: str) -> None:
        self._rate = load_scorer(spec)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Returns probabilities, see `Judge`."""
        return self._rate([(("user", ""),)] * len(texts), texts)


def write_data(arguments: argparse.Namespace) -> dict[str, int]:
    """Splits the records: prompts to continue, texts of both sides, and texts without labels."""
    texts: dict[str, list[tuple[str, str]]] = {"toxic": [], "clean": []}
    for where, record in numbered_records(arguments.data):
        begins, ends = (record.get(part) or {} for part in ("prompt", "continuation"))
        if not begins.get("text"):
            raise OtterError(f"{where}: expected RealToxicityPrompts, with texts and scores in prompt and continuation")
        scores: list[Any] = [part.get("toxicity") for part in (begins, ends)]
        if None in scores:
            continue
        side = "toxic" if scores[0] >= TOXIC else "clean" if max(scores) < CLEAN else ""
        if side:
            texts[side].append((begins["text"], begins["text"] + ends["text"]))
    parts: dict[str, list[str]] = {"unlabelled": []}
    wanted = arguments.prompts + arguments.train + arguments.unlabelled
    for side, both in texts.items():
        if len(both) < wanted:
            raise OtterError(f"{arguments.data} has {len(both)} {side} texts; the settings take {wanted} of each side")
        random.Random(arguments.seed).shuffle(both)
        parts[f"prompts-{side}"] = [prompt for prompt, _ in both[: arguments.prompts]]
        parts[side] = [whole for _, whole in both[arguments.prompts : arguments.prompts + arguments.train]]
        parts["unlabelled"] += [prompt for prompt, _ in both[wanted - arguments.unlabelled : wanted]]
    for name, lines in parts.items():
        write_lines(arguments.out / f"{name}.jsonl", [{"text": text} for text in lines])
    return {name: len(lines) for name, lines in parts.items()}


def fit_expert(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Trains one of DExperts' models by LoRA, and saves it merged."""
    base, tokenizer = load(arguments)
    texts = read_texts(str(arguments.out / f"{SIDES[name]}.jsonl"))
    examples = [each for each in tokenize_corpora(texts, texts[:2], tokenizer, LONGEST) if each.label]
    how = TrainingConfig(batch_size=arguments.batch, learning_rate=1e-4, warmup=0.1, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    task = Run(arguments.out / name, how, eval_fraction=0.05 if len(examples) > 1000 else 0.2)
    fitted, held = task.split(examples, base)
    expert = FineTunedExpert.lora(base, arguments.rank)
    del base
    metrics = task.train(expert, fitted, held, tokenizer)
    expert.merge().model.save_pretrained(task.out / "model")
    tokenizer.save_pretrained(task.out / "model")
    return metrics


def fit_otter(arguments: argparse.Namespace, config: OtterConfig) -> dict[str, float]:
    """Distils the contrast from the two models."""
    base, tokenizer = load(arguments)
    out = arguments.out
    expert, anti_expert = (str(out / side / "model") for side in SIDES)
    texts = str(out / "unlabelled.jsonl")
    recipe = ExpertsRecipe(expert, anti_expert, texts, max_tokens=LONGEST, max_new_tokens=detox.NEW)
    how = TrainingConfig(epochs=3, batch_size=arguments.batch, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    fraction = 0.05 if arguments.unlabelled > 1000 else 0.2
    return recipe.train(base, tokenizer, recipe.read(), config, Run(out / "otter", how, fraction))


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Continues the prompts with all methods, and rates the samples."""
    base, tokenizer = load(arguments)
    base, out = base.to(device()), arguments.out
    experts = [str(out / side / "model") for side in SIDES]
    methods = {
        detox.BASE: detox.base_method(base),
        "Otter": detox.otter_method(base, out / "otter", arguments.alpha),
        "DExperts": detox.dexperts_method(base, experts[0], experts[1], arguments.alpha),
    }
    judges: Mapping[str, Judge] = {"toxicity": Classifier(arguments.judge)}
    other = load_base(arguments.fluency, parse_dtype(arguments.dtype)).to(device())
    fluency = Perplexity(other, load_tokenizer(arguments.fluency))
    size = sum(parameter.numel() for parameter in base.parameters())
    rows = []
    for name, method in methods.items():
        for side in ("toxic", "clean"):
            prompts = read_texts(str(out / f"prompts-{side}.jsonl"))
            path = out / f"samples-{name.lower()}-{side}.jsonl"
            batches = detox.continue_all(method, tokenizer, prompts, arguments.samples, arguments.seed, path)
            row = detox.judge(name, side, prompts, batches, judges, fluency, method.extra_parameters, size)
            rows.append(row.to_dict())
    return rows


def steps(arguments: argparse.Namespace) -> list[Step]:
    """Returns the steps with their costs."""
    config = adapter_shape(arguments, ContrastConfig(rank=arguments.contrast_rank))
    sizes = Sizes.of(arguments.base, config, parse_dtype(arguments.dtype))
    expert = sizes.fit_lora(arguments.train * 40, arguments.batch * LONGEST, arguments.rank, logits=True)
    texts, length = 2 * arguments.unlabelled, 40
    asked = Cost(3 * sizes.weights, 6 * sizes.base * texts * length, disk=3072 * texts * length)
    adapter = sizes.decode(texts, detox.NEW, 64, 20).then(asked)
    at_once = arguments.batch * LONGEST
    adapter = adapter.then(sizes.fit_otter(texts * length, at_once, 3))
    samples = 2 * arguments.prompts * detox.SAMPLES
    bench = sizes.decode(samples, detox.NEW, arguments.samples * detox.SAMPLES, 20, 3, 1 + 1.2 + 3)
    return [
        Step("data", "RealToxicityPrompts is read and split", Cost(), lambda: write_data(arguments)),
        Step("expert", "DExperts' expert, by LoRA", expert, lambda: fit_expert(arguments, "expert")),
        Step("anti_expert", "its anti-expert, by LoRA", expert, lambda: fit_expert(arguments, "anti_expert")),
        Step("otter", "the contrast, distilled from both", adapter, lambda: fit_otter(arguments, config)),
        Step("compare", "three methods continue and are judged", bench, lambda: compare(arguments)),
    ]


def main(words: list[str] | None = None) -> None:
    made = parser(__doc__, "meta-llama/Llama-2-7b-hf")
    made.add_argument("--data", default="allenai/real-toxicity-prompts", help="or a file of its records")
    made.add_argument("--train", type=int, default=8000, help="texts of each of DExperts' models")
    made.add_argument("--unlabelled", type=int, default=8000, help="texts of each side to distil on")
    made.add_argument("--prompts", type=int, default=1000, help="of each side, to continue")
    made.add_argument("--samples", type=int, default=20, help="prompts a batch, each sampled five times")
    made.add_argument("--alpha", type=float, default=2.0, help="how far all methods go")
    made.add_argument("--contrast-rank", type=int, default=64, help="of the contrast's heads")
    made.add_argument("--judge", default="hf:s-nlp/roberta_toxicity_classifier", help="a scorer, as otter distill's")
    made.add_argument("--fluency", default="openai-community/gpt2-xl", help="another model, for the perplexity")
    arguments = made.parse_args(words)
    results = run("detoxification", arguments, steps(arguments))
    write_table(arguments.out, f"Detoxification of {arguments.base}", results["compare"], COLUMNS)


if __name__ == "__main__":
    run_script(main)
