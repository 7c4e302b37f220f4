"""Real weights of families beside SmolLM2's: a stream in every block, and the base is as it was, bit for bit."""

import pytest
import torch
from conftest import tiny_config
from real_weights import WEIGHTS, path_of, variable
from torch import Tensor

from otterlm.bases import load_base, load_tokenizer
from otterlm.model import OtterModel

pytestmark = pytest.mark.slow

PROMPTS = (
    "The capital of France is the city of",
    "def add(a, b):\n    # Adds two numbers and returns the sum.\n    return",
)
MODELS = [
    pytest.param("gemma3-270m", "gemma3_text", torch.float32, "Paris", id="gemma3-270m"),
    pytest.param("qwen2.5-coder-0.5b", "qwen2", torch.bfloat16, "a + b", id="qwen2.5-coder-0.5b"),
]


def gguf(name: str) -> str:
    path = path_of(name)
    if not path.is_file():
        pytest.skip(f"no weights of {name}: make real-weights, or {variable(name)}=FILE.gguf")
    return str(path)


def padded_steps(model, ids: Tensor, mask: Tensor) -> Tensor:
    """Runs a left-padded batch: all but the last four tokens at once, then these one by one from the KV cache."""
    start = ids.shape[1] - 4
    output = model(input_ids=ids[:, :start], attention_mask=mask[:, :start], use_cache=True)
    logits = [output.logits]
    for end in range(start + 1, ids.shape[1] + 1):
        output = model(
            input_ids=ids[:, end - 1 : end], attention_mask=mask[:, :end], past_key_values=output.past_key_values
        )
        logits.append(output.logits)
    return torch.cat(logits, dim=1)  # [B, T, V]


def greedy(model, ids: Tensor, mask: Tensor) -> Tensor:
    return model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)


@torch.no_grad()
@pytest.mark.parametrize(("name", "model_type", "dtype", "answer"), MODELS)
def test_a_random_stream_leaves_the_base_as_it_was(name, model_type, dtype, answer) -> None:
    path = gguf(name)
    tokenizer, base = load_tokenizer(path), load_base(path, dtype).requires_grad_(False)
    assert base.config.model_type == model_type
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert 0 < (mask == 0).sum() < mask.numel() / 2
    expected = [run(base, ids, mask) for run in (padded_steps, greedy)]
    responses = tokenizer.batch_decode(expected[1][:, ids.shape[1] :])
    assert any(answer in text for text in responses), responses

    torch.manual_seed(0)
    otter = OtterModel(base, tiny_config(hidden_size=32, num_attention_heads=2, intermediate_size=64)).eval()
    assert len(otter.watched_layers) == base.config.num_hidden_layers
    results = [run(otter, ids, mask) for run in (padded_steps, greedy)]
    inserted = otter.signal().state[..., base.config.hidden_size :]
    assert inserted.isfinite().all()
    assert (inserted != 0).all()
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[1], expected[1])


def test_every_model_has_its_weights() -> None:
    assert {model.values[0] for model in MODELS} == set(WEIGHTS)
