"""`otter score` and `otter calibrate` on labelled texts: what is measured, under whatever names labels come."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizer import chat_tokenizer
from conftest import refused, tiny_base, tiny_otter
from torch import Tensor
from word_tokenizer import WORDS

from otterlm.adapter_files import read_config
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig, LabelCalibration
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.guard_calibration import calibrate_guard, has_label
from otterlm.training.evaluation.guard_reading import GuardReading, read_guard
from otterlm.training.evaluation.guard_summary import check_names, summarize_guard

TOXIC = GuardConfig(("toxic",), spans=("toxic",), vocabulary_rank=0)


def reading(record: dict[str, Any], curve: list[list[float]], spans: list[float] | None = None, **config: Any):
    """A text of three words, and what a guard says after each of its tokens."""
    signal = config.pop("signal", TOXIC)
    (labelled,) = tokenize_labelled(read_labelled_rows([record]), chat_tokenizer(), Limits())
    length = len(labelled.example.branches[0])
    values = torch.tensor(curve)
    assert len(values) == length, length
    marked = torch.tensor(spans or [0.0] * length)[:, None].expand(-1, len(signal.spans))
    return GuardReading(labelled, signal, values, marked, values[0] if labelled.example.prefix else None)


def text(label: Any, *curve: float, **more: Any) -> GuardReading:
    """` kind dog is`: three tokens."""
    return reading({"text": " kind dog is", "label": label}, [[value] for value in curve], **more)


def test_measures_of_labels() -> None:
    result = summarize_guard(
        [text(1, 0.9, 0.2, 0.8), text(1, 0.1, 0.1, 0.3), text(0, 0.2, 0.7, 0.1), text(0, 0.1, 0.1, 0.4)]
    )
    assert (result["n"], result["texts"], result["offensive"]) == (4, 4, 2)
    assert result["auc"] == result["auc_100"] == 0.75
    assert result["auc_25"] == pytest.approx(0.625)  # a tie counts half
    assert result["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert (result["f1"], result["precision"], result["recall"]) == (pytest.approx(2 / 3), 1.0, 0.5)
    assert result["alarm"]["detected"] == result["alarm"]["false_alarms"] == 0.5  # at any token
    for name in ("auc", "average_precision", "f1"):
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] <= high
    assert "span_f1" not in result
    assert "by_category" not in result


def test_stored_thresholds_decide() -> None:
    stored = replace(TOXIC, calibrations=(LabelCalibration("toxic", ((0, 0),), 0.25, 0.95, 0.1, 0.5),))
    rows = [text(1, 0.9, 0.2, 0.3, signal=stored), text(0, 0.9, 0.9, 0.2, signal=stored)]
    result = summarize_guard(rows)
    assert (result["f1"], result["alarm"]["detected"], result["alarm"]["false_alarms"]) == (1.0, 0.0, 0.0)


def test_one_kind_alone_has_no_area() -> None:
    result = summarize_guard([text(0, 0.1, 0.1, 0.1), text(0, 0.1, 0.1, 0.9)])
    assert math.isnan(result["auc"])
    assert math.isnan(result["f1"])
    assert result["alarm"]["false_alarms"] == 0.5


def test_labels_of_other_names_calibrate() -> None:
    two = GuardConfig(("toxic", "threat"))
    expected: list[tuple[Any, bool, bool | None, bool | None]] = [
        (1, True, None, None),
        (0, False, False, False),
        ("toxic", True, True, False),
        (["V"], True, False, False),
        ({"threat": True}, True, None, True),
    ]
    for label, one, first, second in expected:
        (row,) = read_labelled_rows([{"text": "a", "label": label}])
        assert has_label(row, "toxic", TOXIC) is one
        assert [has_label(row, name, two) for name in two.offences] == [first, second]


def test_passages_and_delays() -> None:
    # 'dog' is characters 6 to 9, the second token.
    marked = {"text": " kind dog is", "spans": [[6, 9]]}
    result = summarize_guard(
        [
            reading(marked, [[0.1], [0.1], [0.9]], [0.1, 0.9, 0.1]),
            reading(marked, [[0.9], [0.9], [0.9]], [0.9, 0.9, 0.1]),
            reading(marked, [[0.1], [0.1], [0.1]]),
            reading({"text": " kind dog is", "spans": []}, [[0.1], [0.1], [0.1]]),
        ]
    )
    both = 2 * 3 / (3 + 8)  # 'kind dog' without the space before it
    assert result["span_f1"] == pytest.approx((1 + both + 0 + 1) / 4)
    assert result["delay"] == pytest.approx((1 - 1) / 2)
    assert result["delay_detected"] == pytest.approx(2 / 3)
    assert result["delay_early"] == pytest.approx(1 / 3)
    assert (result["n"], result["with_spans"]) == (4, 3)
    assert "auc" not in result
    plain = GuardConfig(("toxic",), vocabulary_rank=0)
    refused(lambda: summarize_guard([reading(marked, [[0.1]] * 3, signal=plain)]), "trained without")


def test_categories() -> None:
    signal = GuardConfig(("toxic", "threat"), vocabulary_rank=0)

    def row(labels: list[str], toxic: float, threat: float) -> GuardReading:
        return reading({"text": " kind dog is", "labels": labels}, [[toxic, threat]] * 3, signal=signal)

    result = summarize_guard(
        [row(["threat"], 0.1, 0.9), row(["toxic"], 0.8, 0.1), row(["V"], 0.2, 0.6), row([], 0.3, 0.2)]
    )
    assert result["auc"] == 1.0
    kinds = result["by_category"]
    assert {name: values["n"] for name, values in kinds.items()} == {"threat": 1, "toxic": 1, "V": 1}
    assert kinds["threat"]["auc"] == kinds["toxic"]["auc"] == kinds["V"]["auc"] == 1.0
    assert kinds["V"]["recall"] == 1.0  # by any offence: the guard has no such label
    unknown = reading({"text": " kind dog is", "labels": {"toxic": False}}, [[0.1, 0.1]] * 3, signal=signal)
    assert summarize_guard([unknown, row(["toxic"], 0.9, 0.1)])["texts"] == 1


def test_exclusive_labels() -> None:
    signal = GuardConfig(("safe", "rude", "hate"), ("safe",), vocabulary_rank=0)
    rows = [
        reading({"text": " kind dog is", "label": label}, [[1 - 2 * share, share, share]] * 3, signal=signal)
        for label, share in (("hate", 0.4), ("rude", 0.3), ("safe", 0.1))
    ]
    result = summarize_guard(rows)
    assert result["auc"] == 1.0
    assert set(result["by_category"]) == {"hate", "rude"}


def test_prompts_apart() -> None:
    record = {"prompt": "dog", "response": "kind", "label": 1, "prompt_label": 0}
    (labelled,) = tokenize_labelled(read_labelled_rows([record]), chat_tokenizer(), Limits())
    length = len(labelled.example.branches[0])
    values = torch.full((length, 1), 0.9)
    one = GuardReading(labelled, TOXIC, values, values, torch.tensor([0.2]))
    other = GuardReading(
        replace(labelled, row=replace(labelled.row, prompt_marks=labelled.row.marks)),
        TOXIC,
        values,
        values,
        torch.tensor([0.7]),
    )
    assert summarize_guard([one, other])["prompts"]["auc"] == 1.0


def test_names_that_nobody_knows() -> None:
    def check(label: Any, **names: Any) -> None:
        chosen = LabelNames(**names)
        check_names(read_labelled_rows([{"text": "a", "label": label}], chosen), TOXIC, chosen)

    for label in (0, 1, True, "0", "toxic", "Unsafe", "safe", "hateful", ["violence"]):
        check(label)
    refused(lambda: check("ham"), "row 1", "'ham' is none of the guard's (toxic)", "--harmless")
    check("spam", harmless="ham")
    refused(lambda: check(2), "the label 2 has no name")
    check(2, label_names="hate,offensive,neither")


@torch.no_grad()
def test_reading_is_what_a_plain_pass_gives() -> None:
    signal = GuardConfig(("toxic",), spans=("toxic",))
    otter = tiny_otter(tiny_base(vocab_size=300), signal=signal)
    records: list[dict[str, Any]] = [
        {"text": " kind dog is", "spans": [[6, 9]]},
        {"prompt": "dog", "response": "kind is nice", "label": 0},
        {"prompt": "nice dog", "label": 1},
    ]
    examples = tokenize_labelled(read_labelled_rows(records), chat_tokenizer(), Limits())
    for result, labelled in zip(read_guard(otter, examples, 2), examples, strict=True):
        example = labelled.example
        ids = torch.tensor([[*example.prefix, *example.branches[0]]])
        plain: Any = otter(ids).signals["reward"]
        start = len(example.prefix)

        def close(left: Tensor, right: Tensor) -> None:
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)

        close(result.probabilities, plain.probabilities[0, start:])
        close(result.spans, plain.span_probabilities[0, start:])
        if start:
            assert result.prompt is not None
            close(result.prompt, plain.probabilities[0, start - 1])
        else:
            assert result.prompt is None


def test_calibration_keeps_its_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(200):
        bad = number % 2
        curve = torch.rand(3, generator=generator) * 0.5 + 0.4 * bad
        rows.append(text(bad, *curve.tolist()))
    (calibration,) = calibrate_guard(rows, 0.1)
    stored = replace(TOXIC, calibrations=(calibration,))
    result = summarize_guard([replace(each, config=stored) for each in rows])
    assert result["alarm"]["false_alarms"] == pytest.approx(0.1)
    assert result["f1"] > 0.85
    heights = [height for _, height in calibration.curve]
    assert heights[0] < 0.2
    assert heights[-1] > 0.8
    assert calibration.span is None  # no passages are marked
    refused(lambda: calibrate_guard(rows, 0.0), "false-alarm rate")
    refused(lambda: calibrate_guard(rows[::2], 0.1), "none is with the label 'toxic'")


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guard(base, tmp_path: Path) -> Path:
    """A random guard of the tiny base."""
    signal = GuardConfig(("toxic",), spans=("toxic",), vocabulary_rank=4)
    tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=signal).save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LABELLED: list[dict[str, Any]] = [{"text": f"{a} {b}", "label": int(a in "ab")} for a in "abcd" for b in "efgh"]


def test_score_prints_one_object(answer, otter, base, guard, tmp_path) -> None:
    command = ("score", "--base", base, "--adapter", guard, "--data")
    result = answer(*command, write(tmp_path / "numbers.jsonl", LABELLED))
    assert result["n"] == 16
    assert {"auc", "average_precision", "f1", "auc_ci95", "alarm"} <= set(result)
    # The same texts under other names give the same numbers.
    for index, names in enumerate([("safe", "toxic"), (False, True), ("0", "1"), ("none", "offensive")]):
        rows = [row | {"label": names[row["label"]]} for row in LABELLED]
        assert answer(*command, write(tmp_path / f"{index}.jsonl", rows)) == result
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in LABELLED))
    assert answer(*command, table) == result
    swapped = write(tmp_path / "swapped.jsonl", [row | {"label": 1 - row["label"]} for row in LABELLED])
    assert answer(*command, swapped, "--label-names", "toxic,safe") == result
    spans: list[dict[str, Any]] = [{"text": "a b", "spans": [[2, 3]]}, {"text": "c d", "spans": []}]
    marked = answer(*command, write(tmp_path / "spans.jsonl", spans))
    assert {"span_f1", "span_f1_ci95", "delay", "n"} <= set(marked)
    assert "auc" not in marked
    code, out, err = otter(*command, tmp_path / "numbers.jsonl")
    assert (code, err) == (0, "")
    assert "on 16 texts, 8 of them offensive" in out
    assert "the alarm rings in" in out


def test_score_writes_rows_and_a_page(answer, otter, base, guard, tmp_path) -> None:
    rows = [{"text": "a b c", "label": 1, "spans": [[2, 3]]}, {"prompt": "a", "response": "b c", "label": 0}]
    command = ("score", "--base", base, "--adapter", guard, "--data", write(tmp_path / "data.jsonl", rows))
    files = ("--out", tmp_path / "rows.jsonl", "--html", tmp_path / "page.html", "--tokens")
    answer(*command, *files, "--limit", 2)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1]
    assert lines[0]["tokens"]["text"][:3] == ["a", "b", "c"]
    assert lines[0]["labels"]["toxic"] == lines[0]["tokens"]["labels"]["toxic"][-1]
    assert "spans" in lines[0]
    assert "spans" not in lines[1]
    page = (tmp_path / "page.html").read_text()
    assert "Labelled toxic" in page or "Labelled unsafe" in page
    assert "ROC curve" in page
    assert "http" not in page


def test_refusals(refusal, base, guard, adapter, tmp_path) -> None:
    data = write(tmp_path / "data.jsonl", [{"text": "a b", "label": "ham"}, {"text": "a", "label": "spam"}])
    command = ("score", "--base", base, "--adapter", guard, "--data", data)
    assert "data.jsonl, row 1: the label 'ham'" in refusal(*command)
    assert "--label-names" in refusal(
        "score", "--base", base, "--adapter", adapter, "--data", data, "--harmless", "ham"
    )
    scores = write(tmp_path / "scores.jsonl", [{"text": "a b", "score": 1.0}])
    assert "no column label" in refusal(*command[:-1], scores)
    calibrate = ("calibrate", *command[1:-1], write(tmp_path / "labels.jsonl", LABELLED))
    assert "--bad-below" in refusal(*calibrate, "--bad-below", 0.5)
    assert "false-alarm rate" in refusal(*calibrate, "--false-alarm-rate", 0)


def test_calibrate_keeps_what_it_measured(answer, otter, base, guard, tmp_path) -> None:
    data = write(tmp_path / "labels.jsonl", LABELLED)
    command = ("calibrate", "--base", base, "--adapter", guard, "--data", data, "--false-alarm-rate", 0.2)
    result = answer(*command, "--plot", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert result["measured"]["n"] == 8
    signal = read_config(guard).signal
    assert isinstance(signal, GuardConfig)
    (calibration,) = signal.calibrations
    assert calibration.alarm == result["calibrations"][0]["alarm"]
    assert calibration.span is None
    OtterModel.from_pretrained(tiny_base(vocab_size=len(WORDS)), guard)
    before = (guard / "adapter_config.json").read_text()
    code, out, _ = otter(*command, "--no-save", "--false-alarm-rate", 0.5)
    assert code == 0
    assert "toxic: a whole text counts from" in out
    assert (guard / "adapter_config.json").read_text() == before
