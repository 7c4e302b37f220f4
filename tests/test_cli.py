"""The command line gives scripts JSON, and one line with exit code 2 for bad input."""

import json
from pathlib import Path

import pytest
import torch
import typer
from conftest import SHAPE, randomize, tiny_base, tiny_otter
from generation_table import tokenizer as letters
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from word_tokenizer import WORDS

from otterlm.adapter_files import CONFIG, WEIGHTS
from otterlm.cli import verify
from otterlm.training import trainer
from otterlm.training.step import take_step


def test_plan_counts_what_is_there(answer, base, adapter) -> None:
    result = answer("plan", "--base", base, "--adapter", adapter)
    model = tiny_base(vocab_size=len(WORDS))
    assert result["base_parameters"] == sum(p.numel() for p in model.parameters())
    assert result["inserted_parameters"] == sum(t.numel() for t in load_file(adapter / WEIGHTS).values())
    extra = result["inserted_parameters"] + result["derived_parameters"]
    assert result["extra_space_saved"] == pytest.approx(1 - extra / result["base_parameters"])


def test_plan_of_a_shape(answer, base) -> None:
    shape = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12)
    result = answer("plan", "--base", base, "--layers", "1-3:2", *shape)
    assert result["inserted_kv_bytes_per_token"] == 2 * 2 * 8 * 4  # keys and values, two layers, one head of 8, fp32


def test_verify_proves_exactness(answer, base, adapter) -> None:
    result = answer("verify", "--base", base, "--adapter", adapter)
    assert result["exact"] is True
    assert len(result["checks"]) == 2 * 2 * 6
    assert all(check["exact"] for check in result["checks"])


