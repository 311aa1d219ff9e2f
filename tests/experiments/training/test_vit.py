"""Training of Vision Transformers: stacked blocks change nothing, and chance is the same after an interruption."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from experiments import data, models, records, training
from experiments.models.vit import VisionTransformer
from experiments.preflight import UsageError, check_data

from .small import small_dataset, small_run, without_seconds

pytestmark = pytest.mark.usefixtures("compile_once")
SMALL = partial(VisionTransformer, patch=4, width=8, depth=2, heads=2, pooling="token")
NETWORKS = {
    "vit": SMALL,
    "vit_stacked": partial(SMALL, stacked=True),
    "vit_drop": partial(SMALL, stochastic_depth=0.5),
    "vit_drop_stacked": partial(SMALL, stochastic_depth=0.5, stacked=True),
}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    for name, build in NETWORKS.items():
        monkeypatch.setitem(models.MODELS, name, build)


def small_vit_run(model, **options):
    options = {"optimizer": "adamw", "weight_decay": 0.05, "dynamics": True} | options
    return small_run(model=model, **options)


@pytest.mark.parametrize(("method", "network"), [("centralization", "vit"), ("gan", "vit_drop")])
def test_stacked_blocks_train_and_are_recorded_as_single_ones(method, network, tmp_path):
    single, stacked = (small_vit_run(f"{network}{suffix}", method=method) for suffix in ("", "_stacked"))
    one, other = (training.train(run, small_dataset(), out=tmp_path) for run in (single, stacked))
    assert one.parameters == other.parameters
    for a, b in zip(one.epochs, other.epochs, strict=True):
        np.testing.assert_allclose(b.train_loss, a.train_loss, rtol=1e-4)
        np.testing.assert_allclose(b.test_loss, a.test_loss, rtol=1e-4)
    alone, together = (records.read_dynamics(tmp_path, record) for record in (one, other))
    assert alone is not None
    assert together is not None
    assert len(alone.layers) == 2 + 2 * 6 + 1
    columns = [together.layers.index(layer) for layer in alone.layers]
    np.testing.assert_array_equal(together.sizes[columns], alone.sizes)
    for statistic in ("std", "smallest_std", "mean"):
        expected, actual = getattr(alone, statistic), getattr(together, statistic)[:, columns]
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(together.global_std, alone.global_std, rtol=1e-3)


@pytest.mark.parametrize("model", ["vit_drop", "vit_drop_stacked"])
def test_stochastic_depth_is_resumed_with_the_same_bits(model, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(record):
        if len(record.epochs) == 2:
            raise Interrupted

    run = small_vit_run(model, epochs=3)
    whole = training.train(run, small_dataset(), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        training.train(run, small_dataset(), out=tmp_path / "cut", on_epoch=stop)
    cut = training.train(run, small_dataset(), out=tmp_path / "cut")
    assert without_seconds(cut) == without_seconds(whole)
    plain = training.train(dataclasses.replace(run, model="vit"), small_dataset(), out=tmp_path / "plain")
    assert plain.epochs[-1].train_loss != whole.epochs[-1].train_loss


def test_a_trust_ratio_for_all_stacked_blocks_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *arguments: small_dataset())
    check_data([small_vit_run("vit", optimizer="lamb"), small_vit_run("vit_stacked")])
    with pytest.raises(UsageError, match="optimizer must not be lamb with vit_stacked"):
        check_data([small_vit_run("vit_stacked", optimizer="lamb")])
