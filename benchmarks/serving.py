"""Measures the vLLM plugin under load, in the engine's environment (`make test-vllm` makes it):

    .venv-vllm/bin/python benchmarks/serving.py throughput --folder FOLDER --base BASE
    .venv-vllm/bin/python benchmarks/serving.py throughput --base BASE --adapter draft=DIR --adapter reward=DIR \
        --adapter guard=DIR --signal reward --guard guard --drafts 4 --data question.jsonl --prompts 13 --batches 1 4 16

`throughput` compares the base, the exported folder, and guidance or a guard on every request, in turn, each time in a
new engine. With `--adapter` it exports the folder. With `--drafts` the last three are measured once more in engines
that verify at most so many drafts of each request. Then the report also has the tokens of a pass, the speed over the
same method without drafts, and the share of requests with the same tokens. "idle drafts" is a speculative engine that
never drafts: what it loses is vLLM's price of speculation.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from otterlm.bases import base_folder
from otterlm.cli.scripts import run_script
from otterlm.engines.cached_export import cached_export

NEW = 64
PROPOSER = "otterlm.engines.vllm.drafts.DraftProposer"
IDLE = "idle drafts"
WORDS = ("the", "otter", "swims", "under", "a", "bridge", "and", "finds", "seven", "stones", "before", "it", "rains")


def prompt(generator: random.Random, longest: int = 30) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, longest)))


class Method(NamedTuple):
    """A method is a folder that an engine serves, what each request asks of it, how many drafts are verified at most,
    and who proposes them."""

    folder: str
    settings: dict[str, Any]
    drafts: int = 0
    proposer: str = PROPOSER


class NoDrafts:
    """The proposer is one of vLLM that proposes nothing, see `otterlm.engines.vllm.drafts.DraftProposer`."""

    def __init__(self, vllm_config: Any) -> None:
        """Needs no configuration."""

    def load_model(self, model: Any) -> None:
        """Needs no model."""

    def propose(self, sampled_token_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Returns no draft for any request."""
        return [[] for _ in sampled_token_ids]


class Run(NamedTuple):
    """A run has the tokens a second of one batch, the tokens of a pass for each request, and all new tokens."""

    speed: float
    acceptance: float
    tokens: list[list[int]]


def engine(method: Method, arguments: argparse.Namespace) -> Any:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM

    speculative = {"method": "custom_class", "model": method.proposer}
    return LLM(
        model=method.folder,
        dtype="float32",
        enforce_eager=not arguments.compiled,
        max_model_len=512,
        max_num_seqs=max(arguments.batches),
        disable_log_stats=False,
        speculative_config=speculative | {"num_speculative_tokens": method.drafts} if method.drafts else None,
    )


