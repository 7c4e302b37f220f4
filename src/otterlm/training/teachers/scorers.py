"""Loads scorers, which rate responses.

A scorer is a Python function, a classifier of Transformers, a regular expression, or a judge behind an
OpenAI-compatible endpoint.
"""

import functools
import importlib
import inspect
import json
import math
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from otterlm.errors import OtterError, reason
from otterlm.identity import Identity, of_data, of_tokenizer, of_weights
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import Limits

Scorer = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
"""A scorer takes prompts, as chat turns, and responses, and returns a number for each response."""

QUESTION = (
    "Rate the response to the prompt from 0 (very bad) to 10 (very good). Answer with the number only.\n\n"
    "Prompt: {prompt}\n\nResponse: {response}"
)


@dataclass(frozen=True, slots=True)
class LoadedScorer:
    """A loaded scorer returns one finite number a response, or raises an error.

    Attributes:
        spec: see `load_scorer`.
        rate: the scorer itself.
        depends: what its answers depend on beside `spec`: a digest of a module's source, or of a model's weights. An
            endpoint has none.
    """

    spec: str
    rate: Scorer
    depends: Identity

    @property
    def identity(self) -> Identity:
        """Returns what the answers depend on, for `otterlm.identity`."""
        return {"spec": self.spec, **self.depends}

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Rates responses, see `Scorer`."""
        try:
            answer = self.rate(prompts, responses)
            if isinstance(answer, str | bytes | Mapping):  # of which Python reads letters or names
                raise TypeError(f"it gave a {type(answer).__name__}, not a list of numbers")
            scores = [float(value) for value in answer]
        except OtterError:
            raise
        except (Exception, SystemExit) as error:
            raise OtterError(f"the scorer {self.spec} failed: {type(error).__name__}: {error}") from error
        if len(scores) != len(responses) or not all(map(math.isfinite, scores)):
            raise OtterError(f"the scorer {self.spec} must give one finite number a response")
        return scores


def load_scorer(spec: str) -> LoadedScorer:
    """Loads a scorer by its specification.

    Args:
        spec: one of

            - `module:name`, of a module that is installed or in the current folder: a function of (last turns of the
              prompts, responses) or of (responses), or an object with `predict_proba` such as a scikit-learn pipeline
              (the probability of its last class);
            - `regex:PATTERN`, how often the pattern matches in the response;
            - `hf:MODEL` or `hf:MODEL#LABEL`, a sequence classifier of Transformers: the probability of a label, or the
              logit of the only one. One with one label and a chat template is a reward model: it reads the dialogue,
              others the response;
            - `openai:URL#MODEL`, a chat model behind an OpenAI-compatible endpoint that is asked for a number from 0 to
              10; the key is in `OPENAI_API_KEY`.

    Raises:
        OtterError: it is none of these, or cannot be loaded.
    """
    kind, _, rest = spec.partition(":")
    if not rest:
        raise OtterError(f"a scorer is module:name, regex:PATTERN, hf:MODEL or openai:URL#MODEL, got {spec!r}")
    makers = {"regex": _regex, "hf": _classifier, "openai": _judge}
    rate, depends = makers[kind](rest) if kind in makers else _imported(kind, rest)
    return LoadedScorer(spec, rate, depends)


def _imported(module: str, name: str) -> tuple[Scorer, Identity]:
    target: Any = _module(module)
    source = getattr(target, "__file__", None)
    depends = {"source": of_data([Path(source).read_bytes()])} if source and source.endswith(".py") else {}
    if helpers := _helpers(target):
        depends["helpers"] = of_data([path.read_bytes() for path in helpers])
    try:
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        raise OtterError(f"there is no {name} in a module {module}: {error}") from error
    if hasattr(target, "predict_proba"):
        return lambda prompts, responses: [row[-1] for row in target.predict_proba(list(responses))], depends
    if not callable(target):
        raise OtterError(f"{module}:{name} can neither be called nor predict")
    if _arguments(target) == 1:
        return lambda prompts, responses: target(list(responses)), depends
    return lambda prompts, responses: target(_last_turns(prompts), list(responses)), depends


def _helpers(scorer: ModuleType) -> list[Path]:
    """Returns the files of the modules beside a scorer's, or below, that it uses, and that those use."""
    if not getattr(scorer, "__file__", None):
        return []
    folder, files, todo = Path(str(scorer.__file__)).resolve().parent, {scorer.__name__: Path()}, [scorer]
    while todo:
        for value in list(vars(todo.pop()).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            module = sys.modules.get(name) if isinstance(name, str) and name not in files else None
            if module is not None and (path := _source_below(module, folder)):
                files[module.__name__] = path
                todo.append(module)
    return sorted(path for path in files.values() if path.name)


def _source_below(module: ModuleType, folder: Path) -> Path | None:
    """Returns a module's file, if it is in a folder and neither Python's, Otter's nor installed."""
    path = Path(str(getattr(module, "__file__", None) or "")).resolve()
    libraries = {"otterlm", *sys.stdlib_module_names}
    installed = module.__name__.partition(".")[0] in libraries or "site-packages" in path.parts
    return path if path.suffix == ".py" and path.is_relative_to(folder) and not installed else None


def _module(name: str) -> ModuleType:
    """Imports a module, also from the current folder, which a console script does not search by itself."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name) if error.name else name
        absent = name == missing or name.startswith(f"{missing}.")
        why = f"there is no module {name}, neither installed nor here" if absent else f"{name} needs a module {missing}"
        raise OtterError(f"{why}: a scorer is named as module:name") from error
    except (Exception, SystemExit) as error:
        raise OtterError(f"the module {name} cannot be imported: {type(error).__name__}: {reason(error)}") from error


def _arguments(function: Callable[..., Any]) -> int | None:
    """Counts the arguments that a function needs; None where Python cannot tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is inspect.Parameter.empty for each in parameters)


