"""Trains the variants of `benchmarks/steering_parts.py` by the recipes' own stages."""

import argparse
import json
import random
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from steering_parts_rollouts import Rollouts, roll_out, rollout_steps
from transformers import PreTrainedModel

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families.parts import weight_of
from otterlm.identity import identity, of_data
from otterlm.layers import parse_layers
from otterlm.model import OtterModel
from otterlm.resumable import run_resumable
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.config import TrainingConfig
from otterlm.training.data.packing import Example
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.recipes import Run
from otterlm.training.sources import RecordedBase
from otterlm.training.teachers.own_reward import OwnReward
from otterlm.training.teachers.responses import Response, Sampling, scored_responses
from otterlm.training.vocabulary_fit import FitConfig, fit_vocabulary, judge_scores
from otterlm.training.vocabulary_head import Steps, read_steps

if TYPE_CHECKING:
    from steering_parts import Variant

RANK = RewardConfig().vocabulary_rank
"""The rank in training. A head of another rank is fitted to the same stream."""
BATCH, POSITIONS, MAX_PROMPT = 8, 8, 96
CANDIDATES = RewardTrainingConfig().candidates


class Fitter:
    """Trains variants on the same rated responses of the base, which is read once.

    Args:
        arguments: of the command.

    Attributes:
        tokenizer: the base's.
        questions: prompts to measure on.
        encoded: their tokens.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.tokenizer = load_tokenizer(arguments.base)
        self.questions = read_prompts(arguments.questions)[: arguments.guided]
        self.encoded = encode_prompts(self.questions, self.tokenizer, MAX_PROMPT)
        self._streams: dict[Variant, OtterModel] = {}
        self._steps: dict[tuple[Variant, bool], tuple[Steps, Steps]] = {}

    @cached_property
    def _teacher(self) -> OwnReward:
        return OwnReward(OtterModel.from_pretrained(self.load(), self.arguments.teacher).eval())

    @cached_property
    def _rolled_out(self) -> list[Rollouts]:
        arguments = self.arguments
        path, pad = arguments.out / "candidates.jsonl", self.tokenizer.pad_token_id or 0
        learned = self.rated[: arguments.prompts]
        return roll_out(load_base(arguments.base), learned, CANDIDATES, arguments.seed, pad, path)

    def load(self) -> PreTrainedModel:
        """Loads the base in the precision of training."""
        return load_base(self.arguments.base, parse_dtype(self.arguments.dtype))

    @cached_property
    def rated(self) -> list[Example]:
        """Returns the base's responses, rated: those to learn from, then those to test on."""
        arguments = self.arguments
        count = arguments.prompts + arguments.test
        rate = self._teacher
        if arguments.rollouts:
            return self._rate(self._rollouts(count), rate)
        openings = {question[:1] for question in self.questions}
        first = dict.fromkeys(tuple(prompt[:1]) for prompt in read_prompts(arguments.data))
        chosen = [prompt for prompt in first if prompt not in openings]
        random.Random(arguments.seed).shuffle(chosen)
        sampling = Sampling(3, MAX_PROMPT, arguments.new_tokens, top_p=0.95, batch_size=BATCH, seed=arguments.seed)
        folder, base = arguments.out / "responses", load_base(arguments.base)
        return scored_responses(base, self.tokenizer, chosen[:count], rate, rate.identity, sampling, folder)

    def _rollouts(self, count: int) -> list[Example]:
        """Reads responses that were sampled elsewhere; none of them begins as a question to measure on does."""
        rows = [json.loads(line) for line in self.arguments.rollouts.read_text().splitlines()]
        usable = [r for r in rows if not any(r["tokens"][: len(question)] == question for question in self.encoded)]
        if len(usable) < count:
            raise OtterError(
                f"{self.arguments.rollouts} has {len(usable)} prompts that can be used: {count} are asked for"
            )
        return [
            Example(number, tuple(row["tokens"]), tuple(map(tuple, row["responses"])))
            for number, row in enumerate(usable[:count])
        ]

    def _rate(self, examples: list[Example], rate: OwnReward) -> list[Example]:
        this = identity("ratings", data=of_data(examples), rate=rate.identity, dtype=self.arguments.dtype)

        def one(group: list[Example]) -> list[list[float]]:
            responses = [Response((), "", [*each.prefix], [*branch]) for each in group for branch in each.branches]
            scores = iter(rate(responses))
            return [[next(scores) for _ in each.branches] for each in group]

        groups = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
        ratings = run_resumable(groups, one, self.arguments.out / "ratings.jsonl", this, "rating")
        flat = [scores for group in ratings for scores in group]
        return [replace(each, scores=tuple(scores)) for each, scores in zip(examples, flat, strict=True)]

    @property
    def tests(self) -> list[Example]:
        """Returns the responses to test on."""
        return self.rated[self.arguments.prompts :]

    @cached_property
    def spread(self) -> float:
        """Returns the standard deviation of the teacher's ratings."""
        return float(torch.tensor([score for example in self.rated for score in example.scores]).std())

    def fitted(self, variant: "Variant") -> OtterModel:
        """Trains a variant's stream, or takes that of another variant with the same, and fits its vocabulary head."""
        key = replace(variant, rank=RANK, rollouts="")
        if key not in self._streams:
            self._streams = {key: self._stream(key) if variant.stage else self._first()}  # the latest one is held
            self._steps = {}
        model = self._of_rank(self._streams[key], variant.rank)
        head = model.adapter().head.vocabulary
        if variant.candidates:
            unembedding = weight_of(model.base_model.get_output_embeddings())
            followed, likely = self._read(model, key, tests=False)
            if variant.rollouts:
                rate = self._teacher if variant.rollouts == "rating" else None
                likely = rollout_steps(model, self._rolled_out, rate, BATCH)
            spread = fit_vocabulary(head, unembedding, followed, likely, FitConfig(seed=self.arguments.seed))[1]
        else:
            head.load_state_dict(self._streams[key].adapter().head.vocabulary.state_dict())
            spread = self._judge(model, key, tests=False)[1]
        adapter, signal = model.adapter(), RewardConfig(vocabulary_rank=variant.rank, advantage_spread=spread)
        adapter.config = replace(adapter.config, signal=signal)
        return model

    def explained(self, model: OtterModel, variant: "Variant") -> float:
        """Returns the share of the test candidates' variance that the vocabulary head explains, see `judge_scores`."""
        return self._judge(model, replace(variant, rank=RANK, rollouts=""), tests=True)[0]

    def _judge(self, model: OtterModel, key: "Variant", tests: bool) -> tuple[float, float]:
        steps = self._read(model, key, tests)[1]
        unembedding = weight_of(model.base_model.get_output_embeddings())
        with torch.no_grad():
            scores = model.adapter().head.vocabulary.of_embeddings(
                steps.states[:, None].float(), unembedding[steps.tokens]
            )
        return judge_scores(scores, steps.gains, steps.log_probs)

    def _read(self, model: OtterModel, key: "Variant", tests: bool) -> tuple[Steps, Steps]:
        """Reads the steps of a stream's responses once."""
        if (key, tests) not in self._steps:
            examples = self.tests if tests else self._learned(key)
            steps = read_steps(model, examples, CANDIDATES, POSITIONS, self.arguments.seed, BATCH)
            self._steps[key, tests] = steps[0].of(0), steps[1].of(0)
        return self._steps[key, tests]

    def _learned(self, variant: "Variant") -> list[Example]:
        return self.rated[: round(variant.share * self.arguments.prompts)]

    def _stream(self, variant: "Variant") -> OtterModel:
        """Trains a stream, or reads its checkpoint."""
        arguments = self.arguments
        training = TrainingConfig(
            epochs=2,
            batch_size=BATCH,
            learning_rate=5e-4,
            evaluations_per_epoch=2,
            mixed_precision=arguments.mixed_precision,
            seed=arguments.seed,
        )
        name = f"stream-{variant.width}-{variant.trace:g}-{variant.candidates}-{variant.share:g}"
        run = Run(arguments.out / name, training)
        torch.manual_seed(arguments.seed)
        layers, hidden_size = parse_layers(arguments.layers), variant.width * arguments.hidden_size
        model = run.model(self.load(), OtterConfig(hidden_size=hidden_size, layers=layers, signal=RewardConfig()))
        learning = RewardTrainingConfig(trace=variant.trace, candidates=variant.candidates)
        source = RecordedBase(model, self.rated, arguments.out / "recording", BATCH)
        objective = RewardObjective(model.train(), source, learning)
        fitted, held_out = run.split(self._learned(variant), model.base_model)
        run.train(objective, fitted, held_out, self.tokenizer)
        return model.eval()

    def _first(self) -> OtterModel:
        """Loads the reward of pairs alone."""
        return OtterModel.from_pretrained(self.load(), self.arguments.first, dtype=torch.float32).eval()

    def _of_rank(self, model: OtterModel, rank: int) -> OtterModel:
        """Returns the same stream with a new vocabulary head."""
        state = {name: tensor for name, tensor in model.adapter().state_dict().items() if "vocabulary" not in name}
        config = replace(model.adapter().config, signal=RewardConfig(vocabulary_rank=rank))
        other = OtterModel(self.load(), config, dtype=torch.float32).eval()
        other.adapter().load_state_dict(state, strict=False)
        return other
