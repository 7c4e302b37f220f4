"""Where a guarded response ends."""

from collections.abc import Sequence

from otterlm.decoding.steering import count_under
from otterlm.engines.requests import Settings


class Guard:
    """Decides where a guarded response ends.

    The reward of a text is known when its next token is chosen, so that token is never given out. The prompt is not
    judged, and a response is not ended before it has the tokens that the request wants at least.

    Args:
        settings: of the request, with a guard.
        least: tokens that the request wants at least.
    """

    def __init__(self, settings: Settings, least: int = 0) -> None:
        self._settings = settings
        self._least = least
        self._under = 0

    def judge(self, length: int, rewards: Sequence[float]) -> int | None:
        """Judges the tokens that were chosen now.

        Args:
            length: of the response before them, in tokens.
            rewards: of the text before each of them.

        Returns:
            How many of them the response keeps, if it ends here.
        """
        for index, reward in enumerate(rewards):
            if length + index == 0:
                continue
            self._under = count_under(self._under, reward, self._settings.threshold)
            if self._under >= self._settings.patience and length + index >= self._least:
                return index
        return None
