"""Makes and checks the requests of `soak.py`, and counts what the server should have counted."""

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from serving import prompt

from otterlm.engines.requests import Served
from otterlm.engines.rewards import STOPPED, extend, is_ours
from otterlm.signals.base import STEERS

IN_PROMPT = " in the prompt"
WRONG: tuple[dict[str, Any], ...] = (
    {"otter_weight": "much"},
    {"otter_weight": 1.0, "otter_signal": "nobody"},
    {"otter_rewards": 7},
    {"otter_unheard": 1},
)
SCHEMA = {"type": "object", "properties": {"otter": {"type": "boolean"}}, "required": ["otter"]}
GRAMMARS = ({"choice": ["yes", "no", "perhaps"]}, {"regex": "[a-z]{3,12}"}, {"json": SCHEMA})


@dataclass
class Counted:
    """Holds what the clients counted. Of responses that they aborted they know an upper limit only.

    Attributes:
        outcomes: how the requests went.
        metrics: what the server should have counted, by the names of its metrics.
        aborted: what it may have counted beside that.
        faults: requests whose responses were wrong.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    metrics: Counter[str] = field(default_factory=Counter)
    aborted: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass
class Choice:
    """Holds what came of one choice."""

    tokens: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)
    reason: Any = None
    ended: bool = False


class Client:
    """Sends requests.

    Args:
        http: to the server.
        model: its name.
        served: the folder's adapters.
        reloaded: the adapter that is loaded anew meanwhile. No request names it, and its metrics are not compared.
    """

    def __init__(self, http: httpx.AsyncClient, model: str, served: Served, reloaded: str | None) -> None:
        self.http, self.model, self.served, self.reloaded = http, model, served, reloaded
        self.counted = Counted()
        self.rewards = [name for name in served.numbers if name != reloaded and name not in served.guards]
        self.guards = [name for name in served.guards if name != reloaded]
        self.steer = [name for name, each in served.signals.items() if each & STEERS and name != reloaded]

    async def send(self, number: int) -> None:
        """Sends a request that its number decides, and checks the response."""
        generator = random.Random(number)
        try:
            outcome = await self._send(generator)
        except (AssertionError, httpx.HTTPError, KeyError) as error:
            self.counted.faults.append(f"request {number}: {type(error).__name__} {str(error)[:300]}")
            outcome = "fault"
        self.counted.outcomes[outcome] += 1

    async def _send(self, generator: random.Random) -> str:
        if generator.random() < 0.1:
            return await self.score(generator)
        route = generator.choice(("completions", "completions", "chat/completions", "responses"))
        body = self.body(route, generator)
        settings = body["vllm_xargs"] = self.settings(generator)
        if generator.random() < 0.06:
            settings |= generator.choice(WRONG)
            answer = await self.http.post(f"/v1/{route}", json=body)
            assert answer.status_code == 400, (answer.status_code, answer.text)
            assert "otter_" in answer.text, answer.text
            self.counted.metrics["otter:refused_requests_total"] += 1
            return "refused"
        if not settings:
            del body["vllm_xargs"]
        checked = self.served.settings(settings)
        if checked.steer is not None:
            self.counted.metrics[f'otter:steered_requests_total{{adapter="{checked.steer}"}}'] += 1
        patience = generator.randint(1, 6) if body.get("stream") and generator.random() < 0.15 else None
        choices, used = await self.receive(route, body, patience)
        for choice in choices.values():
            self.count(checked, choice, aborted=used is None)
        if used is None:
            return "aborted"
        self.check(body, checked, choices, used)
        return "stopped" if any(is_ours(choice.reason) for choice in choices.values()) else "whole"

    def body(self, route: str, generator: random.Random) -> dict[str, Any]:
        text = prompt(generator, longest=15)
        longest = generator.randint(1, 32)
        body = {"model": self.model, "temperature": generator.choice([0.0, 0.7, 1.0]), "stream": True}
        if generator.random() < 0.3:
            del body["stream"]
        if route == "responses":
            return {**body, "input": text, "max_output_tokens": longest, "store": False}
        body |= {"max_tokens": longest, "return_token_ids": True}
        body |= {"messages": [{"role": "user", "content": text}]} if "chat" in route else {"prompt": text}
        if body["temperature"] and generator.random() < 0.4:
            body["n"] = generator.randint(2, 3)
        if generator.random() < 0.3:
            body["structured_outputs"] = generator.choice(GRAMMARS)
        else:
            body["ignore_eos"] = True
        if "stream" in body:
            body["stream_options"] = {"include_usage": True}
        elif generator.random() < 0.3:
            body["logprobs"] = True if "chat" in route else 3
        return body

    def settings(self, generator: random.Random) -> dict[str, Any]:
        """Returns what a request asks for; sometimes nothing."""
        settings: dict[str, Any] = {}
        if generator.random() < 0.6:
            settings["otter_rewards"] = 1
        if generator.random() < 0.2:
            settings["otter_prompt"] = 1
        if self.guards and generator.random() < 0.3:
            settings["otter_guards"] = 1
        if self.steer and generator.random() < 0.4:
            settings |= {"otter_weight": generator.uniform(-2, 2), "otter_signal": generator.choice(self.steer)}
        if self.guards and generator.random() < 0.2:
            settings |= {"otter_guard": generator.choice(self.guards), "otter_alarm": generator.choice([0.4, 0.6, 0.9])}
            if generator.random() < 0.3:
                settings["otter_refuse"] = 1
        elif self.rewards and generator.random() < 0.2:
            settings |= {"otter_guard": generator.choice(self.rewards), "otter_threshold": generator.uniform(-2, 1)}
            settings["otter_patience"] = generator.randint(1, 4)
        return settings

    async def score(self, generator: random.Random) -> str:
        """Scores one to three texts. A text is read as a request for one token."""
        texts = [prompt(generator, longest=15) for _ in range(generator.randint(1, 3))]
        answer = await self.http.post("/v1/otter/score", json={"model": self.model, "input": texts, "tokens": True})
        assert answer.status_code == 200, answer.text
        scored = answer.json()["data"]
        assert len(scored) == len(texts), scored
        for each in scored:
            assert lengths(each["tokens"]) <= {len(each["token_ids"])}, each
            for name in each["rewards"].keys() - {self.reloaded}:
                self.counted.metrics[f'otter:reward_count{{adapter="{name}"}}'] += 1
        return "scored"

    async def receive(
        self, route: str, body: dict[str, Any], patience: int | None
    ) -> tuple[dict[int, Choice], int | None]:
        """Returns the choices and how many tokens the server counted; None if this client went away.

        Args:
            route: after `/v1/`.
            body: of the request.
            patience: pieces of a stream after which the client goes away.
        """
        choices = {index: Choice() for index in range(body.get("n", 1))}
        used: int | None = None
        async with self.http.stream("POST", f"/v1/{route}", json=body) as answer:
            if answer.status_code != 200 or "stream" not in body:
                text = (await answer.aread()).decode()
                assert answer.status_code == 200, (answer.status_code, text)
                return choices, gather(json.loads(text), choices)
            pieces = 0
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    counted = gather(json.loads(line[6:]), choices)
                    used = counted if counted is not None else used
                    pieces += 1
                if patience is not None and pieces > patience and used is None:
                    return choices, None
        assert used is not None, "the stream has no usage"
        return choices, used

    def count(self, settings: Any, choice: Choice, aborted: bool) -> None:
        """Counts what the server should have counted of a choice."""
        metrics = self.counted.aborted if aborted else self.counted.metrics
        if not aborted and is_ours(choice.reason):
            label = choice.reason.removeprefix("otter: ")
            adapter, kind = settings.guard, "stops"
            if choice.reason == STOPPED:
                label = ""
            elif label.endswith(IN_PROMPT):
                label, adapter, kind = label.removesuffix(IN_PROMPT), settings.refuse, "refused_prompts"
            metrics[f'otter:{kind}_total{{adapter="{adapter}",label="{label}"}}'] += 1
        elif aborted and settings.guard is not None:
            metrics["otter:stops_total"] += 1
            metrics["otter:refused_prompts_total"] += settings.refuse is not None
        for name in self.served.watched(settings):
            if name in self.served.numbers and name != self.reloaded:
                metrics[f'otter:reward_count{{adapter="{name}"}}'] += 1

    def check(self, body: dict[str, Any], settings: Any, choices: dict[int, Choice], used: int) -> None:
        """Checks that a response is as long as its tokens, and as it was asked for."""
        longest = body.get("max_tokens") or body["max_output_tokens"]
        if "max_tokens" in body:
            assert used == sum(choice.tokens for choice in choices.values()), (used, choices)
        else:
            choices[0].tokens = used
        for choice in choices.values():
            assert choice.ended, (body, choice)
            assert choice.tokens <= longest, (body, choice)
            if body.get("ignore_eos") and not is_ours(choice.reason):
                assert choice.tokens == longest, (body, choice)
            for name in ("rewards", "guards", "spans"):
                assert lengths(choice.numbers.get(name, {})) <= {choice.tokens}, (name, choice)
            assert bool(choice.numbers.get("rewards")) == bool(settings.rewards and choice.tokens), (body, choice)
            assert bool(choice.numbers.get("guards")) == bool(settings.guards and choice.tokens), (body, choice)
            assert ("prompt" in choice.numbers) == settings.prompt, (body, choice)


def lengths(numbers: dict[str, Any]) -> set[int]:
    """Returns the lengths of all lists."""
    parts = (lengths(value) if isinstance(value, dict) else {len(value)} for value in numbers.values())
    return set().union(*parts)


def gather(answer: dict[str, Any], choices: dict[int, Choice]) -> int | None:
    """Adds a response, or an event of a stream, to the choices. Returns the tokens in `usage`, if it is there."""
    assert "error" not in answer or answer["error"] is None, answer
    whole = answer.get("response", answer)
    usage = whole.get("usage") or {}
    if whole.get("object") == "response" and usage:
        numbers = dict(whole.get("otter") or {})
        choices[0].reason, choices[0].ended = numbers.pop("stop_reason", None), True
        choices[0].numbers = numbers
        return usage["output_tokens"]
    for each in answer.get("choices", ()):
        choice = choices[each["index"]]
        choice.tokens += len(each.get("token_ids") or ())
        extend(choice.numbers, each.get("otter") or {})
        if each.get("finish_reason"):
            choice.reason, choice.ended = each.get("stop_reason"), True
    return usage.get("completion_tokens")
