"""Transformers' Trainer trains adapters, TRL calls a trained reward, and both examples run."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import base as base  # the fixture
from conftest import refused, tiny_base, tiny_config, tiny_otter
from safetensors.torch import load_file
from training_runs import HELD_OUT, TRAIN, new_objective, weights
from transformers import TrainingArguments
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.adapter_files import CONFIG, WEIGHTS
from otterlm.model import OtterModel
from otterlm.training.adapter_trainer import AdapterTrainer
from otterlm.training.data.stored_examples import in_memory
from otterlm.training.reward_function import RewardFunction

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trainer(out: Path, **settings: Any) -> AdapterTrainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 3e-3,
        "save_steps": 4,
        "eval_strategy": "epoch",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(out), **(defaults | settings))
    return AdapterTrainer(new_objective(), arguments, in_memory(TRAIN), in_memory(HELD_OUT))


def test_checkpoints_of_trainer_hold_adapters(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert whole.evaluate()["eval_loss"] < 0.6
    checkpoint = tmp_path / "whole" / "checkpoint-8"
    assert {CONFIG, WEIGHTS, "optimizer.pt", "trainer_state.json"} <= {path.name for path in checkpoint.iterdir()}
    assert not {path.name for path in checkpoint.iterdir()} & {"model.safetensors", "config.json"}
    reloaded = OtterModel.from_pretrained(tiny_base(num_hidden_layers=2), checkpoint)
    assert reloaded.adapter().config.hidden_size == 8
    # A run that goes on from a checkpoint ends with the same weights.
    again = trainer(tmp_path / "whole")
    again.train(resume_from_checkpoint=str(checkpoint))
    expected, got = (weights(each.model.objective) for each in (whole, again))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_best_adapter_is_loaded_at_the_end(tmp_path: Path) -> None:
    best = trainer(
        tmp_path,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=4,
        learning_rate=5e-2,
        num_train_epochs=3,
    )
    best.train()
    stored = load_file(Path(str(best.state.best_model_checkpoint)) / WEIGHTS)
    left = best.model.objective.model.adapter().state_dict()
    assert all(torch.equal(stored[name], left[name]) for name in stored)


def test_the_example_of_trainer(base: Path, pairs: Path, tmp_path: Path) -> None:
    train = example("hf_trainer").train
    first = train(str(base), str(pairs), tmp_path / "out", steps=3, config=tiny_config())
    assert first.state.global_step == 3
    assert (tmp_path / "out" / WEIGHTS).exists()
    OtterModel.from_pretrained(tiny_base(vocab_size=len(WORDS)), tmp_path / "out")


def reward_function(**settings: Any) -> RewardFunction:
    return RewardFunction(tiny_otter(tiny_base(vocab_size=len(WORDS))), tokenizer(TEMPLATE), **settings)


def test_a_reward_function_is_called_as_trl_calls_it() -> None:
    """By keywords, with the columns of the data set, texts or messages; it gives floats in the prompts' order."""
    score = reward_function()
    assert score.__name__ == "otter_reward"
    # A policy may write any text, also what a file would hold as a dialogue.
    prompts, completions = ["a b", "c", "a b"], ["d e f", "g", "\n\nHuman: a b\n\nAssistant: h\n\nHuman: i"]
    rewards = score(
        prompts=prompts, completions=completions, completion_ids=[[1]] * 3, trainer_state=None, column=[1] * 3
    )
    assert [type(reward) for reward in rewards] == [float] * 3
    assert len(set(rewards)) == 3
    messages = score(
        prompts=[[{"role": "user", "content": prompt}] for prompt in prompts],
        completions=[[{"role": "assistant", "content": completion}] for completion in completions],
    )
    assert messages == rewards
    assert score([prompts[1]], [completions[1]]) == pytest.approx([rewards[1]], abs=1e-5)
    assert score(prompts=[], completions=[]) == []


def test_what_a_reward_function_refuses() -> None:
    score = reward_function(adapter_name="reward", batch_size=1)
    refused(lambda: score(["a"], ["b", "c"]), "1 prompts and 2 completions")
    refused(lambda: score(["a", "a"], ["b", 3]), "completion 2")
    without = RewardFunction(tiny_otter(tiny_base(vocab_size=len(WORDS))), tokenizer(TEMPLATE, eos_token=None))
    refused(lambda: without(["a"], [""]), "no token to judge")


class Recorded:
    """Stands for TRL's trainer: it lets the policy answer each prompt and asks for the rewards of the answers."""

    def __init__(self, model: Any, processing_class: Any, reward_funcs: Any, args: Any, train_dataset: Any) -> None:
        self.model, self.reward, self.args, self.data = model, reward_funcs, args, train_dataset
        self.tokenizer, self.saved = processing_class, False
        self.rewards: list[float] = []

    def train(self) -> None:
        prompts = self.data["prompt"]
        completions = [[{"role": "assistant", "content": f"a {WORDS[10 + n]}"}] for n in range(len(prompts))]
        self.rewards = self.reward(prompts=list(prompts), completions=completions, completion_ids=None)

    def save_model(self) -> None:
        self.saved = True


def test_the_example_of_grpo(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl: Any = types.ModuleType("trl")
    trl.GRPOTrainer, trl.GRPOConfig = Recorded, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "trl", trl)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"b {word}"}) + "\n" for word in WORDS[10:14]))
    done = example("grpo").train(str(base), str(base), str(adapter), str(prompts), tmp_path / "out", max_steps=1)
    assert done.saved
    assert len(set(done.rewards)) == 4
    assert done.args == {"output_dir": str(tmp_path / "out"), "max_steps": 1}
    assert all(parameter.requires_grad for parameter in done.model.parameters())
