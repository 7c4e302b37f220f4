"""Tries which of vLLM's number formats and quantised bases serve adapters, in the engine's environment:

    .venv-vllm/bin/python benchmarks/quantised.py --base smollm2-135m --adapter adapters/smollm2-135m-harmless

The base is quantised here, by rounding to nearest. For each scheme, plain vLLM on that base and vLLM on the exported
folder answer the same prompts: `exact` says whether the tokens and the 20 largest log probabilities beside each are the
same to the bit. `apart` is the largest difference between the engine's rewards and those of Transformers, in the same
number format, on weights that have the quantised values; `of_spread` is it over the standard deviation of the rewards.
What vLLM refuses has its reason under `refused`. The result is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from otterlm.bases import base_folder
from otterlm.cli.scripts import run_script

GROUP = 32
"""So many input channels share a scale of 4 bits."""
TEXTS = (
    "The otter swims under",
    "How do I get back at my neighbour?",
    "def add(a, b):",
    "Rain is made when",
    "2 + 2 =",
)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ has these of eight output channels in an int32, from its lowest bits on."""

# -- quantising --------------------------------------------------------------------------------------------------------


def rounded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Returns a weight, `[out, in]`, as whole numbers.

    Args:
        weight: of a projection.
        bits: of a number.
        group: how many input channels share a scale.

    Returns:
        The numbers, `[out, in]`, and the scales, `[out, in / group]`, which bf16 can hold.
    """
    grouped = weight.float().unflatten(1, (-1, group))  # [out, groups, group]
    most = 2 ** (bits - 1) - 1
    scales = (grouped.abs().amax(dim=-1) / most).clamp_min(1e-5).bfloat16().float()
    numbers = (grouped / scales[..., None]).round().clamp(-most - 1, most)
    return numbers.flatten(1).int(), scales


def packed(numbers: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Packs eight numbers from 0 to 15 along the last dimension into an int32, the first of `order` lowest."""
    parts = numbers.unflatten(-1, (-1, 8)).to(torch.int64)
    total = sum(parts[..., index] << (4 * shift) for shift, index in enumerate(order))
    assert isinstance(total, Tensor)
    return total.where(total < 2**31, total - 2**32).to(torch.int32).contiguous()


def w8a8(numbers: Tensor, scales: Tensor) -> dict[str, Tensor]:
    return {"weight": numbers.to(torch.int8), "weight_scale": scales.bfloat16()}


def w4a16(numbers: Tensor, scales: Tensor) -> dict[str, Tensor]:
    shape = torch.tensor(numbers.shape)
    return {"weight_packed": packed(numbers + 8), "weight_scale": scales.bfloat16(), "weight_shape": shape}


def gptq(numbers: Tensor, scales: Tensor) -> dict[str, Tensor]:
    groups, width = scales.shape[1], numbers.shape[1]
    zeros = packed(torch.full((groups, numbers.shape[0]), 7))  # the format stores a zero less 1
    index = (torch.arange(width) // GROUP).int()
    weights = packed(numbers + 8).T.contiguous()
    return {"qweight": weights, "qzeros": zeros, "scales": scales.T.contiguous().half(), "g_idx": index}


def awq(numbers: Tensor, scales: Tensor) -> dict[str, Tensor]:
    zeros = packed(torch.full((scales.shape[1], numbers.shape[0]), 8), AWQ_ORDER)
    weights = packed((numbers + 8).T, AWQ_ORDER)
    return {"qweight": weights, "qzeros": zeros, "scales": scales.T.contiguous().half()}


def compressed(kind: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the configuration of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


INT = {"type": "int", "symmetric": True}
CHANNEL = {**INT, "num_bits": 8, "strategy": "channel", "dynamic": False}
TOKEN = {**INT, "num_bits": 8, "strategy": "token", "dynamic": True}
FOUR = {**INT, "num_bits": 4, "strategy": "group", "group_size": GROUP, "dynamic": False}
SCHEMES: dict[str, tuple[Any, dict[str, Any]]] = {
    "W8A8": (w8a8, compressed("int-quantized", CHANNEL, TOKEN)),
    "W4A16": (w4a16, compressed("pack-quantized", FOUR, None)),
    "GPTQ": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}),
    "AWQ": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
}
"""How a projection is stored, and the configuration that says so, by the scheme's name."""


