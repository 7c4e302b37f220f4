"""Gives names of vLLM, as `from otterlm.engines.vllm.upstream.names import SamplingParams`."""

from importlib import import_module
from typing import Any

HOME = {
    "Attention": "vllm.model_executor.layers.attention",
    "BatchUpdate": "vllm.v1.sample.logits_processor",
    "ChatCompletionRequest": "vllm.entrypoints.openai.chat_completion.protocol",
    "CompletionRequest": "vllm.entrypoints.openai.completion.protocol",
    "LlamaForCausalLM": "vllm.model_executor.models.llama",
    "LogitsContext": "vllm.v1.worker.gpu.sample.logits_processor.interface",
    "LogitsProcessor": "vllm.v1.sample.logits_processor",
    "MistralForCausalLM": "vllm.model_executor.models.mistral",
    "ModelRegistry": "vllm",
    "Qwen2ForCausalLM": "vllm.model_executor.models.qwen2",
    "Qwen3ForCausalLM": "vllm.model_executor.models.qwen3",
    "RotaryEmbedding": "vllm.model_executor.layers.rotary_embedding",
    "SamplingParams": "vllm.sampling_params",
    "VllmConfig": "vllm.config",
    "current_platform": "vllm.platforms",
    "dispatch_cpu_unquantized_gemm": "vllm.model_executor.layers.utils",
    "get_attention_context": "vllm.model_executor.layers.attention.attention",
    "get_tensor_model_parallel_rank": "vllm.distributed",
    "get_tensor_model_parallel_world_size": "vllm.distributed",
    "process_dict_updates": "vllm.v1.sample.logits_processor.builtin",
    "tensor_model_parallel_all_gather": "vllm.distributed",
    "tensor_model_parallel_all_reduce": "vllm.distributed",
}
"""The names' modules. They are imported when a name is first read: most processes need few of them."""


def __getattr__(name: str) -> Any:
    if name == "LogitsProcessorV2":  # the same name, for the second model runner
        return import_module(HOME["LogitsContext"]).LogitsProcessor
    if name not in HOME:
        raise AttributeError(name)
    return getattr(import_module(HOME[name]), name)
