"""A guard decides: stops, replacements and rollbacks by its labels, verdicts on prompts and beside streamed tokens."""

from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import Listener, add_tiny_adapter, batch, generate, refused, tiny_base, tiny_otter, tokens
from generation_table import ALARM, GREEDY, guarding, prompts, tokenizer
from torch import Tensor
from training_runs import HELD_OUT, TRAIN

from otterlm.decoding import (
    BestOfN,
    GuardRollback,
    GuardStop,
    RejectionSampling,
    ReplaceGuarded,
    RewardGuidance,
    RewardStop,
    judge_prompt,
    label_sequences,
    score_sequences,
    stream_tokens,
)
from otterlm.decoding.choice import generate_arguments
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig, LabelCalibration
from otterlm.training.data.packing import Example
from otterlm.training.evaluation.detection import alarm_levels
from otterlm.training.vocabulary_fit import FitConfig, fit_vocabulary
from otterlm.training.vocabulary_head import read_steps

LABELS = ("rude", "threat")
NEW = 12


@pytest.fixture(scope="module")
def otter() -> OtterModel:
    return tiny_otter(tiny_base(), signal=GuardConfig(LABELS, vocabulary_rank=4))


def shares(otter: OtterModel, sequences: Tensor, prompt: int) -> Tensor:
    """The probabilities beside new tokens, `[B, N, L]`; the second prompt of `batch` is padded."""
    mask = torch.ones_like(sequences)
    mask[:, :prompt] = batch()["attention_mask"]
    return label_sequences(otter, sequences, mask)[:, prompt:]


