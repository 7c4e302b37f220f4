"""Which of vLLM's architectures can be widened: those whose blocks have the parts that `widening` reads."""

ARCHITECTURES = {
    name: f"Otter{name}" for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
}
"""From vLLM's name to that of the architecture with what is inserted."""
