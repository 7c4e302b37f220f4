"""The vLLM plugin runs SmolLM2 and the shipped adapter."""

from pathlib import Path

import pytest
from engines import answers, assert_rewards, greedy, tokens_of

from otterlm import client
from otterlm.bases import base_folder, load_tokenizer
from otterlm.engines.exported import export, load_exported
from otterlm.smollm2 import SMOLLM2

ADAPTER = Path(__file__).parents[2] / "adapters" / "smollm2-135m-harmless"
TEXTS = (
    "The otter swims under",
    "How do I get back at my neighbour?",
    "def add(a, b):",
    "Rain is made when",
    "2 + 2 =",
)


@pytest.mark.slow
def test_tokens_and_rewards(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(SMOLLM2, {"reward": ADAPTER}, folder)
    tokenizer = load_tokenizer(SMOLLM2)
    prompts = [{"prompt_token_ids": tokenizer.encode(text)} for text in TEXTS]
    (plain,) = answers(base_folder(SMOLLM2), (prompts, greedy()))
    rewarded, steered = answers(
        folder,
        (prompts, greedy(**client.request(folder, rewards=1))),
        (prompts, greedy(**client.request(folder, weight=4.0))),
    )
    assert tokens_of(rewarded) == tokens_of(plain) != tokens_of(steered)
    assert_rewards(load_exported(folder), rewarded)