@torch.no_grad()
def test_probabilities_of_texts(otter) -> None:
    inputs = batch()
    results = label_sequences(otter, sequences=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert torch.equal(results[1, :3].isnan(), torch.ones(3, 2, dtype=torch.bool))
    alone = otter(inputs["input_ids"][1:, 3:]).signals["reward"].probabilities
    torch.testing.assert_close(results[1:, 3:], alone, atol=1e-5, rtol=1e-5)
    safe = score_sequences(otter, inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(safe[0].exp(), 1 - results[0].amax(-1), atol=1e-5, rtol=1e-5)


# -- stops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "window"), [(1, 1), (2, 2), (2, 4), (3, 5)])
@pytest.mark.parametrize("alarm", [0.4, 0.6, 0.8])
def test_a_row_ends_where_the_alarm_rings(otter, alarm, hits, window) -> None:
    plain = generate(otter, max_new_tokens=NEW)
    beside = shares(otter, plain, 7)
    stop = GuardStop(otter, alarm, hits, window)
    ended = generate(otter, max_new_tokens=NEW, stopping_criteria=[stop])
    assert stop.stopped is not None
    for row in range(2):
        levels = torch.stack([alarm_levels(beside[row, :, label], hits, window) for label in range(2)])  # [L, N]
        ringing = (levels >= alarm)[:, : NEW - 1].any(dim=0).nonzero().flatten().tolist()
        assert bool(stop.stopped[row]) == bool(ringing)
        if ringing:
            last = 7 + ringing[0] + 2  # the token, and the one that was chosen meanwhile
            assert torch.equal(ended[row, :last], plain[row, :last])
            assert not ended[row, last:].any()
            label = stop.labels[row]
            assert label is not None
            assert levels[LABELS.index(label), ringing[0]] >= alarm
        else:
            assert stop.labels[row] is None
            assert torch.equal(ended[row], plain[row, : ended.shape[1]])


def test_labels_have_alarms_of_their_own(otter) -> None:
    plain = generate(otter, max_new_tokens=NEW)
    rude, threat = shares(otter, plain, 7).amax(dim=1)[0].tolist()
    stop = GuardStop(otter, {"rude": 0.9 * rude, "threat": 2.0})
    generate(otter, max_new_tokens=NEW, stopping_criteria=[stop])
    assert stop.labels[0] == "rude"
    stop = GuardStop(otter, {"threat": 0.9 * threat})
    generate(otter, max_new_tokens=NEW, stopping_criteria=[stop])
    assert stop.labels[0] == "threat"


def test_the_adapters_own_alarm() -> None:
    plain = generate(tiny_otter(tiny_base(), signal=GuardConfig(LABELS)), max_new_tokens=NEW)
    measured = tuple(LabelCalibration(label, ((0, 0),), 0.5, 0.55, 0.1) for label in LABELS)
    otter = tiny_otter(tiny_base(), signal=GuardConfig(LABELS, hits=2, window=3, calibrations=measured))
    stored, same = GuardStop(otter), GuardStop(otter, 0.55, 2, 3)
    ended = [generate(otter, max_new_tokens=NEW, stopping_criteria=[stop]) for stop in (stored, same)]
    assert torch.equal(*ended)
    assert stored.labels == same.labels != [None, None]
    assert not torch.equal(ended[0], plain)


def test_an_alarm_that_never_rings_leaves_the_base(otter) -> None:
    plain = generate(otter.base_model)
    for settings in (
        {"stopping_criteria": [GuardStop(otter, 1.1)]},
        {"stopping_criteria": [GuardStop(otter, {"rude": 2, "threat": 1.5})]},
        {"custom_generate": ReplaceGuarded([50], 2.0)},
        {"custom_generate": GuardRollback(alarm=2.0)},
        {"custom_generate": GuardRollback(alarm={"rude": 1.0})},
    ):
        assert torch.equal(generate(otter, **settings), plain)
    output = generate(otter, custom_generate=GuardRollback(alarm=2.0), return_dict_in_generate=True)
    assert (output.rollbacks, output.stopped) == (None, None)


def test_one_stop_serves_several_threads(otter) -> None:
    stop = GuardStop(otter, 0.6, 2, 3)
    expected = generate(otter, max_new_tokens=NEW, stopping_criteria=[stop])
    labels = stop.labels
    results: list[Tensor] = []

    def run() -> None:
        results.extend(generate(otter, max_new_tokens=NEW, stopping_criteria=[stop]) for _ in range(3))

    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9
    assert all(torch.equal(each, expected) for each in results)
    assert stop.labels == labels


def test_a_flagged_response_is_replaced(otter) -> None:
    plain = generate(otter, max_new_tokens=NEW)
    peaks = shares(otter, plain, 7)[:, : NEW - 1].amax(dim=(1, 2))
    alarm = float(peaks.mean())  # between the two
    output = generate(
        otter, max_new_tokens=NEW, custom_generate=ReplaceGuarded([50, 51], alarm), return_dict_in_generate=True
    )
    assert output.replaced.tolist() == (peaks >= alarm).tolist()
    for row, gone in enumerate(output.replaced.tolist()):
        expected = torch.tensor([50, 51]) if gone else plain[row, 7:]
        assert torch.equal(output.sequences[row, 7 : 7 + len(expected)], expected)


def test_best_of_n_keeps_the_labels_of_what_it_returns(otter) -> None:
    stop = GuardStop(otter, 0.0)
    torch.manual_seed(0)
    loop = BestOfN(3)
    output = generate(
        otter, do_sample=True, custom_generate=loop, stopping_criteria=[stop], return_dict_in_generate=True
    )
    assert output.rewards is not None
    assert stop.stopped is not None
    assert len(stop.labels) == len(stop.stopped) == 2
    assert all(stop.stopped)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: GuardStop(model, -0.1), "must be a probability"),
        (lambda model: GuardStop(model, "high"), "'high'"),  # type: ignore[arg-type]
        (lambda model: GuardStop(model, {"love": 0.5}), "no label 'love'"),
        (lambda model: GuardStop(model, {}), "names no label"),
        (lambda model: GuardStop(model, {"rude": "x"}), "the alarm of rude"),  # type: ignore[dict-item]
        (lambda model: GuardStop(model, hits=2), "must not exceed the window (1)"),
        (lambda model: GuardStop(model, hits=0), "hits"),
        (lambda model: GuardRollback(back=-1), "back must be"),
        (lambda model: GuardRollback(attempts=0), "attempts"),
        (lambda model: ReplaceGuarded([]), "no tokens"),
        (lambda model: generate(model, custom_generate=ReplaceGuarded([500])), "500"),
        (lambda model: generate(model, custom_generate=GuardRollback(alarm={"love": 0.5})), "no label 'love'"),
        (lambda model: GuardStop(model, 0.5)(tokens(1, 3), None), "generate"),
    ],
)
def test_wrong_settings(otter, make, words) -> None:
    refused(lambda: make(otter), words)


def test_a_reward_is_no_guard() -> None:
    model = tiny_otter(tiny_base())
    refused(lambda: GuardStop(model), "gives the probabilities of labels")
    refused(lambda: judge_prompt(model, tokens(1, 3)), "gives the probabilities of labels")
    refused(lambda: generate(model, custom_generate=GuardRollback()), "gives the probabilities of labels")
    watching = tiny_otter(tiny_base(), signal=GuardConfig(vocabulary_rank=0))
    refused(lambda: generate(watching, custom_generate=GuardRollback()), "scores every next token")


def test_what_takes_tokens_back_refuses_a_stop(otter) -> None:
    settings: dict[str, Any] = {"do_sample": True, "stopping_criteria": [GuardStop(otter, 0.5)]}
    for loop in (RejectionSampling(-1.0), GuardRollback(alarm=0.5)):
        refused(partial(generate, otter, custom_generate=loop, **settings), "with GuardStop: it takes tokens")


