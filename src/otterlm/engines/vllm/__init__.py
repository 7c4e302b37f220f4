"""Adds exported folders to vLLM, as a plugin with steering, guards and rewards by request.

vLLM finds the plugin by the entry points in `pyproject.toml`. Nothing here needs to be imported by hand.
"""


def register() -> None:
    """Makes vLLM know exported folders. It runs in every process of an engine, any number of times."""
    from otterlm.engines import exported
    from otterlm.engines.vllm.architectures import ARCHITECTURES
    from otterlm.engines.vllm.upstream import install
    from otterlm.engines.vllm.upstream.names import ModelRegistry

    exported.register()
    install()
    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"otterlm.engines.vllm.models:{name}")
