"""The alignment bench: all methods answer the same prompts in turn, and a judge of other data rates them."""

import json

import pytest
import torch
from conftest import close, refused, reward_model, tiny_base
from transformers import BertConfig, BertModel
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.bench.alignment_methods import Scale
from otterlm.bench.judges import Coherence, diversity
from otterlm.training.data.tokens import Limits
from otterlm.training.teachers.reward_model import Preference, SeparateRewardModel


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Makes a random sentence encoder, in a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **small)).save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def test_command(answer, refusal, base, adapter, encoder, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(" ".join(WORDS[10 : 12 + n]) for n in range(5)))
    models = ("--reward-model", reward_model(tmp_path / "rewards", 3), "--judge", reward_model(tmp_path / "judge", 4))
    data = ("--data", tmp_path / "prompts.txt", "--batch", 2, "--max-new-tokens", 6, "--out", tmp_path / "out")
    arguments = ("bench", "alignment", "--base", base, "--adapter", adapter, *models, *data, "--top-k", 4)
    result = answer(*arguments, "--coherence", encoder, "--weight", 0, "--weight", 3)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == [
        *("base", "base, sampled"),
        *("Otter, guidance, weight 0", "Otter, search, weight 0", "ARGS, weight 0"),
        *("Otter, guidance, weight 3", "Otter, search, weight 3", "ARGS, weight 3"),
        *("CARDS, Otter's reward", "CARDS"),
    ]
    # Weight 0 is the base: its rewards, and half of all wins.
    for name in ("base", "Otter, guidance, weight 0", "Otter, search, weight 0", "ARGS, weight 0"):
        assert rows[name]["reward"] == rows["base"]["reward"]
        assert rows[name]["win_rate"] == 0.5
    assert rows["Otter, guidance, weight 3"]["reward"] != rows["base"]["reward"] != rows["ARGS, weight 3"]["reward"]
    assert rows["ARGS, weight 3"]["extra_space_saved"] == 0 < rows["Otter, search, weight 3"]["extra_space_saved"] < 1
    assert rows["base"]["time_over_base"] == 1
    assert all(-1 <= row["coherence"] <= 1 and 0 <= row["diversity"] <= 1 for row in rows.values())
    assert (tmp_path / "out" / "alignment.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "alignment.json").read_text())["rows"] == result["rows"]
    # All is there; another setting is another run.
    again = answer(*arguments, "--coherence", encoder, "--weight", 0, "--weight", 3)
    assert again["rows"] == result["rows"]
    assert "alignment.jsonl" in refusal(*arguments, "--weight", 0, "--weight", 3, "--seed", 1)
    assert "not a reward model" in refusal(*arguments[:-2], "--judge", base)
    small = SeparateRewardModel.of(tiny_base(vocab_size=30))
    small.save_pretrained(tmp_path / "small")
    assert "vocabularies have 30" in refusal(*arguments[:-2], "--reward-model", tmp_path / "small")


def test_the_judge_reads_what_training_read(tmp_path) -> None:
    judge = Preference(reward_model(tmp_path / "judge", 4))
    words, turns = " ".join(WORDS[12:15]), (("user", WORDS[10]),)
    ids = tokenizer(TEMPLATE).apply_chat_template(
        [{"role": "user", "content": WORDS[10]}], add_generation_prompt=True, return_dict=False
    )
    response = tokenizer(TEMPLATE).encode(words, add_special_tokens=False)
    end = [tokenizer(TEMPLATE).eos_token_id]
    model = SeparateRewardModel.from_pretrained(tmp_path / "judge")
    for limit, after in ((2, response[:2]), (9, response + end)):
        expected = float(model.read(input_ids=torch.tensor([ids + after]))[0, -1])
        assert judge([turns], [words], Limits(30, limit)) == [expected]


def test_scale_is_of_the_last_tokens() -> None:
    scale = Scale.of(torch.tensor([[9.0, 1.0, 2.0], [9.0, 4.0, 6.0]]))
    assert scale.mean == 4.0
    assert scale.spread == pytest.approx(8**0.5)


def test_coherence_ignores_padding(encoder) -> None:
    measure = Coherence(encoder)
    short, long = WORDS[10], " ".join(WORDS[11:16])
    apart = measure([short], [short]) + measure([short], [long])
    close(torch.tensor(measure([short, short], [short, long])), torch.tensor(apart), 1e-5)
    assert apart[0] == pytest.approx(1, abs=1e-5)
    refused(lambda: Coherence(encoder / "none"), "not a sentence encoder")


def test_diversity_is_of_one_response() -> None:
    assert diversity("a b c d e") == 1
    assert diversity("a b") == 1
    assert diversity("a a a") == pytest.approx(0.5)
    assert diversity("a b a b a b") == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)
