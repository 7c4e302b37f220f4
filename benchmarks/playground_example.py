"""Records the playground's example, which the page shows before the first comparison.

python benchmarks/playground_example.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from otterlm import OtterModel, load_base, load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.playground.about import EXAMPLES, about
from otterlm.playground.events import events
from otterlm.playground.page_requests import read_request
from otterlm.playground.session import Session

ROOT = Path(__file__).parent.parent
BASE, ADAPTER = "smollm2-135m", "smollm2-135m-harmless"


def _timeless(event: dict[str, Any]) -> dict[str, Any]:
    """Removes times: those of another machine tell nobody anything."""
    nothing: dict[str, Any] = {"speed": None, "slowdowns": []}
    return event | {name: value for name, value in nothing.items() if name in event}


def main() -> None:
    """Compares two weights of guidance, and writes every event."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--prompt", default=EXAMPLES[0])
    parser.add_argument("--out", type=Path, default=ROOT / "src/otterlm/playground/static/recorded.json")
    arguments = parser.parse_args()
    model = OtterModel.from_pretrained(load_base(BASE), ROOT / "adapters" / ADAPTER, "harmless").eval()
    session = Session(model, load_tokenizer(BASE))
    request = {
        "turns": [["user", arguments.prompt]],
        "shown": "harmless",
        "guide": ["harmless", "guidance"],
        "strengths": arguments.strengths,
        "values": {},
        "length": arguments.length,
        "seed": 0,
    }
    recorded = {
        "base": BASE,
        "source": f"adapters/{ADAPTER}",
        "adapters": about(session, BASE, [])["adapters"],
        "request": request,
        "events": [_timeless(event) for event in events(session, *read_request(request))],
    }
    if recorded["events"][-1]["kind"] != "end":
        raise SystemExit(recorded["events"][-1])
    # A line for each event, so that a change can be read.
    head = json.dumps({name: value for name, value in recorded.items() if name != "events"}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in recorded["events"])
    arguments.out.write_text(f'{head[:-1]}, "events": [\n{lines}\n]}}\n')
    for index in range(len(arguments.strengths) + 1):
        mine = [
            event["token"]["text"] for event in recorded["events"] if event.get("side") == index and "token" in event
        ]
        print(f"--- {recorded['events'][0]['sides'][index]}: {''.join(mine)}")


if __name__ == "__main__":
    run_script(main)
