"""Defines what all interventions share: processors, criteria and loops."""

from typing import TYPE_CHECKING, Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import LogitsProcessor

from otterlm.errors import OtterError
from otterlm.generation.reading import Generation
from otterlm.generation.request import Request
from otterlm.generation.settings import Supports, check
from otterlm.signals.base import Capability

if TYPE_CHECKING:
    from otterlm.model import OtterModel


def bare(model: Any) -> "OtterModel":
    """Returns the OtterModel inside a model that was compiled or is in a module for parallel passes.

    Raises:
        OtterError: it is no OtterModel.
    """
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False) if isinstance(model, nn.Module) else model
    if not hasattr(inner, "generating"):
        raise OtterError(f"an intervention reads the signals of an OtterModel, not of a {type(inner).__name__}")
    otter: OtterModel = inner
    return otter


class Intervention:
    """An intervention is a processor, a criterion or a loop that changes what a model generates.

    Attributes:
        supports: what it can be combined with.
        model: the model whose signals it reads; None: the model that generates, or none.
        off: whether it leaves the base's decoding unchanged, at weight 0 for instance.
        guards: whether it ends rows by a signal.
        name: its name in errors.
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
        """Returns the name of the adapter whose signal it reads, if any."""
        return None

    def check(self, model: "OtterModel", request: Request) -> None:
        """Checks that it can do its work in a call of `generate`.

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
        """Returns the arguments of the call of `generate` that it changes."""
        return {}

    def begin(self, generation: Generation) -> None:
        """Starts a call. It is called before the first token."""


class SignalProcessor(Intervention, LogitsProcessor):
    """The processor reads the signal of the pass that gave the scores.

    Args:
        model: the model that generates.
        adapter_name: of the signal; may be left out where one adapter can do what is needed.
        needs: what the signal must be able to do.
    """

    def __init__(self, model: "OtterModel", adapter_name: str | None, needs: Capability) -> None:
        self.model = bare(model)
        self.adapter_name = self.model.adapter_name(adapter_name, needs)

    def reads(self, model: "OtterModel") -> str | None:
        """Returns the name of its adapter."""
        return self.adapter_name

    def signal(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Returns the adapter's signal, its last position that of the scores; None where the scores are a draft's.

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
