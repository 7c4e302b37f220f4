"""The terminal gets every text unchanged, one line for an error, and one object with --json."""

import errno
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, add_tiny_adapter, refused, tiny_base, tiny_otter
from rich.console import Console
from rich.progress import TextColumn
from safetensors.torch import load_file, save_file
from surface import commands
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from word_tokenizer import TEMPLATE, WORDS
from word_tokenizer import tokenizer as words_tokenizer

from otterlm.cli import generate, verify
from otterlm.cli.demo.common import heading, panel
from otterlm.cli.options import named_adapters, parse_adapter
from otterlm.cli.terminal import console, print_json, show_table, with_interval
from otterlm.colour import coloured, coloured_html
from otterlm.model import OtterModel
from otterlm.progress import bar
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig

Refusal = Callable[..., str]
Answer = Callable[..., dict[str, Any]]
Run = Callable[..., tuple[int, str, str]]

SAID = [" [/INST] [red]x[/]", ":smile: [bold] \\[x] 3.14", "\tif x:\n\t\treturn [1, 2]  # 'quoted'", "é ≠ 獺 🦦"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer that can write any text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    special = list(names.values())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(["the kind dog is nice and helps"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@torch.no_grad()
def speaker(folder: Path, text: str) -> Path:
    """Makes a folder with a base that generates one text after `hi`: its position embeddings choose the next token."""
    tokenizer = byte_tokenizer()
    said = [*tokenizer.encode(text), tokenizer.eos_token_id]
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=300, **sizes, **special))
    for parameter in model.parameters():
        parameter.zero_()
    for norm in (model.transformer.ln_f, model.transformer.h[0].ln_1, model.transformer.h[0].ln_2):
        norm.weight.fill_(1.0)
    model.transformer.wpe.weight.copy_(10 * torch.eye(64))
    for position, token in enumerate(said, start=len(tokenizer.encode("hi")) - 1):
        model.lm_head.weight[token, position] = 50.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("text", SAID)
def test_a_response_is_printed_as_it_is(otter: Run, answer: Answer, tmp_path: Path, text: str) -> None:
    folder = speaker(tmp_path / "base", text)
    command = ("generate", "--base", folder, "--raw", "--prompt", "hi", "--max-new-tokens", 50)
    assert answer(*command)["text"] == text
    code, out, _ = otter(*command)
    assert code == 0
    assert out.startswith(f"{text}\n")
    tiny_otter(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path / "adapter")
    code, out, _ = otter(*command, "--adapter", tmp_path / "adapter", "--weight", 0)
    assert out.startswith(f"{text}\n")


def test_a_response_in_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the text has colours and nothing else is done to it."""
    tokenizer, text = byte_tokenizer(), SAID[0]
    tokens = tokenizer.encode(text)
    terminal = type(console)(markup=False, emoji=False, highlight=False, force_terminal=True, width=20, no_color=False)
    monkeypatch.setattr(generate, "show_coloured", lambda coloured, plain: terminal.print(coloured, soft_wrap=True))
    shown = {"reward": ([0.5] * len(tokens), 0.5, 0.5)}
    generate._show(tokenizer, {"tokens": tokens, "text": text, "seconds": 1.0, "final": {}}, shown)
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert re.sub(r"\x1b\[[0-9;]*m", "", out).startswith(f"{text}\n")


def test_no_token_of_a_coloured_text_is_lost() -> None:
    """Also not those of a character that was never finished."""
    tokenizer = byte_tokenizer()
    whole = tokenizer.encode("獺 a , b 獺")
    for tokens in (whole, whole[:-1]):
        rewards = [float(n) for n in range(len(tokens))]
        text = tokenizer.decode(tokens)
        assert coloured(tokenizer, tokens, rewards, 0, 1).plain == text
        assert re.sub(r"<[^>]*>", "", coloured_html(tokenizer, tokens, rewards, 0, 1)) == text


def test_a_folder_in_brackets(otter: Run, base: Path, pairs: Path, tmp_path: Path) -> None:
    """A path is printed whole, in one line, where stdout is no terminal."""
    out = tmp_path / "out [final]  run :smile:" / ("long" * 30)
    how = ("--epochs", 1, "--eval-fraction", 0.25, "--batch-size", 8, "--vocabulary-rank", 4)
    code, printed, _ = otter("train", "reward", "--base", base, "--data", pairs, "--out", out, *SHAPE, *how)
    assert code == 0
    assert printed.splitlines()[-1] == f"The adapter is in {out}"
    printed = otter("plan", "--base", base, "--adapter", out)[1]
    assert printed.splitlines()[0] == f"{base}, float32, context 512"
    renamed = tmp_path / "base [x]  y"
    renamed.symlink_to(base)
    assert str(renamed) in otter("plan", "--base", renamed, *SHAPE)[1]
    code, printed, _ = otter("export", "--base", renamed, "--adapter", f"mine={out}", "--out", tmp_path / "e [x]")
    assert printed.splitlines()[0] == f"{tmp_path / 'e [x]'} holds {renamed} with mine"
    missing = tmp_path / "two  spaces [/]"
    assert f"{missing}: no such folder" in otter("plan", "--base", missing)[2]


def test_what_the_demo_and_tables_print(capsys: pytest.CaptureFixture[str]) -> None:
    heading("Reward: [/INST] [bold]x :smile:")
    panel("text [/] :smile:", "[title]", "[/sub]")
    show_table("a [title]", ("", "[red]"), [("row [/x]", "1"), ("method " * 30, "2")])
    out = capsys.readouterr().out
    for text in ("[/INST] [bold]x :smile:", "text [/] :smile:", "[title]", "[/sub]", "a [title]", "[red]", "row [/x]"):
        assert text in out
    assert ("method " * 30).strip() in out  # in one piece


def test_a_wide_table_goes_on_below(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["", *(f"column {number}" for number in range(12))]
    monkeypatch.setattr("otterlm.cli.terminal.console", Console(force_terminal=True, width=80, color_system=None))
    show_table("title", columns, [("method", *("1.04 (0.98 to 1.09)" for _ in columns[1:]))])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum("method" in line for line in lines) == 4
    assert all(any(column in line for line in lines) for column in columns)


def test_a_number_with_its_interval() -> None:
    row = {"time": 1.044, "time_ci95": [0.98, 1.09], "judge": None, "judge_ci95": None, "n": 2.0, "n_ci95": None}
    assert with_interval(row, "time", ".2f") == "1.04 (0.98 to 1.09)"
    assert (with_interval(row, "judge", ".2f"), with_interval(row, "n", ".1f")) == ("", "2.0")


def test_descriptions_of_progress_bars() -> None:
    with bar() as shown:
        shown.add_task("[/INST] [red]", total=2)
        (description, *_), (task,) = shown.columns, shown.tasks
    assert isinstance(description, TextColumn)
    assert description.render(task).plain == "[/INST] [red]"


def test_every_help_page(otter: Run) -> None:
    """Each says its option, whatever the width, and prints nothing else."""
    found = [name.split()[1:] for name, command in commands() if not hasattr(command, "verbs")]
    assert len(found) >= 15
    for verb in found:
        code, out, err = otter(*verb, "--help")
        assert (code, err) == (0, "")
        assert "--json" in out or verb == ["serve"], verb  # a server prints a log


def test_names_that_are_not_utf8(
    answer: Answer, refusal: Refusal, base: Path, adapter: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for name, path in (("base", base), ("adapter", adapter), ("pairs.jsonl.gz", pairs)):
        (folder / name).symlink_to(path)
    data = ("--data", folder / "pairs.jsonl.gz", "--html", folder / "page.html")
    assert (
        answer("score", "--base", base, "--adapter", adapter, *data, "--out", folder / "rows.jsonl", "--tokens")["n"]
        == 40
    )
    assert len((folder / "rows.jsonl").read_text().splitlines()) == 40
    # Tokenizers and safetensors cannot read there, and TensorBoard cannot write.
    assert "utf-8" in refusal("generate", "--base", folder / "base", "--prompt", "a")
    assert "UTF-8" in refusal("verify", "--base", base, "--adapter", folder / "adapter", "--dtype", "float32")
    assert "not UTF-8" in refusal("train", "reward", "--base", base, "--data", pairs, "--out", folder / "out")


def test_a_pipe_is_written_into(answer: Answer, base: Path, adapter: Path, pairs: Path, tmp_path: Path) -> None:
    """As `--out >(jq .)` gives one; a file in its place would be in the way of all others who write there."""
    pipe, file = tmp_path / "pipe", tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = ("score", "--base", base, "--adapter", adapter, "--data", pairs, "--limit", 3)
    for out in (pipe, file):
        answer(*command, "--out", out)
    assert pipe.is_fifo()
    assert os.read(reader, 100_000).decode() == file.read_text()
    os.close(reader)


def test_no_file_is_written_over_another(
    refusal: Refusal, base: Path, adapter: Path, pairs: Path, tmp_path: Path
) -> None:
    before = pairs.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(pairs)
    command = ("score", "--base", base, "--adapter", adapter, "--data", pairs)
    for option in ("--out", "--html"):
        assert f"--data and {option} are one file" in refusal(*command, option, link)
    assert "--out and --html are one file" in refusal(*command, "--out", tmp_path / "x", "--html", tmp_path / "x")
    assert pairs.read_bytes() == before


# -- one line ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device", ["nonsense", "", "cuda:99", "meta", "mps" if not torch.backends.mps.is_available() else "mps:9", "cpu:x"]
)
def test_devices_that_are_not_there(refusal: Refusal, base: Path, adapter: Path, pairs: Path, device: str) -> None:
    here = ("--base", base, "--adapter", adapter, "--device", device)
    for command in (
        ("generate", *here, "--prompt", "a"),
        ("score", *here, "--data", pairs),
        ("calibrate", *here, "--data", pairs),
        ("verify", *here),
        ("bench", "speed", *here),
        ("bench", "overhead", "--quick", "--device", device),
        ("playground", *here),
    ):
        assert f"--device {device} cannot be used" in refusal(*command)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--prompt", ""), "--prompt is empty"),
        (("--prompt", "  \n"), "--prompt is empty"),
        (("--raw", "--prompt", "a \udcff"), "--prompt is not UTF-8"),
        (("--top-p", 2), "--top-p must be above 0 and at most 1"),
        (("--top-p", "nan"), "--top-p"),
        (("--alpha", "nan"), "--alpha must be a finite number"),
        (("--weight", "-inf"), "--weight must be a finite number"),
        (("--confidence", -0.1), "--confidence must be from 0 to 1"),
        (("--temperature", "inf"), "--temperature"),
        (("--drafts", 0), "--drafts"),
        (("--seed", -1), "--seed"),
        (("--max-new-tokens", -1), "--max-new-tokens"),
    ],
)
def test_settings_out_of_range(refusal: Refusal, base: Path, options: tuple[object, ...], named: str) -> None:
    assert named in refusal("generate", "--base", base, "--prompt", "a", *options)


def test_a_prompt_in_a_locale_without_its_characters() -> None:
    """Python keeps the bytes that ASCII lacks as surrogates."""
    tokenizer = byte_tokenizer()
    assert generate._read("caf\udcc3\udca9", True, tokenizer) == tokenizer.encode("café")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("train", "reward", "--data", "pairs", "--learning-rate", "nan"), "learning_rate"),
        (("train", "reward", "--data", "pairs", "--save-dtype", "int8"), "--save-dtype must be one of"),
        (("train", "reward", "--data", "pairs", "--weight-decay", "inf"), "weight_decay"),
        (("train", "reward", "--data", "pairs", "--seed", -1), "seed"),
        (("train", "draft", "--prompts", "p", "--max-new-tokens", 0), "--max-new-tokens"),
        (("train", "draft", "--prompts", "p", "--limit", 0), "--limit"),
        (("distill", "--scorer", "regex:a", "--prompts", "p", "--limit", 0), "--limit"),
        (("distill", "--scorer", "regex:a", "--prompts", "p", "--max-new-tokens", 0), "--max-new-tokens"),
        (("distill", "--scorer", "regex:a", "--prompts", "p", "--temperature", "inf"), "temperature"),
        (("distill", "--scorer", "regex:a", "--prompts", "p", "--top-p", 2), "top_p"),
    ],
)
def test_settings_of_training(
    refusal: Refusal,
    base: Path,
    tmp_path: Path,
    command: tuple[object, ...],
    named: str,
) -> None:
    assert named in refusal(*command, "--base", base, "--out", tmp_path / "out")


def damaged_bases(base: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Makes folders that are almost bases, with what errors must name."""

    def copy(name: str) -> Path:
        (folder / name).mkdir()
        for path in base.iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
        return folder / name

    weights = "model.safetensors"
    found = {
        "empty": folder / "empty",
        "weightless": copy("weightless"),
        "cut": copy("cut"),
        "nan": copy("nan"),
        "short": copy("short"),
        "wordless": copy("wordless"),
        "garbled": copy("garbled"),
    }
    found["empty"].mkdir()
    (found["empty"] / "adapter_config.json").write_text("{}")
    (found["weightless"] / weights).unlink()
    (found["cut"] / weights).write_bytes((base / weights).read_bytes()[:999])
    tensors = load_file(base / weights)
    save_file({name: t for name, t in tensors.items() if "layers.1.mlp" not in name}, found["short"] / weights)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, found["nan"] / weights)
    for path in found["wordless"].glob("*token*"):
        path.unlink()
    (found["garbled"] / "config.json").write_text("{")
    (folder / "model.gguf").write_text("no weights")
    named = {
        "empty": "holds no config.json of a model",
        "nan": "not finite",
        "short": "lacks weights, such as model.layers.1.mlp",
    }
    return {name: (path, named.get(name, str(path))) for name, path in found.items()} | {
        "gguf": (folder / "model.gguf", "GGUF"),
        "missing gguf": (folder / "none.gguf", "no such file"),
        "file": (folder / "model.gguf" / "x", "no such folder"),
    }


