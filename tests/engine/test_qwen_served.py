"""Two processes of vLLM run Qwen2.5-Coder-0.5B, whose 14 heads and 2 key/value heads divide by two."""

import gc
import os
from pathlib import Path

import pytest
import torch
from engines import answers, assert_rewards, greedy, tokens_of
from test_smollm2_served import TEXTS

from otterlm import OtterConfig, OtterModel, client
from otterlm.bases import load_base, load_tokenizer
from otterlm.engines.exported import export, load_exported

BASE = "OTTER_QWEN_FOLDER"
"""The variable of the environment that names the base's folder."""
CONFIG = OtterConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, layers=(5, 11, 17, 23))


@pytest.fixture
def base() -> Path:
    if BASE not in os.environ:
        pytest.skip(f"{BASE} names no folder of Qwen2.5-Coder-0.5B")
    return Path(os.environ[BASE])


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """Exports the base with an untrained adapter that has a random head."""
    torch.manual_seed(0)
    model = OtterModel(load_base(str(base), torch.float32), CONFIG)
    # The largest channels of this base's state are a hundred times the others.
    torch.nn.init.normal_(model.adapter().head.prefix.weight, std=0.01)
    model.save_pretrained(tmp_path / "reward")
    del model
    gc.collect()  # the engine needs the memory
    export(str(base), {"reward": tmp_path / "reward"}, tmp_path / "export")
    return tmp_path / "export"


@pytest.mark.slow
def test_two_processes(base: Path, folder: Path) -> None:
    """Its tokens are those of plain vLLM over two processes, its rewards those of Transformers."""
    tokenizer = load_tokenizer(str(folder))
    prompts = [{"prompt_token_ids": tokenizer.encode(text)} for text in TEXTS]
    two = {"tensor_parallel_size": 2}
    (plain,) = answers(base, (prompts, greedy()), **two)
    (ours,) = answers(folder, (prompts, greedy(**client.request(folder, rewards=1))), **two)
    assert tokens_of(ours) == tokens_of(plain)
    assert torch.tensor([answer.rewards["reward"] for answer in ours]).std() > 0.1
    assert_rewards(load_exported(folder, dtype=torch.float32), ours)
