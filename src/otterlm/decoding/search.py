"""Scores the base's top-k next tokens by the prefix reward and takes one (search as in ARGS, arXiv 2402.01694).

ARGS runs a second model on every candidate. Here the k candidates go through the base as one pass of k tokens that do
not see each other. It gives their rewards and, for the one that is taken, the logits of the next step. So a
token costs one pass, and no pass is made twice.
"""

from dataclasses import replace

import torch
from torch import Tensor

from otterlm.cache import keep_path
from otterlm.checks import check_chance, check_count, check_positive, check_weight
from otterlm.decoding.ends import unread_ends
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.output import RewardedOutput
from otterlm.decoding.prompt import read_prompt
from otterlm.decoding.steering import plausible
from otterlm.decoding.transposed_linear import TransposedLinear
from otterlm.errors import OtterError
from otterlm.interventions import CANDIDATES, MIN_P, InterventionSettings
from otterlm.masks import tree_mask
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


class CandidateSearch(Loop):
    """The loop decodes for `model.generate(..., custom_generate=CandidateSearch(...))`.

    The score of a candidate is its logit, after all processors of `generate`, + weight * reward of the prefix that ends
    with it, in the adapter's unit (`SignalConfig.unit`). The mode decides how one is taken, whatever `do_sample` is.

    Args:
        weight: of the reward; 0 is the base's decoding.
        top_k: candidates a step, at most.
        mode: `greedy` takes the best score, `stochastic` samples from softmax(score / temperature).
        temperature: for `stochastic`.
        adapter_name: of the reward; may be left out where there is one.
        min_p: candidates have at least this share of the likeliest one's probability; 0: any.

    Raises:
        OtterError: a setting is out of range.
    """

    output = RewardedOutput

    def __init__(
        self,
        weight: float = 1.0,
        top_k: int = CANDIDATES,
        mode: str = "greedy",
        temperature: float = 1.0,
        adapter_name: str | None = None,
        min_p: float = MIN_P,
    ) -> None:
        self.weight = check_weight("weight", weight)
        self.top_k = check_count("top_k", top_k)
        if mode not in ("greedy", "stochastic"):
            raise OtterError(f"mode must be greedy or stochastic, got {mode!r}")
        self.mode = mode
        self.temperature = check_positive("temperature", temperature)
        self.adapter_name = adapter_name
        self.min_p = check_chance("min_p", min_p)
        self.off = self.weight == 0
        self.supports = replace(Loop.supports, samples=self.off or mode == "stochastic")

    def reads(self, model: OtterModel) -> str:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.PREFIX)

    def decode(self, run: Run) -> RewardedOutput:
        """Decodes step by step, see `Loop`."""
        model, input_ids, name = run.model, run.input_ids, self.reads(run.model)
        prompt = read_prompt(run)
        logits, seen, position = prompt.output.logits[:, -1], prompt.seen, prompt.position  # [B, V], [B, P], [B]
        unfinished = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        pad = run.config._pad_token_tensor
        turned = TransposedLinear(model, model.base_model)
        rewards: list[Tensor] = []
        weight = self.weight / model.adapter(name).config.signal.unit
        value = prompt.output.signals[name].prefix[:, -1]  # [B]
        ends = input_ids.new_tensor(sorted(unread_ends(model, name)))
        while unfinished.any():
            scores = run.processors(input_ids, logits.float())
            likely, candidates = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)  # [B, k]
            k = candidates.shape[1]
            with turned:
                output = model(
                    input_ids=candidates,
                    attention_mask=tree_mask(seen.bool(), torch.eye(k, dtype=torch.bool), model.base_model.dtype),
                    position_ids=position[:, None].expand(-1, k),
                    past_key_values=prompt.cache,
                )
            values = output.signals[name].prefix  # [B, k]
            values = torch.where(torch.isin(candidates, ends), value[:, None], values)
            scored = likely + weight * values
            if self.min_p > 0:
                scored = scored.masked_fill(~plausible(likely, self.min_p), -torch.inf)
            chosen = self._choose(scored)  # [B]
            keep_path(prompt.cache, chosen[:, None], k)
            rows = torch.arange(len(chosen), device=chosen.device)
            logits = output.logits[rows, chosen]
            # Processors and criteria read the signals of the text, not of its rivals.
            model.read_signals({key: signal.state[rows, chosen, None] for key, signal in output.signals.items()})
            token = candidates[rows, chosen]
            if pad is not None:
                token = torch.where(unfinished, token, pad.to(token))
            value = values[rows, chosen]
            rewards.append(value.masked_fill(~unfinished, torch.nan))
            input_ids = torch.cat((input_ids, token[:, None]), dim=-1)
            seen = torch.cat((seen, seen.new_ones(len(seen), 1)), dim=-1)
            position = position + 1
            run.show(token)
            unfinished = unfinished & ~run.criteria(input_ids, None)
        return RewardedOutput(sequences=input_ids, rewards=torch.stack(rewards, dim=1))

    def _choose(self, scores: Tensor) -> Tensor:
        if self.mode == "greedy":
            return scores.argmax(dim=-1)
        return torch.multinomial((scores / self.temperature).softmax(dim=-1), 1).squeeze(-1)


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> CandidateSearch:
    """Makes the search of the registry, see `otterlm.interventions`."""
    mode = "greedy" if settings.temperature is None else "stochastic"
    temperature = settings.temperature or 1.0
    return CandidateSearch(
        settings.weight, settings.top_k or CANDIDATES, mode, temperature, adapter_name, settings.min_p
    )
