"""Interventions have their documented effect, in batches, and none at weight 0."""

import functools

import pytest
import torch
from conftest import NEW, VOCABULARY, Listener, batch, close, generate, refused, tiny_base, tiny_otter, tokens
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    score_sequences,
    stream_tokens,
)
from otterlm.decoding.prompt import read_once
from otterlm.model import OtterModel


@pytest.fixture
def otter() -> OtterModel:
    return tiny_otter(tiny_base())


def rewards_of(otter: OtterModel, row: Tensor) -> Tensor:
    """Returns the prefix rewards of one unpadded sequence, by a plain pass."""
    with torch.no_grad():
        return otter(input_ids=row[None]).signals["reward"].prefix[0]


def unpadded(sequences: Tensor, row: int) -> Tensor:
    return sequences[row, 3 * row :]


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize(
    "intervention",
    [
        lambda otter: {"logits_processor": [RewardGuidance(otter, 0.0)]},
        lambda otter: {"custom_generate": CandidateSearch(0.0)},
        lambda otter: {"custom_generate": BestOfN(3, weight=0.0)},
        lambda otter: {"stopping_criteria": [RewardStop(otter, -torch.inf)]},
        lambda otter: {"custom_generate": ReplaceStopped(-torch.inf, [5])},
    ],
    ids=["guidance", "search", "best-of-n", "stop", "replace"],
)
def test_weight_zero_gives_the_tokens_of_the_base(otter, intervention, sample) -> None:
    settings = {"do_sample": sample, "top_k": 0} if sample else {}
    torch.manual_seed(3)
    expected = generate(otter.base_model, **settings)
    torch.manual_seed(3)
    assert torch.equal(generate(otter, **settings, **intervention(otter)), expected)


def test_search_is_args_with_one_model(otter) -> None:
    """Each token has the highest logit + weight * reward among the k likeliest, by passes over whole prefixes."""
    sequences = generate(otter, custom_generate=CandidateSearch(0.7, top_k=4, min_p=0.0))
    for row in range(2):
        ids = unpadded(sequences, row)
        for end in range(len(ids) - NEW, len(ids)):
            with torch.no_grad():
                logits, likely = otter.base_model(input_ids=ids[None, :end]).logits[0, -1].topk(4)
            scores = [
                logit + 0.7 * rewards_of(otter, torch.cat((ids[:end], token[None])))[-1]
                for logit, token in zip(logits, likely, strict=True)
            ]
            assert ids[end] == likely[torch.stack(scores).argmax()]


def test_search_returns_the_rewards_of_what_it_chose(otter) -> None:
    output = generate(otter, custom_generate=CandidateSearch(0.7, top_k=4, min_p=0.0), return_dict_in_generate=True)
    for row in range(2):
        close(output.rewards[row], rewards_of(otter, unpadded(output.sequences, row))[-NEW:], 1e-4)


def test_search_makes_one_pass_a_token(otter) -> None:
    passes = []
    handle = otter.base_model.register_forward_hook(lambda *_: passes.append(1))
    generate(otter, custom_generate=CandidateSearch(0.7, top_k=4, min_p=0.0))
    handle.remove()
    assert len(passes) == 1 + NEW


def test_search_pads_a_sequence_that_has_ended(otter) -> None:
    first = generate(otter, custom_generate=CandidateSearch(0.7, top_k=4, min_p=0.0))
    end = int(first[0, 8])  # the second new token of the first row
    output = generate(
        otter, custom_generate=CandidateSearch(0.7, top_k=4, min_p=0.0), eos_token_id=end, return_dict_in_generate=True
    )
    stop = (output.sequences[0, 7:] == end).nonzero()[0, 0] + 1
    assert (output.sequences[0, 7 + stop :] == 0).all()
    assert output.rewards[0, stop:].isnan().all()
    assert not output.rewards[0, :stop].isnan().any()


