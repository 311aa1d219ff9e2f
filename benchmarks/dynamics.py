"""What tracking gradient dynamics costs: chains with and without it on the parameters of ResNet-56.

`python -m benchmarks.dynamics` prints a table and writes benchmarks/results/dynamics-DEVICE.json. Every chain is
timed twice: one update per call of a jitted function, as in a Python training loop, where most of the time
goes into handing some hundreds of arrays over; and as one step of a `lax.scan`, as in a compiled epoch,
where only the computation counts. A third variant carries the state of the tracking and reads no gradient:
what any state of that many scalars would cost.
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

from experiments import machine, models
from optax_gradnorm import track_gradient_dynamics, znorm

CHAINS = {
    "adam": lambda: optax.adam(1e-3),
    "znorm, adam": lambda: optax.chain(znorm(), optax.adam(1e-3)),
}
SCAN_LENGTH = 20


def state_only() -> optax.GradientTransformation:
    """The state of `track_gradient_dynamics`, new in every update, without the statistics."""

    def update(updates, state, params=None):
        del params
        return updates, jax.tree.map(lambda x: x + 1, state)

    return optax.GradientTransformation(track_gradient_dynamics().init, update)


# What is put in front of the chain.
VARIANTS = {
    "alone": optax.identity,
    "state": state_only,
    "tracked": track_gradient_dynamics,
}


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
        for variant, make_first in VARIANTS.items():
            optimizer = optax.chain(make_first(), chain())
            for way, make in (("call", make_call), ("scan", make_scan)):
                timed[name, way, variant] = make(optimizer, params, gradients)
    seconds = {key: [] for key in timed}
    for _ in range(rounds + 3):
        for key, run in timed.items():
            seconds[key].append(run())
    results = []
    for name in CHAINS:
        for way in ("call", "scan"):
            times = {variant: seconds[name, way, variant][3:] for variant in VARIANTS}
            results.append(
                {
                    "chain": name,
                    "way": way,
                    "milliseconds": {v: round(1e3 * statistics.median(times[v]), 4) for v in VARIANTS},
                    "ratio": {
                        v: round(
                            statistics.median(b / a for a, b in zip(times["alone"], times[v], strict=True)), 3
                        )
                        for v in VARIANTS
                    },
                }
            )
    return results


def table(results: list[dict]) -> str:
    lines = [
        f"{'':<12} {'':<5} {'milliseconds':>24} {'x alone':>15}",
        f"{'chain':<12} {'way':<5} {'alone':>8}{'state':>8}{'tracked':>8} {'state':>7}{'tracked':>8}",
    ]
    for r in results:
        ms, ratio = r["milliseconds"], r["ratio"]
        lines.append(
            f"{r['chain']:<12} {r['way']:<5} {ms['alone']:>8.3f}{ms['state']:>8.3f}{ms['tracked']:>8.3f} "
            f"{ratio['state']:>7.2f}{ratio['tracked']:>8.2f}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="timed rounds (default 100)")
    out = Path(__file__).parent / "results" / f"dynamics-{jax.default_backend()}.json"
    parser.add_argument(
        "--out", type=Path, default=out, help="default benchmarks/results/dynamics-DEVICE.json"
    )
    arguments = parser.parse_args()
    results = measure(arguments.rounds)
    print(table(results))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"rounds": arguments.rounds, "environment": machine.describe_environment(), "results": results}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
