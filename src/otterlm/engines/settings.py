"""Lists what a request may ask of an engine, in its extra arguments (`SamplingParams.extra_args` of vLLM, or
`vllm_xargs` over HTTP).

    otter_weight     how far to steer: of a reward, the weight; of a contrast, alpha. 0: the base
    otter_signal     the adapter that steers; may be left out where one can
    otter_top_k      with a reward: score the base's k likeliest tokens and rule out the others
    otter_min_p      with a reward: rule out tokens with less than this share of the likeliest one's probability
    otter_top_p      with a contrast: the base's nucleus that stays possible
    otter_threshold  end the response when its reward falls under this
    otter_patience   for so many tokens in a row
    otter_guard      the adapter whose reward that is, or the guard that ends the response by its alarm; may be left out
                     where there is one
    otter_alarm      the probability at which a token is a hit for the guard: of all labels, or JSON text of an object,
                     labels to probabilities
    otter_hits       end the response when so many tokens
    otter_window     of the latest so many are hits
    otter_refuse     1: a prompt that the guard flags gets no token
    otter_rewards    1: the reward of every reward adapter beside every token
    otter_guards     1: the probability of each label of every guard beside every token
    otter_prompt     1: both, of the prompt, before the first token
    otter_prompt_tokens
                     1: the same, and beside every token of the prompt

Nothing here needs torch or Transformers.
"""

from dataclasses import dataclass

from otterlm.interventions import InterventionSettings, InterventionType, intervention_type
from otterlm.signals.alarm import AlarmSettings

PREFIX = "otter_"
STEERING = (intervention_type("guidance"), intervention_type("contrast"))
STOP, GUARD = intervention_type("stop"), intervention_type("guard")


def arguments_of(*used: InterventionType) -> tuple[str, ...]:
    """Returns the settings that interventions take, as requests name them: alpha is the weight of a contrast."""
    return tuple(dict.fromkeys("weight" if name == "alpha" else name for use in used for name in use.takes))


RETURNED = ("rewards", "guards", "prompt", "prompt_tokens")
"""What may be asked for that makes responses have more fields."""
STOPPING = (*arguments_of(STOP), "guard", *GUARD.takes, "refuse")
NAMES = tuple(dict.fromkeys(("weight", "signal", *arguments_of(*STEERING), *STOPPING, *RETURNED)))
"""What may be asked for, without the prefix."""
DEFAULTS = InterventionSettings()
"""Those of all of Otter. Two are a request's alone: nothing steers unless it asks, and then over all tokens."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds the checked settings of a request. `steer`, `guard` and `refuse` name adapters; None: not asked for.

    A guard ends the response by its labels where there is an alarm, and else by its reward. `watched` names what is
    read beside every token; None: that is decided when the request enters the engine.
    """

    steer: str | None = None
    weight: float = 0.0
    top_k: int | None = None
    min_p: float = DEFAULTS.min_p
    top_p: float = DEFAULTS.top_p
    guard: str | None = None
    threshold: float = DEFAULTS.threshold
    patience: int = DEFAULTS.patience
    alarm: AlarmSettings | None = None
    refuse: str | None = None
    rewards: bool = False
    guards: bool = False
    prompt: bool = False
    prompt_tokens: bool = False
    watched: tuple[str, ...] | None = None

    @property
    def returns(self) -> bool:
        """Says whether the response is to have more fields."""
        return self.rewards or self.guards or self.prompt or self.prompt_tokens

    @property
    def asks(self) -> bool:
        """Says whether the request asks for anything that the base alone would not do."""
        return self.returns or any(name is not None for name in (self.steer, self.guard, self.refuse))