def test_stochastic_search_follows_the_seed_and_the_candidates(otter) -> None:
    search = CandidateSearch(0.7, top_k=3, min_p=0.0, mode="stochastic")
    torch.manual_seed(0)
    first = generate(otter, custom_generate=search)
    torch.manual_seed(0)
    assert torch.equal(first, generate(otter, custom_generate=search))
    others = [generate(otter, custom_generate=search) for _ in range(5)]
    assert any(not torch.equal(first, other) for other in others)
    for row in range(2):
        ids = unpadded(first, row)
        with torch.no_grad():
            logits = otter.base_model(input_ids=ids[None]).logits[0]
        for end in range(len(ids) - NEW, len(ids)):
            assert ids[end] in logits[end - 1].topk(3).indices


def test_a_cold_search_is_greedy(otter) -> None:
    cold = CandidateSearch(0.7, top_k=3, min_p=0.0, mode="stochastic", temperature=1e-5)
    greedy = CandidateSearch(0.7, top_k=3, min_p=0.0)
    assert torch.equal(generate(otter, custom_generate=cold), generate(otter, custom_generate=greedy))


@pytest.mark.parametrize("top_k", [None, 5])
def test_guidance_adds_the_vocabulary_reward(otter, top_k) -> None:
    sequences = generate(otter, logits_processor=[RewardGuidance(otter, 0.5, top_k, min_p=0.0)])
    for row in range(2):
        ids = unpadded(sequences, row)
        for end in range(len(ids) - NEW, len(ids)):
            with torch.no_grad():
                output = otter(input_ids=ids[None, :end])
                scores = output.logits[0, -1] + 0.5 * output.signals["reward"].vocabulary()[0]
            if top_k is not None:
                out = torch.ones(VOCABULARY, dtype=torch.bool)
                out[output.logits[0, -1].topk(top_k).indices] = False
                scores[out] = -torch.inf
            assert ids[end] == scores.argmax()


def test_guidance_works_with_beams(otter) -> None:
    plain = generate(otter, num_beams=3)
    guided = generate(otter, num_beams=3, logits_processor=[RewardGuidance(otter, 3.0)])
    assert plain.shape == guided.shape
    assert not torch.equal(plain, guided)


def test_the_vocabulary_reward_of_some_tokens_is_that_of_all(otter) -> None:
    with torch.no_grad():
        signal = otter(input_ids=tokens(2, 5)).signals["reward"]
        some = tokens(2, 4, seed=1)
        close(signal.vocabulary(some), signal.vocabulary().gather(1, some), 1e-4)


@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_best_of_n_takes_the_best_of_what_it_sampled(otter, weight) -> None:
    torch.manual_seed(0)
    candidates = generate(otter, do_sample=True, num_return_sequences=4)
    torch.manual_seed(0)
    output = generate(otter, do_sample=True, custom_generate=BestOfN(4, weight), return_dict_in_generate=True)
    for row in range(2):
        finals = [rewards_of(otter, candidates[4 * row + i, 3 * row :])[-1] for i in range(4)]
        best = int((weight * torch.stack(finals)).argmax())
        assert torch.equal(output.sequences[row], candidates[4 * row + best])
        close(output.rewards[row, -1], finals[best], 1e-4)


def test_the_best_of_one_is_the_bases(otter) -> None:
    assert torch.equal(generate(otter, custom_generate=BestOfN(1)), generate(otter.base_model))


def test_best_of_n_judges_a_response_at_its_end(otter) -> None:
    """What stands behind the end of a sequence is padding and has no say."""
    torch.manual_seed(0)
    end = int(generate(otter, do_sample=True)[0, 8])
    torch.manual_seed(0)
    output = generate(otter, do_sample=True, eos_token_id=end, custom_generate=BestOfN(6), return_dict_in_generate=True)
    for row in range(2):
        new = output.sequences[row, 7:]
        length = int((new == end).nonzero()[0, 0]) + 1 if (new == end).any() else len(new)
        expected = rewards_of(otter, output.sequences[row, 3 * row : 7 + length])[-1]
        close(output.rewards[row, length - 1], expected, 1e-4)


