r"""When the steps of a fit are compared with those of the program as one process runs it."""

from __future__ import annotations

# A graph is compared with the program at the start of an epoch if at least _LEAST_CALLS calls have passed since the
# last comparison, and in any case after _MOST_CALLS calls.
_LEAST_CALLS, _MOST_CALLS = 100, 1000


class Comparisons:
    """Schedule of comparisons: at calls 2, 4, 8, ..., after a thousand calls without one, and after `request`."""

    def __init__(self) -> None:
        self.calls = 0  # including those that a captured CUDA graph has replayed, which the driver counts
        self._compared_at = 0
        self._requested = False

    def request(self) -> None:
        """Compare at the next call, unless the last comparison is recent."""
        self._requested = self.calls - self._compared_at >= _LEAST_CALLS

    def due(self, number: int = 1) -> bool:
        """Return whether one of the next calls compares."""
        last = self.calls + number
        reaches_power = last > 1 and last.bit_length() > self.calls.bit_length()  # 2, 4, 8, ...
        return self._requested or reaches_power or last - self._compared_at > _MOST_CALLS

    def note(self) -> None:
        """Take note that the next call compares."""
        self._requested, self._compared_at = False, self.calls
