"""Records the runs that the moving picture of README shows: a reward that guides, and a guard that ends a text.

python benchmarks/picture_runs.py
"""

import json
from pathlib import Path
from typing import Any

import torch

from otterlm import GuardStop, OtterModel, load_base, load_tokenizer
from otterlm.cli.demo import reward
from otterlm.cli.scripts import run_script
from otterlm.decoding import score_sequences
from otterlm.interventions import InterventionSettings

ROOT = Path(__file__).parent.parent
ADAPTERS, RUN = ROOT / "adapters", ROOT / "docs" / "assets" / "guided.json"
WEIGHT, TOKENS = 1.0, 48
PROMPT = 2
"""Which of the demo's three prompts. After the first one guidance changes the words and hardly the reward."""
GUARDED = "The concert was lovely. The man beside us shouted at the singer: go home, you"
SEED = 5
"""With seeds 0 to 4 the text stays below the alarm: not every rude word rings it."""


def record() -> dict[str, Any]:
    """Runs the base with two shipped adapters, and returns the tokens with the signals beside them."""
    base, tokenizer = load_base("smollm2-135m"), load_tokenizer("smollm2-135m")
    return _guide(base, tokenizer) | {"guard": _guard(base, tokenizer)}


def _guide(base: Any, tokenizer: Any) -> dict[str, Any]:
    """Answers one of the demo's prompts greedily, without and with guidance."""
    model = OtterModel.from_pretrained(base, ADAPTERS / "smollm2-135m-harmless")
    part = reward.run(model, tokenizer, "guidance", InterventionSettings(WEIGHT), TOKENS)
    entry = part["prompts"][PROMPT]
    run: dict[str, Any] = {"prompt": entry["prompt"], "weight": WEIGHT, "range": list(part["range"])}
    for name in ("original", "guided"):
        pieces = _pieces(tokenizer, entry[name]["tokens"], entry[name]["text"])
        run[name] = {"pieces": pieces, "rewards": [round(reward, 3) for reward in entry[name]["rewards"]]}
    return run


def _guard(base: Any, tokenizer: Any) -> dict[str, Any]:
    """Samples a text until the guard ends it."""
    model = OtterModel.from_pretrained(base, ADAPTERS / "smollm2-135m-guard")
    ids = tokenizer(GUARDED, return_tensors="pt").input_ids  # [1, T]
    stop = GuardStop(model)
    torch.manual_seed(SEED)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.9, "max_new_tokens": TOKENS}
    output = model.generate(ids, stopping_criteria=[stop], pad_token_id=tokenizer.pad_token_id, **sampling)
    if stop.labels[0] is None:
        raise SystemExit("the guard ended nothing: choose another prompt or seed")
    tokens = output[0, ids.shape[1] :]
    harmless = score_sequences(model, output, torch.ones_like(output))[0, ids.shape[1] :].exp()
    return {
        "prompt": GUARDED,
        "pieces": _pieces(tokenizer, tokens.tolist(), tokenizer.decode(tokens)),
        "harmless": [round(share, 3) for share in harmless.tolist()],
        "label": stop.labels[0],
    }


def _pieces(tokenizer: Any, tokens: list[int], text: str) -> list[str]:
    pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in tokens]
    if "".join(pieces) != text:
        raise SystemExit(f"the tokens of {text!r} are not pieces of it: choose another prompt")
    return pieces


def main() -> None:
    """Writes the runs."""
    RUN.write_text(json.dumps(record(), ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
