"""Which of vLLM's architectures can be widened: those whose blocks have the parts that `widening` reads."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
PREFIX = "Otter"
"""Before the name of an architecture: with what is inserted."""
