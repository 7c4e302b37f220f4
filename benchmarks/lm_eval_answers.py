"""Compares what lm_eval gets from a server of the base and from one of the exported folder: every answer must be equal.

    python -m venv .venv-lm-eval && .venv-lm-eval/bin/pip install 'lm_eval[api]'
    .venv-vllm/bin/python benchmarks/lm_eval_answers.py --base BASE --folder FOLDER --lm-eval .venv-lm-eval/bin/python

lm_eval has an environment of its own, and uses `local-completions`. Two tasks are made here, sums with four choices
(log probabilities) and sums to go on with (text), so that nothing is downloaded. One JSON object says how many answers
there were, and which differ. The exit status is 0 if none does.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from soak import wait

from otterlm.bases import base_folder
from otterlm.cli.scripts import run_script

TASKS: dict[str, dict[str, Any]] = {
    "sums_chosen": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"},
    "sums_written": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16, "temperature": 0.0, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
options, tasks, out, *names = sys.argv[1:]
manager = TaskManager(include_path=tasks, include_defaults=False)
samples = simple_evaluate("local-completions", options, tasks=names, task_manager=manager, bootstrap_iters=0)["samples"]
ordered = {name: sorted(samples[name], key=lambda each: each["doc_id"]) for name in names}
json.dump({name: [each["resps"] for each in ordered[name]] for name in names}, open(out, "w"))
"""
"""What lm_eval's Python runs."""


def write_tasks(folder: Path, count: int) -> None:
    """Writes the tasks' files: YAML is a superset of JSON."""
    generator = random.Random(0)
    lines = []
    for _ in range(count):
        one, two, label = generator.randint(2, 50), generator.randint(2, 50), generator.randrange(4)
        choices = [f" {one + two + other - label}" for other in range(4)]
        text = f"3 + 4 = 7\n10 + 5 = 15\n{one} + {two} ="
        lines.append(json.dumps({"text": text, "choices": choices, "label": label}) + "\n")
    (folder / "sums.jsonl").write_text("".join(lines))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}}}
    for name, fields in TASKS.items():
        task = {"task": name, "test_split": "test", "doc_to_text": "{{text}}", **data, **fields}
        (folder / f"{name}.yaml").write_text(json.dumps(task))


def answers(model: str, base: str, tasks: Path, arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Returns what lm_eval got for each document of each task, from a new server.

    Args:
        model: the folder that it serves.
        base: the folder with the tokenizer.
        tasks: the folder of the tasks.
        arguments: of the command.
    """
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "256", "--port", str(arguments.port), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{arguments.port}"
    out = tasks / "out.json"
    with subprocess.Popen([*command, "--served-model-name", "served"], env=environment, stdout=sys.stderr) as server:
        try:
            wait(server, url)
            # One request at a time: batches of other sizes round differently.
            options = f"model=served,base_url={url}/v1/completions,num_concurrent=1,tokenizer={base}"
            evaluate = [arguments.lm_eval, "-c", EVALUATE, options, str(tasks), str(out), *TASKS]
            settings = {"HF_DATASETS_CACHE": str(tasks / "cache"), "PYTHONPATH": "", "OPENAI_API_KEY": "-"}
            subprocess.run(evaluate, check=True, env=os.environ | settings, stdout=sys.stderr)
        finally:
            server.terminate()
            server.wait(60)
    results: dict[str, list[Any]] = json.loads(out.read_text())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a folder or smollm2-135m")
    parser.add_argument("--folder", required=True, help="the base and adapters, exported")
    parser.add_argument("--lm-eval", required=True, help="the Python of lm_eval's environment")
    parser.add_argument("--count", type=int, default=20, help="documents of each task")
    parser.add_argument("--port", type=int, default=8124)
    arguments = parser.parse_args()
    base = str(base_folder(arguments.base))
    with tempfile.TemporaryDirectory() as temporary:
        write_tasks(Path(temporary), arguments.count)
        plain, ours = (answers(each, base, Path(temporary), arguments) for each in (base, arguments.folder))
    different = [
        {"task": name, "document": index, "base": one, "folder": other}
        for name in TASKS
        for index, (one, other) in enumerate(zip(plain[name], ours[name], strict=True))
        if one != other
    ]
    print(json.dumps({"answers": sum(map(len, plain.values())), "different": different}))
    raise SystemExit(bool(different))


if __name__ == "__main__":
    run_script(main)
