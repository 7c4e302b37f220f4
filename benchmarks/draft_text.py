"""Makes text that drafts learn from: the base's own continuations of many prompts.

    .venv-vllm/bin/python benchmarks/draft_text.py --tokens 500000 --out runs/draft-text
    python benchmarks/draft_text.py --engine transformers --device cuda --shard 8192 --tokens 3300000 \\
        --out runs/draft-text
    otter train draft --base smollm2-135m --data runs/draft-text --out runs/draft --layers 11-29:2

Half of the prompts are of data sets, the others the base writes itself: after the chat template's opening of a user's
turn it samples what a user says (Magpie, arXiv 2406.08464). No prompt repeats another one, and none shares thirteen
words in a row with a prompt of Spec-Bench, on which drafts are measured. Most continuations are greedy, some sampled.

OUT gets parquet files with a row a continuation: `prompt` (messages), `response` (text), `prompt_tokens`,
`response_tokens` (ids; the token that ends a response is one of them), `source` and `sampled`. A file appears whole.
A stopped run goes on after the last one, and one with a greater `--tokens` adds to them.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
from draft_engines import ByTransformers, ByVllm, Engine
from transformers import PreTrainedTokenizerBase

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import parse_device
from otterlm.cli.scripts import run_script
from otterlm.files import hold, make_folder, remove_unfinished, write_files, write_text
from otterlm.identity import check, identity, of_data, of_tokenizer, of_weights
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.records import read_records
from otterlm.training.data.tokens import encode_prompts

SHARED_WORDS = 13
"""Prompts with so many words in a row in common count as one text (GPT-3, arXiv 2005.14165, appendix C)."""
WRITTEN = "written by the base"
TOPICS = (
    'Reply politely to this comment: "{}"',
    'What is this comment about? "{}"',
    'Write a short paragraph about the topic of this comment: "{}"',
    'Say this in other words: "{}"',
)
TOPIC_CHARACTERS, COMMENTS = 240, 4000
"""A comment keeps its start, and only the first so many are used: the other sets have more to ask."""
SCHEMA = pyarrow.schema(
    [
        ("prompt", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ("response", pyarrow.string()),
        ("prompt_tokens", pyarrow.list_(pyarrow.int32())),
        ("response_tokens", pyarrow.list_(pyarrow.int32())),
        ("source", pyarrow.string()),
        ("sampled", pyarrow.bool_()),
    ]
)


def words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


class SeenPrompts:
    """The set knows the prompts that may not be used again, and the texts that no prompt may share words with."""

    def __init__(self, excluded: list[str]) -> None:
        self._prompts = {tuple(words(text)) for text in excluded}
        self._runs = {run for text in excluded for run in _runs(words(text))}

    def add(self, prompt: Prompt) -> bool:
        """Adds a prompt, and returns whether it may be used."""
        spoken = words(" ".join(text for _, text in prompt))
        last = words(prompt[-1][1])
        if tuple(spoken) in self._prompts or tuple(last) in self._prompts or not self._runs.isdisjoint(_runs(spoken)):
            return False
        self._prompts.add(tuple(spoken))
        return True


def _runs(spoken: list[str]) -> Iterator[tuple[str, ...]]:
    for start in range(len(spoken) - SHARED_WORDS + 1):
        yield tuple(spoken[start : start + SHARED_WORDS])


def data_prompts(data: Path, seed: int) -> list[tuple[str, Prompt]]:
    """Returns the prompts of the data sets, each with the name of its set, shuffled together."""
    named: list[tuple[str, Prompt]] = []
    for name in ("hh_helpful", "hh_harmless"):
        for prompt in read_prompts(data / name / "pairs.jsonl.gz"):
            ends = [count for count, (role, _) in enumerate(prompt, start=1) if role == "user"]
            named += [(name, prompt[:end]) for end in ends]
    files = {
        "gsm8k": data / "gsm8k_solutions" / "example_model_solutions.jsonl.gz",
        "halueval": data / "halueval" / "train.jsonl.gz",
        "xstest": data / "xstest" / "dev.jsonl.gz",
    }
    named += [(name, tuple(prompt)) for name, path in files.items() for prompt in read_prompts(path)]
    for number, record in enumerate(islice(read_records(data / "jigsaw_10k" / "jigsaw_10k.json.gz"), COMMENTS)):
        comment = " ".join(record["text"].split())[:TOPIC_CHARACTERS]
        named.append(("jigsaw", (("user", TOPICS[number % len(TOPICS)].format(comment)),)))
    random.Random(seed).shuffle(named)
    return named


def users_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Returns the tokens of the chat template up to where a user's first turn begins, and the token that ends it."""
    mark = "MARK"
    messages = [{"role": "user", "content": mark}]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    opening, _, closing = rendered.partition(mark)
    end = tokenizer.encode(closing, add_special_tokens=False)[0]
    if end not in tokenizer.all_special_ids:
        raise SystemExit("the chat template ends no turn with a special token, so the base cannot write a user's turn")
    return tokenizer.encode(opening, add_special_tokens=False), end


