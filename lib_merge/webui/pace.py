"""How long a picture takes here, learnt from the last ones, for the estimate before a grid is started."""

from __future__ import annotations

import time


class Pace:
    """Seconds per picture of the last generation."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._begun = 0.0
        self._seconds: float | None = None

    def begin(self) -> None:
        """Note that pictures are being made from now."""
        self._begun = time.monotonic()

    def end(self, pictures: int) -> None:
        """Note that these pictures are made."""
        if self._begun and pictures > 0:
            self._seconds = (time.monotonic() - self._begun) / pictures

    def estimate(self, pictures: int) -> float | None:
        """Return the seconds that pictures will take at the last one's pace; None before the first one was
        made.
        """
        return None if self._seconds is None else self._seconds * pictures


PACE = Pace()
