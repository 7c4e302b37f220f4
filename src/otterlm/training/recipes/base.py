"""Defines what a recipe is: it makes an adapter, from data to a saved folder."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.training.recipes.common import Run


class Recipe(Protocol):
    """A recipe is a frozen dataclass whose docstring is the help of `otter train NAME` or `otter distill NAME`.

    The docstring's `Example:` is shown below the options, which are the fields made by `otterlm.settings.setting`.

    A recipe may also have `unused`: fields of its configurations, of the signal's and of `Run` with which it can do
    nothing. The command line does not offer them. `tests/test_recipe_options.py` fails if one is missing there.

    Attributes:
        defaults: where the command line's defaults differ from those of `Run` and `TrainingConfig`, by field.
    """

    defaults: ClassVar[Mapping[str, Any]]

    def read(self) -> Any:
        """Reads and checks the data, before a base is loaded.

        Raises:
            OtterError: it cannot be read or does not fit the settings.
        """

    def train(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Any, config: OtterConfig, run: Run
    ) -> dict[str, float]:
        """Trains an adapter and saves it into `run.out`. Started again after an interruption, it resumes.

        Args:
            base: the frozen model.
            tokenizer: its tokenizer, padding on the left.
            data: what `read` returned.
            config: shape of the adapter.
            run: the settings of the run.

        Returns:
            The metrics of the saved weights on the held-out part.

        Raises:
            OtterError: the data do not fit the base, or the adapter cannot be trained or written.
        """
