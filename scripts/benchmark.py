"""Time steps and scores against hand-written PyTorch and stock Pyro, in one run.

    python scripts/benchmark.py --data mnist --data-root DIR

Blocks of all contenders are interleaved, so that a drift of the clock affects all of them; compare the medians of the
paired ratios. All contenders have the same network, prior N(0, I), binarization and cosine schedule. Adam is fused,
except for stock Pyro, which uses one optimizer per tensor. The roofline is a lower bound on the time of a step: the
time of its matrix products at the rate of a large product, or of the bytes that it must move at the rate of a copy,
whichever is longer.

The other measurements are the speed of scores (particles decoded by importance sampling, and log-densities of AIS with
their gradients), of steps with larger batches, more particles, more latent units and other priors, of steps in lower
precision, of several fits that share their steps, and of several processes that share a step. All results are written
to OUT/benchmark.json, and the ratios of the steps to OUT/benchmark.png.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from measurements import Bench, MeasurementFlags
from timing import machine_rates, ratios

from pyro_vae import cli, config, torchrun
from pyro_vae.command_line import parse
from pyro_vae.report.drawing import style, write_figure
from pyro_vae.runs import load_images, versions


@dataclass(frozen=True)
class SettingFlags:
    """Data, network and device.

    Args:
        data: Name of a data set, or path to your own data, as for fit.py.
        data_root: Folder of the named data sets. Missing ones are downloaded.
        hidden_dim: Number of units of a hidden layer.
        device: Device to run on. auto uses CUDA if it is available, and the CPU otherwise.
    """

    data: Annotated[str, tyro.conf.arg(metavar="NAME|PATH")] = "digits"
    data_root: config.DirPath = Path("data")
    hidden_dim: config.Count = 200
    device: config.Device = "auto"


@dataclass(frozen=True)
class OutputFlags:
    """Results.

    Args:
        out: Folder of benchmark.json and benchmark.png.
    """

    out: config.DirPath = Path("runs/benchmark")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Arguments:
    """Time steps and scores against hand-written PyTorch and stock Pyro."""

    measurement: MeasurementFlags
    setting: SettingFlags
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Make the requested measurements, and write and print the results."""
    flags, out = arguments.measurement, arguments.output.out
    settings = config.Config(**vars(arguments.setting)).resolve()
    images = load_images(settings)
    name = torch.cuda.get_device_name() if settings.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{settings.data}, torch {torch.__version__}, {name}")
    machine = machine_rates(torch.device(settings.device))
    print(f"matrix products {machine[0] / 1e9:.0f} GFLOP/s, copies {machine[1] / 1e9:.1f} GB/s\n")
    bench = Bench(settings, images, flags, machine)
    report: dict[str, Any] = {
        "settings": {key: str(value) for group in vars(arguments).values() for key, value in vars(group).items()},
        "device": name,
        "versions": versions(),
        "gemm_flops_per_second": machine[0],
        "copy_bytes_per_second": machine[1],
        **{name: getattr(bench, name)() for name in flags.measure},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
    if "steps" in report:
        with style():
            write_figure(ratios(report["steps"]), out / "benchmark.png", f"{settings.data}, {name}", "png")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    with cli.exit_status():
        torchrun.refuse("benchmark.py")
        main(parse(Arguments, sys.argv[1:], __doc__))