def test_verify_fails_if_one_bit_differs(otter, base, adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    from otterlm import verification

    def off_by_one_bit(model, ids, mask):
        logits = model(input_ids=ids, attention_mask=mask).logits.clone()
        if hasattr(model, "adapters"):
            logits[0, 0, 0] = torch.nextafter(logits[0, 0, 0], torch.tensor(torch.inf))
        return logits

    monkeypatch.setitem(verification.CASES, "full pass", off_by_one_bit)
    code, out, _ = otter("verify", "--base", base, "--adapter", adapter, "--dtype", "float32", "--json")
    assert code == 1
    assert json.loads(out)["exact"] is False


def test_an_interrupted_training_goes_on(
    otter, answer, base, pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is one line and exit code 130; the same command then ends with the weights of a run left alone."""
    shape = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12, "--vocabulary-rank", 4)
    command = ("train", "reward", "--base", base, "--data", pairs, *shape, "--batch-size", 8)
    answer(*command, "--out", tmp_path / "alone")
    step, left = take_step, iter(range(3))

    def interrupted(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "take_step", interrupted)
    code, out, err = otter(*command, "--out", tmp_path / "out")
    assert (code, out, err) == (130, "", "otter: interrupted\n")
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "out" / WEIGHTS).exists()
    monkeypatch.setattr(trainer, "take_step", step)
    answer(*command, "--out", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()


def test_train_score_and_generate(answer, base, pairs, tmp_path: Path) -> None:
    """The whole way: an adapter is trained, scores what it learned, and steers towards it."""
    out = tmp_path / "trained"
    shape = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12, "--vocabulary-rank", 4)
    settings = ("--epochs", 6, "--batch-size", 8, "--learning-rate", 0.01, "--eval-fraction", 0.25, "--record")
    command = ("train", "reward", "--base", base, "--data", pairs, "--out", out, *shape, *settings)
    result = answer(*command)
    assert result["accuracy"] == 1.0
    assert {CONFIG, WEIGHTS, "README.md", "metrics.jsonl", "checkpoint.safetensors"} <= {p.name for p in out.iterdir()}
    assert answer(*command) == result  # there is nothing left to do

    score = answer("score", "--base", base, "--adapter", out, "--data", pairs, "--out", tmp_path / "s", "--tokens")
    assert (score["accuracy"], score["n"]) == (1.0, 40)
    assert score["accuracy_ci95"][0] < 1.0
    rows = [json.loads(line) for line in (tmp_path / "s").read_text().splitlines()]
    assert len(rows) == 40
    assert all(row["rewards"][0] > row["rewards"][1] for row in rows)
    assert rows[0]["tokens"][0]["text"] == ["a", "b", "<eos>"]

    prompt = ("generate", "--base", base, "--prompt", "c d", "--max-new-tokens", 6)
    plain = answer(*prompt)
    assert plain["rewards"] == []
    zero = answer(*prompt, "--adapter", out, "--weight", 0)
    assert zero["tokens"] == plain["tokens"]
    assert len(zero["rewards"]) == len(zero["tokens"])
    for method in ("guidance", "search", "best-of-n"):
        steered = answer(*prompt, "--adapter", out, "--weight", 50, "--method", method)
        assert len(steered["rewards"]) == len(steered["tokens"]), method
    assert {"a", "b"} & set(answer(*prompt, "--adapter", out, "--weight", 50, "--method", "search")["text"].split())


def test_train_with_taps_at_the_edge(answer, otter, base, pairs, tmp_path: Path) -> None:
    out, shape = tmp_path / "edge", (*SHAPE, "--taps", "edge", "--vocabulary-rank", 4)
    settings = ("--epochs", 6, "--batch-size", 8, "--learning-rate", 0.01, "--eval-fraction", 0.25, "--record")
    command = ("train", "reward", "--base", base, "--data", pairs, "--out", out, *shape, *settings, "--no-values")
    result = answer(*command)
    assert result["accuracy"] == 1.0
    assert answer(*command) == result  # there is nothing left to do
    assert json.loads((out / CONFIG).read_text())["taps"] == "edge"
    assert "| taps | edge |" in (out / "README.md").read_text()
    assert answer("plan", "--base", base, "--adapter", out)["taps"] == "edge"
    assert "read at their edge" in otter("plan", "--base", base, "--adapter", out)[1]


def test_train_contrast_and_generate(answer, refusal, base, tmp_path: Path) -> None:
    sides = {"good": "a b a b a", "bad": "i j i j i"}
    for side, text in sides.items():
        (tmp_path / f"{side}.txt").write_text(f"{text}\n" * 20)
    (tmp_path / "both.csv").write_text("kind,words\n" + "".join(f"{s},{t}\n" for s, t in sides.items()) * 20)
    settings = ("--rank", 4, *SHAPE, "--epochs", 6, "--batch-size", 8, "--learning-rate", 0.01, "--eval-fraction", 0.25)
    command = ("train", "contrast", "--base", base, *settings)
    files = ("--positive", tmp_path / "good.txt", "--negative", tmp_path / "bad.txt")
    result = answer(*command, *files, "--out", tmp_path / "one")
    assert result["accuracy"] == 1.0
    assert result["loss"] < result["base"]
    columns = (
        "--text-column",
        "words",
        "--label-column",
        "kind",
        "--positive-labels",
        "good",
        "--negative-labels",
        "bad",
    )
    answer(*command, "--data", tmp_path / "both.csv", *columns, "--out", tmp_path / "two")
    prompt = ("generate", "--base", base, "--raw", "--prompt", "a b", "--max-new-tokens", 6)
    plain = answer(*prompt)
    for folder in ("one", "two"):
        adapter = ("--adapter", tmp_path / folder, "--top-p", 1)
        assert answer(*prompt, *adapter, "--alpha", 0)["tokens"] == plain["tokens"]
        said, opposite = (answer(*prompt, *adapter, "--alpha", alpha) for alpha in (20, -20))
        assert said["tokens"] != plain["tokens"]
        wanted, unwanted = (len([w for w in a["text"].split() if w in ("a", "b")]) for a in (said, opposite))
        assert wanted >= 4 > unwanted
        assert said["rewards"] == []
    assert "--positive" in refusal(*command, "--out", tmp_path / "x", "--positive", tmp_path / "good.txt")
    assert "--data" in refusal(*command, "--out", tmp_path / "x", *files, "--data", tmp_path / "both.csv")
    assert "--max-tokens" in refusal(*command, "--out", tmp_path / "x", *files, "--max-tokens", 1)
    (tmp_path / "scores.csv").write_text("text,score\na b c,1\n")
    score = ("score", "--base", base, "--adapter", tmp_path / "one", "--data", tmp_path / "scores.csv")
    assert "no adapter gives a number for every prefix; there are: contrast" in refusal(*score)


def test_distil_experts_and_generate(answer, refusal, base, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{a} {b}\n" for a in WORDS[10:18] for b in WORDS[10:13]))
    for seed, side in enumerate(("expert", "anti"), start=5):
        model = AutoModelForCausalLM.from_pretrained(base)
        randomize(model, seed)
        model.save_pretrained(tmp_path / side)
    settings = ("--rank", 4, *SHAPE, "--epochs", 6, "--batch-size", 8, "--learning-rate", 0.01, "--eval-fraction", 0.25)
    command = ("distill", "contrast", "--base", base, *settings, "--max-new-tokens", 4)
    sides = ("--expert", tmp_path / "expert", "--anti-expert", tmp_path / "anti")
    texts = ("--texts", tmp_path / "texts.txt")
    result = answer(*command, *sides, *texts, "--record", "--out", tmp_path / "out")
    assert result["loss"] < result["base"]
    assert "an expert and an anti-expert" in (tmp_path / "out" / "README.md").read_text()
    prompt = ("generate", "--base", base, "--raw", "--prompt", "a b", "--max-new-tokens", 6)
    plain = answer(*prompt)
    steered = answer(*prompt, "--adapter", tmp_path / "out", "--alpha", 20, "--top-p", 1)
    assert steered["tokens"] != plain["tokens"]
    assert "--texts" in refusal(*command, *sides, "--out", tmp_path / "x")
    assert "--data" in refusal(*command, *sides, *texts, "--data", tmp_path / "texts.txt", "--out", tmp_path / "x")
    assert "alpha" in refusal(*command, *sides, *texts, "--alpha", 0, "--out", tmp_path / "x")


def test_train_draft_and_generate(answer, refusal, base, adapter, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"{a} {b}\n" for a in WORDS[10:18] for b in WORDS[10:13]))
    settings = ("--draft-heads", 2, "--draft-width", 24, "--draft-rank", 8, "--draft-vocabulary", 20, "--epochs", 12)
    training = ("--batch-size", 8, "--learning-rate", 0.01, "--eval-fraction", 0.2, "--max-new-tokens", 8)
    command = ("train", "draft", "--base", base, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "draft")
    result = answer(*command, *settings, *SHAPE, *training)
    assert result["accuracy_0_0"] > 0
    config = json.loads((tmp_path / "draft" / CONFIG).read_text())
    assert len(config["signal"]["accuracy"]) == 2
    prompt = ("generate", "--base", base, "--prompt", "a b", "--max-new-tokens", 9)
    drafted = answer(*prompt, "--adapter", tmp_path / "draft")
    assert drafted["tokens"] == answer(*prompt)["tokens"]
    assert drafted["acceptance_length"] >= 1
    both = ("--adapter", adapter, "--adapter", tmp_path / "draft", "--weight", 3)
    guided = answer(*prompt, *both)
    assert guided["tokens"] == answer(*prompt, "--adapter", adapter, "--weight", 3)["tokens"]
    assert len(guided["rewards"]) == len(guided["tokens"])
    assert "--method guidance" in refusal(*prompt, *both, "--method", "search")
    assert "--drafts" in refusal(*prompt, *both, "--drafts", 0)
    assert "--max-new-tokens" in refusal(*command, "--max-new-tokens", 0)
    assert "--data" in refusal(*command, "--data", tmp_path / "prompts.txt")
    ready = [{"prompt_tokens": [10, 11], "response_tokens": [12, 13, 14, row]} for row in range(10, 18)]
    (tmp_path / "ready.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ready))
    of_data = ("train", "draft", "--base", base, "--data", tmp_path / "ready.jsonl", "--out", tmp_path / "of_data")
    answer(*of_data, *settings, *SHAPE, *training, "--record")
    assert "ready continuations: 6, with 24 tokens; 2 held" in (tmp_path / "of_data" / "README.md").read_text()
    assert answer("verify", "--base", base, "--adapter", tmp_path / "draft", "--dtype", "float32")["exact"]
    plan = answer("plan", "--base", base, "--adapter", tmp_path / "draft")
    assert plan["derived_parameters"] == 20 * 8


def test_scored_texts(answer, base, adapter, tmp_path: Path) -> None:
    data = tmp_path / "scores.csv"
    data.write_text("text,score\na b c,1.5\nd e,-0.5\n")
    result = answer("score", "--base", base, "--adapter", adapter, "--data", data)
    assert result["n"] == 2
    assert abs(result["correlation"]) == pytest.approx(1.0, abs=1e-4)


def test_a_page_of_scored_texts(answer, base, adapter, tmp_path: Path) -> None:
    data, shown = tmp_path / "scores.csv", tmp_path / "page.html"
    data.write_text("text,score\na b c,1.5\nd <b> e,-0.5\n")
    answer("score", "--base", base, "--adapter", adapter, "--data", data, "--html", shown)
    page = shown.read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<h3>Row") == 2
    assert page.count("<i class=") >= 6
    assert "Score 1.5, reward" in page
    assert "http" not in page  # nothing is fetched


def test_people_get_tables(otter, base, adapter, pairs) -> None:
    assert "Extra space saved" in otter("plan", "--base", base, "--adapter", adapter)[1]
    assert "accuracy" in otter("score", "--base", base, "--adapter", adapter, "--data", pairs)[1]
    assert (
        "tokens/s" in otter("generate", "--base", base, "--adapter", adapter, "--prompt", "a", "--max-new-tokens", 4)[1]
    )
    shown = otter("verify", "--base", base, "--adapter", adapter, "--dtype", "float32")[1]
    assert "Every bit is the base's" in shown


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--top-k", 0, "--top-k"),
        ("--max-new-tokens", 0, "--max-new-tokens"),
        ("--max-new-tokens", 500, "context"),
        ("--weight", "nan", "weight"),
        ("--weight", "heavy", "--weight"),
        ("--method", "magic", "guidance"),
        ("--temperature", 0, "--temperature"),
        ("--dtype", "int3", "float32"),
        ("--adapter", "/nowhere", "/nowhere"),
        ("--base", "/nowhere", "/nowhere"),
        ("--base", "no-such-model", "no-such-model"),
        ("--nonsense", 1, "--nonsense"),
    ],
)
def test_bad_settings(refusal, base, adapter, option, value, named) -> None:
    command = ["generate", "--base", base, "--adapter", adapter, "--prompt", "a", "--max-new-tokens", 2]
    assert named in refusal(*command, option, value)


def test_settings_that_nothing_takes(refusal, answer, base, adapter) -> None:
    alone = ("generate", "--base", base, "--prompt", "a", "--max-new-tokens", 2)
    for option, value in (("--weight", 1.0), ("--threshold", 0), ("--alpha", 2.0), ("--patience", 1), ("--drafts", 3)):
        assert f"{option} goes with" in refusal(*alone, option, value)  # also where the value is the default's
    assert "--method search goes with --adapter" in refusal(*alone, "--method", "search")
    assert "--temperature goes with --sample" in refusal(*alone, "--temperature", 0.5)
    answer(*alone, "--sample", "--temperature", 0.5)
    steered = (*alone, "--adapter", adapter)
    message = "--alpha goes with contrast, but here only guidance is used: leave it out"
    assert message in refusal(*steered, "--alpha", 2)
    assert "--weight goes with guidance or search or best-of-n" in refusal(
        *steered, "--method", "rejection", "--weight", 2
    )
    assert "--temperature goes with --sample" in refusal(*steered, "--method", "search", "--temperature", 0.5)
    answer(*steered, "--method", "search", "--sample", "--temperature", 0.5)
    answer(*steered, "--method", "best-of-n", "--temperature", 0.5, "--top-k", 2)
    answer(*steered, "--weight", 2, "--top-k", 4, "--threshold", -100, "--patience", 2)


def test_a_mistyped_command(refusal, otter) -> None:
    assert "--nonsense" in refusal("plan", "--nonsense", 1)
    assert "telepathy" in refusal("telepathy")
    code, out, err = otter()
    assert (code, err) == (0, "")
    assert "verify" in out


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (
            OSError(28, "No space left on device", "metrics.jsonl"),
            2,
            "otter: [Errno 28] No space left on device: 'metrics.jsonl'\n",
        ),
        (BrokenPipeError(), 0, ""),
        (typer.Abort(), 130, "otter: interrupted\n"),
    ],
)
def test_how_a_command_ends_that_cannot_go_on(
    otter, adapter, monkeypatch: pytest.MonkeyPatch, raised, code, line
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(verify, "load_tokenizer", fail)
    assert otter("verify", "--base", "x", "--adapter", adapter) == (code, "", line)


def test_bad_adapters(refusal, base, adapter, tmp_path: Path) -> None:
    command = ("verify", "--base", base, "--adapter", adapter)
    weights = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    assert WEIGHTS in refusal(*command)
    (adapter / WEIGHTS).write_bytes(b"garbage" * 100)
    assert WEIGHTS in refusal(*command)
    (adapter / WEIGHTS).write_bytes(weights)
    tensors = load_file(adapter / WEIGHTS)
    tensors["head.prefix.weight"][0, 0] = torch.nan
    save_file(tensors, adapter / WEIGHTS)
    assert "not finite" in refusal(*command)
    (adapter / CONFIG).write_text((adapter / CONFIG).read_text().replace('"reward"', '"telepathy"'))
    assert "telepathy" in refusal(*command)
    other = tiny_otter(tiny_base(vocab_size=len(WORDS), seed=5))
    other.save_pretrained(tmp_path / "other")
    assert "another base" in refusal("verify", "--base", base, "--adapter", tmp_path / "other")


def test_bad_data(refusal, base, adapter, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    commands = (
        ("score", "--base", base, "--adapter", adapter, "--data", data),
        ("train", "reward", "--base", base, "--data", data, "--out", tmp_path / "out"),
    )
    good = '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n'
    for text, named in (
        ("", "holds no rows"),
        (good + '{"chosen": "x"}\n', "row 2"),
        (good + "{\n", "line 2"),
        ('{"text": "a", "score": "high"}\n', "score"),
    ):
        data.write_text(text)
        for command in commands:
            assert named in refusal(*command)
    assert "give --out FILE too" in refusal(*commands[0], "--tokens")
    data.write_text(good)
    assert "too few" in refusal(*commands[1])
    assert "compare must be prefixes or last" in refusal(*commands[1], "--compare", "some")
    assert "--layers" in refusal(*commands[1], "--layers", "4..8")
    data.write_text(good + good.replace("Human: a", "Human:" + " a" * 130))
    for command in commands:
        assert "exceeds the base's context" in refusal(*command)


def test_what_the_base_generates_by_default(answer, tmp_path: Path) -> None:
    """One response is shown, whatever its configuration says, and it ends at a stop string."""
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_base().save_pretrained(folder)
    letters().save_pretrained(folder)
    tiny_otter(tiny_base()).save_pretrained(adapter)
    configuration = (folder / "generation_config.json").read_text()
    for options in ((), ("--adapter", adapter), ("--adapter", adapter, "--method", "search")):
        command = ("generate", "--base", folder, "--raw", "--prompt", "a b", "--max-new-tokens", 6, *options)
        (folder / "generation_config.json").write_text(configuration)
        plain = answer(*command)["tokens"]
        changed = {"num_return_sequences": 3, "num_beams": 3, "stop_strings": [letters().decode(plain[1])]}
        (folder / "generation_config.json").write_text(json.dumps(json.loads(configuration) | changed))
        assert answer(*command)["tokens"] == plain[: 1 if plain[0] == plain[1] else 2]
