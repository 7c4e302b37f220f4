"""The base samples several responses to each prompt, a scorer rates them, and both are stored as parquet."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from otterlm.decoding.prompt import read_once
from otterlm.errors import OtterError
from otterlm.files import hold, write_files, write_text
from otterlm.identity import Identity, check, identity, of_data, of_tokenizer
from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.settings import check_settings, setting
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.teachers.continuations import of_generation, pad_left, responses_of
from otterlm.training.teachers.scorers import Scorer

MARK = "identity.json"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Says how responses are sampled.

    Attributes:
        per_prompt: how many to each prompt.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: of a response.
        temperature, top_p: of the base.
        batch_size: prompts a batch.
        seed: of the samples.
    """

    per_prompt: int = setting(4, "Responses sampled of each prompt.", minimum=1)
    max_prompt_tokens: int = setting(128, "A longer prompt keeps its end.", minimum=1)
    max_new_tokens: int = setting(64, "Length of a response.", minimum=1)
    temperature: float = setting(1.0, "Temperature of the samples.")
    top_p: float = setting(1.0, "Nucleus of the samples.")
    batch_size: int = setting(8, minimum=1)
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise OtterError(f"temperature must be above 0 and top_p up to 1, got {self.temperature} and {self.top_p}")


@dataclass(frozen=True, slots=True)
class Response:
    """Is one response of the base.

    Attributes:
        prompt: as chat turns.
        text: of the response, without special tokens.
        prompt_tokens, tokens: both as the base read and wrote them.
    """

    prompt: Prompt
    text: str
    prompt_tokens: list[int]
    tokens: list[int]


Rate = Callable[[Sequence[Response]], list[float]]
"""Gives a number for each response."""


def of_texts(scorer: Scorer) -> Rate:
    """Makes a scorer of texts one of responses."""
    return lambda responses: scorer([each.prompt for each in responses], [each.text for each in responses])


def scored_responses(
    generator: PreTrainedModel | OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    rate: Rate,
    scorer_identity: object,
    sampling: Sampling,
    folder: Path,
    steering: Sequence[LogitsProcessor] = (),
    steering_identity: object = None,
) -> list[Example]:
    """Samples responses, scores them, and keeps both in a folder, a parquet file a batch, from which a later call goes
    on.

    Args:
        generator: samples.
        tokenizer: its tokenizer, padding on the left.
        prompts: as chat turns.
        rate: the scorer; called once a batch.
        scorer_identity: what its scores depend on, as JSON; part of what a folder must agree with.
        sampling: how.
        folder: for `part-*.parquet` (columns prompt, prompt_tokens, response, response_tokens, score).
        steering: processors of the generation.
        steering_identity: what they depend on, as JSON.

    Returns:
        An example a prompt, with all its responses and their scores; `row` is the prompt.

    Raises:
        OtterError: the folder is of another run, another process is writing it, or the scorer fails.
    """
    encoded = encode_prompts(prompts, tokenizer, sampling.max_prompt_tokens)
    this = identity(
        "scored responses",
        **of_generation(generator.base_model if isinstance(generator, OtterModel) else generator),
        tokenizer=of_tokenizer(tokenizer),
        prompts=of_data(zip(prompts, encoded, strict=True)),
        scorer=scorer_identity,
        steering=steering_identity,
        **asdict(sampling),
    )
    requests = list(zip(prompts, encoded, strict=True))
    size = sampling.batch_size
    groups = {_part(folder, start // size): requests[start : start + size] for start in range(0, len(requests), size)}
    _check_mark(folder, this)
    if not all(path.exists() for path in groups):
        with hold(folder / MARK):
            if not _check_mark(folder, this):
                write_text(folder / MARK, json.dumps(this))
            for number, (path, group) in enumerate(track(list(groups.items()), "sampling and scoring")):
                if not path.exists():
                    table = _table(_sample(generator, tokenizer, group, sampling, number, steering), rate)
                    write_files(folder, {path.name: functools.partial(pyarrow.parquet.write_table, table)})
    rows = [row for path in groups for row in _read(path)]
    each = sampling.per_prompt
    return [_example(number, rows[number * each : (number + 1) * each]) for number in range(len(prompts))]


def _example(number: int, rows: list[dict[str, Any]]) -> Example:
    responses = tuple(tuple(row["response_tokens"]) for row in rows)
    return Example(number, tuple(rows[0]["prompt_tokens"]), responses, tuple(row["score"] for row in rows))


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.parquet"


def _check_mark(folder: Path, this: Identity) -> bool:
    """Says whether a folder is marked as of this run. One of another run is refused."""
    mark = folder / MARK
    if not mark.exists():
        if any(folder.glob("part-*.parquet")):
            raise OtterError(
                f"{folder} holds responses, but no {MARK} says of what; delete it, or choose another folder"
            )
        return False
    try:
        saved = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OtterError(f"{mark} is damaged ({error}); delete {folder}, or choose another folder") from error
    check(folder, saved, this)
    return True


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise OtterError(f"{path} is damaged ({error}); delete it to make it anew") from error
    return rows


@torch.no_grad()
def _sample(
    generator: PreTrainedModel | OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[Prompt, list[int]]],
    sampling: Sampling,
    number: int,
    steering: Sequence[LogitsProcessor],
) -> list[Response]:
    repeated = [both for both in prompts for _ in range(sampling.per_prompt)]
    prompt, seen = pad_left([encoded for _, encoded in prompts], tokenizer.pad_token_id or 0, generator.device)
    ids, mask = (each.repeat_interleave(sampling.per_prompt, dim=0) for each in (prompt, seen))
    torch.manual_seed(sampling.seed * 1_000_003 + number)
    output: Any = generator.generate(
        ids,
        attention_mask=mask,
        past_key_values=read_once(generator, prompt, seen, sampling.per_prompt),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id or 0,
        logits_processor=LogitsProcessorList(steering),
    )
    tokens = responses_of(output, ids.shape[1], generator)
    return [
        Response(turns, tokenizer.decode(row, skip_special_tokens=True), encoded, row)
        for (turns, encoded), row in zip(repeated, tokens, strict=True)
    ]


def _table(responses: Sequence[Response], rate: Rate) -> pyarrow.Table:
    return pyarrow.table(
        {
            "prompt": [each.prompt[-1][1] for each in responses],
            "prompt_tokens": [each.prompt_tokens for each in responses],
            "response": [each.text for each in responses],
            "response_tokens": [each.tokens for each in responses],
            "score": rate(responses),
        }
    )
