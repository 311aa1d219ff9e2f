"""Images per second of training: the compiled epoch beside a per-step loop and beside PyTorch.

`python -m benchmarks.training` times ResNet-20 and ResNet-56 on random images. Every loop lives in processes of
its own: one that may use every core, and one pinned to each core, which run alone and then all together, as
a sweep does. The processes of one kind take turns from round to round. PyTorch is optional
(`pip install torch==2.13.0`). A second table shows what ZNorm, GAN and the tracking of gradient statistics add to
a step.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.training_loops import Loop, work

RESULTS = Path(__file__).parent / "results"
SHARING = 8  # processes on one accelerator
UPDATES = 50  # of the optimizer alone: each takes a millisecond
ADDED: dict[str, dict[str, Any]] = {
    "znorm": {"method": "znorm"},
    "gan": {"method": "gan"},
    "track_gradient_dynamics": {"method": "baseline", "dynamics": True},
}


class Worker:
    """A process that runs one loop."""

    def __init__(self, loop: Loop, core: int | None):
        # A fresh interpreter: the affinity must be set before a library starts its threads.
        context = multiprocessing.get_context("spawn")
        self.loop = loop
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, loop, core), daemon=True)
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> int:
        """Returns the number of parameters of the network."""
        return self.connection.recv()

    def stop(self) -> None:
        self.connection.send(False)
        self.process.join()


def images_per_second(workers: list[Worker]) -> float:
    """Lets workers run an epoch each at the same time, and counts until the last one is through."""
    started = time.perf_counter()
    for worker in workers:
        worker.connection.send(True)
    for worker in workers:
        worker.connection.recv()
    return sum(worker.loop.images for worker in workers) / (time.perf_counter() - started)


def measure(settings: dict[str, list[tuple[Loop, int | None]]], rounds: int) -> dict[str, list[float]]:
    """Images per second of every setting in every round.

    Args:
      settings: by name, the loops that run at the same time and the core each is pinned to. Settings
        that need the same loop on the same core share its process.
      rounds: timed epochs of each setting.
    """
    workers: dict[tuple[Loop, int | None], Worker] = {}
    try:
        for place in dict.fromkeys(place for places in settings.values() for place in places):
            workers[place] = Worker(*place)
        parameters = {worker.wait_until_ready() for worker in workers.values()}
        if len(parameters) > 1:
            raise RuntimeError(f"the networks differ: {sorted(parameters)} parameters")
        rates: dict[str, list[float]] = {name: [] for name in settings}
        for _ in range(rounds):
            for name, places in settings.items():
                rates[name].append(images_per_second([workers[place] for place in places]))
        return rates
    finally:
        for worker in workers.values():
            worker.stop()


def throughput(depth: int, batch_size: int, steps: int, rounds: int, cores: list[int]) -> dict[str, Any]:
    """Rows for each kind of loop: one process on all cores, on one core, and one process per core.

    On an accelerator there are no pinned cores, and several processes share it.
    """
    kinds = ["epoch scan", "per-step loop"]
    if importlib.util.find_spec("torch"):
        kinds.append("pytorch")
    rates: dict[str, list[float]] = {}
    # One kind at a time: ResNet-56 at batch 256 takes 2.4 GB per process, and each kind has cores + 1 processes.
    for kind in kinds:
        settings = {}
        loop = Loop(kind, depth, "baseline", batch_size, steps)
        settings[f"{kind}, one process"] = [(loop, None)]
        if cores:
            settings[f"{kind}, one core"] = [(loop, cores[0])]
            settings[f"{kind}, a process per core"] = [(loop, core) for core in cores]
        elif kind == "epoch scan":
            copies = [(dataclasses.replace(loop, copy=copy), None) for copy in range(SHARING)]
            settings[f"{kind}, {SHARING} processes"] = copies
        rates |= measure(settings, rounds)
    return {name: summarize(values) for name, values in rates.items()}


def shares(depth: int, batch_size: int, steps: int, rounds: int, cores: list[int]) -> dict[str, Any]:
    """What every method, and tracking, adds to the step of the baseline, in percent of that step.

    Measured in the whole step, which includes what the compiler fuses and the noise of the whole step,
    and by the optimizer's update alone, against the same baseline's step.
    """
    core = cores[0] if cores else None
    options = {"depth": depth, "batch_size": batch_size}
    methods = {"baseline": {"method": "baseline"}, **ADDED}

    def seconds_per_step(kind: str, steps: int) -> dict[str, list[float]]:
        loops = {
            name: Loop(kind=kind, steps=steps, **options, **changes) for name, changes in methods.items()
        }
        rates = measure({name: [(loop, core)] for name, loop in loops.items()}, rounds)
        return {name: [batch_size / rate for rate in values] for name, values in rates.items()}

    step = seconds_per_step("epoch scan", steps)
    update = seconds_per_step("update alone", UPDATES)
    return {
        **{name: added_percent(step[name], step["baseline"], step["baseline"]) for name in ADDED},
        **{
            f"{name}, update alone": added_percent(update[name], update["baseline"], step["baseline"])
            for name in ADDED
        },
    }


def added_percent(seconds: list[float], without: list[float], step: list[float]) -> dict[str, Any]:
    percent = [100 * (s - w) / t for s, w, t in zip(seconds, without, step, strict=True)]
    return {"median_percent": statistics.median(percent), "percent": percent}


def summarize(rates: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(rates), "images_per_second": [round(rate, 2) for rate in rates]}


def title(model: str, batch_size: int, cores: int) -> str:
    return f"{model}, batch {batch_size}, {cores or 'no'} pinned cores"


def table(title: str, results: dict[str, Any]) -> str:
    lines = [title, f"  {'images per second':<40}{'median':>9}{'lowest':>9}{'highest':>9}"]
    for name, result in results["throughput"].items():
        rates = result["images_per_second"]
        lines.append(f"  {name:<40}{result['median']:>9.1f}{min(rates):>9.1f}{max(rates):>9.1f}")
    lines.append(f"  {'added to a step, in %':<40}{'median':>9}{'lowest':>9}{'highest':>9}")
    for name, result in results["shares"].items():
        values = result["percent"]
        lines.append(f"  {name:<40}{result['median_percent']:>9.2f}{min(values):>9.2f}{max(values):>9.2f}")
    return "\n".join(lines) + "\n"


def summary(batch_size: int, results: dict[str, Any]) -> str:
    """What README.md says of the cost of ZNorm and GAN in a training step."""
    added = [
        result["shares"][f"{name}, update alone"]["median_percent"]
        for result in results.values()
        for name in ("znorm", "gan")
    ]
    models = " or ".join(model.replace("resnet", "ResNet-") for model in results)
    return f"At batch {batch_size} this adds at most {max(added):.2f} % to a training step of {models} (medians)."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 56], help="of the ResNets (20 56)")
    parser.add_argument("--batch-size", type=int, default=256, help="images per step (default 256)")
    parser.add_argument("--steps", type=int, default=4, help="per timed epoch (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/training-DEVICE.json")
    arguments = parser.parse_args()
    if min(arguments.batch_size, arguments.steps, arguments.rounds) < 1:
        parser.error("--batch-size, --steps and --rounds must be positive")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share an accelerator
    from experiments import machine

    environment = machine.describe_environment()
    if importlib.util.find_spec("torch"):
        environment["torch"] = importlib.metadata.version("torch")
    on_cpu = environment["backend"] == "cpu"
    cores = sorted(os.sched_getaffinity(0)) if on_cpu and hasattr(os, "sched_getaffinity") else []
    device = str(environment["device_kind"]).lower().replace(" ", "-")
    out = arguments.out or RESULTS / f"training-{device}.json"
    options = (arguments.batch_size, arguments.steps, arguments.rounds, cores)
    results = {}
    for depth in arguments.depths:
        model = f"resnet{depth}"
        results[model] = {"throughput": throughput(depth, *options), "shares": shares(depth, *options)}
        print(table(title(model, arguments.batch_size, len(cores)), results[model]))
    print(summary(arguments.batch_size, results))
    content = {
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "cores": len(cores),
        "environment": environment,
        "results": results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
