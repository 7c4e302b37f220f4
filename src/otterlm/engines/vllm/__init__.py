"""A plugin for vLLM: exported folders are served as any other model, with per-request steering and rewards out.

vLLM finds it by the entry points in `pyproject.toml`; nothing here needs to be imported by hand.
"""


def register() -> None:
    """Makes vLLM know exported folders. Runs in every process of an engine, any number of times."""
    from vllm import ModelRegistry

    import otterlm.engines.exported  # registers the configurations  # noqa: F401
    from otterlm.engines.vllm.architectures import ARCHITECTURES

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES:
        if f"Otter{name}" not in known:
            ModelRegistry.register_model(f"Otter{name}", f"otterlm.engines.vllm.models:Otter{name}")
