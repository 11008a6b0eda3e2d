"""The recorded step when noise, batch sizes, learning rates, modules, states or numbers of the objective change."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.programs import images, small_vae
from helpers.steps import ADAM, driver, is_recorded, take_steps
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, SVI, BetaELBO, Optim


class TestRecorded:
    """Requirements on the recorded graph, with or without the compiler."""

    def test_noise_differs_between_steps_and_follows_the_seed(self) -> None:
        svi = driver(small_vae())
        x = images(5)
        svi.step(x)
        for p in svi.optim.optimizer.param_groups:  # keep the weights fixed
            p["lr"] = 0.0
        torch.manual_seed(3)
        first = [float(svi.step(x)) for _ in range(5)]
        torch.manual_seed(3)
        assert [float(svi.step(x)) for _ in range(5)] == first
        assert len(set(first)) == 5

    def test_recording_leaves_the_random_streams_unchanged(self) -> None:
        found = take_steps(driver(small_vae()), 3)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        assert found == take_steps(driver(small_vae(), graph=None), 3)

    def test_smaller_last_batch_runs_eagerly(self) -> None:
        svi = driver(small_vae())
        take_steps(svi, 3)
        assert is_recorded(svi)
        svi.step(images(2))
        assert len(svi.recorded._graph._records) == 1
        assert svi.steps == 4

    @pytest.mark.parametrize(("graph", "first"), [("recorded", 5), ("recorded", 2), ("compiled", 2)])
    def test_state_continues_a_recorded_run_bit_identical(self, graph: str, first: int) -> None:
        """Also if the first batch is the smaller one: the recorded batch size is part of the state."""
        pyro.set_rng_seed(0)
        svi = driver(small_vae(), graph=graph)
        take_steps(svi, 4)
        state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
        expected = [*take_steps(svi, 1, first), *take_steps(svi, 10)]
        pyro.clear_param_store()
        resumed = driver(small_vae(), graph=graph)
        resumed.load_state_dict(state, images(1))
        assert [*take_steps(resumed, 1, first), *take_steps(resumed, 10)] == expected
        assert is_recorded(resumed)

    def test_beta_warms_up_in_a_recorded_step(self) -> None:
        """Each loss equals that of the eager step, whose beta differs at every step."""
        expected = take_steps(driver(small_vae(), BetaELBO(1, 4.0, warmup_steps=8), graph=None), 10)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = driver(small_vae(), BetaELBO(1, 4.0, warmup_steps=8))
        assert take_steps(svi, 10) == pytest.approx(expected, rel=1e-12)
        assert len(svi.recorded._graph._records) == 1

    def test_changed_learning_rate_takes_effect(self) -> None:
        svi = driver(small_vae())
        take_steps(svi, 3)
        before = [p.clone() for p in svi.optim.params.values()]
        svi.optim.optimizer.param_groups[0]["lr"] = 0.0
        take_steps(svi, 1)
        assert all(torch.equal(p, old) for p, old in zip(svi.optim.params.values(), before, strict=True))

    def test_unfrozen_or_evaluated_module_gets_a_new_record(self) -> None:
        runs = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            vae.posterior.requires_grad_(False)
            svi = driver(vae, graph=graph)
            with pytest.warns(UserWarning, match="not registered"):
                losses = take_steps(svi, 3)
            vae.posterior.requires_grad_(True)
            runs.append([*losses, *take_steps(svi, 3), *take_steps(svi, 3)])
        assert runs[1] == pytest.approx(runs[0], rel=1e-12)
        vae.eval()
        take_steps(svi, 1)
        assert len(svi.recorded._graph._records) == 3

    @pytest.mark.parametrize("where", ["loss", "gradient"])
    def test_nonfinite_step_leaves_the_weights_unchanged(self, where: str) -> None:
        class Root(nn.Module):
            """The square root of a magnitude: finite at zero, where its gradient is not."""

            def forward(self, value: Tensor) -> Tensor:
                return value + self.shift.abs().sqrt()

        vae = small_vae()
        root = Root()
        root.shift = nn.Parameter(torch.ones(()))
        vae.likelihood.net.append(root)
        svi = driver(vae)
        take_steps(svi, 3)
        with torch.no_grad():
            root.shift.fill_(float("nan") if where == "loss" else 0.0)
        before = [p.detach().clone() for p in vae.parameters()]
        with pytest.raises(NonFiniteError, match="at step 3 "):
            svi.step(images(5))
        for p, old in zip(vae.parameters(), before, strict=True):
            torch.testing.assert_close(p, old, rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            root.shift.fill_(1.0)
        svi.step(images(5))  # training continues once the parameter is valid again
        assert is_recorded(svi)

    def test_batch_statistics_equal_those_of_the_eager_run(self) -> None:
        """Recording runs the program twice more, without a trace in its buffers."""
        kept = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            vae.likelihood.net.insert(0, nn.BatchNorm1d(2, momentum=0.3))
            svi = driver(vae, graph=graph)
            take_steps(svi, 6)
            kept.append([buffer.clone() for buffer in vae.buffers()])
        assert is_recorded(svi)
        torch.testing.assert_close(*kept, rtol=1e-10, atol=1e-12)

    def test_network_hidden_in_containers_is_trained(self) -> None:
        """Its parameters are found by recording, not by searching attributes."""
        hidden = {"net": [[[[[[nn.Linear(6, 2)]]]]]]}
        svi_pair = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            hidden["net"] = [[[[[[nn.Linear(6, 2)]]]]]]

            def guide(x: Tensor) -> None:
                net = hidden["net"][0][0][0][0][0][0]
                pyro.module("hidden", net)
                with pyro.plate("data", x.shape[0]):
                    pyro.sample("z", dist.Normal(net(x.flatten(-2)), 1.0).to_event(1))

            svi = SVI(vae.model, guide, Optim(torch.optim.Adam, dict(ADAM)), ELBO(), execution=graph)
            svi_pair.append(take_steps(svi, 20))
        assert is_recorded(svi)
        assert svi_pair[1] == pytest.approx(svi_pair[0], rel=1e-12)


class Tempered(ELBO):
    """An objective with its own schedule, a Python number."""

    power = 1.0

    def set_step(self, step: int) -> None:
        self.power = 1.0 if step < 3 else 0.5

    def per_image(self, particles: Any) -> Tensor:
        return self.power * super().per_image(particles)


def test_objective_whose_number_changes_once_gets_a_second_record() -> None:
    expected = take_steps(driver(small_vae(), Tempered(), None), 6)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = driver(small_vae(), Tempered())
    assert take_steps(svi, 6) == pytest.approx(expected, rel=1e-12)
    assert len(svi.recorded._graph._records) == 2


def test_replaced_module_gets_a_new_record() -> None:
    """Also modules without parameters, which may be allocated at the address of the replaced one."""
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        vae.likelihood.net = nn.Sequential(vae.likelihood.net, nn.Identity())
        svi = driver(vae, graph=graph)
        losses = take_steps(svi, 3)
        for part in (nn.Tanh, nn.ReLU, nn.Softplus, nn.Identity):
            vae.likelihood.net[1] = part()
            losses += take_steps(svi, 2)
        runs.append(losses)
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)
