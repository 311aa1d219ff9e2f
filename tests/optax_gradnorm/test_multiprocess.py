"""Two real processes on one machine give the update that one process gives."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import optax_gradnorm

from . import reference

WORKER = textwrap.dedent("""
    import sys

    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P

    import optax_gradnorm

    address, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.distributed.initialize(address, num_processes=2, process_id=index, initialization_timeout=60)
    assert jax.process_count() == 2 and jax.device_count() == 4 and jax.local_device_count() == 2
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    specs = {"sharded": P("data"), "columns": P(None, "data"), "replicated": P()}
    host = dict(np.load(f"{folder}/gradients.npz"))
    shardings = {key: NamedSharding(mesh, spec) for key, spec in specs.items()}
    grads = {
        key: jax.make_array_from_callback(value.shape, shardings[key], lambda index, v=value: v[index])
        for key, value in host.items()
    }

    def save(name, updates, state):
        out = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        for key, update in updates.items():
            for shard in update.addressable_shards:
                out[f"{key}@{shard.index}"] = np.asarray(shard.data)
        np.savez(f"{folder}/{name}.{index}.npz", **out)

    for name in ("znorm", "gan", "centralize"):
        transformation = getattr(optax_gradnorm, name)()
        save(name, *jax.jit(lambda g: transformation.update(g, transformation.init(g)))(grads))

    axes = {"sharded": "data", "columns": "data", "replicated": None}
    gan = optax_gradnorm.gan(axis_name=axes)
    by_shard = jax.shard_map(
        lambda g: gan.update(g, gan.init(g)), mesh=mesh, in_specs=(specs,), out_specs=(specs, P())
    )
    save("shard_map", *jax.jit(by_shard)(grads))
    jax.distributed.shutdown()
""")


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run_workers(folder, seconds=120):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    address = f"localhost:{free_port()}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(index), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=seconds)[0] for worker in workers]
    except subprocess.TimeoutExpired:
        for worker in workers:
            worker.kill()
        outputs = [worker.communicate()[0] for worker in workers]
        pytest.fail(f"no end within {seconds} s\n" + "\n".join(outputs))
    codes = [worker.returncode for worker in workers]
    assert codes == [0, 0], f"exit codes {codes}\n" + "\n".join(outputs)


def test_two_processes(tmp_path):
    generator = np.random.default_rng(0)
    trend = np.arange(1, 9)[:, None]
    grads = {
        "sharded": (generator.standard_normal((8, 6)) * trend + trend).astype(np.float32),
        "columns": (generator.standard_normal((5, 8)) * trend.T - trend.T).astype(np.float32),
        "replicated": (generator.standard_normal((7, 3)) * 5).astype(np.float32),
    }
    np.savez(tmp_path / "gradients.npz", **grads)
    run_workers(tmp_path)

    for name in ("znorm", "gan", "centralize", "shard_map"):
        transformation = getattr(optax_gradnorm, "gan" if name == "shard_map" else name)()
        updates, state = transformation.update(grads, transformation.init(grads))
        rows_seen = dict.fromkeys(grads, 0)
        for index in range(2):
            saved = np.load(tmp_path / f"{name}.{index}.npz")
            for i, scalar in enumerate(jax.tree.leaves(state)):
                assert abs(float(saved[f"state{i}"]) / float(scalar) - 1) <= 2e-6, (name, index)
            for key in saved.files:
                if "@" not in key:
                    continue
                leaf, where = key.split("@")
                part = np.asarray(updates[leaf])[eval(where, {"slice": slice})]
                assert reference.error(saved[key], reference.exact(part)) <= 2e-6, (name, index, key)
                rows_seen[leaf] += saved[key].size
        # Every element came from one of the processes; the replicated leaf from both.
        assert rows_seen == {k: g.size * (2 if k == "replicated" else 1) for k, g in grads.items()}
