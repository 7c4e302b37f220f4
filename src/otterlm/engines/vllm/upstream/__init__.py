"""Contains all of vLLM 0.32, and of its compiler, that Otter depends on and that another version may change.

That is where names come from, which methods are wrapped, and which attributes of vLLM's objects are read and set. No
file outside this folder imports from vLLM. Numbers travel on vLLM's objects, beside what it puts there:

    worker      `ModelRunnerOutput.otter`             by request, rows as they were sampled; parts of prompts under
                                                      `otter_prompts`
    scheduler   `EngineCoreOutput.kv_transfer_params` under `otter`, a field that every transport carries; at the end
                of a response, what is counted of it, under `otter_end`
    front end   `RequestState.otter`                  since the request began
                `CompletionOutput.otter`              as long as its `token_ids`
    server      `otter` in the choices of a response, see `routes`
"""

from importlib import import_module

from otterlm.engines.vllm.architectures import ARCHITECTURES
from otterlm.engines.vllm.refusals import refuse_config
from otterlm.engines.vllm.upstream import adapters, compiler, front_end, scheduler, worker
from otterlm.engines.vllm.upstream.wrapping import served, shared, wrap, wrap_function

__all__ = ["install", "install_compiler", "install_worker", "served", "shared"]


def install() -> None:
    """Wraps methods of the front end and the scheduler. It runs in every process, any number of times."""
    configs = import_module("vllm.model_executor.models.config")
    checks = type("Checks", (configs.VerifyAndUpdateConfig,), {"verify_and_update_config": staticmethod(refuse_config)})
    configs.MODELS_CONFIG_MAP.update(dict.fromkeys(ARCHITECTURES.values(), checks))
    wrap("vllm.v1.engine.input_processor", "InputProcessor", "_validate_params", front_end.check)
    wrap("vllm.v1.engine.output_processor", "OutputProcessor", "process_outputs", front_end.receive)
    wrap("vllm.v1.engine.output_processor", "RequestState", "_new_completion_output", front_end.complete)
    wrap("vllm.outputs", "RequestOutput", "add", front_end.merge)
    wrap("vllm.v1.core.sched.scheduler", "Scheduler", "update_from_output", scheduler.update)
    wrap("vllm.v1.engine.async_llm", "AsyncLLM", "__init__", front_end.serve)
    wrap("vllm.v1.engine.core", "EngineCore", "add_request", adapters.add)
    import_module("vllm.v1.engine.core").EngineCore.otter_change = adapters.change


def install_worker() -> None:
    """Wraps methods of the two model runners and of what samples, for the worker of a widened model."""
    for path in ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"):
        wrap(path, "GPUModelRunner", "execute_model", worker.execute)
        wrap(path, "GPUModelRunner", "sample_tokens", worker.attach)
    wrap("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "initialize_kv_cache", worker.prepare)
    wrap("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_sample", worker.sample)
    wrap("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_input_fits_in_drafter", worker.has_room)
    wrap("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_get_prompt_logprobs_dict", worker.read_prompts)
    wrap("vllm.v1.sample.rejection_sampler", "RejectionSampler", "apply_logits_processors", worker.verify)
    wrap_function("vllm.v1.sample.rejection_sampler", "expand_batch_to_tokens", worker.expand)
    wrap("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", "sample", worker.sample_second)


def install_compiler() -> None:
    """Wraps a method of PyTorch's compiler, for a widened model that is compiled."""
    wrap("torch._inductor.scheduler", "SchedulerNode", "recompute_size_and_body", compiler.recompute)
