"""Inference acceleration: Otter's draft, Medusa heads of the original form, and prompt lookup, against the base.

    python benchmarks/drafting.py --out runs/draft --steps continue train compare

All drafts are trained on the base's greedy continuations of the same prompts (of hh-rlhf and GSM8K); Spec-Bench is
held out. Speeds are taken in turn, prompt by prompt, greedily, one sequence at a time; every output is compared with
the base's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from otterlm.bases import load_base, load_tokenizer
from otterlm.config import DraftConfig, OtterConfig
from otterlm.decoding import DraftTree, SpeculativeDecoding
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaDecoding, MedusaHeads, MedusaObjective
from otterlm.progress import track
from otterlm.training.continuations import continue_prompts, read_prompts
from otterlm.training.draft import measured_accuracy
from otterlm.training.packing import prompt_tokens
from otterlm.training.recipes import Run, train_draft
from otterlm.training.sources import RecordedBase
from otterlm.training.trainer import TrainingConfig, train

LAYERS = tuple(range(11, 30, 2))
PROMPT, NEW = 128, 96


def training_prompts(data: Path, limit: int | None) -> list[Any]:
    """Prompts of three kinds, shuffled together."""
    found = [
        read_prompts(data / "hh_helpful" / "pairs.jsonl.gz"),
        read_prompts(data / "hh_harmless" / "pairs.jsonl.gz"),
        read_prompts(data / "gsm8k_solutions" / "example_model_solutions.jsonl.gz"),
    ]
    together = list(dict.fromkeys(prompt for kind in found for prompt in kind))
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0)).tolist()
    return [together[index] for index in order[:limit]]


def held_out_prompts(data: Path, per_category: int) -> list[dict[str, str]]:
    """The first turns of Spec-Bench, so many of each category."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in (data / "spec_bench" / "question.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["category"], []).append({"category": row["category"], "prompt": row["turns"][0]})
    return [row for rows in found.values() for row in rows[:per_category]]


def adapter_config(arguments: argparse.Namespace) -> OtterConfig:
    return OtterConfig(layers=LAYERS, signal=DraftConfig(sequential=not arguments.independent))


def train_otter(arguments: argparse.Namespace, base: Any, tokenizer: Any, prompts: list[Any]) -> None:
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=2)
    torch.manual_seed(0)
    run = Run(arguments.out / arguments.label, how, eval_fraction=0.05, record=arguments.record)
    # The continuations are every method's.
    run.out.mkdir(parents=True, exist_ok=True)
    shared, own = arguments.out / "continuations.jsonl", run.out / "continuations.jsonl"
    if shared.exists() and not own.exists():
        own.symlink_to(shared.resolve())
    print(arguments.label, train_draft(base, tokenizer, prompts, adapter_config(arguments), PROMPT, NEW, run), flush=True)


def train_medusa(arguments: argparse.Namespace, base: Any, tokenizer: Any, prompts: list[Any]) -> None:
    examples = continue_prompts(base, tokenizer, prompts, arguments.out / "continuations.jsonl", PROMPT, NEW)
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=2)
    kept, held = Run(arguments.out, how, eval_fraction=0.05).split(examples, base)
    # The recording of the base that the adapter was trained on holds all that Medusa reads, and more.
    model, heads = OtterModel(base, adapter_config(arguments)), MedusaHeads(base)
    source = RecordedBase(model, examples, arguments.out / arguments.label / "recording")
    metrics = train(MedusaObjective(model, source, heads), kept, held, how, arguments.out / "medusa")
    save_model(heads, str(arguments.out / "medusa" / "heads.safetensors"))
    (arguments.out / "medusa" / "metrics.json").write_text(json.dumps(metrics))
    print("medusa", metrics, flush=True)


