"""Rates responses of the base that were sampled elsewhere, such as by an engine."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.progress import track
from otterlm.training.data.continuations import continuation_tokens, read_continuations
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.records import Records, source_name
from otterlm.training.data.tokens import Limits
from otterlm.training.teachers.responses import Rate, Response, Sampling

Answers = Mapping[int, Sequence[Response]]
"""The responses to each prompt that has some, by the prompt's number."""


def read_answers(
    source: Records, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, sampling: Sampling
) -> Answers:
    """Reads the responses that a source has to some prompts.

    Args:
        source: see `read_continuations`; with the text of each prompt. Those to other prompts are left out.
        prompts: as chat turns.
        tokenizer: the base's.
        sampling: how many responses to a prompt count, and how long they may be.

    Raises:
        OtterError: the source cannot be read, or responds to none of the prompts.
    """
    limits = Limits(prompt=sampling.max_prompt_tokens, response=sampling.max_new_tokens)
    known = {prompt: number for number, prompt in enumerate(prompts)}
    answers: dict[int, list[Response]] = {}
    for row in read_continuations(source):
        number = known.get(row.dialogue.prompt or ()) if row.dialogue else None
        if number is None or len(answers.setdefault(number, [])) == sampling.per_prompt:
            continue
        assert row.dialogue is not None
        prompt, response = continuation_tokens(row, tokenizer, limits)
        answers[number].append(Response(prompts[number], row.dialogue.response, prompt, response))
    if not answers:
        raise OtterError(
            f"{source_name(source)} responds to none of the prompts to train on: sample responses to the prompts of "
            "the data, with a column prompt, or leave it out and the base samples them"
        )
    return answers


def rate_answers(answers: Answers, rate: Rate, batch_size: int) -> list[Example]:
    """Rates responses.

    Args:
        answers: of `read_answers`.
        rate: gives each response a number; called with those of `batch_size` prompts.
        batch_size: prompts.

    Returns:
        An example for each prompt that has responses, with their ratings; `row` is the prompt.
    """
    numbers = sorted(answers)
    groups = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    examples = []
    for group in track(groups, "rating responses"):
        scores = iter(rate([each for number in group for each in answers[number]]))
        for number in group:
            tokens = tuple(tuple(each.tokens) for each in answers[number])
            rated = tuple(next(scores) for _ in tokens)
            examples.append(Example(number, tuple(answers[number][0].prompt_tokens), tokens, rated))
    return examples
