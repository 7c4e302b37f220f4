"""Drafts go together with everything else: what a request gets from an engine that verifies drafts is what it gets from
one that does not."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Answer, answers, deviation, greedy, make_folder, prompts, tokens_of
from oracle import TEXTS
from torch import Tensor
from vllm import SamplingParams

from otterlm import client
from otterlm.decoding.steering import guide
from otterlm.engines.exported import load_exported

ALARM, THRESHOLD = 0.5, 0.0
"""Between probabilities and between rewards of the random model."""
MIX: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"logprobs": 3}),
    ({"weight": 3.0, "signal": "reward", "rewards": 1}, {}),
    ({"guards": 1, "rewards": 1}, {}),
    ({}, {}),
    ({"weight": 2.0, "signal": "contrast"}, {"logprobs": 2}),
    (
        {"weight": 3.0, "signal": "reward", "top_k": 5, "guards": 1},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    ),
    ({"weight": 3.0, "signal": "moderator", "guard": "moderator", "alarm": ALARM, "guards": 1, "rewards": 1}, {}),
    ({}, {"repetition_penalty": 1.3, "logprobs": 0}),
    ({"threshold": THRESHOLD, "guard": "reward", "patience": 2, "rewards": 1}, {"min_tokens": 4}),
    ({"weight": -2.0, "signal": "reward", "rewards": 1}, {"n": 2, "temperature": 1.0, "top_k": 1}),
    ({"guard": "moderator", "alarm": ALARM, "hits": 4, "window": 6}, {}),
    ({"weight": 2.0, "signal": "contrast", "top_p": 0.5}, {"bad_words": ["a", "b"]}),
    ({"weight": 3.0, "signal": "reward"}, {"allowed_token_ids": list(range(50, 200))}),
    ({"weight": 3.0, "signal": "reward"}, {"min_tokens": 8, "stop_token_ids": list(range(4, 300, 3))}),
    ({"prompt": 1, "guards": 1}, {"prompt_logprobs": 1}),
    ({"prompt_tokens": 1, "rewards": 1, "guards": 1}, {}),
    ({"refuse": 1, "guards": 1}, {}),
]
"""Settings of requests that share batches, and their sampling parameters."""
REQUESTS: list[tuple[Any, int, dict[str, Any], dict[str, Any]]] = [
    (prompt, kind, settings, {"max_tokens": 9 + 7 * index % 26} | parameters)
    for index, (prompt, (kind, (settings, parameters))) in enumerate(
        zip(prompts(3 * len(MIX)), [*enumerate(MIX)] * 3, strict=True)
    )
]
PROMPTS = [prompt for prompt, *_ in REQUESTS]
DRAFTERS: dict[str, dict[str, Any]] = {
    "drafts": {"method": "custom_class", "model": "otterlm.engines.vllm.drafts.DraftProposer"},
    "every guess": {"method": "custom_class", "model": "oracle.Eager", "num_speculative_tokens": 5},
    "ngram": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "oracle": {"method": "custom_class", "model": "oracle.Oracle"},
}
SETTINGS = {"max_num_batched_tokens": 64, "block_size": 32}
"""Prompts are read in parts, and those that begin alike once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("drafted"), signals=("reward", "contrast", "draft", "moderator"))


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[SamplingParams]:
    return [greedy(**parameters, **client.request(folder, **settings)) for _, _, settings, parameters in REQUESTS]


@pytest.fixture(scope="module")
def plain(folder: Path, asked: list[SamplingParams]) -> list[Answer]:
    """Returns the answers of an engine without drafts."""
    (texts,) = answers(folder, (PROMPTS, asked), **SETTINGS)
    return texts


@pytest.fixture(scope="module")
def tree(folder: Path) -> "Tree":
    return Tree(load_exported(folder), PROMPTS[2]["prompt_token_ids"])


@pytest.fixture(scope="module")
def drafted(folder: Path, asked: list[SamplingParams], plain: list[Answer], tree: "Tree", tmp_path_factory) -> Any:
    """Returns what an engine with a drafter answers: the mix; and many samples after one prompt, steered and not."""
    sampling = {"temperature": 1.0, "max_tokens": Tree.DEPTH, "top_k": Tree.WIDTH, "ignore_eos": True}
    steer = client.request(folder, weight=tree.WEIGHT, signal="reward", top_k=Tree.WIDTH, min_p=0.0)
    samples = [
        # vLLM's CPU runner cannot read a prompt in parts where a request has a seed of its own.
        SamplingParams(**sampling, **({} if index % 2 else steer))
        for index in range(2 * Tree.SAMPLES)
    ]
    texts = [[*answer.prompt, *answer.tokens] for answer in plain]
    # Of alike prompts the longer answer is more of a draft. Those of samples are likely, and now and then wrong.
    texts = [*tree.likely(), *sorted(texts, key=len, reverse=True)]
    path = tmp_path_factory.mktemp("oracle") / "texts.json"
    path.write_text(json.dumps(texts))
    results: dict[str, list[list[Answer]]] = {}

    def answered(drafter: str) -> list[list[Answer]]:
        if drafter not in results:
            batches = [(PROMPTS, asked)]
            if drafter == "oracle":
                batches.append(([PROMPTS[2]] * len(samples), samples))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(TEXTS, str(path))
                speculative = {"num_speculative_tokens": 3, **DRAFTERS[drafter]}
                results[drafter] = answers(folder, *batches, **SETTINGS, speculative_config=speculative, count=True)
        return results[drafter]

    return answered


