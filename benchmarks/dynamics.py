"""What tracking gradient dynamics costs: chains with and without it on the parameters of ResNet-56.

`python -m benchmarks.dynamics` prints a table and writes benchmarks/results/dynamics.json. Every chain is
timed twice: one update per call of a jitted function, as in a Python training loop, where most of the time
goes into handing some hundreds of arrays over; and as one step of a `lax.scan`, as in a compiled epoch,
where only the computation counts.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments import models, records
from optax_gradnorm import track_gradient_dynamics, znorm

CHAINS = {
    "adam": lambda: optax.adam(1e-3),
    "znorm, adam": lambda: optax.chain(znorm(), optax.adam(1e-3)),
}
SCAN_LENGTH = 20


def resnet56_parameters():
    """The parameters as nested dictionaries of arrays."""
    model = models.create("resnet56", num_classes=10, channels=3, image_size=32, rngs=nnx.Rngs(0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def make_call(optimizer, params, gradients):
    """A function that makes one update, in seconds."""
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    carry = jax.tree.map(jnp.copy, params), state

    def run():
        nonlocal carry
        started = time.perf_counter()
        carry = jax.block_until_ready(update(*carry, gradients))
        return time.perf_counter() - started

    return run


def make_scan(optimizer, params, gradients):
    """A function that makes `SCAN_LENGTH` updates in one compiled loop, in seconds per update."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def updates(params, state, gradients):
        def step(carry, scale):
            params, state = carry
            # Gradients that depend on the step, so that their statistics cannot be computed once.
            updates, state = optimizer.update(jax.tree.map(lambda g: g * scale, gradients), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.linspace(1.0, 2.0, SCAN_LENGTH))[0]

    carry = jax.tree.map(jnp.copy, params), optimizer.init(params)

    def run():
        nonlocal carry
        started = time.perf_counter()
        carry = jax.block_until_ready(updates(*carry, gradients))
        return (time.perf_counter() - started) / SCAN_LENGTH

    return run


def measure(rounds: int) -> list[dict]:
    """Times every chain, with and without tracking, in turn; the first three rounds warm up."""
    params = resnet56_parameters()
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape), params)
    timed = {}
    for name, chain in CHAINS.items():
        for tracked in (False, True):
            optimizer = optax.chain(track_gradient_dynamics(), chain()) if tracked else chain()
            for way, make in (("call", make_call), ("scan", make_scan)):
                timed[name, way, tracked] = make(optimizer, params, gradients)
    seconds = {key: [] for key in timed}
    for _ in range(rounds + 3):
        for key, run in timed.items():
            seconds[key].append(run())
    seconds = {key: values[3:] for key, values in seconds.items()}
    results = []
    for name in CHAINS:
        for way in ("call", "scan"):
            without, tracked = (seconds[name, way, t] for t in (False, True))
            ratios = [b / a for a, b in zip(without, tracked, strict=True)]
            results.append(
                {
                    "chain": name,
                    "way": way,
                    "milliseconds": round(1e3 * statistics.median(without), 4),
                    "milliseconds_tracked": round(1e3 * statistics.median(tracked), 4),
                    "ratio": round(statistics.median(ratios), 3),
                    "ratio_of_fastest": round(min(tracked) / min(without), 3),
                }
            )
    return results


def table(results: list[dict]) -> str:
    lines = [f"{'chain':<12} {'way':<5} {'ms':>8} {'tracked':>8} {'ratio':>6} {'of fastest':>10}"]
    lines += [
        f"{r['chain']:<12} {r['way']:<5} {r['milliseconds']:>8.3f} {r['milliseconds_tracked']:>8.3f} "
        f"{r['ratio']:>6.2f} {r['ratio_of_fastest']:>10.2f}"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="timed rounds (default 100)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dynamics.json")
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    print(table(results))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"rounds": arguments.rounds, "environment": records.describe_environment(), "results": results}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
