"""Runs and records made by hand."""

from experiments.records import EpochMetrics, RunRecord
from experiments.run import Run


def make_record(run, accuracy, loss=0.5, status="finished", nonfinite_steps=0):
    epochs = tuple(
        EpochMetrics(e + 1, loss, accuracy, loss, accuracy - 0.1 * (run.epochs - 1 - e), nonfinite_steps, 1.0)
        for e in range(run.epochs)
    )
    return RunRecord(run=run, status=status, epochs=epochs)


def make_run(method, seed, **changes):
    fields = {"dataset": "digits", "model": "resnet8", "optimizer": "sgdm", "learning_rate": 0.01}
    # With a rate that falls, so that the last epoch counts.
    fields["schedule"] = "cosine"
    return Run(**{**fields, "epochs": 2, "batch_size": 50, "method": method, "seed": seed, **changes})
