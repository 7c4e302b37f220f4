"""Guards the training loop: it learns, a killed run ends like an unbroken one, bad states are refused."""

import errno
import json
import math
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import close, refused, tiny_base, tiny_otter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_runs import HELD_OUT, SHORT, TRAIN, new_objective, run, weights

from otterlm import files
from otterlm.errors import OtterError
from otterlm.fingerprint import fingerprint
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, last_states, start_from_probe
from otterlm.taps import EdgeTaps, Visitor
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase, RecordedBase
from otterlm.training.trainer import TrainingConfig, train

CHECKPOINT = "checkpoint.safetensors"


class Killed(BaseException):
    """Is raised by the tests in the middle of a run."""


def die_after(objective, calls):
    """Makes the objective raise at its next call after `calls` of them."""
    forward, left = objective.forward, iter(range(calls))

    def counted(batch):
        if next(left, None) is None:
            raise Killed
        return forward(batch)

    objective.forward = counted
    return objective


def logged(out, phase=None):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if phase in (None, line["phase"])]


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("unbroken")
    return out, run(out)


@pytest.mark.parametrize("compare", ["prefixes", "last"])
def test_learns_an_easy_preference(tmp_path: Path, compare) -> None:
    objective = new_objective(compare)
    best = train(objective, TRAIN, HELD_OUT, replace(SHORT, epochs=4), tmp_path)
    losses = [line["loss"] for line in logged(tmp_path, "train")]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert best["accuracy"] > 0.9
    assert best["loss"] == min(line["loss"] for line in logged(tmp_path, "eval"))
    with torch.no_grad():
        assert objective.eval()(collate(HELD_OUT))["accuracy"] > 0.9


def test_learns_scores(tmp_path: Path) -> None:
    scored = [
        Example(e.row, e.prefix, e.branches[side : side + 1], scores=(1.0 - 2 * side,))
        for e in TRAIN
        for side in (0, 1)
    ]
    objective = new_objective("last")
    best = train(objective, scored, scored[:24], replace(SHORT, epochs=4), tmp_path)
    assert best["regression"] < 0.5


def test_best_weights_are_left_in_the_model(tmp_path: Path) -> None:
    objective = new_objective()
    best = train(objective, TRAIN, HELD_OUT, replace(SHORT, learning_rate=1e-2, epochs=4), tmp_path)
    assert best["step"] < logged(tmp_path, "eval")[-1]["step"]
    sums = 0.0
    with torch.no_grad():
        for start in range(0, len(HELD_OUT), 8):
            group = sorted(HELD_OUT, key=len)[start : start + 8]
            sums += objective.eval()(collate(group))["loss"].item() * len(group)
    assert sums / len(HELD_OUT) == pytest.approx(best["loss"], rel=1e-4)


def test_two_runs_are_the_same(unbroken, tmp_path: Path) -> None:
    assert same(run(tmp_path), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])
    assert not same(unbroken[1], weights(new_objective()))


@pytest.mark.parametrize("calls", [2, 7, 13, 19])
def test_a_killed_run_ends_like_an_unbroken_one(unbroken, tmp_path: Path, calls) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_after(new_objective(), calls))
    assert (tmp_path / "checkpoint.safetensors").exists() == (calls > 4)
    assert same(run(tmp_path), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])
    steps = [(line["phase"], line["step"]) for line in logged(tmp_path)]
    assert len(steps) == len(set(steps))


def test_a_run_that_is_killed_twice_with_a_torn_log(unbroken, tmp_path: Path) -> None:
    for calls in (8, 6):
        with pytest.raises(Killed):
            run(tmp_path, die_after(new_objective(), calls))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"phase": "train", "st')
    assert same(run(tmp_path), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])


def test_a_finished_run_is_not_run_again(unbroken, tmp_path: Path) -> None:
    for path in unbroken[0].glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    objective = die_after(new_objective(), 0)
    assert same(run(tmp_path, objective), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])


