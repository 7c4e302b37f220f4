"""Compares guidance with the other methods of a run of `otter bench steering`, by its judges and at equal length.

    python benchmarks/steering_pairs.py runs/steering --weight 1

The folder is that of `--out`. Of each method it prints how much higher each judge rates guidance, prompt by prompt,
both responses cut to the tokens of the shorter one, with the 95% interval by the bootstrap over prompts. `--judge`
names other judges than those of the run.
"""

import argparse
import json
from pathlib import Path

from otterlm.bases import load_base, load_tokenizer
from otterlm.bench.steering import answers_of
from otterlm.bench.steering_judges import Rated, cut_alike, load_judge
from otterlm.cli.options import named_judges
from otterlm.cli.scripts import run_script
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.bootstrap import interval, mean_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, with judges")
    parser.add_argument("--weight", type=float, default=1.0, help="of guidance")
    parser.add_argument("--max-prompt-tokens", type=int, default=256, help="of the run")
    parser.add_argument("--judge", action="append", help="as of otter bench steering; by default the run's")
    arguments = parser.parse_args()
    settings = json.loads((arguments.run / "steering.json").read_text())["settings"]
    first, *batches = map(json.loads, (arguments.run / "steering.jsonl").read_text().splitlines())
    answers = answers_of([(name, weight) for name, weight in first["identity"]["methods"]], batches)
    guidance = "guidance", arguments.weight
    if guidance not in answers:
        parser.error(f"{arguments.run} has no guidance of weight {arguments.weight:g}")
    ours = answers[guidance].responses
    prompts = read_prompts(settings["data"])[: len(ours)]
    base, tokenizer = load_base(settings["base"]), load_tokenizer(settings["base"])
    judges = named_judges(arguments.judge) if arguments.judge else settings["judges"]
    limits = Limits(arguments.max_prompt_tokens, first["identity"]["new_tokens"])
    for judge, spec in judges.items():
        rate = Rated(load_judge(spec, settings["base"], base, limits), tokenizer, prompts)
        for (method, weight), theirs in answers.items():
            if (method, weight) == guidance:
                continue
            more, other = rate(cut_alike(ours, theirs.responses)).T  # each [N]
            low, high = interval(len(ours), mean_of(more - other))
            line = {"judge": judge, "over": method, "weight": weight}
            print(json.dumps(line | {"cut": float((more - other).mean()), "cut_ci95": [low, high]}), flush=True)


if __name__ == "__main__":
    run_script(main)
