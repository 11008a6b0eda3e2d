r"""`pyro.infer.SVI` with one torch optimizer, and without synchronization with the device."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_vae.infer import parameters
from pyro_vae.infer.cuda_graph import CUDAGraphCall
from pyro_vae.infer.gate import Gate
from pyro_vae.infer.graph_step import Preprocess, recorded_step
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.optim import Optim
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.infer.processes import OneProcess
from pyro_vae.trace import Batch, Data, ModuleRecorder, Program, stored_ids
from pyro_vae.trace.graphs import devices


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` for programs with pathwise gradients, with the same `step` and `evaluate_loss`.

    `step` returns the loss as a tensor, so that it does not wait for the device. A non-finite loss or gradient never
    changes the parameters: on the CPU, and with optimizers that are not fused, the step raises. On CUDA a fused
    optimizer skips that step and all later ones, and `raise_if_nonfinite` raises.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        optim: An `Optim`, or an optimizer of `pyro.optim`, which is replaced by one torch optimizer of its
            kind over all parameters.
        loss: An `Objective`, or any Pyro ELBO with a single loss.
        execution: ``"recorded"`` runs the program once and then the tensor operations that it issued, for batches of
            the shape of the first, under an `Objective`; ``"compiled"`` compiles them. A step that cannot be recorded
            runs eagerly, and the reason is logged. Values that change between steps (a temperature, a weight of the
            loss) should be tensors: a Python number that changes requires a new recording, and one that changes often
            prevents recording. None runs the program at every step.
        precision: Precision of the matrix products in a step, a key of `PRECISIONS`.

    Raises:
        ValueError: If the optimizer cannot be adopted, or `execution` or `precision` is unknown or has no effect.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: PyroOptim,
        loss: ELBO,
        *,
        execution: str | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(model, guide, Optim.adopt(optim), loss)
        self.objective, self.precision = loss, precision
        self.modules: list[nn.Module] = parameters.root_modules(model, guide)  # the first step adds those that run
        self.recorded = recorded_step(model, guide, loss, execution, precision)
        self.steps = 0
        self.elbo: Tensor | None = None  # of the last step, summed over its batch, in nats
        self.processes = OneProcess()
        self._gate = Gate(self.optim)
        self.graph_call: CUDAGraphCall | None = None  # of a step, where it is captured
        self._stored: dict[str, int] = {}  # ids in the param store that the optimizer has handled

    def step(self, *args: Any, preprocess: Preprocess | None = None, **kwargs: Any) -> Tensor:
        """Take one gradient step.

        Args:
            *args: Positional arguments of the program, or one `Batch`.
            preprocess: Function that maps other arguments to those of the program; it is recorded with the step.
            **kwargs: Keyword arguments of the program.

        Returns:
            The loss summed over the batch, in nats, detached, on the device.

        Raises:
            NonFiniteError: If the loss or a gradient is non-finite; the parameters have not changed.
            ValueError: If the first step registers no parameter, or a parameter with a gradient is not registered.
        """
        self._gate.step.fill_(self.steps)
        with PRECISIONS[self.precision]():
            if isinstance(self.objective, Objective):
                loss = self._objective_step(preprocess, *args, **kwargs)
            elif preprocess is None:
                loss = self._eager_step(*args, **kwargs)
            else:
                batch = Batch.of(Batch.from_call(*args, **kwargs).call(preprocess))
                loss = self._eager_step(*batch.args, **batch.kwargs)
        self.optim.step_schedule()
        self.steps += 1
        return loss

    def _objective_step(self, preprocess: Preprocess | None, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step under an `Objective`, with the recorded graph if it accepts the batch."""
        assert isinstance(self.objective, Objective)
        self.objective.set_step(self.steps)
        batch = Batch.from_call(*args, **kwargs)
        step = self._graph_step(preprocess, batch)
        if step is None:
            return self._eager_step(batch if preprocess is None else Batch.of(batch.call(preprocess)))
        loss, self.elbo = step
        return loss

    @property
    def failed(self) -> Tensor:
        """Whether a step was non-finite, a boolean tensor; does not wait for the device."""
        return self._gate.failed_step >= 0

    def raise_if_nonfinite(self) -> None:
        """Synchronize with the device, and raise `NonFiniteError` for the first non-finite step, if any."""
        self._gate.raise_if_nonfinite()

    def state_dict(self) -> parameters.State:
        """Return parameters, module buffers and optimizer state, as tensors and plain values.

        Raises:
            NonFiniteError: If a step was non-finite.
        """
        self.raise_if_nonfinite()
        values = parameters.program_state(self.modules, self.optim.params)
        sizes = self.recorded.sizes if self.recorded else None
        return {"steps": self.steps, "recorded_sizes": sizes, **values, **self.optim.get_state()}

    def load_state_dict(self, state: parameters.State, batch: Data) -> None:
        """Restore a `state_dict`; `batch` holds arguments of a step, with which the parameters are registered.

        Raises:
            ValueError: If the state does not belong to this program.
        """
        self.modules = parameters.load_program_state(self.model, self.guide, state, batch)
        for name in state["params"]:  # in the order in which they were added
            if name not in self.optim.params:
                self.optim.add_params([parameters.unconstrained_param(name)])
        self.optim.set_state(state)
        self.steps = state["steps"]
        if self.recorded:
            self.recorded.sizes = state["recorded_sizes"]
        self._gate = Gate(self.optim, Batch.of(batch).device)
        self.graph_call = None  # it refers to tensors that have been replaced

    def _graph_step(self, preprocess: Preprocess | None, batch: Batch) -> tuple[Tensor, ...] | None:
        """Take a step with the recorded graph; return None if the step has to run eagerly."""
        if self.recorded is None or not self.recorded.accepts(preprocess, batch):
            return None
        # On CUDA the whole step, from the batch to the optimizer, is captured as one CUDA graph, since Python launches
        # the kernels of a small network more slowly than they run. A captured step must not wait for the device. So the
        # gate must be able to skip steps there, and steps that compare the graph with the program are not captured.
        captures = devices.can_capture(batch.x) and self.recorded.capturable and self._gate.can_skip
        if not captures or self.recorded.comparisons.due():
            return self._replay(batch)
        tensors, build, _ = batch.flatten()
        if self.graph_call is None:
            self.graph_call = CUDAGraphCall(lambda *x: self._replay(build(list(x))), self.recorded.capture_key)
        calls = self.recorded.comparisons.calls
        result = self.graph_call(*tensors)
        self.recorded.comparisons.calls = calls + 1  # a replay does not call it
        return result

    def _replay(self, batch: Batch) -> tuple[Tensor, ...] | None:
        """Compute gradients with the graph and update the parameters; on CUDA this whole method may be captured."""
        assert self.recorded is not None
        result = self.recorded(batch, self._gate)
        if result is None:
            return None
        self._add_new_params(result.stored)
        if not result.updated:
            self._gate.update(result.finite, result.gradients)
        return result.loss, result.elbo

    def _eager_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step by running the program."""
        loss = self._eager_gradients(*args, **kwargs)
        # One number for all gradients, non-finite if an entry is. Norms instead of sums would take a second pass.
        sums = [p.grad.sum() for p in self.optim.params.values() if p.grad is not None]
        self._gate.update(torch.stack([loss, *sums]).sum().isfinite())
        return loss

    def _eager_gradients(self, *args: Any, **kwargs: Any) -> Tensor:
        """Set the gradients of all parameters by running the program, and return the loss."""
        loss = self._backward(*args, **kwargs) if self._stored else self._first_backward(*args, **kwargs)
        self._gate.to(loss.device)
        self._add_new_params(stored_ids())  # before the gate, which tests gradients of new ones, too
        return loss

    def _add_new_params(self, present: dict[str, int]) -> None:
        """Add parameters that are new in the param store: registered late, unfrozen, or replaced.

        A program may call `pyro.param` or `pyro.module` at any step, and a store that was cleared or loaded holds other
        tensors under the old names. An optimizer that kept the old ones would train tensors that nothing reads.
        """
        if present != self._stored:
            new = [name for name, key in present.items() if self._stored.get(name) != key]
            self.optim.add_params(map(parameters.unconstrained_param, new))
            self._stored = present

    def _backward(self, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self.objective, Objective):
            objective, elbo = self.objective.bounds(self.model, self.guide, *args, **kwargs)
            loss, self.elbo = -objective.sum(), elbo.sum()
            loss.backward()
            return loss.detach()
        return torch.as_tensor(self.loss_and_grads(self.model, self.guide, *args, **kwargs))

    def _first_backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the first step, which registers the parameters and finds the modules that run."""
        with ModuleRecorder() as ran:
            loss, captured = parameters.collect_parameters(self.modules, lambda: self._backward(*args, **kwargs))
        self.modules = ran.outermost(self.modules)
        self.optim.add_params(captured)
        self._stored = stored_ids()
        return loss