@pytest.fixture
def broken_off(tmp_path: Path):
    with pytest.raises(Killed):
        run(tmp_path, die_after(new_objective(), 7))
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 1e-4}, "learning_rate (0.003 there, 0.0001 now)"),
        ({"seed": 4}, "seed (3 there, 4 now)"),
        ({"epochs": 3}, "epochs (2 there, 3 now)"),
        ({"batch_size": 4}, "batch_size (8 there, 4 now)"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(broken_off, change, named) -> None:
    before = contents(broken_off)
    refused(lambda: run(broken_off, config=replace(SHORT, **change)), CHECKPOINT, named)
    assert contents(broken_off) == before


def test_how_often_checkpoints_are_made_changes_nothing(unbroken, broken_off) -> None:
    assert same(run(broken_off, config=replace(SHORT, checkpoint_every=1)), unbroken[1])


def test_a_checkpoint_of_other_data_is_refused(broken_off) -> None:
    refused(
        lambda: train(new_objective(), TRAIN[1:], HELD_OUT, SHORT, broken_off), CHECKPOINT, "data (48 there, 47 now)"
    )
    refused(lambda: train(new_objective(), TRAIN, HELD_OUT[1:], SHORT, broken_off), "held_out (16 there, 15 now)")
    other = [replace(example, prefix=(5, 5, 5)) for example in TRAIN]
    refused(lambda: train(new_objective(), other, HELD_OUT, SHORT, broken_off), "other data:")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": 9}, "adapter.hidden_size (8 there, 9 now)"),
        ({"layers": (1,)}, "adapter.layers (none there, [1] now)"),
        ({"layers": (0,)}, "adapter.layers"),
        ({"embedding": "table"}, "adapter.embedding (projection there, table now)"),
        ({"signal": RewardConfig(3)}, "adapter.signal.vocabulary_rank (16 there, 3 now)"),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(broken_off, config, named) -> None:
    refused(lambda: run(broken_off, new_objective(**config)), CHECKPOINT, named)


def test_a_checkpoint_of_another_objective_is_refused(broken_off) -> None:
    refused(lambda: run(broken_off, new_objective("last")), CHECKPOINT, "compare (prefixes there, last now)")


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_of_another_base_is_refused(unbroken, broken_off, finished) -> None:
    out = unbroken[0] if finished else broken_off
    before = contents(out)
    refused(lambda: run(out, new_objective(seed=1)), CHECKPOINT, "other base:")
    refused(lambda: run(out, new_objective(dtype=torch.bfloat16)), "base (float32 there, bfloat16 now)")
    assert contents(out) == before


def test_a_base_that_was_fine_tuned_is_another_base(broken_off) -> None:
    """Its embeddings and norms are the base's, so the fingerprint is the same."""
    objective = new_objective()
    base = objective.model.base_model
    before = fingerprint(base)
    with torch.no_grad():
        base.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(1.001)
    assert fingerprint(base) == before
    objective = RewardObjective(objective.model, LiveBase(objective.model), RewardTrainingConfig(candidates=0))
    refused(lambda: run(broken_off, objective), CHECKPOINT, "other base:")


def test_a_checkpoint_of_the_first_version_is_refused(broken_off) -> None:
    path = broken_off / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
    progress["identity"] = {"epochs": 2, "data": "0" * 64}
    save_file(load_file(path), path, metadata={"progress": json.dumps(progress)})
    refused(lambda: run(broken_off), CHECKPOINT, "another version of otter-lm")


def test_two_runs_in_one_folder(unbroken, tmp_path: Path) -> None:
    with files.hold(tmp_path / CHECKPOINT):
        child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(refuses(tmp_path)))
        child.start()
        child.join()
    assert child.exitcode == 0
    assert same(run(tmp_path), unbroken[1])


def refuses(out):
    """Returns 0 where a run in this folder is refused, for a child process."""
    try:
        run(out)
    except OtterError as error:
        return 0 if "another process" in str(error) else 1
    return 2


def cut(data):
    return data[: len(data) // 2]


def tear_progress(data):
    return data.replace(b'\\"step\\"', b'\\"step\\x', 1)


@pytest.mark.parametrize("damage", [cut, lambda _: b"", lambda _: b"garbage" * 99, tear_progress])
def test_a_corrupt_checkpoint_is_refused(broken_off, damage) -> None:
    path = broken_off / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: run(broken_off), CHECKPOINT)


