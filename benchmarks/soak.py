"""Sends one server thousands of requests with everything on, and counts along: grammars, several choices, aborted and
wrong requests, guards, rewards, steering, scores of texts, adapters that are loaded again.

    .venv-vllm/bin/python benchmarks/soak.py --folder FOLDER
    .venv-vllm/bin/python benchmarks/soak.py --folder FOLDER --reload NAME=DIR --server --api-server-count 2

Every response must have as many numbers as tokens; the server's metrics must add up with what clients counted; its
memory must stay the same, after a warm-up. One JSON object says so. The exit status is 0 if all of it is true.
`--reload` names an adapter of the folder that is unloaded and loaded again and again.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from soak_requests import Client, Counted

from otterlm.cli.scripts import run_script
from otterlm.engines.requests import Served
from otterlm.engines.vllm.upstream.starting import LOADING

ROUND = 100
"""So many requests are sent before memory is read."""
FLAT = 0.02
"""Memory may grow by this share after the warm-up, the first quarter."""


def memory(process: psutil.Process) -> int:
    """Returns the bytes that a process and its children do not share."""
    return sum(each.memory_full_info().uss for each in [process, *process.children(recursive=True)])


def growth(held: list[int]) -> float | None:
    """Returns how much memory grew: the last third of what was read after the warm-up over the first third, less 1."""
    warm = held[len(held) // 4 :]
    third = len(warm) // 3
    return statistics.median(warm[-third:]) / statistics.median(warm[:third]) - 1 if third else None


async def reload(http: httpx.AsyncClient, adapter: str | None, done: asyncio.Event) -> int:
    """Loads an adapter again and again while others send requests. Returns how often."""
    loads = 0
    if adapter is None:
        return loads
    name, _, folder = adapter.partition("=")
    while not done.is_set():
        answer = await http.delete(f"/v1/otter/adapters/{name}")
        assert answer.status_code == 200, answer.text
        new = {"name": name, "path": str(Path(folder).resolve())}
        while (answer := await http.post("/v1/otter/adapters", json=new)).status_code == 409:
            await asyncio.sleep(0.1)  # requests that have begun use it to their end
        assert answer.status_code == 200, answer.text
        loads += 1
        await asyncio.sleep(1)
    return loads


async def load(server: psutil.Process, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends all requests, and returns the report."""
    served = Served.from_config(json.loads((Path(arguments.folder) / "config.json").read_text()))
    limits = httpx.Limits(max_connections=arguments.at_once + 1, max_keepalive_connections=0)
    held = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        client = Client(http, model, served, (arguments.reload or "").partition("=")[0] or None)
        done, free = asyncio.Event(), asyncio.Semaphore(arguments.at_once)
        reloading = asyncio.create_task(reload(http, arguments.reload, done))

        async def send(number: int) -> None:
            async with free:
                await client.send(number)

        started = time.perf_counter()
        for first in range(0, arguments.requests, ROUND):
            await asyncio.gather(*map(send, range(first, min(first + ROUND, arguments.requests))))
            if reloading.done():
                reloading.result()  # raises what went wrong
            held.append(memory(server))
            print(first + ROUND, held[-1] >> 20, "MiB", dict(client.counted.outcomes), file=sys.stderr, flush=True)
        seconds = time.perf_counter() - started
        done.set()
        loads = await reloading
        await asyncio.sleep(3)  # responses that were aborted end, and processes write their metrics
        differences = compare(client.counted, (await http.get("/metrics")).text, client.reloaded)
    grown = growth(held)
    return {
        "requests": arguments.requests,
        "outcomes": dict(client.counted.outcomes),
        "faults": client.counted.faults,
        "metrics_differ": differences,
        "metrics_compared": len(client.counted.metrics),
        "loads": loads,
        "bytes": held,
        "memory_growth": grown,
        "seconds": seconds,
        "flat": grown is not None and grown <= FLAT,
    }


def compare(counted: Counted, text: str, reloaded: str | None) -> dict[str, Any]:
    """Returns where the server's metrics differ: what it counted, and what clients did, at least and at most.

    Args:
        counted: by the clients.
        text: the server's metrics.
        reloaded: the adapter whose metrics are not compared.
    """
    lines = re.findall(r"^(otter:\S+_(?:total|count)\{?.*\}?) (\S+)$", text, flags=re.MULTILINE)
    ours = {re.sub(r"\{\}$", "", name): float(value) for name, value in lines}
    wanted = ("otter:refused_", "otter:steered_", "otter:stops_", "otter:reward_count")
    differences = {}
    compared = counted.metrics.keys() | {each for each in ours if each.startswith(wanted)}
    for name in sorted(each for each in compared if f'adapter="{reloaded}"' not in each):
        least = counted.metrics[name]
        most = least + counted.aborted[name] + counted.aborted[name.partition("{")[0]]
        if not least <= ours.get(name, 0) <= most:
            differences[name] = [ours.get(name, 0), least, most]
    return differences


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts a server, and returns the report."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_PLUGINS": "otter"}
    if arguments.reload:
        environment[LOADING] = "1"
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    command = [sys.executable, "-m", "otterlm.engines.vllm.upstream.launch", arguments.folder]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "16"]
    command += ["--max-num-batched-tokens", "256", "--host", "127.0.0.1", "--port", str(arguments.port)]
    url = f"http://127.0.0.1:{arguments.port}"
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen([*command, *arguments.server], env=environment, stdout=output) as server,
    ):
        try:
            wait(server, url)
            report = asyncio.run(load(psutil.Process(server.pid), url, arguments))
            report["alive"] = server.poll() is None
            return report
        finally:
            server.terminate()
            server.wait(60)


def wait(server: subprocess.Popen[bytes], url: str) -> None:
    """Waits until a server answers."""
    for _ in range(600):
        time.sleep(1)
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            continue
    raise SystemExit("the server did not start in ten minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="an exported folder")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--reload", metavar="NAME=DIR", help="this adapter of the folder is loaded again and again")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further options of the server")
    report = soak(parser.parse_args())
    print(json.dumps(report))
    right = report["alive"] and report["flat"] and not report["faults"] and not report["metrics_differ"]
    raise SystemExit(not right)


if __name__ == "__main__":
    run_script(main)
