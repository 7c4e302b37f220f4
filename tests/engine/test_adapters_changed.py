"""An engine changes its adapters between two steps: new weights, other names, and nothing stale out of its caches."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import add_tiny_adapter, tiny_base
from engines import SIGNALS, SIZES, Answer, assert_rewards, engine, greedy, make_folder, prompts, tokens_of
from vllm.exceptions import VLLMValidationError

from otterlm.engines.exported import load_exported
from otterlm.model import OtterModel

PROMPTS = [{"prompt_token_ids": [*prompt["prompt_token_ids"] * 8][:80]} for prompt in prompts(4)]
"""They fill several blocks of the prefix cache."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with a reward and a guard, and beside it adapters that fit a slot."""
    out = tmp_path_factory.mktemp("changed")
    exported = make_folder(out, signals=("reward", "moderator"))
    more_adapters(out)
    return exported


def more_adapters(out: Path) -> None:
    sizes: dict[str, Any] = SIZES
    model = OtterModel(tiny_base(**sizes))
    for name, settings in (("second", {"seed": 7}), ("strict", {**SIGNALS["moderator"], "seed": 9})):
        add_tiny_adapter(model, name, **settings)
        model.save_pretrained(out / name, name)


def remembered(worker: Any) -> dict[str, bool]:
    """Says of each adapter whether what its head makes of every token is known."""
    heads = {name: adapter.head for name, adapter in worker.get_model().otter.items()}
    folds = {name: [each._fold for each in head.modules() if hasattr(each, "_fold")] for name, head in heads.items()}
    return {name: all(fold._made is not None for fold in made) for name, made in folds.items() if made}


def changed(folder: Path) -> dict[str, Any]:
    """Returns what one engine answers before and after its adapters change."""
    llm, out = engine(folder, block_size=32), folder.parent
    core: Any = llm.llm_engine.engine_core.engine_core

    def ask(**arguments: Any) -> Any:
        try:
            outputs = llm.generate(PROMPTS, greedy(extra_args=arguments), use_tqdm=False)
        except VLLMValidationError as error:
            return str(error)
        return [Answer.of(output) for output in outputs]

    results: dict[str, Any] = {}
    results["remembered"] = llm.collective_rpc(remembered)
    results["before"] = ask(otter_rewards=1)
    results["full"] = core.otter_change("second", str(out / "second"))
    results["unloaded"] = core.otter_change("reward", None)
    results["without"] = ask(otter_rewards=1)
    results["refused"] = ask(otter_weight=1, otter_signal="reward")
    results["loaded"] = core.otter_change("second", str(out / "second"))
    results["remembered after"] = llm.collective_rpc(remembered)
    results["after"] = ask(otter_rewards=1)
    results["again"] = ask(otter_rewards=1)
    results["steered"] = ask(otter_weight=3.0, otter_signal="second")
    core.otter_change("moderator", None)
    results["guard"] = core.otter_change("strict", str(out / "strict"))
    results["guarded"] = ask(otter_rewards=1, otter_guards=1, otter_prompt=1)
    results["plain"] = ask()
    return results


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(changed, folder).result()


def test_no_step_waits_for_what_heads_remember(results: dict[str, Any]) -> None:
    assert results["remembered"] == [{"reward": True, "moderator": True}]
    assert results["remembered after"] == [{"second": True, "moderator": True}]


def test_another_adapter_takes_a_slot(folder: Path, results: dict[str, Any]) -> None:
    """Its rewards are those of Transformers, of prompts that were cached before it came, too."""
    model: Any = load_exported(folder)
    for name in ("second", "strict"):
        model.load_adapter(folder.parent / name, name)
    assert_rewards(model, results["before"], "reward", "moderator")
    assert "unload one first" in results["full"]["error"]
    assert results["unloaded"]["unloaded"] == ["reward"]
    assert all(answer.rewards.keys() == {"moderator"} for answer in results["without"])
    assert "unknown signal 'reward'" in results["refused"]
    assert set(results["loaded"]["adapters"]) == {"second", "moderator"}
    for name in ("after", "again"):
        assert_rewards(model, results[name], "second", "moderator")
        assert tokens_of(results[name]) == tokens_of(results["before"])
    assert tokens_of(results["steered"]) != tokens_of(results["before"])
    assert set(results["guard"]["adapters"]) == {"second", "strict"}
    assert_rewards(model, results["guarded"], "second", "strict")
    assert all(answer.guards.keys() == {"strict"} for answer in results["guarded"])
    assert all(answer.at_prompt["guards"].keys() == {"strict"} for answer in results["guarded"])
    assert tokens_of(results["plain"]) == tokens_of(results["before"])
