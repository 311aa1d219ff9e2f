"""What gradient transformations in front of Adam cost: time, compilation and memory, beside their peers.

`python -m benchmarks.transforms` times all chains in turn in one process, in an order that rotates from round
to round, so that a machine's ups and downs meet all of them; medians are compared. The chains share one Adam
state, which every update takes over and returns (donated); updates are freed at once.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_gradnorm
from experiments import machine, models

WARM_UP = 3
RESULTS = Path(__file__).parent / "results"


def naive_lines() -> optax.GradientTransformation:
    """The three lines that one writes oneself."""
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda g: (g - g.mean()) / (g.std() + 1e-10), updates)
    )


def state_only() -> optax.GradientTransformation:
    """The state of `track_gradient_dynamics`, new in every update, without the statistics."""

    def update(updates, state, params=None):
        del params
        return updates, jax.tree.map(lambda x: x + 1, state)

    return optax.GradientTransformation(optax_gradnorm.track_gradient_dynamics().init, update)


TRANSFORMS = {
    "adam alone": optax.identity,
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
    "optax.centralize": optax.centralize,
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "naive lines": naive_lines,
    "znorm": optax_gradnorm.znorm,
    "gan": optax_gradnorm.gan,
    "tracking": optax_gradnorm.track_gradient_dynamics,
    "tracking's state alone": state_only,
    "novograd, no adam": lambda: optax.novograd(1e-3),
}
# It takes Adam's place: it divides each layer's gradient by a norm of that layer, and keeps a momentum.
WITHOUT_ADAM = "novograd, no adam"


def resnet56_tree() -> list[tuple[int, ...]]:
    """Shapes of the parameters of ResNet-56 for CIFAR."""
    model = nnx.eval_shape(
        lambda: models.create("resnet56", num_classes=10, channels=3, image_size=32, rngs=nnx.Rngs(0))
    )
    return [leaf.shape for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))]


TREES = {
    "resnet56": resnet56_tree,
    "small": lambda: [(3, 3, 16, 16), (64, 64)] * 600,
    "large": lambda: [(2048, 2048)] * 24,
}


class Compiled(NamedTuple):
    """One chain, ready to be timed."""

    update: Any  # (gradients, transform state, Adam state) -> (states, updates)
    state: optax.OptState  # of the transformation in front
    temporary_bytes: int


def compile_chain(name: str, gradients, adam_state) -> tuple[Compiled, float]:
    """The compiled update and the seconds it took to trace, lower and compile."""
    transform = TRANSFORMS[name]()
    state = transform.init(gradients)

    def update(gradients, state, adam_state):
        if name == WITHOUT_ADAM:
            # Parameters would be multiplied by a weight decay of 0.
            updates, state = transform.update(gradients, state, gradients)
            return (state, adam_state), updates
        updates, state = transform.update(gradients, state)
        updates, adam_state = optax.adam(1e-3).update(updates, adam_state)
        return (state, adam_state), updates

    started = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=(1, 2)).lower(gradients, state, adam_state).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not tell how much memory a program takes"
    return Compiled(compiled, state, memory.temp_size_in_bytes), seconds


def measure(shapes: list[tuple[int, ...]], rounds: int, compilations: int) -> list[dict[str, Any]]:
    """Compiles and times every chain on gradients of these shapes.

    Args:
      shapes: of the leaves.
      rounds: timed updates of each chain.
      compilations: times that each chain is compiled; the median counts.

    Returns:
      One dictionary for each chain, in the order of `TRANSFORMS`.
    """
    generator = np.random.default_rng(0)
    gradients = [jnp.asarray(generator.standard_normal(shape, np.float32)) for shape in shapes]
    adam_state = optax.adam(1e-3).init(gradients)
    names = list(TRANSFORMS)

    chains: dict[str, Compiled] = {}
    compile_seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(compilations):
        for name in rotated(names, turn):
            chains[name], seconds = compile_chain(name, gradients, adam_state)
            compile_seconds[name].append(seconds)

    update_seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP + rounds):
        for name in rotated(names, turn):
            chain = chains[name]
            started = time.perf_counter()
            (state, adam_state), updates = jax.block_until_ready(
                chain.update(gradients, chain.state, adam_state)
            )
            update_seconds[name].append(time.perf_counter() - started)
            chains[name] = chain._replace(state=state)
            del updates

    parameter_bytes = sum(g.nbytes for g in gradients)
    alone, clip = "adam alone", "clip_by_global_norm"
    timed = {name: seconds[WARM_UP:] for name, seconds in update_seconds.items()}
    beyond_adam = {name: chains[name].temporary_bytes - chains[alone].temporary_bytes for name in names}
    return [
        {
            "chain": name,
            "milliseconds": 1e3 * statistics.median(timed[name]),
            "fastest_milliseconds": 1e3 * min(timed[name]),
            "ratio_to_adam": median_ratio(timed[name], timed[alone]),
            "ratio_to_clip": median_ratio(timed[name], timed[clip]),
            "compile_seconds": statistics.median(compile_seconds[name]),
            "compile_ratio_to_clip": median_ratio(compile_seconds[name], compile_seconds[clip]),
            "temporary_bytes": chains[name].temporary_bytes,
            "temporary_percent_beyond_adam": 100 * beyond_adam[name] / parameter_bytes,
        }
        for name in names
    ]


def rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def median_ratio(seconds: list[float], to: list[float]) -> float:
    """Median over the rounds of the ratio within a round, whose two updates are close in time."""
    return statistics.median(a / b for a, b in zip(seconds, to, strict=True))


def table(tree: str, shapes: list[tuple[int, ...]], results: list[dict[str, Any]]) -> str:
    count = sum(int(np.prod(shape)) for shape in shapes)
    lines = [
        f"{tree}: {len(shapes)} leaves, {count / 1e6:.2f} million parameters",
        f"{'in front of adam':<25}{'ms':>9}{'x adam':>8}{'x clip':>8}{'compile s':>11}{'x clip':>8}{'memory %':>10}",
    ]
    lines += [
        f"{r['chain']:<25}{r['milliseconds']:>9.3f}{r['ratio_to_adam']:>8.2f}{r['ratio_to_clip']:>8.2f}"
        f"{r['compile_seconds']:>11.2f}{r['compile_ratio_to_clip']:>8.2f}"
        f"{r['temporary_percent_beyond_adam']:>10.2f}"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def summary(results: dict[str, list[dict[str, Any]]]) -> str:
    """What README.md says of the cost of ZNorm and GAN, as ranges over both and over the trees."""

    def span(key: str, *trees: str) -> str:
        rows = [row for tree in trees for row in results[tree] if row["chain"] in ("znorm", "gan")]
        low, high = (f"{pick(row[key] for row in rows):.1f}" for pick in (min, max))
        return low if low == high else f"{low} to {high}"

    return (
        f"On a CPU, with `znorm` or `gan` in front, an Adam update takes {span('ratio_to_adam', *results)} times as "
        f"long as Adam alone and {span('ratio_to_clip', *results)} times as long as with `clip_by_global_norm`; with "
        f"1,200 leaves it compiles {span('compile_ratio_to_clip', 'small')} times as long as with clipping."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES), help="default: all")
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds (default 30)")
    parser.add_argument("--compilations", type=int, default=3, help="of each chain (default 3)")
    parser.add_argument("--cores", type=int, help="keep to so many CPU cores (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        help="default benchmarks/results/transforms-DEVICE.json, with --cores ...-Ncores.json",
    )
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.compilations) < 1:
        parser.error("--rounds and --compilations must be positive")

    if arguments.cores is not None:
        try:
            machine.use_cores(arguments.cores)
        except ValueError as error:
            parser.error(str(error))

    environment = machine.describe_environment()
    device = str(environment["device_kind"]).lower().replace(" ", "-")
    cores = "" if arguments.cores is None else f"-{arguments.cores}cores"
    out = arguments.out or RESULTS / f"transforms-{device}{cores}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{environment['device_kind']}, {environment['cpu_usable']} cores, jax {environment['jax']};")
    print(
        "memory: temporaries beyond adam's own, in % of the parameters' bytes; ratios: medians over rounds\n",
        flush=True,
    )
    results = {}
    for tree in arguments.trees:
        shapes = TREES[tree]()
        results[tree] = measure(shapes, arguments.rounds, arguments.compilations)
        print(table(tree, shapes, results[tree]), flush=True)
    content = {
        "rounds": arguments.rounds,
        "compilations": arguments.compilations,
        "environment": environment,
        "results": results,
    }
    out.write_text(json.dumps(content, indent=2) + "\n")
    if set(results) == set(TREES):
        print(summary(results))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
