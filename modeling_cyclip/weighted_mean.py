"""Means of named numbers over steps or batches."""

import torch


class WeightedMean:
    """Weighted means of named numbers, summed on the device so that no step waits for the host."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor | float] = {}
        self.weight = 0

    def add(self, values: dict[str, torch.Tensor | None], weight: int) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + weight * value.detach()
        self.weight += weight

    def drain(self) -> dict[str, float]:
        means = {name: float(total) / self.weight for name, total in self.sums.items()}
        self.sums, self.weight = {}, 0
        return means
