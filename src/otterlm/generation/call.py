"""Runs a call of `OtterModel.generate` in Transformers, with its interventions."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

from otterlm.errors import OtterError, reason
from otterlm.generation.interventions import Intervention
from otterlm.generation.reading import Criteria, Generation, Processors
from otterlm.generation.request import Request

if TYPE_CHECKING:
    from otterlm.model import OtterModel


def generate(model: "OtterModel", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs `base.generate` with interventions.

    Where nothing reads signals this is the base's method. Where something does, the base prepares the call and leaves
    the decoding loop to Otter, so that all settings are known and checked before the first token.

    Args:
        model: the model that generates.
        args, kwargs: as for the base's method.

    Raises:
        OtterError: an intervention cannot honour a setting, or Transformers refuses the call.
    """
    bound = _SIGNATURE.bind(model, *args, **kwargs).arguments
    arguments = {name: value for name, value in bound.items() if name in _NAMES} | bound.get("kwargs", {})
    if isinstance(assistant := arguments.get("assistant_model"), type(model)):
        arguments["assistant_model"] = assistant.base_model  # drafts need no signals
    call = _Call(model, arguments)
    try:
        return call.run()
    except BaseException as error:
        if (streamer := arguments.get("streamer")) is not None:
            streamer.end()  # or a thread that reads it would wait for ever
        refused = bool(call.interventions) and not call.chose and not isinstance(error, OtterError)
        # Of the last two only those of libraries: an error of the user's own, or one of memory, keeps its class.
        if refused and (isinstance(error, ValueError | ImportError) or type(error) in (RuntimeError, AssertionError)):
            raise OtterError(reason(error)) from error
        raise


_SIGNATURE = inspect.signature(GenerationMixin.generate)
_NAMES = [name for name in _SIGNATURE.parameters if name not in ("self", "kwargs")]
_KINDS = {"logits_processor": LogitsProcessor, "stopping_criteria": StoppingCriteria}


def _interventions(arguments: dict[str, Any]) -> list[Intervention]:
    """Returns the interventions of a call, and checks that each is the right argument.

    Raises:
        OtterError: one is passed as another argument, without a list, or as a class.
    """
    interventions = []
    for argument in ("logits_processor", "stopping_criteria", "custom_generate"):
        value = arguments.get(argument)
        several = value if isinstance(value, list | tuple) else [value]
        for part in several:
            if isinstance(part, type) and issubclass(part, Intervention):
                raise OtterError(f"{argument} takes {part.__name__}(...), not the class")
            if not isinstance(part, Intervention):
                continue
            right = next((name for name, kind in _KINDS.items() if isinstance(part, kind)), "custom_generate")
            if right != argument or (right in _KINDS and several is not value):
                raise OtterError(f"{part.name} belongs in {right}{' in a list' if right in _KINDS else ''}")
            interventions.append(part)
    return interventions


