"""Makes the row of a guard beside probes, and the row of the passages that it marks. `benchmarks/bases.py` uses it."""

import argparse
from typing import Any

import torch
from bases_passages import passage_rows
from bases_rows import conditions, folder, load, make_row, rate, shape

from otterlm.bases import load_tokenizer
from otterlm.bench.guard import measure, otter_detector, truth_of
from otterlm.bench.guard_probes import probes
from otterlm.identity import of_config, of_data, of_weights
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.config import TrainingConfig
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.rows import hold_out
from otterlm.training.data.tokens import Limits
from otterlm.training.recipes import GuardRecipe, Run


def guard(arguments: argparse.Namespace) -> None:
    """Makes both rows; that of passages where the guard learned and calibrated on some, and a set of texts has some."""
    base, tokenizer, out = load(arguments), load_tokenizer(arguments.base), folder(arguments)
    limits = Limits(response=arguments.max_response_tokens)
    files = dict(test.rpartition("=")[::2] for test in arguments.test)
    learned, *tested = (
        tokenize_labelled(read_labelled_rows(file)[: arguments.rows], tokenizer, limits)
        for file in (arguments.train, *files.values())
    )
    config = shape(arguments, GuardConfig(vocabulary_rank=0))  # nothing is steered
    run = Run(
        out / "guard",
        TrainingConfig(epochs=2, batch_size=16, evaluations_per_epoch=4, patience=6),
        record=arguments.record,
    )
    sets = {name or "guard": texts for name, texts in zip(files, tested, strict=True)}
    count = sum(parameter.numel() for parameter in base.parameters())
    fixed = {"base": arguments.base, "parameters": count}

    def detection() -> dict[str, Any]:
        recipe = GuardRecipe(arguments.train, limits=limits)
        torch.manual_seed(0)
        recipe.train(base, tokenizer, ([each.row for each in learned], 0), config, run)
        detectors = [
            otter_detector(OtterModel.from_pretrained(base, run.out)),
            *probes(base, learned, truth_of(learned)),
        ]
        measured = [row for name, texts in sets.items() for row in measure(detectors, texts, name)[0]]
        return {"task": "guard", **fixed, "rows": [each.to_dict() for each in measured]}

    def passages() -> dict[str, Any]:
        model = OtterModel.from_pretrained(base, run.out)
        rows = [row for name, texts in marked.items() for row in passage_rows(model, fitted, held, texts, name)]
        return {"task": "passages", **fixed, "rows": rows}

    data, *held_out = (of_data((each.example, each.row.marks) for each in part) for part in (learned, *tested))
    depends = {"base": of_weights(base), "data": data, "held_out": held_out, "adapter": of_config(config)}
    depends |= rate(base, config) | conditions(arguments)
    depends |= {"record": arguments.record}  # what is recorded is rounded to bf16
    if spans := [each.row.spans for part in (learned, *tested) for each in part if each.row.spans is not None]:
        depends["spans"] = of_data(spans)
    make_row(out / "rows" / "guard.json", depends, detection)
    marked = {name: some for name, texts in sets.items() if (some := [each for each in texts if each.characters])}
    out_of = hold_out([each.row for each in learned], run.eval_fraction, run.training.seed)
    fitted, held = ([each for i, each in enumerate(learned) if (i in out_of) == side] for side in (False, True))
    if marked and all(any(each.characters for each in part) for part in (fitted, held)):
        make_row(out / "rows" / "passages.json", depends, passages)
