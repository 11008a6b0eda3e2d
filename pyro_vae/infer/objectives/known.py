r"""What an objective knows of the programs that it is asked for again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pyro_vae.trace import Batch, Description, Layouts, Program, choose_layouts
from pyro_vae.trace.graphs.surroundings import Surroundings


@dataclass
class Fact:
    """What is known of a model and a guide at one batch size: how particles are run, and what the programs are."""

    layouts: Layouts | None = None
    description: Description | None = None
    uses: int = 0
    _surroundings: Surroundings | None = None
    _state: int = 0

    def has_changed(self, model: Program, guide: Program, num_samples: int) -> bool:
        """Whether other numbers are around the programs than when last asked; of one particle nothing depends on it."""
        if num_samples == 1 and not self.layouts:
            return False
        if self._surroundings is None:
            try:
                self._surroundings = Surroundings([model, guide])
            except OverflowError:  # too much to watch: found out every time
                return True
        before, self._state = self._state, self._surroundings.state()
        return before != self._state


@dataclass
class FactCache:
    """Facts of programs, one for each form of their arguments.

    They are found out anew at uses 1, 2, 4, 8, ..., since weights move, and where numbers around the programs change.

    A decoder whose gate starts at zero shows only later that it mixes particles. While a graph is recorded nothing is
    found out: the run before has done that.
    """

    is_cache: ClassVar[bool] = True  # no record of a step goes stale with it
    facts: dict[Any, Fact] = field(default_factory=dict)

    def look_up(self, model: Program, guide: Program, batch: Batch, num_samples: int, *, one_layout: bool) -> Fact:
        """Return the fact of a model and a guide for K particles of batches of this form."""
        try:
            tensors, _, form = batch.flatten()
            key = model, guide, form, tuple(tensor.shape for tensor in tensors)
            fact = self.facts.setdefault(key, Fact())
        except TypeError:  # a program or an argument that cannot be hashed is not remembered
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
        """Return nothing, for copies and pickles of an objective: facts are found out again."""
        return {"facts": {}}
