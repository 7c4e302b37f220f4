"""Results are kept item by item, and only a run with the same identity goes on with them."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused, tiny_base, tiny_config
from word_tokenizer import TEMPLATE, tokenizer

from otterlm.errors import OtterError
from otterlm.files import hold, make_folder
from otterlm.identity import FORMAT, check, identity, of_config, of_data, of_tokenizer, of_weights
from otterlm.resumable import run_resumable

SQUARES = identity("squares", data=of_data([1, 2, 3, 4]))


def squared(path: Path | None, seen: list[int], items: tuple[int, ...] = (1, 2, 3, 4), **parts: Any) -> list[Any]:
    def run(item: int) -> dict[str, int]:
        seen.append(item)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt
        return {"square": item * item}

    return run_resumable(items, run, path, SQUARES | parts, "squaring")


EXPECTED = [{"square": 1}, {"square": 4}, {"square": 9}, {"square": 16}]


def test_results_are_kept_item_by_item(tmp_path: Path) -> None:
    path, seen = tmp_path / "out" / "lines.jsonl", list[int]()
    with pytest.raises(KeyboardInterrupt):
        squared(path, seen)
    assert squared(path, seen) == EXPECTED
    assert seen == [1, 2, 3, 3, 4]
    assert [each.name for each in path.parent.iterdir()] == ["lines.jsonl"]  # no lock is left
    assert squared(None, [0]) == EXPECTED


@pytest.mark.parametrize("left", [0, 1, 40, -1, -4, -20])
def test_a_file_that_was_cut_is_completed(tmp_path: Path, left: int) -> None:
    path = tmp_path / "lines.jsonl"
    squared(path, [0])
    whole = path.read_text()
    path.write_text(whole[:left])
    assert squared(path, [0]) == EXPECTED
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "text",
    ["garbage", "garbage\n", "[]\n", "{}\n", json.dumps({"identity": SQUARES}) + '\n{"square": 1\n{"square": 4}\n'],
)
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(text)
    refused(lambda: squared(path, []), "lines.jsonl", "not a file of results")
    assert path.read_text() == text


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    squared(path, [0])
    before = path.read_text()
    refused(lambda: squared(path, [0], kind="cubes"), "lines.jsonl", "kind (squares there, cubes now)")
    refused(lambda: squared(path, [0], (1, 2), data=of_data([1, 2])), "data (4 there, 2 now)")
    refused(lambda: squared(path, [0], seed=1), "seed (none there, 1 now)")
    refused(lambda: squared(path, [0], format=1 + FORMAT), f"format ({FORMAT} there, {1 + FORMAT} now)")
    assert path.read_text() == before
    path.write_text(before.replace(f'"format": {FORMAT}', '"format": 1'))
    refused(lambda: squared(path, [0]), "another version of otter-lm")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: squared(tmp_path / "file" / "lines.jsonl", [0]), "file", "Not a directory")
    refused(lambda: make_folder(tmp_path / "file"), "file", "it is a file")
    (tmp_path / "lines.jsonl").mkdir()
    refused(lambda: squared(tmp_path / "lines.jsonl", [0]), "lines.jsonl", "Is a directory")
    make_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_errors_of_what_is_run_are_not_the_files(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise FileNotFoundError("something else")

    with pytest.raises(FileNotFoundError, match="something else"):
        run_resumable([1], fail, tmp_path / "lines.jsonl", SQUARES, "failing")


def in_a_child(path: Path) -> int:
    """Tries to hold a file in another process: 0 held, 1 refused."""

    def attempt() -> None:
        try:
            with hold(path):
                os._exit(0)
        except OtterError as error:
            os._exit(1 if "another process is writing" in str(error) else 2)

    child = multiprocessing.get_context("fork").Process(target=attempt)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with hold(path):
        assert in_a_child(path) == 1
        assert in_a_child(tmp_path / "other.jsonl") == 0
    assert in_a_child(path) == 0
    assert (tmp_path / ".lines.jsonl.lock").exists()  # the child was killed while it held the file
    with hold(path):
        assert in_a_child(path) == 1
    assert squared(path, [0]) == EXPECTED


def test_what_an_identity_sees() -> None:
    base, same, other = tiny_base(), tiny_base(), tiny_base(seed=1)
    assert of_weights(base) == of_weights(same) != of_weights(other)
    assert of_weights(base)["dtype"] == "float32"
    with torch.no_grad():
        same.get_submodule("model.layers.2.self_attn.o_proj").weight.add_(1e-4)
    assert of_weights(base) != of_weights(same)
    assert of_weights(base, other) != of_weights(other, base)
    # The same weights compute other numbers.
    for name, value in (("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("rope_parameters", {"rope_theta": 500.0})):
        changed = tiny_base()
        setattr(changed.config, name, value)
        assert of_weights(changed) != of_weights(base), name
    loaded = tiny_base()
    loaded.config.name_or_path, loaded.config.use_cache, loaded.config.pad_token_id = "elsewhere", False, 3
    assert of_weights(loaded) == of_weights(base)
    one = of_config(tiny_config())
    assert one == of_config(tiny_config(base_model_name_or_path="x")) != of_config(tiny_config(hidden_size=9))
    words = tokenizer(TEMPLATE)
    before = of_tokenizer(words)
    words(["a b", "c"], padding=True, truncation=True, max_length=3)
    assert of_tokenizer(words) == before != of_tokenizer(tokenizer())


def test_few_differences_are_named(tmp_path: Path) -> None:
    one, other = (identity("many", **{f"setting_{n}": n * factor for n in range(1, 9)}) for factor in (1, 2))
    refused(lambda: check(tmp_path, one, other), "setting_1 (1 there, 2 now)", "setting_4", "and 4 more")
    check(tmp_path, one, {name: one[name] for name in ("format", "kind", "setting_3")}, partial=True)
    refused(lambda: check(tmp_path, one, {"format": FORMAT, "kind": "few"}, partial=True), "kind (many there, few now)")
