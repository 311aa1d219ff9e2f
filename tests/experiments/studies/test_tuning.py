"""Grids of learning rates that grow at their edges, and the study that was fixed before its runs."""

import dataclasses
import itertools
import math

import pytest

from experiments.records import EpochMetrics, RunRecord
from experiments.run import Run
from experiments.studies import cifar10_confirm, load_study
from experiments.studies.study import PRESETS
from experiments.studies.tuning import MOST_EXTENSIONS, TUNING_SEEDS, Tuning, half_a_decade

TUNED = ("cifar10_confirm", "overlap_table1", "pcam", "lgg_unet", "vit_dynamics")
SETTINGS = [
    Run("digits", "resnet8", method, optimizer, 1.0, 1, 50, 0)
    for optimizer in ("sgdm", "adam")
    for method in ("baseline", "znorm")
]
GRID = {"sgdm": (0.03, 0.1, 0.3), "znorm sgdm": (1e-4, 3e-4, 1e-3), "adam": (0.001, 0.003)}


def setting(run: Run) -> tuple[str, str]:
    return run.optimizer, run.method


def tuning(**options) -> Tuning:
    return Tuning(SETTINGS, GRID, ("optimizer", "method"), (7, 8), **options)


def grow(of: Tuning, best: dict[tuple[str, str], float], rounds: int = 2 * MOST_EXTENSIONS) -> list[Run]:
    """What a tuning names when all that it named has ended, again and again."""
    runs = of.runs()
    for _ in range(rounds):
        runs = of.runs(peaked(runs, best))
    return runs


def ended(run: Run, accuracy: float, status: str = "finished") -> RunRecord:
    return RunRecord(run=run, status=status, epochs=(EpochMetrics(1, 1.0, 0.5, 1.0, accuracy, 0, 1.0),))


def peaked(runs, best: dict[tuple[str, str], float]) -> list[RunRecord]:
    """Accuracies that fall with the distance from a setting's best rate, on a logarithmic scale."""
    return [ended(run, 1 - abs(math.log10(run.learning_rate / best[setting(run)])) / 10) for run in runs]


def rates(runs, key) -> list[float]:
    return sorted({run.learning_rate for run in runs if setting(run) == key})


