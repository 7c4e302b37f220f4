"""The vLLM plugin runs a real base over two processes: Qwen2.5-Coder-0.5B, of 14 heads and 2 key/value heads."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engines import answers, assert_rewards, greedy, tokens_of
from real_weights import path_of, variable
from test_smollm2_served import TEXTS

from otterlm import OtterConfig, OtterModel, client
from otterlm.bases import load_base, load_tokenizer
from otterlm.engines.exported import export, load_exported

NAME = "qwen2.5-coder-0.5b"
CONFIG = OtterConfig(hidden_size=32, num_attention_heads=2, intermediate_size=64, layers=(5, 11, 17, 23))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Makes the base and an untrained adapter with a random head, exported; 1.3 GB that are removed at once."""
    weights = path_of(NAME)
    if not weights.is_file():
        pytest.skip(f"no weights of {NAME}: make real-weights, or {variable(NAME)}=FILE.gguf")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        base = load_base(str(weights), torch.bfloat16)
        base.save_pretrained(out / "base")
        load_tokenizer(str(weights)).save_pretrained(out / "base")
        torch.manual_seed(0)
        model = OtterModel(base, CONFIG)
        # The largest channels of this base's state are a hundred times the others.
        torch.nn.init.normal_(model.adapter().head.prefix.weight, std=0.01)
        model.save_pretrained(out / "reward")
        del model, base
        gc.collect()
        export(str(out / "base"), {"reward": out / "reward"}, out / "export")
        yield out / "export"


@pytest.mark.slow
def test_two_processes(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    prompts = [{"prompt_token_ids": tokenizer.encode(text)} for text in TEXTS]
    two = {"tensor_parallel_size": 2, "max_num_seqs": 8}
    (plain,) = answers(folder.parent / "base", (prompts, greedy()), **two)
    (ours,) = answers(folder, (prompts, greedy(**client.request(folder, rewards=1))), **two)
    assert tokens_of(ours) == tokens_of(plain)
    assert torch.tensor([answer.rewards["reward"] for answer in ours]).std() > 0.1
    assert_rewards(load_exported(folder, dtype=torch.float32), ours)