def assert_alike(ours: Any, theirs: Any, where: str = "") -> None:
    """Numbers differ by at most 1e-4, and nothing else differs."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name in theirs:
            assert_alike(ours[name], theirs[name], f"{where}.{name}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(our, their, f"{where}[{index}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-4), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_requests_get_what_they_get_without_drafts(drafter: str, drafted: Any, plain: list[Answer]) -> None:
    """All kinds of requests share the batches. Tokens, stops, numbers and log probabilities are the same."""
    ours, *_, counts = drafted(drafter)
    assert tokens_of(ours) == tokens_of(plain)
    for index, (our, their) in enumerate(zip(ours, plain, strict=True)):
        assert_alike(vars(our), vars(their), str(index))
    assert drafter != "oracle" or counts["accepted"] > 20  # random heads and texts that do not repeat guess badly
    assert counts["drafted"] > counts["accepted"] or drafter == "drafts"  # such guesses are not worth their time


def test_the_mix_has_an_effect(folder: Path, plain: list[Answer]) -> None:
    """Steering changes texts, guards end some in the middle, and innocent requests get the base's tokens."""
    unasked = [greedy(**parameters) for *_, parameters in REQUESTS]
    (base,) = answers(folder.parent / "base", (PROMPTS, unasked), **SETTINGS)
    asked = [request for request in REQUESTS for _ in range(request[-1].get("n", 1))]
    changed, ended = set(), set()
    for (_, kind, settings, parameters), ours, theirs in zip(asked, plain, base, strict=True):
        if "weight" not in settings:
            assert ours.tokens == theirs.tokens[: len(ours.tokens)]
        elif ours.tokens != theirs.tokens[: len(ours.tokens)]:
            changed.add(kind)
        if str(ours.stop_reason).startswith("otter") and 0 < len(ours.tokens) < parameters["max_tokens"]:
            ended.add(kind)
        if not settings:
            assert (ours.tokens, ours.logprobs) == (theirs.tokens, theirs.logprobs)
    assert changed == {kind for kind, (settings, _) in enumerate(MIX) if "weight" in settings}
    assert ended == {kind for kind, (settings, _) in enumerate(MIX) if "guard" in settings}


class Tree:
    """The tree holds the probability of every text of a few tokens after a prompt, with and without steering."""

    DEPTH, WIDTH, WEIGHT, SAMPLES = 3, 4, 1.0, 2000

    def __init__(self, model: Any, prompt: list[int]) -> None:
        self._model, self._prompt = model, prompt
        self._unit = model.adapter("reward").config.signal.unit
        self.steered = self._texts(self._steered)
        self.base = self._texts(lambda scores, _: self._few(scores))

    @torch.no_grad()
    def _texts(self, change: Any) -> dict[tuple[int, ...], float]:
        texts: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(self.DEPTH):
            grown = {}
            for text, chance in texts.items():
                output = self._model(torch.tensor([[*self._prompt, *text]]))
                scores = change(output.logits[:, -1], output.signals["reward"])
                for token, share in enumerate(scores.softmax(dim=-1)[0].tolist()):
                    if share > 0:
                        grown[*text, token] = chance * share
            texts = grown
        return texts

    def _steered(self, scores: Tensor, signal: Any) -> Tensor:
        return guide(scores, signal.vocabulary, self.WEIGHT / self._unit, self.WIDTH)

    def _few(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(scores < scores.topk(self.WIDTH).values[:, -1:], -torch.inf)

    def likely(self) -> list[list[int]]:
        """Returns the likeliest text of each first token, with the prompt."""
        ranked = sorted(self.steered, key=lambda text: -self.steered[text])
        best = {text[0]: text for text in reversed(ranked)}
        return [[*self._prompt, *text] for text in best.values()]


def test_samples_are_of_the_steered_distribution(drafted: Any, tree: "Tree") -> None:
    """Drafts change no chances: of thousands of texts as many are each as steering, or the base, wants."""
    _, samples, _ = drafted("oracle")
    texts = [tuple(answer.tokens) for answer in samples]
    steered, base = texts[::2], texts[1::2]
    assert len(tree.steered) == len(tree.base) == Tree.WIDTH**Tree.DEPTH
    assert deviation(steered, tree.steered) < 4
    assert deviation(base, tree.base) < 4
    # The test can tell: the two are far from each other.
    inside = [text for text in base if text in tree.steered]
    total = sum(tree.steered.values())
    assert deviation(inside, {text: chance / total for text, chance in tree.steered.items()}) > 20


@pytest.mark.slow
def test_every_number_of_drafts(folder: Path, asked: list[SamplingParams], plain: list[Answer]) -> None:
    """From one draft to eight, of a lookup, with a cache that holds a part of the requests."""
    for count in (1, 8):
        speculative = {"method": "ngram", "num_speculative_tokens": count, "prompt_lookup_max": 2}
        settings = SETTINGS | {"num_gpu_blocks_override": 14}
        (ours,) = answers(folder, (PROMPTS, asked), **settings, speculative_config=speculative)
        for index, (our, their) in enumerate(itertools.zip_longest(ours, plain)):
            assert_alike(vars(our), vars(their), str(index))
