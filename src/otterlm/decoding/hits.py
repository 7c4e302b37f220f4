"""Finds the tokens that are hits of an alarm, see `otterlm.signals.alarm`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from otterlm.signals.alarm import AlarmSettings


class Hits:
    """Compares probabilities with those of an alarm. Both lie on the device, so that nothing waits for it.

    Args:
        settings: of the alarm, whose A labels raise it.
        labels: the names of the guard's labels, L of them.
        device: of the probabilities.
    """

    def __init__(self, settings: AlarmSettings, labels: Sequence[str], device: torch.device) -> None:
        self._columns = torch.tensor([labels.index(name) for name in settings.alarms], device=device)
        self._levels = torch.tensor(list(settings.alarms.values()), dtype=torch.float32, device=device)

    def of(self, probabilities: Tensor) -> Tensor:
        """Returns which labels of the alarm are reached, `[..., L]` to `[..., A]` bool."""
        return probabilities.index_select(-1, self._columns) >= self._levels