def texts(llm: Any, data: str | None, count: int) -> list[dict[str, list[int]]]:
    """Returns prompts of words, or those of a file, from all parts of it."""
    tokenizer = llm.get_tokenizer()
    if data is None:
        ids = [tokenizer.encode(prompt(random.Random(index))) for index in range(count)]
    else:
        from otterlm.training.data.prompts import read_prompts
        from otterlm.training.data.tokens import encode_prompts

        read = read_prompts(data)
        chosen = [read[index * len(read) // count] for index in range(count)]
        ids = encode_prompts(chosen, tokenizer, 512 - NEW)
    return [{"prompt_token_ids": each} for each in ids]


def speeds(method: Method, arguments: argparse.Namespace) -> dict[int, Run]:
    """Returns a run for each batch size, in a new engine. A part of the prompts is read before the clock starts."""
    from vllm import SamplingParams

    from otterlm import client

    llm = engine(method, arguments)
    extra = client.request(method.folder, **method.settings) if method.settings else {}
    new = {"temperature": 0, "ignore_eos": True, **extra}

    def accepted_drafts() -> int:
        values = {each.name: getattr(each, "value", 0) for each in llm.get_metrics()}
        return values.get("vllm:spec_decode_num_accepted_tokens", 0)

    results = {}
    for size in arguments.batches:
        prompts = texts(llm, arguments.data, max(size, arguments.prompts))
        llm.generate(prompts[:size], SamplingParams(max_tokens=4, **new), use_tqdm=False)
        before, tokens, started = accepted_drafts(), list[list[int]](), time.perf_counter()
        for first in range(0, len(prompts) - size + 1, size):
            outputs = llm.generate(prompts[first : first + size], SamplingParams(max_tokens=NEW, **new), use_tqdm=False)
            tokens += [list(output.outputs[0].token_ids) for output in outputs]
        seconds = time.perf_counter() - started
        accepted = accepted_drafts() - before
        written = len(tokens) * NEW
        results[size] = Run(written / seconds, written / (written - accepted), tokens)
    return results


def methods_of(arguments: argparse.Namespace) -> dict[str, Method]:
    """Returns the methods that are asked for, plain vLLM first."""
    folder, base = arguments.folder, str(base_folder(arguments.base))
    weight = {"weight": arguments.weight} | ({} if arguments.signal is None else {"signal": arguments.signal})
    methods = {
        "plain": Method(base, {}),
        "stream on": Method(folder, {}),
        "rewards out": Method(folder, {"rewards": 1}),
        "guidance": Method(folder, weight),
    }
    if arguments.guard is not None:
        never = {"guard": arguments.guard, "alarm": 1.5}  # above 1: it watches every token and never rings
        methods["guard"] = Method(folder, never)
    if arguments.drafts:
        drafting = {name: method for name, method in methods.items() if name in ("stream on", "guidance", "guard")}
        methods |= {drafted(name): each._replace(drafts=arguments.drafts) for name, each in drafting.items()}
        methods[IDLE] = Method(folder, {}, arguments.drafts, "serving.NoDrafts")
    if unknown := [name for name in arguments.methods if name not in methods]:
        raise SystemExit(
            f"{', '.join(unknown)}: no such method; there are {', '.join(methods)} "
            "(guard with --guard NAME, those with drafts with --drafts N)"
        )
    return {name: methods[name] for name in ("plain", *arguments.methods)} if arguments.methods else methods


def drafted(name: str) -> str:
    """Returns the name of a method with drafts."""
    return "drafts" if name == "stream on" else f"drafts, {name}"


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    methods = methods_of(arguments)
    runs: dict[str, list[dict[int, Run]]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, method in methods.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                runs[name].append(pool.submit(speeds, method, arguments).result())
            shown = {size: round(run.speed, 1) for size, run in runs[name][-1].items()}
            print(name, shown, file=sys.stderr, flush=True)
    median = {
        name: {size: statistics.median(run[size].speed for run in repeats) for size in arguments.batches}
        for name, repeats in runs.items()
    }
    undrafted = {drafted(name): name for name in methods} | ({IDLE: "stream on"} if "stream on" in methods else {})
    rows: list[dict[str, Any]] = []
    for name, method in methods.items():
        for size in arguments.batches:
            run = runs[name][-1][size]
            row = {
                "method": name,
                "batch": size,
                "tokens_per_second": median[name][size],
                "over_plain": median[name][size] / median["plain"][size],
            }
            if method.drafts:
                row["acceptance_length"] = run.acceptance
            if method.drafts and name in undrafted:
                row["over_undrafted"] = median[name][size] / median[undrafted[name]][size]
                pairs = zip(run.tokens, runs[undrafted[name]][-1][size].tokens, strict=True)
                row["same_tokens"] = statistics.mean(ours == theirs for ours, theirs in pairs)
            rows.append(row)
    return {"rows": rows, "repeats": arguments.repeats, "new_tokens": NEW, "compiled": arguments.compiled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput"])
    served = parser.add_mutually_exclusive_group(required=True)
    served.add_argument("--folder", help="an exported folder")
    served.add_argument("--adapter", action="append", metavar="NAME=DIR", help="exports the base with these instead")
    parser.add_argument("--base", help="the base: a folder, a hub id or smollm2-135m")
    parser.add_argument("--signal", help="the adapter of the folder that guides, if several can")
    parser.add_argument("--weight", type=float, default=2.0, help="of guidance")
    parser.add_argument(
        "--drafts", type=int, default=0, help="at most so many of the folder's draft adapter, for each request"
    )
    parser.add_argument("--data", help="prompts (prompt, question, turns, ...) instead of random words: a file")
    parser.add_argument("--prompts", type=int, default=1, help="at least so many, in batches one after the other")
    parser.add_argument("--guard", help="the guard of the folder that watches every request")
    parser.add_argument("--methods", nargs="+", default=[], help="beside plain, such as guard; all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, as vLLM does by default")
    arguments = parser.parse_args()
    if arguments.adapter:
        adapters = dict(each.split("=", 1) for each in arguments.adapter)
        arguments.folder = str(cached_export(arguments.base, adapters))
    print(json.dumps(throughput(arguments)))


if __name__ == "__main__":
    run_script(main)
