"""Reads what the page asks for. The page's fields are `prompt`, `shown`, `guide`, `strengths`, `length`, `seed`, and
the settings of interventions by their names."""

from collections.abc import Mapping
from typing import Any

from otterlm.errors import OtterError
from otterlm.playground.comparison import Prompt, Settings
from otterlm.playground.problems import FieldError, blame

ROLES = ("system", "user", "assistant")


def read_request(body: Any) -> tuple[Prompt, Settings]:
    """Reads the JSON of a comparison.

    Args:
        body: an object with `text` (to continue) or `turns` (a list of [role, content]), `shown`, `guide` (an adapter
            and its method, or null), `strengths` (numbers), `values` (settings by name), `length` and `seed`.

    Raises:
        FieldError: a field is missing, or of another kind.
    """
    if not isinstance(body, Mapping):
        raise FieldError("the request must be a JSON object", "prompt")
    with blame("prompt"):
        prompt = _prompt(body)
    with blame("shown"):
        shown = _expect(body, "shown", str, "choose what colours")
    guide = body.get("guide")
    if guide is not None and not (_is_list(guide, str) and len(guide) == 2):
        raise FieldError("choose what guides: an adapter and its method", "guide")
    with blame("strengths"):
        strengths = _expect(body, "strengths", list, "Weights must be numbers, such as 0.5, 1, 2")
        if not _is_list(strengths, (int, float)):
            raise OtterError("Weights must be numbers, such as 0.5, 1, 2")
    values = body.get("values", {})
    if not isinstance(values, Mapping):
        raise FieldError("the settings must be an object", "guide")
    steering, method = guide or (None, None)
    return prompt, Settings(
        shown, steering, method, dict(values), tuple(strengths), body.get("length", 48), body.get("seed", 0)
    )


def _prompt(body: Mapping[str, Any]) -> Prompt:
    if "text" in body:
        return str(_expect(body, "text", str, "give a text to continue"))
    turns = _expect(body, "turns", list, "give a text, or the turns of a dialogue")
    if not all(_is_list(turn, str) and len(turn) == 2 and turn[0] in ROLES for turn in turns):
        raise OtterError(f"a turn must be [role, text], with one of the roles {', '.join(ROLES)}")
    return tuple((role, text) for role, text in turns)


def _expect(body: Mapping[str, Any], name: str, kind: type, hint: str) -> Any:
    value = body.get(name)
    if not isinstance(value, kind):
        raise OtterError(hint)
    return value


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
