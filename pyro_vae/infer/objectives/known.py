r"""Cached facts about the programs that an objective evaluates at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.trace import Batch, Description, Layouts, Program, choose_layouts
from pyro_vae.trace.graphs.surroundings import Surroundings


@dataclass
class Fact:
    """Facts about a model and a guide at one batch size: the layouts of particles, and a description of the program."""

    layouts: Layouts | None = None
    description: Description | None = None
    uses: int = 0
    _surroundings: Surroundings | None = None
    _state: int = 0

    def has_changed(self, model: Program, guide: Program, num_samples: int) -> bool:
        """Return whether a Python value around the programs has changed since the last call.

        With one particle and no layouts, no fact depends on such values.
        """
        if num_samples == 1 and not self.layouts:
            return False
        if self._surroundings is None:
            try:
                self._surroundings = Surroundings([model, guide])
            except OverflowError:  # too much to watch: determine the facts at every use
                return True
        before, self._state = self._state, self._surroundings.state()
        return before != self._state


@dataclass
class FactCache:
    """Facts about programs, one entry for each structure and shape of their arguments.

    Facts are determined again at uses 1, 2, 4, 8, ..., because parameters change, and when a Python value around the
    programs changes. For example, a decoder whose gate starts at zero reveals only later that it mixes particles. While
    a graph is recorded, the facts of the preceding eager run are used.
    """

    is_cache: ClassVar[bool] = True  # not watched: its changes do not make a recorded step stale
    facts: dict[Any, Fact] = field(default_factory=dict)

    def look_up(self, model: Program, guide: Program, batch: Batch, num_samples: int, *, one_layout: bool) -> Fact:
        """Return the facts about a model and a guide for K particles of batches of this structure and shape."""
        try:
            tensors, _, form = batch.flatten()
            key = model, guide, form, tuple(tensor.shape for tensor in tensors)
            fact = self.facts.setdefault(key, Fact())
        except TypeError:  # a program or argument that cannot be hashed is not cached
            fact = Fact()
        if get_proxy_mode() is not None:
            return fact
        fact.uses += 1
        if fact.uses & (fact.uses - 1) == 0 or fact.has_changed(model, guide, num_samples):
            fact.description = None
            if num_samples > 1 or fact.layouts:
                fact.layouts = choose_layouts(model, guide, batch, num_samples, one_layout=one_layout, as_trained=True)
        return fact

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the facts from copies and pickles of an objective; they are determined again."""
        return {"facts": {}}
