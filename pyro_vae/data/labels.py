r"""What is known of images beside their pixels: labels of each split, and which of them a program is told."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """What is known of the images of each split: F integers from 0 on, (N, F), and their names."""

    names: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    def for_program(self, split: str) -> Tensor:
        """Return what a program is given beside the images of a split: (N,), or (N, F) where there are several."""
        labels: Tensor = getattr(self, split)
        return labels[:, 0] if len(self.names) == 1 else labels

    def get(self, name: str, split: str) -> Tensor:
        """Return the labels of one name (N,)."""
        return getattr(self, split)[:, self.names.index(name)]


def mask_labels(labels: Tensor, num_kept: int) -> Tensor:
    """Keep the first labels (N,) of each class, `num_kept` in all and evenly divided, and replace the others by -1."""
    kept = torch.full_like(labels, -1)
    classes = labels.unique()
    for index, label in enumerate(classes.tolist()):
        share = num_kept // len(classes) + (index < num_kept % len(classes))
        first = (labels == label).nonzero().flatten()[:share]
        kept[first] = labels[first]
    return kept