def compare(arguments: argparse.Namespace, base: Any, tokenizer: Any) -> None:
    methods: dict[str, tuple[Any, dict[str, Any]]] = {"base": (base, {})}
    parameters = {"base": 0, "prompt lookup": 0}
    for label in arguments.adapters:
        model = OtterModel.from_pretrained(base, arguments.out / label)
        for drafts in arguments.drafts:
            methods[f"{label}, {drafts} drafts"] = (model, {"custom_generate": SpeculativeDecoding(drafts)})
            signal: Any = model.adapter().config.signal
            extra = sum(p.numel() for p in model.adapters.parameters())
            parameters[f"{label}, {drafts} drafts"] = extra + signal.derived_parameters(base.config.vocab_size)
    if (arguments.out / "medusa" / "heads.safetensors").exists():
        heads = MedusaHeads(base)
        load_model(heads, str(arguments.out / "medusa" / "heads.safetensors"))
        accuracy = measured_accuracy(json.loads((arguments.out / "medusa" / "metrics.json").read_text()), 4)
        for drafts in arguments.drafts:
            loop = MedusaDecoding(heads, DraftTree.best(accuracy, drafts))
            methods[f"medusa, {drafts} drafts"] = (OtterModel(base), {"custom_generate": loop})
            parameters[f"medusa, {drafts} drafts"] = sum(p.numel() for p in heads.parameters())
    methods["prompt lookup"] = (base, {"prompt_lookup_num_tokens": 10})
    rows = held_out_prompts(arguments.data, arguments.per_category)
    path = arguments.out / "compare.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as file:
        for row in track(rows[done:], "comparing"):
            ids = torch.tensor([prompt_tokens((("user", row["prompt"]),), tokenizer)[-512:]])
            line: dict[str, Any] = {"category": row["category"]}
            for name, (model, settings) in methods.items():
                started = time.perf_counter()
                output = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=arguments.new,
                    do_sample=False,
                    return_dict_in_generate=True,
                    pad_token_id=tokenizer.pad_token_id,
                    **settings,
                )
                line[name] = {
                    "seconds": time.perf_counter() - started,
                    "tokens": output.sequences[0, ids.shape[1] :].tolist(),
                    "acceptance_length": getattr(output, "acceptance_length", None),
                }
            file.write(json.dumps(line) + "\n")
            file.flush()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for name in methods:
        speeds = [len(line[name]["tokens"]) / line[name]["seconds"] for line in lines]
        ratios = [line["base"]["seconds"] / line[name]["seconds"] for line in lines]
        lengths = [line[name]["acceptance_length"] for line in lines if line[name]["acceptance_length"]]
        print(
            json.dumps(
                {
                    "method": name,
                    "extra_parameters": parameters[name],
                    "tokens_per_second": statistics.median(speeds),
                    "speed_over_base": statistics.median(ratios),
                    "acceptance_length": statistics.mean(lengths) if lengths else None,
                    "identical": sum(line[name]["tokens"] == line["base"]["tokens"] for line in lines),
                    "prompts": len(lines),
                }
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", default=["continue", "train", "compare"])
    parser.add_argument("--methods", nargs="+", default=["otter", "medusa"], help="what to train")
    parser.add_argument("--label", default="otter", help="folder of the adapter to train, in OUT")
    parser.add_argument("--adapters", nargs="+", default=["otter"], help="folders of the adapters to compare, in OUT")
    parser.add_argument("--independent", action="store_true", help="train heads that do not see the drafts before")
    parser.add_argument("--prompts", type=int, help="train on so many prompts only")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--drafts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--per-category", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    prompts = training_prompts(arguments.data, arguments.prompts)
    if "continue" in arguments.steps:
        continue_prompts(base, tokenizer, prompts, arguments.out / "continuations.jsonl", PROMPT, NEW)
    if "train" in arguments.steps:
        for method in arguments.methods:
            {"otter": train_otter, "medusa": train_medusa}[method](arguments, base, tokenizer, prompts)
    if "compare" in arguments.steps:
        compare(arguments, base, tokenizer)


if __name__ == "__main__":
    main()
