"""The batches of coming steps, read while one is computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from statistics import fmean

from litgpt.training.batching.batches import Batch


class ReadAhead:
    """Batches by the position of their first sample; those of the coming steps are made by a thread meanwhile.

    Args:
        make: Makes the batch of so many samples from a position on, with all that this rank computes of it.
        steps: How many batches are made ahead; 0: none.
    """

    def __init__(self, make: Callable[[int, int], Batch], steps: int) -> None:
        self.make, self.steps = make, steps
        self.coming: deque[tuple[int, int, Future[Batch]]] = deque()
        self.thread = ThreadPoolExecutor(1, "read-ahead") if steps else None
        self.seconds: list[float] = []

    def take(self, position: int, size: int) -> Batch:
        """The batch of `size` samples from `position` on, which is read now if it wasn't foreseen.

        Raises:
            Exception: What reading it raised.
        """
        began = time.perf_counter()
        batch = self._take(position, size)
        self.seconds.append(time.perf_counter() - began)
        return batch

    def waited(self) -> float:
        """Seconds that a batch has been waited for, on average since the last call."""
        seconds, self.seconds = self.seconds, []
        return fmean(seconds or [0.0])

    def _take(self, position: int, size: int) -> Batch:
        if self.thread is None:
            return self.make(position, size)
        if self.coming and self.coming[0][:2] != (position, size):
            self.settle()
            self.coming.clear()
        while len(self.coming) <= self.steps:
            after = self.coming[-1][0] + size if self.coming else position
            self.coming.append((after, size, self.thread.submit(self.make, after, size)))
        return self.coming.popleft()[2].result()

    def settle(self) -> None:
        """Waits until nothing is read: for who reads from the same place."""
        wait([batch for *_, batch in self.coming])

    def close(self) -> None:
        """Ends the thread."""
        if self.thread is not None:
            self.thread.shutdown(cancel_futures=True)
