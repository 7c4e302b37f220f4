"""The engine returns the numbers of another package's signal beside the tokens, with no change in Otter."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import add_tiny_adapter, tiny_base
from engines import SIZES, answers, assert_rewards, greedy, prompts, tokenizer

from otterlm import OtterModel, client
from otterlm.engines.exported import export, load_exported
from otterlm.signals import signal_type

PACKAGE = Path(__file__).parents[2] / "examples" / "own_signal" / "own_signal"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with the example package and the metadata that an installer writes."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "own_signal")
    (metadata := site / "own_signal-0.1.0.dist-info").mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-signal\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[otterlm.signals]\nuncertainty = own_signal:SIGNAL\n")
    monkeypatch.syspath_prepend(str(site))
    # The engine's own process finds it, too.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))))


@pytest.mark.usefixtures("installed")
def test_numbers_come_beside_tokens(tmp_path: Path) -> None:
    base = tiny_base("llama", **dict[str, Any](SIZES))
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    model = OtterModel(base)
    add_tiny_adapter(model, "doubt", signal=signal_type("uncertainty").config())
    model.save_pretrained(tmp_path / "adapter", "doubt")
    export(str(tmp_path / "base"), {"doubt": tmp_path / "adapter"}, tmp_path / "export")
    folder = tmp_path / "export"
    texts = prompts(4)
    (plain,) = answers(tmp_path / "base", (texts, greedy()))
    watched, steered = answers(
        folder,
        (texts, greedy(**client.request(folder, rewards=1))),
        (texts, greedy(extra_args={"otter_weight": 1.0, "otter_signal": "doubt"})),
    )
    assert [answer.tokens for answer in watched] == [answer.tokens for answer in plain]
    assert_rewards(load_exported(folder), watched, "doubt")
    assert "doubt" in steered  # it cannot steer, and the request is refused
