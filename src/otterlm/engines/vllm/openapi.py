"""Shows Otter's fields and routes in the server's OpenAPI document, and so under `/docs`."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from otterlm.engines.settings import NAMES, PREFIX
from otterlm.engines.vllm import adapters
from otterlm.interventions import InterventionSettings

SCORE = "/v1/otter/score"
"""The route of `score`, which adds these descriptions."""

Schema = dict[str, Any]

COMPONENT = "OtterSettings"
"""The name of the schema of what a request may ask for."""
FIELD = "vllm_xargs"
"""The field of requests that holds it."""
TEXT, FLAG = {"type": "string"}, {"type": "integer", "enum": [0, 1]}
IN_REQUESTS: dict[str, tuple[Schema, str]] = {
    "weight": (
        {"type": "number"},
        "How far to steer: the weight of a reward, or a contrast's alpha. 1 is recommended for a reward, 2 for a "
        "contrast; 0: the base.",
    ),
    "signal": (TEXT, "The adapter that steers, if there are several."),
    "guard": (TEXT, "The adapter that ends the response, if there are several."),
    "alarm": (
        {"anyOf": [{"type": "number"}, TEXT]},
        "Probability at which a token is a hit for the guard; or JSON text of an object, labels to probabilities.",
    ),
    "refuse": (FLAG, "1: a prompt that the guard flags gets no token."),
    "rewards": (FLAG, "1: the reward of every reward adapter beside every token."),
    "guards": (FLAG, "1: the probability of each label of every guard beside every token."),
    "prompt": (FLAG, "1: both, of the prompt, before the first token."),
    "prompt_tokens": (FLAG, "1: both, of the prompt and beside every token of it."),
}
"""Settings that are a request's alone, or mean more there. The others are described where all of Otter has them."""


def attach(app: Any) -> None:
    """Adds to the document that a server makes when it is first asked for it."""
    make: Callable[[], Schema] = app.openapi

    def openapi() -> Schema:
        fresh = app.openapi_schema is None
        document = make()
        if fresh:
            describe(document)
        return document

    app.openapi = openapi


def describe(document: Schema) -> None:
    """Adds the settings to every request that can have them, and the routes, in place."""
    schemas: dict[str, Schema] = document.setdefault("components", {}).setdefault("schemas", {})
    for schema in schemas.values():
        field = schema.get("properties", {}).get(FIELD)
        for kind in (field or {}).get("anyOf", ()):
            if kind.get("type") == "object":
                kind["allOf"] = [{"$ref": f"#/components/schemas/{COMPONENT}"}]
    schemas[COMPONENT] = settings_schema()
    document.setdefault("paths", {}).update(_paths())


def settings_schema() -> Schema:
    """Returns the schema of what a request may ask for."""
    shared = {each.name: each for each in fields(InterventionSettings)}
    properties = {}
    for name in NAMES:
        kind, help = IN_REQUESTS.get(name) or (_kind(shared[name]), shared[name].metadata["help"])
        properties[PREFIX + name] = {**kind, "description": help}
    return {"type": "object", "title": COMPONENT, "properties": properties}


def _kind(field: Any) -> Schema:
    limits = {"minimum": field.metadata["minimum"], "maximum": field.metadata["maximum"]}
    if limits["minimum"] is None:
        return {"type": "number"}
    return {"type": "integer", **{name: value for name, value in limits.items() if value is not None}}


def _paths() -> Schema:
    texts = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
    dialogues = {"type": "array", "items": {"type": ["object", "array"]}}
    scored = _body({"model": TEXT, "input": texts, "messages": dialogues, "tokens": {"type": "boolean"}}, ["model"])
    loaded = _body({"name": TEXT, "path": TEXT}, ["name", "path"])
    name = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    return {
        SCORE: {"post": {"summary": "Scores texts or dialogues.", **scored, **ANSWERS}},
        adapters.PATH: {
            "get": {"summary": "Lists the adapters.", **ANSWERS},
            "post": {"summary": "Loads an adapter into a free slot of its shape.", **loaded, **ANSWERS},
        },
        adapters.PATH + "/{name}": {"delete": {"summary": "Unloads an adapter.", "parameters": [name], **ANSWERS}},
    }


ANSWERS: Schema = {
    "tags": ["otter"],
    "responses": {"200": {"description": "Done."}, "400": {"description": "Refused."}},
}


def _body(properties: Schema, required: list[str]) -> Schema:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
