"""Which of vLLM's architectures can be widened: those whose blocks have the parts of `otterlm.engines.vllm.widening`."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
