"""What all interventions share: processors, criteria and loops."""

from typing import TYPE_CHECKING, Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import LogitsProcessor

from otterlm.errors import OtterError
from otterlm.generation.reading import Generation
from otterlm.generation.settings import Request, Supports, check
from otterlm.signals.base import Capability

if TYPE_CHECKING:
    from otterlm.model import OtterModel


def bare(model: Any) -> "OtterModel":
    """The model itself, where it was compiled or is in a module for parallel passes.

    Raises:
        OtterError: it is no OtterModel.
    """
    found: Any = extract_model_from_parallel(model, keep_torch_compile=False) if isinstance(model, nn.Module) else model
    if not hasattr(found, "generating"):
        raise OtterError(f"an intervention reads the signals of an OtterModel, not of a {type(found).__name__}")
    inside: OtterModel = found
    return inside


class Intervention:
    """A processor, a criterion or a loop that changes what a model says.

    Attributes:
        supports: what it can be combined with.
        model: the model whose signals it reads; None: that which generates, or none.
        off: whether it leaves the base's own decoding alone, at weight 0 for instance.
        guards: whether it ends rows by their reward.
        name: what errors call it.
    """

    supports = Supports()
    model: "OtterModel | None" = None
    off = False
    guards = False
    name = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    def reads(self, model: "OtterModel") -> str | None:
        """The name of the adapter whose signal it reads, if any."""
        return None

    def check(self, model: "OtterModel", request: Request) -> None:
        """That it can do its work in a call of `generate`.

        Raises:
            OtterError: it cannot.
        """
        name, adapter = self.name, self.reads(model)
        if not self.off:
            if self.model is not None and self.model is not model:
                raise OtterError(f"this {name} is of another OtterModel than the one that generates")
            if adapter is not None and adapter not in model.active_adapters:
                why = "is off" if adapter in model.adapters else "is not there any more"
                raise OtterError(f"{name} reads the adapter {adapter!r}, which {why}")
        check(request, self.supports, name)

    def prepare(self, request: Request) -> dict[str, Any]:
        """Arguments of the call of `generate` that it changes."""
        return {}

    def begin(self, generation: Generation) -> None:
        """Called before the first token."""


class SignalProcessor(Intervention, LogitsProcessor):
    """A processor that reads the signal of the pass that gave the scores.

    Args:
        model: the model that generates.
        adapter_name: whose signal; may be left out where one adapter can do what is needed.
        needs: what the signal must be able to do.
    """

    def __init__(self, model: "OtterModel", adapter_name: str | None, needs: Capability) -> None:
        self.model = bare(model)
        self.adapter_name = self.model.adapter_name(adapter_name, needs)

    def reads(self, model: "OtterModel") -> str | None:
        """The name of its adapter."""
        return self.adapter_name

    def signal(self, input_ids: Tensor, scores: Tensor) -> Any:
        """The adapter's signal, its last position that of the scores; None where the scores are a draft's.

        Args:
            input_ids: `[B, T]`, the text.
            scores: `[B, V]`, of the next token.

        Raises:
            OtterError: the scores are not of this model's latest pass.
        """
        assert self.model is not None
        generation = self.model.generation
        if generation is None:
            self.model.check_read(input_ids)
        elif not generation.choosing:
            if generation.drafts:
                return None
            raise OtterError("these scores are of another model's generation: generate with the OtterModel")
        signal = self.model.signal(self.adapter_name)
        if len(signal.state) != len(scores):
            raise OtterError(
                f"the latest pass was of {len(signal.state)} sequences but the scores are of {len(scores)}: "
                "generate with the OtterModel"
            )
        return signal