def test_stop_ends_a_response_under_the_threshold(otter) -> None:
    plain = generate(otter)
    rewards = torch.stack([rewards_of(otter, unpadded(plain, row))[-NEW:] for row in range(2)])
    threshold = float(rewards[0, :3].min()) + 1e-3
    stop = RewardStop(otter, threshold)
    sequences = generate(otter, stopping_criteria=[stop])
    low = int((rewards[0] < threshold).nonzero()[0, 0])
    assert stop.stopped is not None
    assert stop.stopped[0]
    assert torch.equal(sequences[0, 7 : 7 + low + 2], plain[0, 7 : 7 + low + 2])
    assert (sequences[0, 7 + low + 2 :] == 0).all()


def test_stop_can_put_another_response_in_its_place(otter) -> None:
    sequences = generate(otter, custom_generate=ReplaceStopped(torch.inf, [50, 51, 52]))
    assert torch.equal(sequences[:, 7:10], torch.tensor([[50, 51, 52]] * 2))
    assert (sequences[:, 10:] == 0).all()
    assert torch.equal(sequences[:, :7], batch()["input_ids"])


def test_stop_does_not_judge_padding(otter) -> None:
    """A response that ended by itself is not ended by the reward of the padding after it."""
    plain = generate(otter)
    end = int(plain[0, 7])
    otter.base_model.generation_config.eos_token_id = end
    stop = RewardStop(otter, torch.inf, patience=2)
    generate(otter, stopping_criteria=[stop], eos_token_id=end)
    assert stop.stopped is not None
    assert not stop.stopped[0]