class Maker:
    """The maker holds an engine with the base, and what it makes shards of."""

    def __init__(self, arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = arguments
        self.tokenizer = tokenizer
        self.opening, self.end = users_turn(tokenizer)
        self.engine: Engine
        if arguments.engine == "vllm":
            length = len(self.opening) + arguments.max_prompt_tokens + arguments.max_new_tokens
            self.engine = ByVllm(arguments.base, length, arguments.sequences, arguments.compiled)
        else:
            base = load_base(arguments.base)
            base.to(parse_device(arguments.device))
            self.engine = ByTransformers(base, tokenizer.pad_token_id or 0, arguments.cache_tokens)

    def write_prompts(self, count: int, number: int) -> list[tuple[str, Prompt]]:
        """Samples what a user may say, for a shard. A turn that the limit cut is left out."""
        seeds: list[int | None] = [seed_of(self.settings.seed, number, index) for index in range(count)]
        limit = self.settings.max_prompt_tokens - len(self.opening)
        turns = self.engine.generate([self.opening] * count, seeds, limit, self.end)
        texts = [self.tokenizer.decode(turn.tokens, skip_special_tokens=True).strip() for turn in turns]
        whole = [text for text, turn in zip(texts, turns, strict=True) if turn.ended]
        return [(WRITTEN, (("user", text),)) for text in whole if words(text)]

    def shard(self, number: int, named: list[tuple[str, Prompt, list[int]]]) -> pyarrow.Table:
        """Makes the rows of a shard, of prompts and their tokens."""
        drawn = random.Random(f"sampled {self.settings.seed} {number}")
        seeds = [
            seed_of(self.settings.seed, number, -1 - index) if drawn.random() < self.settings.sampled else None
            for index in range(len(named))
        ]
        encoded = [tokens for _, _, tokens in named]
        responses = self.engine.generate(encoded, seeds, self.settings.max_new_tokens, None)
        rows = [
            {
                "prompt": [{"role": role, "content": text} for role, text in prompt],
                "response": self.tokenizer.decode(response.tokens, skip_special_tokens=True),
                "prompt_tokens": tokens,
                "response_tokens": response.tokens,
                "source": source,
                "sampled": seed is not None,
            }
            for (source, prompt, tokens), seed, response in zip(named, seeds, responses, strict=True)
        ]
        return pyarrow.Table.from_pylist(rows, schema=SCHEMA)


def seed_of(seed: int, number: int, index: int) -> int:
    return random.Random(f"{seed} {number} {index}").getrandbits(31)


def unused(maker: Maker, seen: SeenPrompts, named: list[tuple[str, Prompt]]) -> list[tuple[str, Prompt, list[int]]]:
    """Returns the prompts that were not used before and are short enough, with their tokens."""
    longest = maker.settings.max_prompt_tokens
    encoded = encode_prompts([prompt for _, prompt in named], maker.tokenizer, longest + 1)
    return [
        (source, prompt, tokens)
        for (source, prompt), tokens in zip(named, encoded, strict=True)
        if len(tokens) <= longest and seen.add(prompt)
    ]


def make(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, named: list[tuple[str, Prompt]]) -> None:
    """Makes shards until they hold enough tokens, and prints a line for each."""
    spec_bench = read_records(arguments.data / "spec_bench" / "question.jsonl")
    seen = SeenPrompts([turn for record in spec_bench for turn in record["turns"]])
    maker: Maker | None = None
    number = tokens = made = 0
    seconds = 0.0
    while tokens < arguments.tokens:
        # A shard's prompts of data sets are those that its number says, whatever the run before it did.
        written = round(arguments.written * arguments.shard)
        of_data_sets = arguments.shard - written
        chosen = named[number * of_data_sets : (number + 1) * of_data_sets]
        name = f"text-{number:05d}.parquet"
        path = arguments.out / name
        started = time.perf_counter()
        if path.exists():
            table = pyarrow.parquet.read_table(path)
            for prompt in table.column("prompt").to_pylist():
                seen.add(tuple((turn["role"], turn["content"]) for turn in prompt))
        else:
            maker = maker or Maker(arguments, tokenizer)
            started = time.perf_counter()
            if len(chosen) < of_data_sets:  # the base writes what the data sets lack
                written = arguments.shard - len(chosen)
            prompts = unused(maker, seen, chosen + (maker.write_prompts(written, number) if written else []))
            if not prompts:
                raise SystemExit(f"shard {number} has no prompt that was not used before")
            table = maker.shard(number, prompts)
            write_files(arguments.out, {name: partial(pyarrow.parquet.write_table, table, compression="zstd")})
            seconds += time.perf_counter() - started
        count = sum(map(len, table.column("response_tokens").to_pylist()))
        tokens += count
        made += count if maker is not None else 0
        report: dict[str, float] = {"shard": number, "prompts": len(table), "tokens": count, "all_tokens": tokens}
        report["written_by_the_base"] = table.column("source").to_pylist().count(WRITTEN)
        if maker is not None:
            report["tokens_per_second"] = round(made / seconds, 1)
        print(json.dumps(report), flush=True)
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="a folder, a hub id or smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of continuations; the last shard may exceed it")
    parser.add_argument("--written", type=float, default=0.5, help="part of the prompts that the base writes")
    parser.add_argument("--sampled", type=float, default=0.2, help="part of the continuations that is sampled")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--sequences", type=int, default=32, help="at once, of vLLM")
    parser.add_argument("--device", default="cpu", help="of the transformers engine, such as cuda")
    parser.add_argument("--cache-tokens", type=int, default=800_000, help="of a batch of the transformers engine")
    parser.add_argument("--max-prompt-tokens", type=int, default=192, help="longer prompts are left out")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--shard", type=int, default=512, help="prompts a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", action="store_true", help="vLLM by torch.compile, as by default")
    arguments = parser.parse_args()
    make_folder(arguments.out)
    tokenizer = load_tokenizer(arguments.base)
    named = data_prompts(arguments.data, arguments.seed)
    free = ["out", "tokens", "data", "sequences", "compiled"]  # what may change from run to run
    if arguments.engine == "vllm":  # a text of former versions is gone on with
        free += ["engine", "device", "cache_tokens"]
    settings = {name: value for name, value in vars(arguments).items() if name not in free}
    base = of_weights(load_base(arguments.base))
    depends = {"base": base, "tokenizer": of_tokenizer(tokenizer), "prompts": of_data(named)}
    this = identity("text for drafts", **settings | depends)
    mark = arguments.out / "text.identity"
    with hold(mark):
        remove_unfinished(arguments.out)
        if not mark.exists() and any(arguments.out.glob("text-*.parquet")):
            raise SystemExit(f"{arguments.out} holds texts, but no {mark.name} says of what: choose another folder")
        if mark.exists():
            check(mark, json.loads(mark.read_text(encoding="utf-8")), this)
        write_text(mark, json.dumps(this))
        make(arguments, tokenizer, named)


if __name__ == "__main__":
    run_script(main)
