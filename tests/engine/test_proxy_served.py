"""Two servers behind one proxy: Otter's fields pass through, streamed or not."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from threading import Thread

import httpx
import pytest
from engines import make_folder
from openai import OpenAI
from test_server import CHAT, REWARDS, SETTINGS, wait

from otterlm import client

EXAMPLE = Path(__file__).parents[2] / "examples" / "proxy.py"
PORTS = (8231, 8232)


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """Runs a server of the folder. Yields its address."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *SETTINGS]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as session:
                wait(session, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_two_servers_behind_one_proxy(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, signals=("reward", "guard"))
    spec = util.spec_from_file_location("proxy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with server(folder, PORTS[0]) as first, server(folder, PORTS[1]) as second:
        with example.make([first, second], 0) as proxy:
            Thread(target=proxy.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{proxy.server_address[1]}/v1"
            chats = OpenAI(base_url=url, api_key="-").chat.completions
            # Each server in turn gives a stream and a whole response: their order changes between the rounds.
            whole = [client.choices(chats.create(**CHAT, extra_body=REWARDS)) for _ in range(2)]
            streams = [client.read(chats.create(**CHAT, extra_body=REWARDS, stream=True)) for _ in range(2)]
            assert [client.join(stream) for stream in streams] == whole
            assert len(whole[0][0].rewards["reward"]) == len(whole[1][0].rewards["guard"]) == 8
            proxy.shutdown()
        for each in (first, second):
            counted = httpx.get(f"{each}/metrics").text
            assert 'otter:reward_count{adapter="reward"} 2.0' in counted
