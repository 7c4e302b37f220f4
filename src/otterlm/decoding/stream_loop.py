"""Streams the tokens of a decoding loop, one at a time, with the adapters' numbers for each."""

from collections.abc import Callable, Iterator
from threading import Semaphore, Thread

import torch
from torch import Tensor
from transformers import Cache, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from otterlm.decoding.ends import judging
from otterlm.decoding.stream import StreamedToken, TokenTexts, labels_beside, numbers_beside
from otterlm.model import OtterModel
from otterlm.signals.base import Signal


def shown_tokens(generate: Callable[[BaseStreamer], object]) -> Iterator[int]:
    """Yields the tokens of one response as a decoding loop shows them, in a new thread.

    The loop runs only while the reader waits for a token. Between two of its tokens, others can run.

    Args:
        generate: calls `model.generate` with this streamer, for one prompt.

    Raises:
        Exception: `generate` raises it.
    """
    turns = _Turns(generate)
    Thread(target=turns.run, daemon=True).start()
    try:
        while (token := turns.next()) is not None:
            yield token
    finally:
        turns.leave()


class _Left(BaseException):
    """Is raised in a loop that no reader waits for any more."""


class _Turns(BaseStreamer):
    """Lets a loop and its reader run in turns: `next` is the reader's side, the others are the loop's."""

    def __init__(self, generate: Callable[[BaseStreamer], object]) -> None:
        self._generate = generate
        self._requests, self._answers = Semaphore(0), Semaphore(0)
        self._token: int | None = None
        self._error: BaseException | None = None
        self._read_prompt = self._left = False

    def next(self) -> int | None:
        """Returns the next token; None at the end."""
        self._requests.release()
        self._answers.acquire()
        if self._error is not None:
            raise self._error
        return self._token

    def leave(self) -> None:
        """Ends a loop that waits for a request."""
        self._left = True
        self._requests.release()

    def run(self) -> None:
        """Generates, after the first request for a token."""
        try:
            self._wait()
            self._generate(self)
        except _Left:
            return
        except BaseException as error:
            self._error = error
        self._token = None
        self._answers.release()

    def put(self, value: Tensor) -> None:
        """Gives a token, `[1]`, and waits for the next request. The prompt comes first, `[1, T]`."""
        if not self._read_prompt:
            self._read_prompt = True
            return
        self._token = int(value)
        self._answers.release()
        self._wait()

    def end(self) -> None:
        """Does nothing: the response ends where the call of `generate` does."""

    def _wait(self) -> None:
        self._requests.acquire()
        if self._left:
            raise _Left


class TokenReader:
    """Reads the adapters' numbers for tokens that a loop chose, as `stream_tokens` does for its tokens.

    A loop shows tokens alone, and may have chosen several in one pass.

    Args:
        model: with the adapters that are on when a token is read.
        tokenizer: the base's.
        input_ids: `[1, T]`, the prompt.

    Attributes:
        logits: the base's for the token that was read last, `[1, V]`.
        before: the adapters' signals of the same pass, which came before the token.
    """

    logits: Tensor
    before: dict[str, Signal]

    def __init__(self, model: OtterModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor) -> None:
        self._model = model
        self._texts = TokenTexts(tokenizer)
        self._prompt = input_ids
        self._cache: Cache | None = None
        self._signals: dict[str, Signal] = {}
        self._next_logits: Tensor

    @torch.no_grad()
    def read(self, token: int) -> StreamedToken:
        """Reads the next token of the response, in a separate pass."""
        if self._cache is None:
            self._pass(self._prompt)
        self.logits, self.before = self._next_logits, self._signals
        self._pass(self._prompt.new_tensor([[token]]))
        judges = judging(self._model, token, self._signals, self.before)
        numbers = numbers_beside(self._model, token, judges, self.before)
        return StreamedToken(token, self._texts.add(token), numbers, labels_beside(self._model, judges))

    def _pass(self, input_ids: Tensor) -> None:
        output = self._model(input_ids=input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache, self._signals, self._next_logits = output.past_key_values, output.signals, output.logits[:, -1]