@pytest.mark.parametrize("progress", ["{", "[]", "{}", '{"identity": {}}'])
def test_a_checkpoint_with_another_progress_is_refused(broken_off, progress) -> None:
    path = broken_off / CHECKPOINT
    save_file(load_file(path), path, metadata={"progress": progress})
    refused(lambda: run(broken_off), CHECKPOINT)


@pytest.mark.parametrize("lost", ["model", "best", "optimizer"])
def test_a_checkpoint_that_lacks_tensors_is_refused(broken_off, lost) -> None:
    path = broken_off / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[max(name for name in tensors if name.startswith(lost))]
    save_file(tensors, path, metadata=metadata)
    refused(lambda: run(broken_off), CHECKPOINT)


def test_nan_keeps_the_last_checkpoint(unbroken, tmp_path: Path) -> None:
    objective = new_objective()
    forward, calls = objective.forward, []

    def spoiled(batch):
        calls.append(1)
        metrics = forward(batch)
        return metrics | {"loss": metrics["loss"] * float("nan")} if len(calls) == 8 else metrics

    objective.forward = spoiled  # type: ignore[method-assign]
    refused(lambda: run(tmp_path, objective), "nan", "learning rate")
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / CHECKPOINT).values())
    assert same(run(tmp_path), unbroken[1])


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_kill_left_of_a_checkpoint_is_removed(unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (child := os.fork()) == 0:
        try:
            monkeypatch.setattr(os, "fsync", lambda _: os._exit(0))  # after the first bytes of the first file
            run(tmp_path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(name.rsplit(".", 1)[1] for name in hidden(tmp_path)) == ["lock", "unfinished"]
    assert same(run(tmp_path), unbroken[1])
    assert hidden(tmp_path) == []


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_last_checkpoint(unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_after(new_objective(), 7))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(files, "save_file", full_disk)
    refused(lambda: run(tmp_path), CHECKPOINT, "No space left")
    monkeypatch.undo()
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert same(run(tmp_path), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])


def test_a_disk_too_full_for_the_log(unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path, *mode, **how):
        return opened(Path("/dev/full") if path.name == "metrics.jsonl" and mode == ("a",) else path, *mode, **how)

    monkeypatch.setattr(Path, "open", full)
    refused(lambda: run(tmp_path), "No space left")
    monkeypatch.undo()
    assert same(run(tmp_path), unbroken[1])
    assert logged(tmp_path) == logged(unbroken[0])


def test_a_disk_too_full_for_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    otter = new_objective().model
    monkeypatch.setattr(os, "posix_fallocate", full_disk, raising=False)
    refused(lambda: RecordedBase(otter, TRAIN, tmp_path), "recording.bf16", "No space left", "GiB")
    monkeypatch.undo()
    RecordedBase(otter, TRAIN, tmp_path)
    assert (tmp_path / "recording.bf16").stat().st_blocks * 512 >= (tmp_path / "recording.bf16").stat().st_size


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"warmup": 1.0},
        {"warmup": float("nan")},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_settings_out_of_range(change) -> None:
    refused(lambda: TrainingConfig(**change), *change)


def test_no_examples(tmp_path: Path) -> None:
    refused(lambda: train(new_objective(), [], HELD_OUT, SHORT, tmp_path / "a"), "no examples to train on")
    refused(lambda: train(new_objective(), TRAIN, [], SHORT, tmp_path / "b"), "no examples to train on")


def test_a_loss_that_only_the_held_out_examples_have(tmp_path: Path) -> None:
    objective = new_objective()
    forward = objective.forward

    def spoiled(batch):
        return forward(batch) | ({} if objective.training else {"loss": torch.tensor(math.nan)})

    objective.forward = spoiled  # type: ignore[method-assign]
    refused(lambda: run(tmp_path, objective), "held-out", "nan")


def test_nothing_to_train(tmp_path: Path) -> None:
    refused(lambda: run(tmp_path, new_objective().requires_grad_(False)), "nothing to train")