# -- rollback ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("back", [0, 2])
def test_no_offence_is_left(otter, back, window) -> None:
    plain = generate(otter, max_new_tokens=NEW)
    alarm = float(shares(otter, plain, 7).amax(dim=(1, 2)).min()) - 0.01
    hits = 1 if window == 1 else 2
    loop = GuardRollback(2.0, back, 8, alarm, hits, window)
    output = generate(otter, max_new_tokens=NEW, custom_generate=loop, return_dict_in_generate=True)
    assert output.rollbacks[0] or output.rollbacks[1]
    for row in range(2):
        response = output.sequences[row, 7:]
        length = len(response) if output.stopped[row] is None else int((response != 0).sum())
        beside = shares(otter, output.sequences, 7)[row, :length]
        for label in range(2):
            assert not bool((alarm_levels(beside[:, label], hits, window) >= alarm).any()) or not length
        if not output.rollbacks[row]:
            assert torch.equal(response, plain[row, 7:])
        assert set(output.rollbacks[row]) <= set(LABELS)


def test_an_offence_that_cannot_be_avoided_is_not_written(otter) -> None:
    output = generate(otter, custom_generate=GuardRollback(0.0, 0, 2, 0.0), return_dict_in_generate=True)
    assert output.stopped == [output.rollbacks[0][0], output.rollbacks[1][0]]
    assert [len(each) for each in output.rollbacks] == [2, 2]
    assert torch.equal(output.sequences, batch()["input_ids"])


def test_a_streamer_sees_what_is_returned(otter) -> None:
    ids = tokens(1, 7)
    plain = otter.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    alarm = float(label_sequences(otter, plain, torch.ones_like(plain))[0, 7:].amax()) - 0.01
    listener = Listener()
    output = otter.generate(
        ids,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        custom_generate=GuardRollback(2.0, 1, alarm=alarm),
        streamer=listener,
        return_dict_in_generate=True,
    )
    assert output.rollbacks[0]
    assert listener.tokens == [*output.sequences[0].tolist(), -1]


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_judged_before_the_first_token() -> None:
    measured = (LabelCalibration("rude", ((0, 0),), 0.0, 1, 0.1), LabelCalibration("threat", ((0, 0),), 1.0, 1, 0.1))
    otter = tiny_otter(tiny_base(), signal=GuardConfig(LABELS, calibrations=measured))
    inputs = batch()
    results = judge_prompt(otter, inputs["input_ids"], inputs["attention_mask"])
    assert all(verdict.flagged for verdict in results)  # the threshold of one label is 0
    (alone,) = judge_prompt(otter, inputs["input_ids"][1:, 3:])
    assert results[1].probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    for verdict in results:
        assert verdict.probability == max(verdict.probabilities.values()) == verdict.probabilities[verdict.label]
    plain = tiny_otter(tiny_base(), signal=GuardConfig(LABELS))
    for verdict in judge_prompt(plain, inputs["input_ids"], inputs["attention_mask"]):
        assert verdict.flagged == (verdict.probability >= 0.5)


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float])
def test_a_prompt_padded_on_the_right_is_judged_at_its_end(kind: torch.dtype) -> None:
    otter = tiny_otter(tiny_base(), signal=GuardConfig(LABELS))
    ids = tokens(2, 7)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    both = judge_prompt(otter, ids, mask.to(kind))
    for index, alone in enumerate((ids[:1], ids[1:, :4])):
        assert both[index].probabilities == pytest.approx(judge_prompt(otter, alone)[0].probabilities, abs=1e-5)


def test_what_is_no_prompt_is_not_judged() -> None:
    otter = tiny_otter(tiny_base(), signal=GuardConfig(LABELS))
    ids = tokens(2, 4)
    refused(lambda: judge_prompt(otter, ids, torch.tensor([[1] * 4, [0] * 4])), "a prompt has no tokens")
    for mask in (torch.ones(1, 4), torch.ones(2, 6), torch.ones(2, 3)):
        refused(partial(judge_prompt, otter, ids, mask), "a mask of the same shape")
        refused(partial(score_sequences, otter, ids, mask), "a mask of the same shape")
    refused(lambda: judge_prompt(otter, ids[:, :0]), "a mask of the same shape, got token ids [2, 0]")
    refused(lambda: judge_prompt(otter, ids[0]), "got token ids [4]")


def test_a_harmless_class_is_no_verdict() -> None:
    otter = tiny_otter(tiny_base(), signal=GuardConfig(("safe", "rude"), ("safe",)))
    for verdict in judge_prompt(otter, batch()["input_ids"], batch()["attention_mask"]):
        assert verdict.label == "rude"
        assert sum(verdict.probabilities.values()) == pytest.approx(1)


