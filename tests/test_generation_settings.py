"""Every intervention either honours a setting of `generate` or refuses it in one line.

Honoured means: the tokens are those of the intervention written out (`references.py`), which knows no cache, no drafts
and no stream of states. A setting that only makes generation faster is left out of it.
"""

import re

import generation_inputs
import generation_settings
import pytest
import torch
from conftest import error_of
from interventions import INTERVENTIONS, call_of, medusa_heads
from torch import Tensor

SETTINGS = generation_settings.SETTINGS | generation_inputs.SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_a_setting_is_honoured_or_refused(intervention: str, name: str) -> None:
    setting = SETTINGS[name]
    call = call_of(intervention, setting)
    run, write_out = INTERVENTIONS[intervention]
    if intervention in setting.refused:
        assert re.search(setting.says, error_of(lambda: run(call)))
        return
    medusa_heads(False)  # takes random numbers once
    torch.manual_seed(0)
    results = run(call)
    torch.manual_seed(0)
    # The settings are made anew, for a cache was filled; and the text is given whole.
    call = call_of(intervention, setting)
    if call.settings["input_ids"] is not None:
        call.settings["input_ids"] = call.texts.ids
    expected = write_out(call)
    results = results if isinstance(results, Tensor) else results.sequences
    start = expected.shape[1] - results.shape[1]  # of a prompt whose first tokens were in a cache
    assert torch.equal(results, expected[:, start:]), (results, expected)
