"""Counts what one step of the vLLM plugin costs, in the engine's environment (`make test-vllm` makes it):

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/serving_steps.py --folder FOLDER --base BASE

A step makes one token for each sequence. The calls of operators, those by operators included, do not depend on the
machine. The time is that which one thread had the processor, so that other programs disturb it less than the clock's
time. `serving.py throughput` measures what users see.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from serving import Method, engine, methods_of, texts

from otterlm.cli.scripts import run_script

SHORT, LONG = 8, 40
"""Two responses have so many tokens. What the longer one costs more are steps alone, without the prompt."""


def operators_of(run: Callable[[], Any]) -> int:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages())


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.thread_time()
    run()
    return time.thread_time() - started


def steps(method: Method, arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Returns the operators and the milliseconds of a step of each batch size, in a new engine."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from vllm import SamplingParams

    from otterlm import client

    llm = engine(method, arguments)
    extra = client.request(method.folder, **method.settings) if method.settings else {}

    def generate(prompts: list[Any], tokens: int) -> None:
        llm.generate(
            prompts, SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens, **extra), use_tqdm=False
        )

    def step(cost: Callable[[Callable[[], None]], float], prompts: list[Any]) -> float:
        few, many = (cost(partial(generate, prompts, tokens)) for tokens in (SHORT, LONG))
        return (many - few) / (LONG - SHORT)

    results = {}
    for size in arguments.batches:
        prompts = texts(llm, None, size)
        generate(prompts, SHORT)
        seconds = statistics.median(step(seconds_of, prompts) for _ in range(arguments.repeats))
        results[size] = {"operators": round(step(operators_of, prompts)), "cpu_ms": seconds * 1e3}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="an exported folder")
    parser.add_argument("--base", required=True, help="the base: a folder, a hub id or smollm2-135m")
    parser.add_argument("--signal", help="the adapter of the folder that guides, if several can")
    parser.add_argument("--guard", help="the guard of the folder that watches every request")
    parser.add_argument("--methods", nargs="+", default=[], help="beside plain, such as guard; all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, as vLLM does by default")
    parser.set_defaults(weight=2.0, drafts=0)
    arguments = parser.parse_args()
    rows = []
    for name, method in methods_of(arguments).items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            costs = pool.submit(steps, method, arguments).result()
        rows += [{"method": name, "batch": size, **cost} for size, cost in costs.items()]
    print(json.dumps({"rows": rows, "repeats": arguments.repeats, "compiled": arguments.compiled}))


if __name__ == "__main__":
    run_script(main)