def test_labels_are_streamed() -> None:
    model = guarding()
    settings = prompts(1) | GREEDY
    steps = list(stream_tokens(model, tokenizer(), **settings))
    sequences = torch.cat((settings["input_ids"], torch.tensor([[step.token for step in steps]])), dim=1)
    beside = label_sequences(model, sequences, torch.ones_like(sequences))[0, 7:]
    for step, row in zip(steps, beside.tolist(), strict=True):
        assert step.labels["guard"] == pytest.approx(dict(zip(("rude", "threat"), row, strict=True)), abs=1e-5)
        assert step.verdict("guard") == (
            max(step.labels["guard"], key=step.labels["guard"].__getitem__),
            max(step.labels["guard"].values()),
        )
        assert step.signals["guard"] == pytest.approx(1 - max(row), abs=1e-5)
    stop = GuardStop(model, ALARM)
    stopped = [step.token for step in stream_tokens(model, tokenizer(), **settings, stopping_criteria=[stop])]
    expected = model.generate(**settings, stopping_criteria=[GuardStop(model, ALARM)])
    assert stopped == expected[0, 7:].tolist()


# -- what adapters are used for ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> OtterModel:
    """A reward and a guard."""
    model = tiny_otter(tiny_base())
    add_tiny_adapter(model, "guard", seed=2, signal=GuardConfig(LABELS))
    return model.eval()


def test_a_guard_watches_beside_a_reward(both) -> None:
    settings = InterventionSettings(threshold=-1.0, alarm=0.9, hits=2, window=3)
    arguments = generate_arguments(both, settings)
    (guidance,) = arguments["logits_processor"]
    assert guidance.adapter_name == "reward"
    stop, watch = arguments["stopping_criteria"]
    assert (type(stop), stop.adapter_name) == (RewardStop, "reward")
    assert (type(watch), watch.settings.alarms, watch.settings.hits) == (GuardStop, dict.fromkeys(LABELS, 0.9), 2)
    searched = generate_arguments(both, settings, "search")
    assert searched["custom_generate"].adapter_name == "reward"
    assert [type(each) for each in searched["stopping_criteria"]] == [RewardStop, GuardStop]
    rejected = generate_arguments(both, settings, "rejection")
    assert "stopping_criteria" not in rejected


def test_a_guard_takes_back_beside_a_reward(both) -> None:
    arguments = generate_arguments(both, InterventionSettings(2.0, back=3), "rollback")
    assert isinstance(arguments["custom_generate"], GuardRollback)
    assert (arguments["custom_generate"].weight, arguments["custom_generate"].back) == (2.0, 3)
    (guidance,) = arguments["logits_processor"]
    assert guidance.adapter_name == "reward"
    assert "stopping_criteria" not in arguments
    with both.use_adapters(["reward"]):
        refused(lambda: generate_arguments(both, InterventionSettings(), "rollback"), "gives the probabilities")


def test_a_guard_alone_steers_only_when_asked(both) -> None:
    with both.use_adapters(["guard"]):
        assert set(generate_arguments(both, InterventionSettings())) == {"stopping_criteria"}
        arguments = generate_arguments(both, InterventionSettings(3.0), "guidance")
        (guidance,) = arguments["logits_processor"]
        assert isinstance(guidance, RewardGuidance)
        assert (guidance.adapter_name, guidance.weight) == ("guard", 3.0)
        assert isinstance(arguments["stopping_criteria"][0], GuardStop)


def test_fitted_heads_steer_away() -> None:
    otter = tiny_otter(tiny_base(), signal=GuardConfig(LABELS, vocabulary_rank=16, vocabulary_hidden=0))
    examples = [Example(row, e.prefix, e.branches) for row, e in enumerate([*TRAIN, *HELD_OUT] * 3)]
    steps = read_steps(otter, examples, k=16, count=6)
    assert all(each.gains.shape == (*each.tokens.shape, 2) for each in steps)
    torch.manual_seed(0)
    unembedding = otter.base_model.get_output_embeddings().weight
    heads: Any = otter.adapter().head.vocabulary
    for number, head in enumerate(heads):
        head.initialize()
        how = FitConfig(epochs=40, batch_size=128, learning_rate=1e-2, dropout=0.0)
        explained, _ = fit_vocabulary(head, unembedding, steps[0].of(number), steps[1].of(number), how)
        assert explained > 0.1

    def safety(weight: float) -> float:
        ids = torch.tensor([example.prefix[:2] for example in TRAIN])
        settings: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        steered = otter.generate(ids, logits_processor=[RewardGuidance(otter, weight, top_k=16)], **settings)
        return float(score_sequences(otter, steered, torch.ones_like(steered))[:, -1].mean())

    assert safety(50.0) > safety(0.0)