def test_stops_early_when_patience_is_spent(tmp_path: Path) -> None:
    config = replace(SHORT, epochs=9, patience=2, learning_rate=1e-9)
    objective = new_objective()
    forward, grown = objective.forward, iter(range(999))

    def worse(batch):
        metrics = forward(batch)
        return metrics if objective.training else metrics | {"loss": metrics["loss"] + next(grown)}

    objective.forward = worse  # type: ignore[method-assign]
    best = train(objective, TRAIN, HELD_OUT, config, tmp_path)
    assert best["step"] == 3
    assert logged(tmp_path, "eval")[-1]["step"] == 9


def random_objective(**config):
    """Makes an adapter with no zeros and no small numbers in it."""
    otter = tiny_otter(tiny_base(num_hidden_layers=2), **config)
    with torch.no_grad():
        for parameter in otter.adapter().head.parameters():
            parameter.mul_(0.2)
    return RewardObjective(otter, LiveBase(otter), RewardTrainingConfig(candidates=0))


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, {"layers": (1,)}, {"embedding": "table"}])
def test_a_recording_gives_the_live_loss(tmp_path: Path, config) -> None:
    objective, batch = random_objective(**config), collate(TRAIN[:6])
    live = objective(batch)
    for _ in range(2):
        objective.source = RecordedBase(objective.model, TRAIN, tmp_path)
        played = objective(batch)
        for name in live:
            close(played[name], live[name], 2e-2)
        assert not torch.equal(played["loss"], live["loss"])