def test_the_ladder_has_two_steps_per_decade():
    ladder = [3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    for lower, higher in itertools.pairwise(ladder):
        assert half_a_decade(lower, 1) == higher
        assert half_a_decade(higher, -1) == lower


def test_a_method_behind_an_optimizer_may_have_a_grid_of_its_own():
    runs = tuning(changes={"epochs": 3}).runs()
    assert rates(runs, ("sgdm", "znorm")) == [1e-4, 3e-4, 1e-3]
    assert rates(runs, ("sgdm", "baseline")) == [0.03, 0.1, 0.3]
    assert rates(runs, ("adam", "znorm")) == rates(runs, ("adam", "baseline")) == [0.001, 0.003]
    assert {run.seed for run in runs} == {7, 8}
    assert {run.epochs for run in runs} == {3}


def test_a_grid_grows_until_its_best_rate_has_a_worse_one_on_either_side():
    best = {
        ("sgdm", "baseline"): 0.1,  # inside already
        ("sgdm", "znorm"): 3e-5,  # one below the lowest: two more rates
        ("adam", "baseline"): 0.003,  # the highest
        ("adam", "znorm"): 0.03,  # two above the highest
    }
    growing = tuning(extend=True)
    assert growing.runs() == tuning().runs()  # nothing has ended
    runs = grow(growing, best)
    assert rates(runs, ("sgdm", "baseline")) == [0.03, 0.1, 0.3]
    assert rates(runs, ("sgdm", "znorm")) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    assert rates(runs, ("adam", "baseline")) == [0.001, 0.003, 0.01]
    assert rates(runs, ("adam", "znorm")) == [0.001, 0.003, 0.01, 0.03, 0.1]
    assert len(set(runs)) == len(runs)
    assert {run.seed for run in runs if run.learning_rate == 1e-5} == {7, 8}
    tuned = growing.tuned(peaked(runs, best))
    assert {setting(run): run.learning_rate for run in tuned} == best


def test_only_settings_that_have_ended_grow():
    runs = tuning().runs()
    records = peaked(runs, {setting(run): 1000.0 for run in SETTINGS})
    without_one = [record for record in records if record.run != runs[0]]
    extended = tuning(extend=True).runs(without_one)
    assert rates(extended, ("sgdm", "baseline")) == [0.03, 0.1, 0.3]
    assert rates(extended, ("sgdm", "znorm")) == [1e-4, 3e-4, 1e-3, 0.003]


def test_the_growth_has_an_end():
    runs = grow(tuning(extend=True), {setting(run): 1e9 for run in SETTINGS})
    assert len(rates(runs, ("adam", "znorm"))) == 2 + MOST_EXTENSIONS


def test_a_refined_grid_has_two_rates_beside_its_best_and_they_may_be_chosen():
    best = {setting(run): 0.0055 if run.optimizer == "adam" else 1e-3 for run in SETTINGS}
    refining = tuning(extend=True, refine=True)
    runs = grow(refining, best)
    assert rates(runs, ("adam", "znorm")) == [0.001, 0.003, 0.0055, 0.01, 0.018, 0.03]
    assert rates(runs, ("sgdm", "znorm")) == [1e-4, 3e-4, 5.5e-4, 1e-3, 1.8e-3, 3e-3]
    tuned = refining.tuned(peaked(runs, best))
    assert {run.learning_rate for run in tuned if run.optimizer == "adam"} == {0.0055}
    # Before the two have ended nothing is chosen.
    assert not refining.tuned([r for r in peaked(runs, best) if r.run.learning_rate not in (0.018, 1.8e-3)])


def test_changes_may_depend_on_the_setting():
    epochs = {"sgdm": 3, "adam": 4}
    runs = tuning(changes=lambda run: {"epochs": epochs[run.optimizer]}).runs()
    assert {(run.optimizer, run.epochs) for run in runs} == {("sgdm", 3), ("adam", 4)}


def test_the_mean_over_the_tuning_seeds_chooses_and_a_diverged_one_excludes_its_rate():
    accuracies = {0.03: (0.5, 0.5), 0.1: (0.7, 0.4), 0.3: (0.9, 0.9)}
    one = Tuning(SETTINGS[:1], GRID, ("optimizer", "method"), (7, 8))
    records = [ended(run, accuracies[run.learning_rate][run.seed - 7]) for run in one.runs()]
    (cell,) = one.best(records).values()
    assert cell.run.learning_rate == 0.3
    records[-1] = ended(records[-1].run, 0.9, "diverged")
    (cell,) = one.best(records).values()
    assert cell.run.learning_rate == 0.1  # 0.55 and not 0.5
    table = one.table(records[::-1])
    assert "| SGDM " in table
    assert "**55.0 ± 21.2**" in table
    assert table.index("0.03") < table.index("0.3 |")


def test_of_equal_means_the_lower_rate_wins_however_they_are_rounded():
    of = dataclasses.replace(tuning(), settings=SETTINGS[:1])
    # Sums of other numbers: 0.9886 both, which floating point tells apart.
    accuracies = {0.03: (0.495, 0.4936), 0.1: (0.4958, 0.4928), 0.3: (0.4, 0.4)}
    records = [ended(run, accuracies[run.learning_rate][run.seed - 7]) for run in of.runs()]
    assert [run.learning_rate for run in of.tuned(records)] == [0.03]


@pytest.mark.parametrize("preset", cifar10_confirm.SIZES)
def test_the_confirmatory_study_tunes_on_other_seeds_and_images_than_it_reports(preset):
    """Plays a whole study with made-up accuracies."""
    records, rounds = [], []
    while new := [
        run
        for run in cifar10_confirm.make_runs(preset, records)
        if run not in {record.run for record in records}
    ]:
        rounds.append(new)
        # Best at 0.03 or, for small updates, one step beyond the grid.
        records += [ended(run, 1 - abs(math.log10(run.learning_rate / 0.03)) / 10) for run in new]

    size = cifar10_confirm.SIZES[preset]
    made = [record.run for record in records]
    tuning = [run for run in made if run.validation_examples]
    reported = [run for run in made if not run.validation_examples]
    assert not {run.seed for run in tuning} & {run.seed for run in reported}
    assert {run.seed for run in tuning} == set(TUNING_SEEDS)
    assert len(set(made)) == len(made)
    regime, tuned = rounds[-1], rounds[-2]
    assert [*tuned, *regime] == reported  # first all of the one, then all of the other
    cells = len(size.schedules) * 2 * len(size.methods)
    assert len(tuned) == cells * len(size.seeds)
    for run in tuned:
        assert run.test_examples == size.test_examples
        assert run.train_examples == size.train_examples
        assert (run.warmup_epochs, run.weight_decay, run.augment) == (0.5, 0, "none")
    assert {run.seed for run in tuned} == set(size.seeds)
    assert {(run.schedule, run.warmup_epochs) for run in regime} == {("constant", 0)}
    assert {(run.optimizer, run.learning_rate) for run in regime} == {("sgdm", 0.01), ("adam", 0.001)}
    assert "gan" not in {run.method for run in regime}

    # Every method has as many rates to begin with.
    counts = {
        key: len({run.learning_rate for run in rounds[0] if (run.schedule, run.optimizer, run.method) == key})
        for key in {(run.schedule, run.optimizer, run.method) for run in rounds[0]}
    }
    assert len(set(counts.values())) == 1


def test_the_confirmatory_study_is_of_the_size_its_protocol_says():
    runs = cifar10_confirm.make_runs("cpu", [])
    assert {run.train_examples for run in runs} == {12_500}
    assert {run.validation_examples for run in runs} == {5_000}
    assert {(run.schedule, run.warmup_epochs, run.epochs) for run in runs} == {("cosine", 0.5, 4)}
    assert 3e-5 in {run.learning_rate for run in runs if (run.method, run.optimizer) == ("znorm", "sgdm")}
    assert 10 in {run.learning_rate for run in runs if (run.method, run.optimizer) == ("clipping", "sgdm")}
    assert cifar10_confirm.SIZES["cpu"].seeds == (0, 1, 2, 3, 4)


def is_tuning(run: Run) -> bool:
    return bool(run.validation_examples) or run.data_name.endswith(":validation")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TUNED)
