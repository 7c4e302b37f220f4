"""What a recipe is: how an adapter is made, from data to a saved folder."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.training.recipes.common import Run


class Recipe(Protocol):
    """A frozen dataclass. Its fields, made by `otterlm.settings.setting`, are the options of `otter train NAME` or
    `otter distill NAME`; its docstring is the verb's help.

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
        """Trains an adapter and saves it into `run.out`. Started again after an interruption, it goes on.

        Args:
            base: the frozen model.
            tokenizer: its tokenizer, padding on the left.
            data: what `read` returned.
            config: shape of the adapter.
            run: how and where.

        Returns:
            The metrics of the saved weights on the part held out.

        Raises:
            OtterError: the data do not fit the base, or the adapter cannot be trained or written.
        """
