"""Lists vLLM's architectures that can be widened: their blocks have the parts that `widening` reads."""

ARCHITECTURES = {
    name: f"Otter{name}" for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
}
"""The keys are vLLM's names, the values the names of the widened architectures."""