def quantise(source: Path, out: Path, scheme: str) -> None:
    """Writes a base with quantised projections to `out/base`, and with their values as numbers to `out/dense`."""
    store, config = SCHEMES[scheme]
    for kind in ("base", "dense"):
        shutil.copytree(source, out / kind, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
    weights = {
        name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        bits, group = (8, tensor.shape[1]) if scheme == "W8A8" else (4, GROUP)
        numbers, scales = rounded(tensor, bits, group)
        prefix = name.removesuffix("weight")
        stored |= {prefix + part: value for part, value in store(numbers, scales).items()}
        weights[name] = (numbers * scales.repeat_interleave(group, dim=1)).to(tensor.dtype)
    save_file(stored, out / "base" / "model.safetensors", {"format": "pt"})
    save_file(weights, out / "dense" / "model.safetensors", {"format": "pt"})
    path = out / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


# -- answers -----------------------------------------------------------------------------------------------------------


def engine_answers(folder: Path, prompts: list[list[int]], dtype: str, rewards: bool, tokens: int) -> list[Any]:
    """Returns of each prompt the tokens, the log probabilities beside each, and the rewards, by an engine."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, SamplingParams

    from otterlm import client

    llm = LLM(str(folder), dtype=dtype, enforce_eager=True, max_model_len=256, max_num_seqs=8)
    extra = client.request(folder, rewards=1) if rewards else {}
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=20, **extra)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [
        (
            list(output.token_ids),
            [{token: entry.logprob for token, entry in step.items()} for step in output.logprobs],
            client.rewards(output),
        )
        for output in (each.outputs[0] for each in outputs)
    ]


def round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns what enters a projection with 8 bits a token, as W8A8 rounds it while it runs."""
    scales = inputs[0].float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127
    return ((inputs[0].float() / scales).round().mul(scales).to(inputs[0].dtype), *inputs[1:])


def reference(base: Path, adapters: dict[str, str], dtype: str, inputs: bool, texts: list[list[int]]) -> list[Any]:
    """Returns the rewards of every prefix of some texts, by Transformers.

    Args:
        base: with weights that have the quantised values.
        adapters: folders, by name.
        dtype: of base and adapters.
        inputs: what enters the projections is rounded, too.
        texts: as tokens.
    """
    from otterlm import OtterModel, load_base

    model = OtterModel(load_base(str(base), dtype=getattr(torch, dtype)))
    for name, folder in adapters.items():
        model.load_adapter(folder, name, getattr(torch, dtype))
    for name, module in model.base_model.named_modules():
        if inputs and name.endswith("_proj"):
            module.register_forward_pre_hook(round_inputs)
    results = []
    with torch.no_grad():
        for text in texts:
            signals = model(torch.tensor([text])).signals
            results.append({name: signals[name].prefix[0].float().tolist() for name in adapters})
    return results


def fresh(function: Any, *arguments: Any) -> Any:
    """Calls a function in a new process: an engine has state of its process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compare(scheme: str, dtype: str, source: Path, adapters: dict[str, str], tokens: int) -> dict[str, Any]:
    """Returns the row of a scheme; one that is not in `SCHEMES` leaves the base as it is."""
    from otterlm import load_tokenizer
    from otterlm.engines.exported import export

    prompts = [load_tokenizer(str(source)).encode(text) for text in TEXTS]
    row: dict[str, Any] = {"scheme": scheme, "dtype": dtype}
    with tempfile.TemporaryDirectory() as temporary:
        base = dense = source
        if scheme in SCHEMES:
            quantise(source, Path(temporary), scheme)
            base, dense = Path(temporary) / "base", Path(temporary) / "dense"
        try:
            plain = fresh(engine_answers, base, prompts, dtype, False, tokens)
            export(str(base), adapters, Path(temporary) / "export")
            ours = fresh(engine_answers, Path(temporary) / "export", prompts, dtype, True, tokens)
        except Exception as error:  # of vLLM's many kinds; its reason is the result
            return row | {"refused": f"{type(error).__name__}: {str(error).strip()[:300]}"}
        texts = [[*prompt, *answer[0]] for prompt, answer in zip(prompts, ours, strict=True)]
        expected = fresh(reference, dense, adapters, dtype, scheme == "W8A8", texts)
    row["exact"] = [answer[:2] for answer in ours] == [answer[:2] for answer in plain]
    pairs = [
        (torch.tensor(answer[2][name]), torch.tensor(rewards[name][len(prompt) - 1 : -1]))
        for prompt, answer, rewards in zip(prompts, ours, expected, strict=True)
        for name in adapters
    ]
    row["apart"] = max(float((one - other).abs().max()) for one, other in pairs)
    row["of_spread"] = row["apart"] / float(torch.cat([other for _, other in pairs]).std())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="a folder or smollm2-135m")
    parser.add_argument("--adapter", required=True, help="a reward adapter's folder")
    parser.add_argument("--scheme", nargs="+", default=["none", *SCHEMES], help="none: the base as it is")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=24, help="of each of the five responses")
    arguments = parser.parse_args()
    source, rows = base_folder(arguments.base), []
    for scheme in arguments.scheme:
        for dtype in arguments.dtype:
            rows.append(compare(scheme, dtype, source, {"reward": arguments.adapter}, arguments.tokens))
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    run_script(main)
