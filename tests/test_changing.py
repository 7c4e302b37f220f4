"""The engine's part of changing adapters, on a stand-in for vLLM's engine: what enters, what is in use, what fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny_base, tiny_otter
from test_slots import SLOTS, WIDTH

from otterlm.engines.requests import ENTERED
from otterlm.engines.vllm.upstream.adapters import add, change, of_state
from otterlm.engines.vllm.upstream.wrapping import served
from otterlm.errors import OtterError


class Config(SimpleNamespace):
    """Stands for vLLM's configuration, which can be referred to weakly."""


class Request:
    """Stands for a request inside vLLM's engine."""

    def __init__(self, name: str, salt: str | None = None, **arguments: Any) -> None:
        self.request_id, self.client_index = name, 0
        self.sampling_params = SimpleNamespace(extra_args=arguments or None, min_tokens=0)
        self.cache_salt, self.block_hashes = salt, ["old"]

    def update_block_hashes(self) -> None:
        self.block_hashes.append(f"of {self.cache_salt}")


class Engine:
    """Stands for vLLM's engine, with one worker."""

    def __init__(self) -> None:
        hf_config = SimpleNamespace(otter=dict(SLOTS.adapters), vocab_size=97, hidden_size=WIDTH)
        model = SimpleNamespace(architecture="OtterLlamaForCausalLM", hf_config=hf_config)
        self.vllm_config = Config(model_config=model, speculative_config=None)
        self.scheduler = SimpleNamespace(requests={}, vllm_config=self.vllm_config)
        self.worker: Any = None
        self.model_executor = SimpleNamespace(collective_rpc=lambda call, args: [call(self.worker, *args)])
        self.calls: list[Any] = []
        self.problem = ""
        replacement = SimpleNamespace(prepare=self.prepare, commit=lambda *arguments: self.calls.append(arguments))
        self.worker = SimpleNamespace(
            get_model=lambda: SimpleNamespace(replacement=replacement), vllm_config=self.vllm_config
        )
        self.ended: list[str] = []

    def prepare(self, slot: str, folder: Path) -> None:
        if self.problem:
            raise OtterError(self.problem)
        self.calls.append((slot, folder))

    def _send_error_outputs_to_client(self, requests: list[str], client: int) -> None:
        self.ended += requests

    def enter(self, request: Request) -> Request:
        def original(core: Engine, request: Request) -> None:
            core.scheduler.requests[request.request_id] = request

        add(original, self, request)
        return request


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Makes an adapter that fits the slot of `good`, but for its base, which the stand-in has no print of."""
    tiny_otter(tiny_base()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(autouse=True)
def _same_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otterlm.engines.slots.alike", lambda *_: True)


def test_requests_have_their_adapters_to_their_end(engine: Engine, folder: Path) -> None:
    plain, asking = engine.enter(Request("a")), engine.enter(Request("b", otter_rewards=1))
    assert plain.sampling_params.extra_args is None
    assert asking.sampling_params.extra_args[ENTERED].watched == ("good", "rude")
    assert change(engine, "good", None)["unloaded"] == ["good"]
    assert "1 requests still use good" in change(engine, "new", str(folder))["error"]
    assert not engine.calls
    del engine.scheduler.requests["b"]
    state = change(engine, "new", str(folder))
    assert list(of_state(state).adapters) == ["new", "rude", "draft"]
    assert [call[:2] for call in engine.calls] == [("good", folder), ("good", "new")]
    assert served(engine.vllm_config).numbers == ("new", "rude")


def test_what_was_cached_before_is_not_read(engine: Engine, folder: Path) -> None:
    """Only by requests that use the new adapter; a client's own salt stays in force."""
    assert engine.enter(Request("a", otter_rewards=1)).block_hashes == ["old"]
    engine.scheduler.requests.clear()
    change(engine, "good", None)
    change(engine, "new", str(folder))
    assert engine.enter(Request("b")).block_hashes == ["old"]
    assert engine.enter(Request("c", otter_weight=1, otter_signal="rude")).block_hashes == ["old"]
    salts = [engine.enter(Request(name, otter_weight=1, otter_signal="new")).cache_salt for name in "de"]
    salts.append(engine.enter(Request("f", "mine", otter_weight=1, otter_signal="new")).cache_salt)
    assert salts[0] == salts[1] != salts[2]
    engine.scheduler.requests.clear()
    change(engine, "new", None)
    change(engine, "new", str(folder))
    again = engine.enter(Request("g", otter_weight=1, otter_signal="new"))
    assert again.cache_salt not in salts
    assert again.block_hashes == [f"of {again.cache_salt}"]


def test_a_failure_changes_nothing(engine: Engine, folder: Path) -> None:
    change(engine, "good", None)
    before = served(engine.vllm_config)
    engine.problem = "weights are damaged"
    assert change(engine, "new", str(folder)) == {"error": "weights are damaged", "busy": False}
    assert change(engine, "new", str(folder / "nobody"))["error"].endswith("no such file")
    assert served(engine.vllm_config) == before
    assert not engine.calls


def test_a_request_that_comes_too_late_is_ended(engine: Engine, folder: Path) -> None:
    """It was checked before its adapter was replaced."""
    change(engine, "good", None)
    change(engine, "new", str(folder))
    engine.enter(Request("late", otter_weight=1, otter_signal="good"))
    assert engine.ended == ["late"]
    assert not engine.scheduler.requests
