r"""Labels of the splits, and masking of labels for semi-supervised training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Labels of each split, nonnegative integers, shape (N, F), and the names of the F labels."""

    names: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    def for_program(self, split: str) -> Tensor:
        """Return the labels of a split as an argument of a program: (N,), or (N, F) if F > 1."""
        labels: Tensor = getattr(self, split)
        return labels[:, 0] if len(self.names) == 1 else labels

    def get(self, name: str, split: str) -> Tensor:
        """Return the labels of this name, shape (N,)."""
        return getattr(self, split)[:, self.names.index(name)]


def mask_labels(labels: Tensor, num_kept: int) -> Tensor:
    """Keep `num_kept` labels (N,), the first of each class in equal numbers, and replace all others by -1."""
    kept = torch.full_like(labels, -1)
    classes = labels.unique()
    for index, label in enumerate(classes.tolist()):
        num_of_class = num_kept // len(classes) + (index < num_kept % len(classes))
        first = (labels == label).nonzero().flatten()[:num_of_class]
        kept[first] = labels[first]
    return kept
