"""Transformers' tests pass on an OtterModel wherever they pass on its base (make test-slow).

Each test runs on the plain model first. Where that passes, the OtterModel, two adapters on, must pass too, or the table
says why it cannot. Tests of exporters are left out: they take the model's own forward pass apart, and ours has its own.
"""

from collections.abc import Iterator
from logging import getLogger
from typing import Any

import pytest
import torch
from transformers import logging
from transformers_suite import ARCHITECTURES, VARIABLE, load_mixins, outcome, plain_class, suite, wrapped

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:It is deprecated to return a value")]

FROZEN = "The base is frozen: no gradient passes through it, its loss has none, and there is nothing to checkpoint."
NAMES = "It looks for the base's parameters under the base's names, and here `base_model.` stands before them."
CANNOT: dict[str, str] = {
    "test_inherits_generation_mixin": "An OtterModel is not a subclass of the base's class; it calls its `generate`.",
    "test_retain_grad_hidden_states_attentions": FROZEN,
    "test_enable_input_require_grads_with_gradient_checkpointing": FROZEN,
    "test_gradient_checkpointing_enable_disable": FROZEN,
    "test_peft_gradient_checkpointing_enable_disable": FROZEN,
    "test_training": FROZEN,
    "test_training_gradient_checkpointing": FROZEN,
    "test_training_gradient_checkpointing_use_reentrant_false": FROZEN,
    "test_training_gradient_checkpointing_use_reentrant_true": FROZEN,
    "test_model_weights_reload_no_missing_tied_weights": NAMES,
    "test_tied_head_has_a_tp_plan_entry": NAMES,
    "test_tp_plan_matches_params": NAMES,
    "test_from_pretrained_no_checkpoint": f"It gives the tensors of the OtterModel to the base. {NAMES}",
    "test_tied_weights_keys": "A state dict holds a tied tensor once, so that it can be written as safetensors.",
    "test_correct_missing_keys": "Its `base_model` is the base with its head, as PEFT's, so the head is not missing.",
    "test_init_weights_can_init_buffers": "It initialises the base anew, which an OtterModel refuses.",
    "test_all_tensors_are_parameter_or_buffer": "It initialises the base anew, which an OtterModel refuses.",
    "test_resize_embeddings_untied_no_reinit_on_post_init": "It calls `post_init`, which an OtterModel refuses.",
}


Mixins = tuple[type, type]
MARKERS = (
    *("accelerate_tests", "generate", "timeout", "torch_compile_test"),
    *("executorch_export_test", "onnx_export_test", "torch_export_test"),
    *("flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"),
)


@pytest.fixture(scope="module")
def mixins(pytestconfig: pytest.Config) -> Mixins:
    for name in MARKERS:
        pytestconfig.addinivalue_line("markers", f"{name}: of Transformers")
    return load_mixins()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Does without warnings of weights that a test leaves out, and without code for graphs: what is tested is that they
    can be captured."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compile_(*args, **kwargs | {"backend": "eager"}))
    monkeypatch.setattr(getLogger("torch"), "propagate", False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


def names_of(mixin: type) -> list[str]:
    return sorted(name for name, test in vars(mixin).items() if name.startswith("test_") and callable(test))


def compare(architecture: str, mixins: Mixins, tested: type, subtests: Any) -> None:
    plain = plain_class(architecture)
    theirs, ours = (suite(architecture, model_class, mixins) for model_class in (plain, wrapped(plain)))
    for name in names_of(tested):
        with subtests.test(name):
            result, why = outcome(theirs(name))
            if result == "skipped":
                pytest.skip(f"the plain model skips it: {why}")
            assert result == "passed", f"the plain model fails: {why}"
            result, why = outcome(ours(name))
            if name in CANNOT:
                assert result != "passed", "it passes: take it out of the table"
                pytest.skip(CANNOT[name])
            assert result == "passed", why


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_models(architecture: str, mixins: Mixins, subtests: Any) -> None:
    compare(architecture, mixins, mixins[0], subtests)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_generation(architecture: str, mixins: Mixins, subtests: Any) -> None:
    if not names_of(mixins[1]):
        pytest.skip(f"the sdist has no tests of generation: {VARIABLE} names a checkout, see transformers_suite.py")
    compare(architecture, mixins, mixins[1], subtests)


def test_the_table_names_tests(mixins: Mixins) -> None:
    models, generation = map(names_of, mixins)
    assert not CANNOT.keys() - {*models, *(generation or CANNOT)}