def test_bases_that_are_damaged(refusal: Refusal, base: Path, adapter: Path, tmp_path: Path) -> None:
    for name, (folder, named) in damaged_bases(base, tmp_path).items():
        line = refusal("generate", "--base", folder, "--adapter", adapter, "--prompt", "a", "--max-new-tokens", 2)
        assert named in line, name


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (RuntimeError("probability tensor contains either `inf`, `nan` or element < 0"), "not finite"),
        (RuntimeError("\"addmm\" not implemented for 'Half'"), "dtype"),
        (RuntimeError("Found no NVIDIA driver on your system. Please\ncheck"), "device"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
    ],
)
def test_errors_of_libraries(
    otter: Run, adapter: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, line: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(verify, "load_tokenizer", fail)
    code, out, err = otter("verify", "--base", "x", "--adapter", adapter)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_a_fault_of_the_program_shows_where(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(verify, "load_tokenizer", fail)
    monkeypatch.setattr(sys, "argv", ["otter", "verify", "--base", str(base), "--adapter", str(adapter)])
    from otterlm.cli import main

    with pytest.raises(KeyError, match="a fault"):
        main()


def test_a_template_that_refuses(refusal: Refusal, base: Path, tmp_path: Path) -> None:
    tiny_base(vocab_size=len(WORDS)).save_pretrained(tmp_path / "strict")
    words_tokenizer("{{ raise_exception('no dialogues here') }}").save_pretrained(tmp_path / "strict")
    assert "no dialogues here" in refusal("generate", "--base", tmp_path / "strict", "--prompt", "a")


def test_folders_that_cannot_be_written(
    refusal: Refusal,
    base: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    command = ("train", "reward", "--base", base, "--data", pairs, *SHAPE)
    assert "it is a file" in refusal(*command, "--out", tmp_path / "file")
    scoring = ("score", "--base", "unread", "--adapter", "unread", "--data", pairs)  # refused before anything is read
    for option in ("--out", "--html"):
        assert f"{option} {tmp_path} is a folder" in refusal(*scoring, option, tmp_path)
    assert "Not a directory" in refusal(*command, "--out", tmp_path / "file" / "below")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    assert "Permission denied" in refusal(*command, "--out", tmp_path / "folder")


# -- adapters by name --------------------------------------------------------------------------------------------------


def test_names_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_adapter("mine=folder") == ("mine", "folder")
    assert parse_adapter("mine=runs/lr=0.1/adapter") == ("mine", "runs/lr=0.1/adapter")
    assert parse_adapter("runs/lr=0.1/adapter") == (None, "runs/lr=0.1/adapter")
    assert parse_adapter("someone/adapter") == (None, "someone/adapter")
    assert parse_adapter("=folder") == (None, "=folder")
    (tmp_path / "lr=0.1").mkdir()
    assert parse_adapter("lr=0.1") == (None, "lr=0.1")
    assert named_adapters(["a=x", "b=x"]) == {"a": "x", "b": "x"}
    for nothing in ("", "mine="):
        refused(functools.partial(parse_adapter, nothing), "names no folder")
    for name in ("my-reward", "my reward", "1st"):
        refused(functools.partial(parse_adapter, f"{name}=folder"), "a NAME is letters", repr(name))


def test_an_adapter_by_name_everywhere(
    answer: Answer, refusal: Refusal, base: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lr=0.1"
    tiny_otter(tiny_base(vocab_size=len(WORDS))).save_pretrained(folder)
    for given in (folder, f"mine={folder}"):
        here = ("--base", base, "--adapter", given)
        assert answer("score", *here, "--data", pairs)["n"] == 40
        assert answer("calibrate", *here, "--data", pairs, "--no-save")["curve"]
        assert answer("plan", *here)["inserted_parameters"] > 0
        assert answer("verify", *here, "--dtype", "float32")["exact"]
        assert answer("generate", *here, "--prompt", "a", "--max-new-tokens", 2)["rewards"]
        assert answer("export", *here, "--out", tmp_path / f"served-{given != folder}")["adapters"]
    twice = ("--base", base, "--adapter", folder, "--adapter", folder)
    for command in (("score", *twice, "--data", pairs), ("verify", *twice), ("plan", *twice)):
        assert "takes one --adapter" in refusal(*command)
    assert "NAME=FOLDER" in refusal("generate", *twice, "--prompt", "a")


def test_two_adapters_of_one_kind(answer: Answer, otter: Run, refusal: Refusal, base: Path, tmp_path: Path) -> None:
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    for seed, kind in enumerate(("kind", "safe", "calm", "cool", "quick", "rapid")):
        signal = (None, ContrastConfig(rank=4), DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))[seed // 2]
        add_tiny_adapter(model, kind, seed + 1, **({} if signal is None else {"signal": signal}))
        model.save_pretrained(tmp_path / kind, kind)

    def adapters(*names: str) -> list[str]:
        return [part for name in names for part in ("--adapter", f"{name}={tmp_path / name}")]

    plain = ("generate", "--base", base, "--prompt", "a b", "--max-new-tokens", 8)
    command = (*plain, "--weight", 30)
    both = answer(*command, *adapters("kind", "safe"))
    assert list(both["rewards"]) == ["kind", "safe"]
    assert all(len(values) == len(both["tokens"]) for values in both["rewards"].values())
    assert both == answer(*command, *adapters("safe", "kind")) | {"seconds": both["seconds"]}
    assert both["tokens"] != answer(*command, *adapters("kind"))["tokens"]
    code, out, _ = otter(*command, *adapters("kind", "safe"))
    assert code == 0
    assert out.splitlines()[::2][:2] == ["kind:", "safe:"]
    contrasts = answer(*plain, *adapters("calm", "cool"))
    assert contrasts["tokens"] == answer(*plain, *adapters("cool", "calm"))["tokens"]
    drafted = answer(*command, *adapters("kind", "safe", "quick"))
    assert drafted["tokens"] == both["tokens"]
    for method in ("search", "best-of-n"):
        assert "takes one adapter, got kind, safe" in refusal(*command, *adapters("kind", "safe"), "--method", method)
    assert "takes one adapter, got quick, rapid" in refusal(*plain, *adapters("quick", "rapid"))


# -- whole responses ---------------------------------------------------------------------------------------------------


def test_words_that_both_responses_begin_with(answer: Answer, base: Path, adapter: Path, tmp_path: Path) -> None:
    """They are part of each response, with rewards of their own, though a pair computes them once."""
    data, out, html = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl", tmp_path / "page.html"
    turn = "\n\nHuman: a\n\nAssistant: "
    rows = [
        {"chosen": f"{turn}b c d e", "rejected": f"{turn}b c f"},
        {"chosen": f"{turn}g", "rejected": f"{turn}g h"},
        {"chosen": f"{turn}b c", "rejected": "\n\nHuman: a j\n\nAssistant: i"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer("score", "--base", base, "--adapter", adapter, "--data", data, "--out", out, "--tokens", "--html", html)
    model = OtterModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokenizer = words_tokenizer(TEMPLATE)
    expected = [["b c d e", "b c f"], ["g", "g h"], ["b c", "i"]]
    prompts = [["a", "a"], ["a", "a"], ["a", "a j"]]
    sections = re.findall(r"<h3>Row (\d+).*?</section>", html.read_text(), re.DOTALL)
    texts = re.findall(r"<h3>Row \d+(.*?)</section>", html.read_text(), re.DOTALL)
    shown = dict(zip(map(int, sections), texts, strict=True))
    for index, line in enumerate(map(json.loads, out.read_text().splitlines())):
        for side, scored in enumerate(line["tokens"]):
            assert scored["text"] == [*expected[index][side].split(), "<eos>"]
            messages = [{"role": "user", "content": prompts[index][side]}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            response = [*tokenizer.encode(expected[index][side], add_special_tokens=False), tokenizer.eos_token_id]
            with torch.no_grad():
                alone = model(torch.tensor([prompt + response])).signals["reward"].prefix[0, len(prompt) :]
            assert scored["rewards"] == pytest.approx(alone.tolist(), abs=1e-4)
            tokens = re.findall(r'<p class="tokens">(.*?)</p>', shown[index + 1])[side]
            assert re.sub(r"<[^>]*>", "", tokens).split() == expected[index][side].split()


def test_a_limit_is_of_the_rows_held_out(
    answer: Answer, base: Path, adapter: Path, pairs: Path, tmp_path: Path
) -> None:
    command = ("score", "--base", base, "--adapter", adapter, "--data", pairs, "--eval-fraction", 0.25, "--out")

    def numbers(*options: object) -> list[int]:
        answer(*command, tmp_path / "rows.jsonl", *options)
        return [json.loads(line)["row"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    held = numbers()
    assert held != list(range(len(held)))
    assert numbers("--limit", 4) == held[:4]


# -- processes ---------------------------------------------------------------------------------------------------------

START = [sys.executable, "-c", "import sys; sys.argv[0] = 'otter'; from otterlm.cli import main; main()"]


def test_ctrl_c_while_the_libraries_load() -> None:
    process = subprocess.Popen(
        [*START, "plan"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores Ctrl-C in what it runs in the background, and so would all that the tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():  # the imports have begun, and go on for long
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)
    assert output == ("", "otter: interrupted\n")
    assert process.returncode == 130


def test_streams_that_take_no_text(base: Path, tmp_path: Path) -> None:
    """A closed pipe, a full disk, a locale without the characters, and a path that is no UTF-8."""
    folder = speaker(tmp_path / "base", SAID[-1])
    response = f"generate --base {folder} --raw --prompt hi --max-new-tokens 50"

    def shell(command: str, **environment: str) -> tuple[int, bytes, bytes]:
        otter = " ".join(map(shlex.quote, START))
        script = f'set -o pipefail; otter() {{ {otter} "$@"; }}; {command}'
        done = subprocess.run(["bash", "-c", script], env=os.environ | environment, capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert shell("otter --help | head -1")[::2] == (0, b"")
    assert shell("otter --help | true")[::2] == (0, b"")
    assert shell("otter --help >&-")[::2] == (0, b"")
    code, _, err = shell(f"otter {response} > /dev/full")
    assert (code, err.count(b"\n")) == (2, 1)
    assert b"No space left" in err
    code, out, err = shell(f"otter {response}; otter {response} --json", PYTHONIOENCODING="ascii", COLUMNS="20")
    assert (code, err) == (0, b"")
    first, *_, last = out.splitlines()
    assert first == rb"\xe9 \u2260 \u737a \U0001f9a6"
    assert json.loads(last)["text"] == SAID[-1]
    shape = " ".join(map(str, SHAPE))
    code, out, err = shell(f"cp -r {base} {tmp_path}/$'caf\\xe9' && otter plan --base {tmp_path}/$'caf\\xe9' {shape}")
    assert code == 0, err
    assert b"/caf\xe9, float32" in out.splitlines()[0]


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"nan": float("nan"), "path": "caf\udce9", "all": [1.5, float("inf"), {"text": "é"}]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"nan": None, "path": "caf\udce9", "all": [1.5, None, {"text": "é"}]}