def test_no_seed_that_tunes_is_reported(name, preset):
    study = load_study(name)
    records = []
    while new := [
        run for run in study.runs(preset, records) if is_tuning(run) and run not in {r.run for r in records}
    ]:
        epochs = (EpochMetrics(1, 1.0, 0.5, 1.0, 0.5, 0, 1.0),)
        records += [RunRecord(run, "finished", epochs=epochs, scores={"f1": 0.5}) for run in new]
    tuning = {record.run.seed for record in records}
    reported = {run.seed for run in study.runs(preset, records) if not is_tuning(run)}
    assert tuning
    assert reported
    assert not tuning & reported


def test_the_top_of_a_parabola_says_how_far_a_finer_grid_could_go():
    """Scores -(log10(rate) - log10(0.2))^2 of 0.03, 0.1, 0.3 and 1: the best is 0.3, the top 0 at 0.2."""
    one = Tuning(SETTINGS[:1], {"sgdm": (0.03, 0.1, 0.3, 1.0)}, seeds=(7, 8))
    records = [ended(run, 1 - (math.log10(run.learning_rate / 0.2)) ** 2) for run in one.runs()]
    (peak,) = one.peaks(records).values()
    assert (peak.chosen, peak.rate) == (0.3, pytest.approx(0.2))
    assert peak.gain == pytest.approx(math.log10(0.3 / 0.2) ** 2)
    # At an edge, beside a diverged run, and before all have ended there is none.
    assert not dataclasses.replace(one, grid={"sgdm": (0.3, 1.0)}).peaks(records)
    broken = [ended(r.run, 0.5, "diverged") if r.run.learning_rate == 0.1 else r for r in records]
    assert not one.peaks(broken)
    assert not one.peaks(records[1:])