def test_a_reward_at_the_threshold_is_not_under_it(otter) -> None:
    seen: list[float] = []
    stop = RewardStop(otter, -1e9)

    def listen(input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        seen.extend(otter.signal().prefix[:, -1].tolist())
        return stop(input_ids, scores)

    generate(otter, stopping_criteria=[listen])
    lowest = min(seen[2:])  # the first two are the prompts'
    for threshold, stopped in ((lowest, False), (lowest + 1e-3, True)):
        stop = RewardStop(otter, threshold)
        generate(otter, stopping_criteria=[stop])
        assert stop.stopped is not None
        assert bool(stop.stopped.any()) == stopped


def test_patience_waits(otter) -> None:
    stop = RewardStop(otter, torch.inf, patience=3)
    assert generate(otter, stopping_criteria=[stop]).shape[1] == 7 + 4


def test_scoring_a_padded_batch_scores_each_alone(otter) -> None:
    inputs = batch()
    rewards = score_sequences(otter, inputs["input_ids"], inputs["attention_mask"])
    assert rewards[1, :3].isnan().all()
    for row in range(2):
        close(rewards[row, 3 * row :], rewards_of(otter, unpadded(inputs["input_ids"], row)), 1e-4)


def test_logits_processors_and_criteria_of_the_user_are_obeyed(otter) -> None:
    class Forbid(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(-1, torch.arange(3, 60), -torch.inf)

    sequences = generate(otter, custom_generate=CandidateSearch(0.5, top_k=4, min_p=0.0), logits_processor=[Forbid()])
    assert ((sequences[:, 7:] < 3) | (sequences[:, 7:] >= 60)).all()


def test_the_tokens_of_a_search_are_streamed(otter) -> None:
    heard = Listener()
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    response = otter.generate(tokens(1, 5), custom_generate=CandidateSearch(1.0), streamer=heard, **settings)
    assert heard.tokens == [*response[0].tolist(), -1]


class Pairs:
    """Is a tokenizer of which two tokens make a character."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        whole = "".join(f"<{first} {second}>" for first, second in zip(ids[::2], ids[1::2], strict=False))
        return whole + "\ufffd" * (len(ids) % 2)


@pytest.mark.parametrize("sample", [False, True])
def test_a_stream_says_what_generate_says(otter, sample) -> None:
    settings = {"max_new_tokens": NEW, "do_sample": sample, "top_k": 0, "eos_token_id": None}
    torch.manual_seed(0)
    expected = otter.generate(tokens(1, 5), **settings)[0]
    torch.manual_seed(0)
    steps = list(stream_tokens(otter, Pairs(), tokens(1, 5), **settings))
    ids = [step.token for step in steps]
    assert ids == expected[5:].tolist()
    assert [step.text for step in steps[::2]] == [""] * (NEW // 2)
    assert [step.text for step in steps[1::2]] == [f"<{a} {b}>" for a, b in zip(ids[::2], ids[1::2], strict=True)]
    rewards = torch.tensor([step.signals["reward"] for step in steps])
    close(rewards, rewards_of(otter, expected)[5:], 1e-4)


def test_a_stream_is_of_one_prompt(otter) -> None:
    for ids in (tokens(2, 5), tokens(5)):
        stream = stream_tokens(otter, Pairs(), ids, max_new_tokens=1)
        refused(functools.partial(next, stream), "one prompt")


def test_the_cache_of_a_search_holds_only_what_was_chosen(otter) -> None:
    from otterlm.cache import keep_path

    cache = DynamicCache()
    ids = tokens(2, 8)
    with torch.no_grad():
        otter(input_ids=ids, past_key_values=cache)
        before = [layer.keys.clone() for layer in cache.layers]
        keep_path(cache, torch.tensor([[2], [0]]), tree_size=3)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :5], old[:, :, :5])
        assert torch.equal(layer.keys[0, :, 5], old[0, :, 7])
        assert torch.equal(layer.keys[1, :, 5], old[1, :, 5])
        assert layer.keys.shape[2] == 6


def test_bad_settings_are_refused(otter) -> None:
    refused(lambda: CandidateSearch(1.0, top_k=0), "top_k must be a whole number")
    refused(lambda: CandidateSearch(float("nan")), "weight must be a finite number, got nan")
    refused(lambda: CandidateSearch(1.0, mode="best"), "mode must be greedy or stochastic")
    refused(lambda: RewardGuidance(otter, float("inf")), "weight must be a finite number, got inf")
    refused(lambda: RewardGuidance(otter, 1.0, adapter_name="toxicity"), "toxicity")
    refused(lambda: BestOfN(0), "n must be")
    refused(lambda: RewardStop(otter, float("nan")), "threshold")
    refused(lambda: ReplaceStopped(0.0, []), "replacement")
    refused(lambda: generate(otter, custom_generate=BestOfN(2)), "do_sample")
    refused(lambda: generate(otter, custom_generate=CandidateSearch(1.0, adapter_name="x")), "unknown signal 'x'")


def test_search_refuses_a_window_shorter_than_the_text() -> None:
    for window, fits in ((7 + NEW, True), (7 + NEW - 1, False)):
        otter = tiny_otter(tiny_base("mistral", sliding_window=window))
        if fits:
            assert generate(otter, custom_generate=CandidateSearch(1.0)).shape == (2, 7 + NEW)
        else:
            search = functools.partial(generate, otter, custom_generate=CandidateSearch(1.0))
            refused(search, "window", str(window))


@pytest.mark.parametrize("length", [6, 1])
def test_prompts_are_read_once_for_all_their_samples(otter, length) -> None:
    ids, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    if length > 1:
        ids[1, :2], mask[1, :2] = 0, 0
    repeated = {"input_ids": ids.repeat_interleave(3, dim=0), "attention_mask": mask.repeat_interleave(3, dim=0)}
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for model in (otter, otter.base_model):
        responses = model.generate(**repeated, past_key_values=read_once(model, ids, mask, 3), **settings)
        assert torch.equal(responses, model.generate(**repeated, **settings))
