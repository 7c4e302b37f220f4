"""The command line reads data: files of the same rows score the same, and one line says what is wrong."""

import json
import sys

import pandas
import pytest
from chat_tokenizer import CHAT, STRICT, chat_tokenizer
from conftest import tiny_base, tiny_otter
from datasets import Dataset

from otterlm.cli import main
from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.rows import PairRow, read_rows

PAIRS = [
    {
        "chosen": f"\n\nHuman: the dog {n}\n\nAssistant: is nice {n}",
        "rejected": f"\n\nHuman: the dog {n}\n\nAssistant: helps {n * n}",
    }
    for n in range(5)
]


@pytest.fixture
def otter(monkeypatch, capsys):
    """Runs the command; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["otter", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


def summary(result):
    """Returns the JSON object that a command printed."""
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def refusal(result):
    """Returns the last line of stderr of a command that ended with exit code 2."""
    code, out, err = result
    assert (code, out) == (2, "")
    return err.splitlines()[-1]


def save_base(folder, template):
    tiny_base(vocab_size=300, max_position_embeddings=512).save_pretrained(folder)
    chat_tokenizer(template).save_pretrained(folder)


@pytest.fixture
def scoring(tmp_path):
    """Makes the arguments that `otter score` begins with: a base and an adapter."""
    save_base(tmp_path / "base", CHAT)
    tiny_otter(tiny_base(vocab_size=300, max_position_embeddings=512)).save_pretrained(tmp_path / "adapter")
    return ("score", "--base", tmp_path / "base", "--adapter", tmp_path / "adapter", "--data")


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def as_messages(dialogue):
    turns = [*dialogue.prompt, ("assistant", dialogue.response)]
    return [{"role": role, "content": content} for role, content in turns]


def question(dialogue: Dialogue) -> str:
    assert dialogue.prompt is not None
    return dialogue.prompt[0][1]


def test_files_that_say_the_same_score_the_same(otter, scoring, tmp_path):
    rows = [row for row in read_rows(PAIRS) if isinstance(row, PairRow)]
    assert len(rows) == len(PAIRS)
    messages = [{"chosen": as_messages(row.chosen), "rejected": as_messages(row.rejected)} for row in rows]
    apart = [
        {"question": question(row.chosen), "chosen": f"{row.chosen.response}</s>", "rejected": row.rejected.response}
        for row in rows
    ]
    whole = [
        {"conversations": pair["chosen"], "chosen": row.chosen.response, "rejected": row.rejected.response}
        for row, pair in zip(rows, messages, strict=True)
    ]
    begun = [
        {
            "prompt": [*pair["chosen"][:-1], {"role": "assistant", "content": ""}],
            **{side: pair[side][-1:] for side in ("chosen", "rejected")},
        }
        for pair in messages
    ]
    user = [{side: text.replace("\n\nHuman", "User").replace("\n", "\r\n") for side, text in p.items()} for p in PAIRS]
    twice = [{side: json.dumps(json.dumps(turns)) for side, turns in pair.items()} for pair in messages]
    shapes = (PAIRS, messages, apart, whole, begun, user, twice)
    files = [write(tmp_path / f"{n}.jsonl", records) for n, records in enumerate(shapes)]
    (tmp_path / "marked.json").write_text(json.dumps(PAIRS, indent=2), encoding="utf-8-sig")
    Dataset.from_list(messages).with_format("numpy").save_to_disk(tmp_path / "saved")
    pandas.DataFrame(messages).to_csv(tmp_path / "printed.CSV", index=False)
    pandas.DataFrame(messages).to_parquet(tmp_path / "a.parquet")
    rewards = set()
    for file in (*files, *(tmp_path / name for name in ("printed.CSV", "a.parquet", "marked.json", "saved"))):
        summary(otter(*scoring, file, "--out", tmp_path / "rows.jsonl", "--json"))
        rewards.add((tmp_path / "rows.jsonl").read_text())
    assert len(rewards) == 1
    assert [json.loads(line)["row"] for line in rewards.pop().splitlines()] == list(range(5))


def test_kinds_are_scored_apart(otter, scoring, tmp_path):
    texts = [{"text": pair["chosen"], "score": n % 3} for n, pair in enumerate(PAIRS)]
    kinds = [summary(otter(*scoring, write(tmp_path / "kind.jsonl", records), "--json")) for records in (PAIRS, texts)]
    mixed = write(tmp_path / "mixed.jsonl", [*texts[:2], *PAIRS, *texts[2:]])
    both = summary(otter(*scoring, mixed, "--json"))
    assert both["pairs"] == kinds[0]
    assert both["texts"] == pytest.approx(kinds[1], abs=1e-4)  # padding rounds
    code, out, _ = otter(*scoring, mixed)
    assert code == 0
    assert "5 pairs" in out
    assert "5 texts" in out


def test_rows_left_out_are_counted(otter, scoring, tmp_path):
    same = PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}
    code, out, _ = otter(*scoring, write(tmp_path / "same.jsonl", [*PAIRS, same]))
    assert code == 0
    assert "1 of 6 rows left out" in out


def test_mixed_kinds_are_not_calibrated(otter, scoring, tmp_path):
    mixed = write(tmp_path / "mixed.jsonl", [*PAIRS, {"text": "a", "score": 1}])
    assert "mixes pairs with scored texts" in refusal(otter("calibrate", *scoring[1:], mixed, "--bad-below", 0))


def test_one_prompt_and_a_template_that_refuses_are_named(otter, tmp_path):
    save_base(tmp_path / "base", STRICT)
    train = ("train", "reward", "--base", tmp_path / "base", "--out", tmp_path / "out", "--data")
    one = write(tmp_path / "one.jsonl", [{"prompt": "Q", "chosen": f"a {n}", "rejected": "b"} for n in range(24)])
    message = refusal(otter(*train, one))
    assert "one prompt" in message
    assert "--eval-data" in message
    message = refusal(otter(*train, write(tmp_path / "pairs.jsonl", [*PAIRS, PAIRS[0] | {"system": "S"}])))
    assert "pairs.jsonl, row 6: the chat template refuses it: System role not supported" in message


def test_generate_says_what_the_template_says(otter, tmp_path):
    save_base(tmp_path / "base", "{{ raise_exception('Not today') }}")
    message = refusal(otter("generate", "--base", tmp_path / "base", "--prompt", "Q"))
    assert message == "otter: the prompt: the chat template refuses it: Not today"
