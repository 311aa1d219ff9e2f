"""The section of the report beyond the paper: ZNorm and GAN with the normalizers that fail."""

from collections.abc import Sequence
from pathlib import Path

from experiments.records import RunRecord
from experiments.report import names
from experiments.report.cells import make_cells, make_rows
from experiments.report.findings import Finding
from experiments.report.markdown import markdown_table
from experiments.report.pages import describe_protocol
from experiments.report.tables import results_table
from experiments.studies.beyond_batchnorm import figures, trainings
from experiments.studies.beyond_batchnorm.plan import (
    LEARNING_RATES,
    METHODS,
    WEIGHT_DECAY,
    ZNORM_LEARNING_RATE,
    Extent,
    family,
    make_run,
    rescue_runs,
)
from experiments.studies.beyond_batchnorm.results import Results, Section, claim

AXES = ("model", "method")


def describe_beyond(results: Results, records: Sequence[RunRecord], folder: Path) -> Section:
    """Beyond the paper: ZNorm and GAN with the normalizers that fail."""
    size = results.size
    cells = make_cells(rescue_runs(size), records)
    found = []
    inputs = {}
    spreads = [["network", "normalizer", *METHODS]]
    for network, failing in size.rescued:
        for normalizer in (failing, "batch_norm"):
            sizes = trainings.optimizer_input(results, network, normalizer)
            if sizes:
                inputs[f"{names.model(network)}\n{names.normalizer(normalizer)}"] = sizes
                spreads.append(
                    [
                        names.model(network),
                        names.normalizer(normalizer),
                        *(f"{trainings.spread(rows):.2f}" for rows in sizes.values()),
                    ]
                )
        found.append(_rescue(results, network, failing))
    if len(spreads) > 1:
        ranges = {m: [float(row[2 + i]) for row in spreads[1:]] for i, m in enumerate(METHODS)}
        found.append(
            claim(
                "ZNorm gives every layer's gradient the same size",
                max(ranges["znorm"]) < 0.01,
                "deviation of log10 over layers: "
                + ", ".join(f"{names.METHODS[m]} {min(v):.2f} to {max(v):.2f}" for m, v in ranges.items()),
                label="sizes of gradients",
                source="",
            )
        )
    rows = make_rows(cells.values(), AXES)
    protocols = "\n".join(
        f"- {protocol}." for protocol in dict.fromkeys(describe_protocol(c.run) for c in cells.values())
    )
    text = f"""\
## Beyond the paper: ZNorm and GAN behind the normalizers that fail

{protocols}

{results_table(names.headings(AXES), rows)}

{_rescue_notes(size)}

Deviation over layers of log10 of the root mean square of each kernel's gradient at initialisation:

{markdown_table(spreads, left=2)}

{figures.draw_optimizer_input(folder, inputs) if inputs else ""}"""
    return found, text


def _rescue_notes(size: Extent) -> str:
    """What the trainings can tell and what not, and where their learning rates come from."""
    rates, steps = [], []
    for network, _ in size.rescued:
        run = make_run(size, network, "batch_norm", "baseline", 0)
        rate = LEARNING_RATES[family(network)]
        rates.append(f"{run.learning_rate:.4g} = {rate:g} * {run.batch_size} / 256 in {names.model(network)}")
        if run.train_examples is not None:
            steps.append(f"{run.epochs * run.train_examples // run.batch_size:,}")
    length = f"{' and '.join(dict.fromkeys(steps))} steps long" if steps else f"{size.epochs} epochs long"
    return f"""\
One learning rate for each method, tuned for none here, and trainings {length}: another rate may rescue what these
do not. Baseline and GAN have the paper's, scaled with the batch ({"; ".join(rates)}), although GAN's multiplier is
below 1 and shrinks the gradients; ZNorm has {ZNORM_LEARNING_RATE:g}, which tuning with SGDM found
best in another study, on CIFAR-10. The weight decay of {WEIGHT_DECAY:g} is added behind the momentum of 0.9, where
the paper's 0.0001 is added in front of it, which in the long run multiplies it by 1 / (1 - 0.9) = 10: the two are
equally strong."""


def _rescue(results: Results, network: str, failing: str) -> Finding:
    rescue = trainings.rescue(results, network, failing)
    sentence = f"ZNorm or GAN rescues {names.normalizer(failing)} in {names.model(network)}"
    if rescue is None:
        return claim(sentence, None, "", label=f"rescue of {names.normalizer(failing)}", source="")
    rescuers = [names.METHODS[m] for m in METHODS if m != "baseline" and rescue.trains(m)]
    told = rescue.is_told and not rescue.trains("baseline")
    note = f"by {' and '.join(rescuers)}" if rescuers else "not at these rates, tuned for none of them"
    if not told:
        note = "it does not fail here" if rescue.is_told else "BatchNorm has hardly learnt either"
    reached = [
        f"{names.METHODS[method]} {accuracy:.1%}"
        + (f" ({rescue.diverged[method]} diverged)" if rescue.diverged[method] else "")
        for method, accuracy in rescue.accuracies.items()
    ]
    return claim(
        sentence,
        # One rate for each method, tuned for none: that it does not train at it refutes nothing.
        True if told and rescuers else None,
        f"last training accuracy {', '.join(reached)}; BatchNorm {rescue.reference:.1%}",
        label=f"rescue of {names.normalizer(failing)}",
        note=f"{note}; would be shown by half-way from guessing to BatchNorm",
        source="",
    )