class _Call:
    """Runs a call of `generate`.

    Args:
        model: the model that generates.
        arguments: of the call, by name.

    Attributes:
        interventions: of the call.
    """

    def __init__(self, model: "OtterModel", arguments: dict[str, Any]) -> None:
        self.interventions: list[Intervention] = []
        self._model = model
        self._base: Any = model.base_model
        self._arguments = arguments
        self._generation: Generation | None = None

    @property
    def chose(self) -> bool:
        """Returns whether a token has been chosen."""
        return self._generation is not None and self._generation.lengths is not None

    def run(self) -> Any:
        """Checks the call, has the base prepare it, and decodes."""
        arguments, base = self._arguments, self._base
        self.interventions = _interventions(arguments)
        method = arguments.get("custom_generate")
        readers = arguments.get("logits_processor") or arguments.get("stopping_criteria")
        if not (self.interventions or callable(method) or (readers and method is None)):
            return base.generate(**arguments)
        request = self._request()
        for intervention in self.interventions:
            intervention.check(self._model, request)
        changed: dict[str, Any] = {}
        for intervention in self.interventions:
            changed |= intervention.prepare(request)
        if (allowed := (arguments | changed).get("prefix_allowed_tokens_fn")) is not None:
            # It may know nothing to follow a text that is not of its row.
            changed["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(self._row(row), ids)
        if request.config.stop_strings is not None and (tokenizer := arguments.get("tokenizer")) is not None:
            # Transformers does not pass the tokenizer to a callable `custom_generate`.
            stop = StopStringCriteria(tokenizer, request.config.stop_strings)
            criteria = StoppingCriteriaList([*(arguments.get("stopping_criteria") or ()), stop])
            changed |= {"stop_strings": None, "stopping_criteria": criteria}
        if isinstance(method, Intervention):
            changed["streamer"] = None  # the loop decides what is shown first
        decode = self._plain(request) if method is None else self._custom(method)
        return base.generate(**(arguments | changed | {"custom_generate": decode}))

    def _row(self, row: int) -> int:
        """Returns the row whose text stands in a row of the batch."""
        read = None if self._generation is None else self._generation.row
        return row if read is None else read

    def _request(self) -> Request:
        arguments = dict(self._arguments)
        others = ("tokenizer", "assistant_tokenizer", "trust_remote_code")
        settings = {name: value for name, value in arguments.items() if name not in (*_NAMES, *others)}
        config, _ = self._base._prepare_generation_config(arguments.get("generation_config"), **settings)
        mode = config.get_generation_mode(arguments.get("assistant_model"))
        arguments["synced_gpus"] = self._mode_arguments()["synced_gpus"]
        guarded = ", ".join(each.name for each in self.interventions if each.guards)
        vocabulary = self._base.config.get_text_config(decoder=True).vocab_size
        return Request(config, mode, arguments, vocabulary, guarded)

    def _mode_arguments(self) -> dict[str, Any]:
        """Returns the arguments that Transformers passes to its decoding methods."""
        arguments = self._arguments
        tokenizers = {name: arguments.get(name) for name in ("tokenizer", "assistant_tokenizer")}
        forwarded: dict[str, Any] = self._base._extract_generation_mode_kwargs(
            None,
            tokenizers,
            arguments.get("synced_gpus"),
            arguments.get("assistant_model"),
            arguments.get("streamer"),
        )
        return forwarded

    def _plain(self, request: Request) -> Callable[..., Any]:
        """Makes the base's decoding, whose processors and criteria read signals."""
        forwarded = self._mode_arguments()
        self._base._validate_generation_mode(request.mode, request.config, forwarded)
        assisted = request.mode == GenerationMode.ASSISTED_GENERATION

        def decode(
            base: PreTrainedModel,
            input_ids: Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: Any,
            inputs_tensor: Tensor | None = None,
            **inputs: Any,
        ) -> Any:
            generation = self._begin(generation_config, inputs.get("past_key_values") if assisted else None)
            method = getattr(type(base), GENERATION_MODES_MAPPING[request.mode])
            names = inspect.signature(method).parameters
            accepted = {name: value for name, value in forwarded.items() if name in names}
            if assisted:
                accepted["inputs_tensor"] = inputs_tensor
            with self._model.generating(generation):
                output = method(
                    base,
                    input_ids,
                    logits_processor=Processors(logits_processor, generation),
                    stopping_criteria=Criteria(stopping_criteria, generation),
                    generation_config=generation_config,
                    **accepted,
                    **inputs,
                )
            generation.finish()
            return output

        return decode

    def _custom(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a decoding loop that receives this model, and the streamer, which Transformers does not pass to it."""
        streamer = self._arguments.get("streamer")
        forwarded: dict[str, Any] = {} if streamer is None else {"streamer": streamer}
        if isinstance(method, Intervention) and method.supports.synced:
            forwarded["synced_gpus"] = self._mode_arguments()["synced_gpus"]

        @functools.wraps(method, updated=())
        def decode(
            _: PreTrainedModel,
            input_ids: Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: Any,
            **inputs: Any,
        ) -> Any:
            generation = self._begin(generation_config)
            with self._model.generating(generation):
                return method(
                    self._model,
                    input_ids,
                    logits_processor=Processors(logits_processor, generation),
                    stopping_criteria=Criteria(stopping_criteria, generation),
                    generation_config=generation_config,
                    **forwarded,
                    **inputs,
                )

        return decode

    def _begin(self, config: Any, drafts: Any = None) -> Generation:
        self._model.read_signals({})  # the signals of an earlier pass are of another text
        self._generation = Generation(self._model, config, drafts)
        for intervention in self.interventions:
            intervention.begin(self._generation)
        return self._generation