def _regex(pattern: str) -> tuple[Scorer, Identity]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OtterError(f"{pattern!r} is not a regular expression: {error}") from error
    return lambda prompts, responses: [float(len(compiled.findall(response))) for response in responses], {}


def _classifier(spec: str) -> tuple[Scorer, Identity]:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from otterlm.training.teachers.reward_model import Preference

    name, _, label = spec.partition("#")
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
        reads_dialogues = config.num_labels == 1 and bool(tokenizer.chat_template)
        model, loading = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    except Exception as error:
        raise OtterError(f"the classifier {name} cannot be loaded: {reason(error)}") from error
    if loading["missing_keys"]:  # Transformers makes them up
        raise OtterError(f"{name} is no classifier: it lacks weights, such as {min(loading['missing_keys'])}")
    labels: dict[str, int] = config.label2id
    if label and label not in labels:
        raise OtterError(f"{name} has no label {label!r}; it has: {', '.join(labels)}")
    if reads_dialogues:
        half = config.max_position_embeddings // 2
        judge = Preference(name)
        return functools.partial(judge, limits=Limits(half, half)), judge.identity

    model.eval()

    @torch.no_grad()
    def score(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(responses), 32):
            texts = list(responses[start : start + 32])
            logits = model(**tokenizer(texts, return_tensors="pt", padding=True, truncation=True)).logits
            if logits.shape[1] == 1:
                scores += logits[:, 0].tolist()
            else:
                scores += logits.softmax(dim=-1)[:, labels[label] if label else -1].tolist()
        return scores

    return score, {"model": of_weights(model), "tokenizer": of_tokenizer(tokenizer)}


def _judge(spec: str) -> tuple[Scorer, Identity]:
    url, _, model = spec.rpartition("#")
    if not url or not model:
        raise OtterError(f"a judge is openai:URL#MODEL, got openai:{spec}")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}

    def ask(prompt: str, response: str) -> float:
        content = QUESTION.format(prompt=prompt, response=response)
        body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
        request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = json.load(answer)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise OtterError(f"the judge at {url} did not answer: {error}") from error
        number = re.search(r"-?\d+(\.\d+)?", str(text))
        if number is None:
            raise OtterError(f"the judge at {url} answered without a number: {text!r}")
        return float(number.group())

    return lambda prompts, responses: [ask(*pair) for pair in zip(_last_turns(prompts), responses, strict=True)], {}


def _last_turns(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt[-1][1] for prompt in prompts]
