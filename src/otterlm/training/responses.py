"""The base's own responses to prompts, several each, and what a scorer says of them: kept as parquet, gone on with."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.decoding.prompt import read_once
from otterlm.errors import OtterError
from otterlm.files import write_files, write_text
from otterlm.fingerprint import fingerprint
from otterlm.progress import track
from otterlm.settings import check_settings, setting
from otterlm.training.continuations import pad_left, responses_of
from otterlm.training.packing import Example, encode_prompts
from otterlm.training.rows import Prompt
from otterlm.training.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        per_prompt: how many of each prompt.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: of a response.
        temperature, top_p: of the base.
        batch_size: prompts a batch.
        seed: of the samples.
    """

    per_prompt: int = setting(4, "Responses sampled of each prompt.", minimum=1)
    max_prompt_tokens: int = setting(128, "A longer prompt keeps its end.", minimum=1)
    max_new_tokens: int = setting(64, "Of a response.", minimum=1)
    temperature: float = setting(1.0, "Of the samples.")
    top_p: float = setting(1.0, "Of the samples.")
    batch_size: int = setting(8, minimum=1)
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise OtterError(f"temperature must be above 0 and top_p up to 1, got {self.temperature} and {self.top_p}")


def scored_responses(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    spec: str,
    sampling: Sampling,
    folder: Path,
) -> list[Example]:
    """Samples responses, scores them, and keeps both in a folder, a parquet file a batch, from which a later call goes
    on.

    Args:
        base: samples.
        tokenizer: its tokenizer, padding on the left.
        prompts: as chat turns.
        scorer: rates; called once a batch.
        spec: what it is called; part of what a folder must agree with.
        sampling: how.
        folder: for `part-*.parquet` (columns prompt, prompt_tokens, response, response_tokens, score).

    Returns:
        Examples with scores; `row // per_prompt` is the prompt.

    Raises:
        OtterError: the folder is of another run, or the scorer fails.
    """
    encoded = encode_prompts(prompts, tokenizer, sampling.max_prompt_tokens)
    identity = hashlib.sha256(repr((encoded, spec, sampling, fingerprint(base))).encode()).hexdigest()
    mark = folder / "identity.json"
    if mark.exists() and mark.read_text() != json.dumps(identity):
        raise OtterError(
            f"{folder} holds responses of another run (base, prompts, scorer or sampling); delete or move it"
        )
    write_text(mark, json.dumps(identity))
    groups = [
        range(start, min(start + sampling.batch_size, len(encoded)))
        for start in range(0, len(encoded), sampling.batch_size)
    ]
    examples: list[Example] = []
    for number, group in enumerate(track(groups, "sampling and scoring")):
        path = folder / f"part-{number:05}.parquet"
        if not path.exists():
            own = [(prompts[index], encoded[index]) for index in group]
            table = _sample(base, tokenizer, own, scorer, sampling, number)
            write_files(folder, {path.name: functools.partial(pyarrow.parquet.write_table, table)})
        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise OtterError(f"{path} is damaged ({error}); delete it to make it anew") from error
        first = group[0] * sampling.per_prompt
        examples += [
            Example(first + n, tuple(row["prompt_tokens"]), (tuple(row["response_tokens"]),), row["score"])
            for n, row in enumerate(rows)
        ]
    return examples


@torch.no_grad()
def _sample(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[tuple[Prompt, list[int]]],
    scorer: Scorer,
    sampling: Sampling,
    number: int,
) -> pyarrow.Table:
    repeated = [both for both in prompts for _ in range(sampling.per_prompt)]
    prompt, seen = pad_left([encoded for _, encoded in prompts], tokenizer.pad_token_id or 0, base.device)
    ids, mask = (given.repeat_interleave(sampling.per_prompt, dim=0) for given in (prompt, seen))
    torch.manual_seed(sampling.seed * 1_000_003 + number)
    output = base.generate(
        ids,
        attention_mask=mask,
        past_key_values=read_once(base, prompt, seen, sampling.per_prompt),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    tokens = responses_of(output, ids.shape[1], base)
    responses = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    return pyarrow.table(
        {
            "prompt": [turns[-1][1] for turns, _ in repeated],
            "prompt_tokens": [encoded for _, encoded in repeated],
            "response": responses,
            "response_tokens": tokens,
            "score": scorer([turns for turns, _ in repeated], responses),
        }
    )
