"""The measurements of the benchmark: training steps, scores, growth with problem size, and lower precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import tyro
from baselines import floor, handwritten, stock
from contenders import as_json, batches_of, fed, fit_for_a_while, full_batches, many_steps, ours
from many_fits import epochs_of_fits, few_images, times_per_fit
from scaling import times_of_processes
from scoring import times_of_scores
from timing import Contender, Timing, race

from pyro_vae import config, data
from pyro_vae.config import programs
from pyro_vae.infer import ELBO
from pyro_vae.infer.launches import STEPS
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.trace import read_only

Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")]


@dataclass(frozen=True)
class MeasurementFlags:
    """Measurements, their sizes and their duration.

    Args:
        measure: Measurements to make: one or more of steps, scores, growth, precision, many and scaling. By default all
            except scaling, which starts processes.
        batch_sizes: Numbers of images per training step.
        many_fits: Numbers of fits that share their steps.
        processes: Number of processes that share a step.
        num_particles: Numbers of particles per image in training.
        num_samples: Number of particles per image in importance sampling.
        blocks: Number of timed blocks of each contender.
        seconds: Length of a block of the last contender, in seconds.
    """

    measure: Annotated[
        tuple[Literal["steps", "scores", "growth", "precision", "many", "scaling"], ...],
        tyro.conf.arg(metavar="NAME ..."),
    ] = ("steps", "scores", "growth", "precision", "many")
    many_fits: Counts = (1, 8, 32)
    processes: config.Count = 2
    batch_sizes: Counts = (20, 100, 512)
    num_particles: Counts = (1, 50)
    num_samples: config.Count = 1000
    blocks: config.Count = 15
    seconds: float = 0.2


class Bench:
    """The measurements. Each method prints its results and returns them as JSON values.

    Args:
        settings: Configuration of the program and its training steps.
        images: Images of the data set.
        flags: Sizes of the measurements.
        machine: Operations per second and bytes per second of the device, from `machine_rates`.
    """

    def __init__(
        self, settings: config.Config, images: data.Observed, flags: MeasurementFlags, machine: tuple[float, float]
    ) -> None:
        self.settings, self.images, self.flags, self.machine = settings, images, flags, machine

    def steps(self) -> list[dict[str, Any]]:
        """Time training steps for every batch size and number of particles."""
        cases = []
        for num_particles in self.flags.num_particles:
            for batch_size in self.flags.batch_sizes:
                settings = replace(self.settings, batch_size=batch_size, num_particles=num_particles)
                batches = batches_of(settings, self.images)
                contenders = {
                    "pyro_vae, compiled": ours(settings, self.images, batches, "compiled"),
                    "pyro_vae, recorded": ours(settings, self.images, batches, "recorded"),
                    "pyro_vae, run by Pyro": ours(settings, self.images, batches, None),
                    "stock pyro.infer.SVI": stock(settings, self.images, batches),
                    "hand-written, torch.compile": handwritten(settings, self.images, batches, compiled=True),
                    "hand-written": handwritten(settings, self.images, batches),
                }
                multiple = 1
                if self.settings.device == "cuda":
                    multiple, many = STEPS, many_steps(settings, self.images, batches)
                    contenders = {f"pyro_vae, {STEPS} steps a launch": many, **contenders}
                print(f"batch {batch_size}, K = {num_particles}")
                timings = self.race(contenders, batches, multiple)
                roofline = max(floor(settings, self.images, self.machine))
                for name, timing in timings.items():
                    epoch = timing.seconds * settings.steps_per_epoch(batches.num_images)
                    print(f"  {name:30}{timing.seconds * 1e3:9.2f} ms/step{epoch:9.2f} s/epoch{timing.ratio:8.2f}x")
                base = timings["hand-written"].seconds
                print(f"  {'roofline':30}{roofline * 1e3:9.2f} ms/step{'':17}{roofline / base:8.2f}x")
                cases.append(
                    {
                        "batch_size": batch_size,
                        "num_particles": num_particles,
                        "floor_seconds": roofline,
                        "contenders": {name: timing._asdict() for name, timing in timings.items()},
                    }
                )
        return cases

    def scores(self) -> dict[str, Any]:
        """Time importance sampling, and the log-densities of AIS with their gradients."""
        return times_of_scores(self.settings, self.images, self.flags.num_samples, self.machine[0], self.race)

    def growth(self) -> dict[str, Any]:
        """Time a compiled step with one setting changed at a time."""
        cases: dict[str, dict[str, Any]] = {"default": {}}
        cases |= {f"batch {size}": {"batch_size": size} for size in self.flags.batch_sizes if size != 100}
        cases |= {f"K {count}": {"num_particles": count} for count in (5, 50)}
        cases |= {f"latent units {count}": {"latent_dim": count} for count in (10, 200)}
        cases |= {f"prior {name}": {"prior": name} for name in ("mixture", "vamp", "nsf")}
        contenders = {}
        for name, changes in reversed(cases.items()):
            settings = replace(self.settings, **changes)
            batches = batches_of(settings, self.images)
            contender = ours(settings, self.images, batches, "compiled")
            stream = full_batches(batches)
            contenders[name] = Contender(fed(contender.step, stream), contender.context)
        timings = self.race(contenders, batches_of(self.settings, self.images))
        print("\ncompiled step with one setting changed")
        for name, timing in reversed(timings.items()):
            print(f"  {name:30}{timing.seconds * 1e3:9.2f} ms/step{timing.ratio:8.2f}x default")
        return as_json(timings)

    def precision(self) -> dict[str, Any]:
        """Time a compiled step in lower precision, and compare ELBOs for the same parameters and random numbers."""
        names = [name for name in PRECISIONS if name != "tf32" or self.settings.device == "cuda"]
        batches = batches_of(self.settings, self.images)
        contenders = {
            name: ours(replace(self.settings, precision=name), self.images, batches, "compiled")
            for name in reversed(names)
        }
        timings = self.race(contenders, batches)
        program: Any = programs.build(self.settings, self.images.pixels)
        with contenders["float32"].context():
            fit_for_a_while(program, batches, 500)
        x = self.images.split("test")[:1000]
        elbos = {}
        for name in names:
            with (
                torch.no_grad(),
                read_only(program.model, program.guide, x=x, seed=0, validate=False),
                PRECISIONS[name](),
            ):
                elbos[name] = ELBO(10).bounds(program.model, program.guide, x)[1]
        print("\nprecision of matrix products, ELBO of 1,000 images with the same parameters and random numbers")
        report = {}
        for name in names:
            change = elbos[name] - elbos["float32"]
            report[name] = {
                **timings[name]._asdict(),
                "elbo_change": float(change.mean()),
                "elbo_change_largest": float(change.abs().max()),
            }
            print(
                f"  {name:30}{timings[name].seconds * 1e3:9.2f} ms/step{timings[name].ratio:8.2f}x"
                f"{float(change.mean()):+11.5f} nats on average, {float(change.abs().max()):.5f} at most"
            )
        return report

    def many(self) -> list[dict[str, Any]]:
        """Time a step of each of several fits that share their steps, and of one fit by itself."""
        images = few_images(self.images)
        cases = []
        for batch_size in self.flags.batch_sizes[:2]:
            settings = replace(self.settings, batch_size=batch_size)
            timings = self.race(epochs_of_fits(settings, images, self.flags.many_fits), batches_of(settings, images))
            cases += times_per_fit(settings, images, timings)
        return cases

    def scaling(self) -> list[dict[str, Any]]:
        """Time a step that several processes share, the exchange of their gradients, and a step in four shards."""
        flags = self.flags
        return times_of_processes(self.settings, flags.processes, flags.batch_sizes, flags.blocks, flags.seconds)

    def race(self, contenders: dict[str, Contender], batches: data.Batches, multiple: int = 1) -> dict[str, Timing]:
        """Time interleaved blocks of the contenders; ratios are relative to the last one."""
        return race(contenders, full_batches(batches), self.flags.blocks, self.flags.seconds, multiple)
