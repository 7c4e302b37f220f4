"""Answers prompts in several ways, and shows each answer coloured by its rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.cli.demo.common import answer_of, chat_ids, heading, panel, report, timed
from otterlm.cli.generate import final_reward, reward_in_words
from otterlm.cli.terminal import show_coloured
from otterlm.colour import colour_range, coloured, legend
from otterlm.decoding import score_sequences
from otterlm.model import OtterModel
from otterlm.progress import track


def answer(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    prompts: Sequence[str],
    steered: Mapping[str, Mapping[str, Any]],
    **length: int,
) -> dict[str, Any]:
    """Answers each prompt by the base and with steering.

    Args:
        model: with a reward.
        tokenizer: of the base.
        name: of the part, for the progress bar.
        prompts: what the user says.
        steered: arguments of `generate`, by the name of the answer. The base's answer is the `original`.
        length: arguments of `generate` for all answers.

    Returns:
        A report, see `otterlm.cli.demo.common.report`, with the `rewards` of each answer and their `range`.
    """
    sides: dict[str, tuple[Any, Mapping[str, Any]]] = {"original": (model.base_model, {})}
    sides |= {side: (model, settings) for side, settings in steered.items()}
    results = []
    for prompt in track(prompts, name):
        ids = chat_ids(tokenizer, prompt)
        answers = {}
        for side, (generator, settings) in sides.items():
            output, tokens, speed = timed(generator, ids, **length, **settings)
            rewards = score_sequences(model, output.sequences, torch.ones_like(output.sequences))[0, ids.shape[1] :]
            answers[side] = answer_of(tokenizer, tokens, speed) | {"rewards": rewards.tolist()}
        results.append(answers)
    return report(model, prompts, results) | {"range": model.adapter().config.signal.typical_range}


def show_answers(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase, title: str, introduction: str) -> None:
    """Prints a report of `answer`, after an introduction with places for the `low` and the `high` colour."""
    answers = [[(side, each) for side, each in entry.items() if side != "prompt"] for entry in part["prompts"]]
    rewards = [reward for sides in answers for _, each in sides for reward in each["rewards"]]
    low, high = colour_range(part["range"], rewards)
    print(introduction.format(low=low, high=high))
    show_coloured(legend(low, high), None)
    for entry, sides in zip(part["prompts"], answers, strict=True):
        heading(f"{title}: {entry['prompt']}")
        for side, each in sides:
            text = coloured(tokenizer, each["tokens"], each["rewards"], low, high)
            panel(text, side, reward_in_words(final_reward(each["rewards"][-1], part["range"])))
