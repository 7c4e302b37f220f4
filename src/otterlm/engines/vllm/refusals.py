"""Refuses configurations of an engine in which the inserted streams would fail or predict wrongly."""

from typing import Any

from otterlm.errors import OtterError

DRAFTING = ("custom_class", "draft_model", "ngram", "ngram_gpu", "suffix")
"""These speculative methods do not read the target's hidden states, which are wider here."""


def refuse_config(vllm_config: Any) -> None:
    """Refuses an engine's configuration that an exported folder cannot be served with.

    Raises:
        OtterError: it cannot; the message says what to change.
    """
    model, parallel, speculative = vllm_config.model_config, vllm_config.parallel_config, vllm_config.speculative_config
    method = None if speculative is None else speculative.method
    reasons = {
        f"runner={model.runner_type!r}: its hidden states are wider than the base's, serve the base itself": (
            model.runner_type != "generate"
        ),
        "LoRA (enable_lora): merge the LoRA into the base, then train and export for that": (
            vllm_config.lora_config is not None
        ),
        "pipeline_parallel_size above 1: use tensor_parallel_size": parallel.pipeline_parallel_size > 1,
        "context parallelism: leave prefill_context_parallel_size and decode_context_parallel_size at 1": (
            parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1
        ),
        "dual batch overlap or batch-sharded sampling: leave enable_dbo and enable_batch_sharded_sampling off": (
            parallel.use_ubatching or bool(parallel.enable_batch_sharded_sampling)
        ),
        "rejection_sample_method='synthetic': it takes drafts without a look at the logits": (
            speculative is not None and speculative.rejection_sample_method == "synthetic"
        ),
        "enable_adaptive_verification: which drafts are verified is known on the device alone": (
            speculative is not None and speculative.enable_adaptive_verification
        ),
        f"the speculative method {method!r}: there are {', '.join(DRAFTING)}": (
            method is not None and method not in DRAFTING
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise OtterError(f"an exported folder cannot be served with {reason}")
