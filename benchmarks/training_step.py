"""Measures where the time of a training step goes: the base, the inserted stream, the backward pass, the optimizer."""

import argparse
import json
import statistics
import time
from itertools import pairwise

import torch

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.layers import parse_layers
from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.taps import Visitor
from otterlm.training.data.packing import collate, length_buckets
from otterlm.training.data.rows import read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.sources import LiveBase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--layers", default=None)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.base)
    model = OtterModel(load_base(arguments.base), OtterConfig(layers=parse_layers(arguments.layers))).train()
    objective = RewardObjective(model, LiveBase(model), RewardTrainingConfig())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    examples = tokenize(read_rows(arguments.data)[:200], tokenizer, Limits(prompt=96, response=64))
    seconds: dict[str, list[float]] = {"base": [], "stream": [], "backward": [], "optimizer": []}
    for step, group in enumerate(length_buckets(examples, arguments.batch_size, seed=0)):
        if step > arguments.steps:
            break
        batch = collate(group)
        marks = [time.perf_counter()]
        with torch.no_grad():
            objective.source.show(batch, Visitor())
        marks.append(time.perf_counter())
        loss = objective(batch)["loss"]
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        if step:  # the first warms up
            base, forward, backward, update = (end - start for start, end in pairwise(marks))
            values = (base, max(0.0, forward - base), backward, update)
            for name, value in zip(seconds, values, strict=True):
                seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    step_time = sum(medians.values())
    print(json.dumps({name: round(value / step_time, 3) for name, value in medians.items()} | {"seconds": step_time}))


if __name__ == "__main__":
    run_script(main)