def test_a_recording_gives_the_live_gradients(tmp_path: Path) -> None:
    objective = random_objective()
    gradients = []
    for source in (objective.source, RecordedBase(objective.model, TRAIN, tmp_path)):
        objective.zero_grad()
        objective.source = source
        objective(collate(TRAIN[:8]))["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    assert gradients[1].isfinite().all()
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
    close(gradients[1].norm(), gradients[0].norm(), 0.1)


def test_a_recording_pads_with_real_tokens(tmp_path: Path) -> None:
    """A state of zeros has no norm: through 1 / eps it would grow into NaN, block by block."""

    class Look(Visitor):
        def layer(self, index: int, taps: EdgeTaps) -> None:
            padding = batch.segments < 0
            assert padding.any()
            first = taps.hidden[:, :1].expand_as(taps.hidden)
            assert torch.equal(taps.hidden[padding], first[padding])

    otter = new_objective().model
    batch = collate(TRAIN[:8])
    RecordedBase(otter, TRAIN, tmp_path).show(batch, Look())


def test_a_recording_trains_like_the_base(tmp_path: Path) -> None:
    objective = new_objective()
    held_out = [replace(example, row=99 + example.row) for example in HELD_OUT]
    objective.source = RecordedBase(objective.model, TRAIN + held_out, tmp_path)
    best = train(objective, TRAIN, held_out, replace(SHORT, epochs=4), tmp_path / "run")
    assert best["accuracy"] > 0.9


@torch.no_grad()
@pytest.mark.parametrize(
    ("examples", "named"),
    [
        (TRAIN[::-1], "other data:"),
        (TRAIN[1:], "data (48 there, 47 now)"),
        ([replace(e, prefix=(9, 9)) for e in TRAIN], "other data:"),
    ],
)
def test_a_recording_of_other_examples_is_refused(tmp_path: Path, examples, named) -> None:
    objective = random_objective()
    RecordedBase(objective.model, TRAIN, tmp_path)
    before = contents(tmp_path)
    refused(lambda: RecordedBase(objective.model, examples, tmp_path), "recording.json", named)
    other = tiny_otter(tiny_base(num_hidden_layers=2, seed=4))
    refused(lambda: RecordedBase(other, TRAIN, tmp_path), "recording.json", "other base:")
    other = tiny_otter(tiny_base(num_hidden_layers=2), layers=(1,))
    refused(lambda: RecordedBase(other, TRAIN, tmp_path), "layers ([0, 1] there, [1] now)")
    assert contents(tmp_path) == before
    (tmp_path / "recording.json").write_text("{")
    refused(lambda: RecordedBase(objective.model, TRAIN, tmp_path), "recording.json", "damaged")


@torch.no_grad()
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_recording_is_not_used(tmp_path: Path, damage) -> None:
    objective = random_objective()
    live = objective(collate(TRAIN[-6:]))["vocabulary"]
    RecordedBase(objective.model, TRAIN, tmp_path)
    data = tmp_path / "recording.bf16"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    objective.source = RecordedBase(objective.model, TRAIN, tmp_path)
    close(objective(collate(TRAIN[-6:]))["vocabulary"], live, 2e-2)


@torch.no_grad()
def test_last_states_are_the_bases_at_the_end_of_each_text() -> None:
    objective = new_objective()
    examples = [replace(example, row=90 - example.row) for example in TRAIN[:9]]
    sides = last_states(objective, examples, batch_size=4)
    decoder = objective.model.base_model.get_decoder()
    for side, states in enumerate(sides):
        for example, state in zip(examples, states, strict=True):
            text = torch.tensor([[*example.prefix, *example.branches[side]]])
            close(state, decoder(text).last_hidden_state[0, -1])


@torch.no_grad()
def test_probe_start_ranks_pairs_before_training() -> None:
    objective = new_objective()
    start_from_probe(objective, TRAIN)
    assert objective(collate(TRAIN))["accuracy"] > 0.9
    assert not objective.model.adapter().head.prefix.weight[0, 32:].any()


def test_a_step_in_parts_is_one_step(unbroken, tmp_path: Path) -> None:
    """Examples of one length each: the mean over a batch is that over its parts."""
    even = [replace(e, prefix=(30, 31), branches=((10, 11, 12), (20, 21, 22))) for e in TRAIN]
    even = [replace(e, prefix=(30 + e.row, 31)) for e in even]
    apart = replace(SHORT, gradient_accumulation=3, learning_rate=1e-4)
    results = []
    for name, config in (("whole", replace(apart, gradient_accumulation=1)), ("parts", apart)):
        objective = new_objective()
        train(objective, even, HELD_OUT, config, tmp_path / name)
        results.append((weights(objective), logged(tmp_path / name, "train")))
    (whole, one), (parts, several) = results
    assert [line["loss"] for line in several] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    start = weights(new_objective())
    moved, apart_by = (
        torch.cat([(whole[name] - other[name]).flatten() for name in whole]).norm() for other in (start, parts)
    )
    assert apart_by < 0.05 * moved
    named = "gradient_accumulation (none there, 3 now)"
    refused(lambda: run(unbroken[0], config=replace(SHORT, gradient_accumulation=3)), CHECKPOINT, named)


def test_a_killed_run_in_parts_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    config = replace(SHORT, gradient_accumulation=2)
    whole = run(tmp_path / "whole", config=config)
    with pytest.raises(Killed):
        run(tmp_path / "killed", die_after(new_objective(), 13), config)
    assert same(run(tmp_path / "killed", config=config), whole)


@pytest.fixture
def another_precision():
    """Lets accelerate, which has one precision a process, choose again, before and after a test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision(another_precision, unbroken, tmp_path: Path) -> None:
    seen = []
    objective = new_objective()
    read = objective.model.read_signals

    def watched(states):
        seen.append(torch.is_autocast_enabled("cpu"))
        return read(states)

    objective.model.read_signals = watched  # type: ignore[method-assign]
    mixed = run(tmp_path, objective, replace(SHORT, mixed_precision="bf16"))
    assert True in seen
    assert not same(mixed, unbroken[1])
    assert all(tensor.dtype == torch.float32 for tensor in mixed.values())
    named = "mixed_precision (none there, bf16 now)"
    refused(lambda: run(unbroken[0], config=replace(SHORT, mixed_precision="bf16")), CHECKPOINT, named)
    other = replace(SHORT, mixed_precision="no")
    refused(lambda: run(tmp_path / "other", config=other), "mixed_precision no cannot be used", "restart")
    refused(
        lambda: replace(SHORT, mixed_precision="fp8"),  # type: ignore[arg-type]
        "mixed_precision must be one of auto, no, bf16, got 'fp8'",
    )
