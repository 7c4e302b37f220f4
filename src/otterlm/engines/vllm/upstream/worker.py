"""Wraps vLLM's two model runners: the numbers of the sampled rows are read, and attached to the step's output.

Where drafts are verified, the first runner leaves out the logits processors of plugins. So steering is added to what it
applies to each request's last row, and the rejection sampler is wrapped for the rows before. vLLM's pull request 43672
proposes what would make both needless: its processors say that they support drafts, and have `apply_with_spec_decode`.
"""

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from otterlm.engines.vllm.upstream.wrapping import FIELD, PROMPTS
from otterlm.engines.vllm.watching import Copies, Watcher


def _watcher(runner: Any) -> Watcher | None:
    return getattr(getattr(runner, "model", None), "watcher", None)


def execute(original: Any, runner: Any, scheduled: Any, *rest: Any, **named: Any) -> Any:
    if watcher := _watcher(runner):
        entering = [
            (new.req_id, new.sampling_params.extra_args, len(new.prompt_token_ids or new.prompt_embeds))
            for new in scheduled.scheduled_new_reqs
            if new.sampling_params
        ]
        watcher.schedule(entering, scheduled.finished_req_ids, scheduled.total_num_scheduled_tokens)
    return original(runner, scheduled, *rest, **named)


def prepare(original: Any, runner: Any, *rest: Any, **named: Any) -> Any:
    """Wraps the first model runner, where it has its model and gets its cache: steering joins what samples."""
    output = original(runner, *rest, **named)
    if _watcher(runner):
        runner.model.warm()
    steering = getattr(runner.model, "steering", None)
    if steering is not None and not hasattr(runner.rejection_sampler, FIELD):  # the cache may be made twice
        runner.input_batch.logitsprocs.non_argmax_invariant.append(steering)
        setattr(runner.rejection_sampler, FIELD, steering)
    return output


def verify(original: Any, sampler: Any, logits: Any, sampling: Any, drafts: Any) -> Any:
    """Wraps the first model runner's rejection sampler, where it changes the logits that verify drafts.

    Steering comes after what rules tokens out and before penalties, as for rows without drafts. Penalties come first
    here, so what rules tokens out runs twice; the second time it changes nothing.
    """
    steering = getattr(sampler, FIELD, None)
    if steering is None or not steering.steers:
        return original(sampler, logits, sampling, drafts)
    ruled_out = replace(sampling, no_penalties=True, thinking_budget_state_holder=None)
    logits = original(sampler, logits, ruled_out, drafts)
    logits = steering.apply_with_spec_decode(logits, drafts.num_draft_tokens)
    return original(sampler, logits, sampling, drafts)


def expand(original: Any, values: Any, ends: Any, count: int, replace_from: int = 0, replace_to: int = 0) -> Any:
    """Wraps what gives each draft the temperature, top_k or top_p of its request.

    On CPUs vLLM 0.32 returns memory that nothing was written to (its issue 55005), so samples would be of no
    distribution, and greedy requests beside them would get other tokens.
    """
    if values.device.type != "cpu":
        return original(values, ends, count, replace_from, replace_to)
    expanded = values.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), output_size=count)
    return expanded.masked_fill(expanded == replace_from, replace_to)


def sample(original: Any, runner: Any, logits: Any, drafts: Any) -> Any:
    """Wraps the first model runner, which has computed the logits.

    A step may verify drafts of no request. It samples as a step of an engine without drafts: on CPUs vLLM 0.32 ends
    with an error where a request of it has a `top_k`.
    """
    if drafts is not None and not any(drafts.num_draft_tokens):
        drafts = None
    if watcher := _watcher(runner):
        batch = runner.input_batch
        counts = [0] * len(batch.req_ids) if drafts is None else drafts.num_draft_tokens
        watcher.sample(batch.req_ids, counts, batch.generators)
    return original(runner, logits, drafts)


def has_room(original: Any, runner: Any, metadata: Any) -> bool:
    """Wraps the first model runner, where it asks whether the longest text of a step leaves room for drafts.

    Where it does not, vLLM 0.32 drafts zeros for all texts, and verifies them in vain: such a step of 16 texts takes
    three times as long. A proposer of one's own knows of every text how long it is, so it is asked all the same.
    """
    if metadata is not None and runner.speculative_config.method == "custom_class":
        return True
    fits: bool = original(runner, metadata)
    return fits


def read_prompts(original: Any, runner: Any, hidden: Any, counts: Any) -> Any:
    """Wraps the first model runner, where it computes prompts' log probabilities."""
    if watcher := _watcher(runner):
        for request in watcher.reading:
            if count := counts.get(request):
                row = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request]])
                watcher.read_prompt(request, hidden[row : row + count], runner.requests[request].num_computed_tokens)
    return original(runner, hidden, counts)


def sample_second(original: Any, runner: Any, hidden: Any, batch: Any, grammar: Any) -> Any:
    """Wraps the second model runner, which computes the logits here."""
    if watcher := _watcher(runner):
        watcher.assign(batch.expanded_idx_mapping)
    output = original(runner, hidden, batch, grammar)
    if watcher:
        rows = np.diff(batch.cu_num_logits_np[: len(batch.req_ids) + 1])
        watcher.sample(batch.req_ids, (rows - 1).tolist())
        reading = set(watcher.reading)
        for index, request in enumerate(batch.req_ids):
            if request in reading:
                row, end = batch.query_start_loc_np[index : index + 2].tolist()
                watcher.read_prompt(request, hidden[row:end], int(batch.num_computed_prefill_tokens_np[index]))
    return output


def attach(original: Any, runner: Any, grammar: Any) -> Any:
    output, watcher = original(runner, grammar), _watcher(runner)
    if output is None or watcher is None or not (copies := watcher.take()):
        return output
    pending = import_module("vllm.v1.outputs").AsyncModelRunnerOutput
    if not isinstance(output, pending):
        return _put(output, copies)

    class Attaching(pending):  # type: ignore[misc, valid-type]
        """The output is pending. When it arrives it has waited for the step's stream, and so for the copies."""

        def get_output(self) -> Any:
            return _put(output.get_output(), copies)

    return Attaching()


def _put(output: Any, copies: Copies) -> Any:
    setattr(output, FIELD, copies.by_request())
    setattr(output, PROMPTS, copies.of_prompts())
    return output
