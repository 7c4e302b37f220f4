"""Installs the package into a separate folder and tries everything once: it trains, saves, loads, verifies, scores,
colours and streams. It takes about two minutes with SmolLM2 on two cores.

    python examples/own_signal/run.py [--base BASE] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROMPTS = (
    *("How is cheese made?", "What is a fjord?", "Write a haiku about rain.", "Why is the sky blue?"),
    *("List three rivers.", "What does a baker do?", "Explain gravity to a child.", "What is 17 plus 25?"),
    *("Name a kind of bird.", "How do I boil an egg?", "What is the capital of Norway?", "Tell me about otters."),
    *("Translate hello into French.", "Who wrote Hamlet?", "What is a verb?", "How long is a marathon?"),
)
SMALL = ("--hidden-size", "16", "--heads", "1", "--intermediate-size", "16", "--layers", "1", "--epochs", "3")


def install(folder: Path) -> None:
    """Installs the package into an empty folder, so that the environment does not change."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target")
    subprocess.run([*pip, str(folder), str(HERE)], check=True)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


def otter(*arguments: str) -> Any:
    """Runs the command and reads its JSON."""
    command = [sys.executable, "-m", "otterlm.cli", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def train(base: str, work: Path) -> Path:
    """Trains the signal by the command line, and returns the adapter's folder."""
    prompts = work / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    options = ("--base", base, "--prompts", str(prompts), "--out", str(work / "adapter"), "--max-new-tokens", "24")
    otter("train", "uncertainty", *options, "--learning-rate", "0.003", *SMALL)
    return work / "adapter"


def outside() -> int:
    """Counts the files of Otter that know of this signal."""
    import otterlm

    source = Path(str(otterlm.__file__)).parent
    return sum("uncertainty" in path.read_text(encoding="utf-8").lower() for path in source.rglob("*.py"))


def try_everything(base: str, adapter: Path, work: Path) -> dict[str, bool]:
    """Loads the adapter again, and verifies, scores, colours and streams."""
    import torch

    from otterlm import OtterModel
    from otterlm.bases import load_base, load_tokenizer
    from otterlm.decoding import stream_tokens
    from otterlm.playground.comparison import Settings
    from otterlm.playground.events import events
    from otterlm.playground.session import Session

    tokenizer, model = load_tokenizer(base), OtterModel.from_pretrained(load_base(base), adapter)
    ids = torch.tensor([tokenizer.encode("The otter dives into the river and")])
    signal = model(input_ids=ids).signals["uncertainty"].prefix
    model.save_pretrained(work / "again", dtype=torch.float32)
    again = OtterModel.from_pretrained(load_base(base), work / "again")
    streamed = list(stream_tokens(model, tokenizer, ids, max_new_tokens=6, do_sample=False))
    shown = list(events(Session(model, tokenizer), "What is a fjord?", Settings("uncertainty", None, max_new_tokens=6)))
    text = work / "texts.jsonl"
    text.write_text(json.dumps({"text": "The otter dives.", "score": 1.0}) + "\n" + '{"text": "A b.", "score": 0}\n')
    scores = otter("score", "--base", base, "--adapter", str(adapter), "--data", str(text))
    checks = otter("verify", "--base", base, "--adapter", str(adapter), "--dtype", "float32")
    return {
        "reloaded_equal": torch.equal(again(input_ids=ids).signals["uncertainty"].prefix, signal),
        "coloured": any("uncertainty" in event["token"]["signals"] for event in shown if event["kind"] == "token"),
        "streamed": len(streamed) > 0 and all("uncertainty" in token.signals for token in streamed),
        "scored": scores["n"] == 2,
        "exact": bool(checks["exact"]),
    }


def main() -> None:
    """Prints what was tried and whether it worked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        install(work / "site")
        adapter = train(arguments.base, work)
        report = {"trained": (adapter / "adapter_model.safetensors").exists()}
        report |= try_everything(arguments.base, adapter, work)
        result = report | {"files_outside": outside()}
    print(json.dumps(result) if arguments.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    sys.exit(0 if all(report.values()) and not result["files_outside"] else 1)


if __name__ == "__main__":
    main()
