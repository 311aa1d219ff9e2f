"""Shows a sweep while it runs: a live display on a terminal, one plain line per event elsewhere."""

import time
from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.jobs.sweep import Event
from experiments.records import RunRecord
from experiments.run import Run

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Context manager that is given to one or more calls of `sweep` as `on_event`."""

    def __init__(self, title: str, console: Console | None = None):
        self.title = title
        self.console = console or Console()
        self.runs: dict[str, Run] = {}
        self.epochs_done: dict[str, int] = {}
        self.ended: set[str] = set()
        self.running: dict[str, RunRecord | None] = {}
        self.best: dict[str, RunRecord] = {}  # by kind of images: what tuning saw is no test accuracy
        self.trained = 0  # epochs, in all sweeps together
        self.start = time.monotonic()
        self.last_line: dict[str, float] = {}
        self.live: Live | None = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live = Live(console=self.console, get_renderable=self._display, refresh_per_second=2)
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live is not None:
            self.live.stop()

    def add(self, runs: Iterable[Run]) -> None:
        """Makes runs known that are to be made, beside those of before."""
        for run in runs:
            self.runs[run.name] = run
            self.epochs_done.setdefault(run.name, 0)

    def __call__(self, event: Event) -> None:
        """Takes one event of the sweep."""
        name = event.run.name
        if event.record is not None:
            done = len(event.record.epochs)
            if event.kind == "epoch":
                self.trained += 1
            self.epochs_done[name] = done
        if event.kind in ("started", "epoch"):
            self.running[name] = event.record
        else:
            self.running.pop(name, None)
        if event.kind in ("skipped", "finished", "diverged", "failed"):
            self.ended.add(name)
            self._note_best(event.record)
        if self.live is None:
            self._print_line(event)
        elif event.kind in ("retried", "failed", "diverged"):
            self.console.print(Text(f"{event.kind}: {describe(event.run)} {event.message}".rstrip(), "red"))

    def _note_best(self, record: RunRecord | None) -> None:
        if record is None or record.status != "finished" or not record.epochs:
            return
        images = _images(record.run)
        if images not in self.best or _accuracy(record) > _accuracy(self.best[images]):
            self.best[images] = record

    def _best_shown(self) -> RunRecord | None:
        """On test images; on validation images only as long as there is none."""
        return self.best.get("test") or self.best.get("validation")

    def _counts(self) -> tuple[int, int, int]:
        """How many runs are done, are running and are left."""
        done, running = len(self.ended), len(self.running)
        return done, running, len(self.runs) - done - running

    def _seconds_left(self) -> float | None:
        """As many seconds per epoch as so far, compilation included."""
        if not self.trained:
            return None
        left = sum(
            run.epochs - self.epochs_done[name] for name, run in self.runs.items() if name not in self.ended
        )
        return (time.monotonic() - self.start) / self.trained * left

    def _display(self) -> Group:
        done, running, left = self._counts()
        status = f"{done} done, {running} running, {left} left, {_clock(self._seconds_left())} to go"
        epochs = sum(run.epochs for run in self.runs.values())
        epochs_done = sum(
            run.epochs if name in self.ended else self.epochs_done[name] for name, run in self.runs.items()
        )
        lines = [
            Text(f"{self.title}: {status}", "bold", overflow="ellipsis", no_wrap=True),
            ProgressBar(total=max(epochs, 1), completed=epochs_done, width=min(self.console.width, 78)),
        ]
        if (record := self._best_shown()) is not None:
            accuracy = f"{_images(record.run)} accuracy {_accuracy(record):.2%}"
            best = f"best so far: {accuracy} {describe(record.run)}"
            lines.append(Text(best, overflow="ellipsis", no_wrap=True))
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("running", no_wrap=True, overflow="ellipsis", ratio=1)
        for heading in ("epoch", "loss", "accuracy"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, record in self.running.items():
            run = self.runs[name]
            epoch = f"{self.epochs_done[name]}/{run.epochs}"
            if record is None or not record.epochs:
                table.add_row(describe(run), epoch, "compiling", "")
            else:
                metrics = record.epochs[-1]
                table.add_row(
                    describe(run), epoch, f"{metrics.train_loss:.3g}", f"{metrics.test_accuracy:.2%}"
                )
        return Group(*lines, table)

    def _print_line(self, event: Event) -> None:
        now, name = time.monotonic(), event.run.name
        if event.kind == "epoch" and now - self.last_line.get(name, now) < SECONDS_BETWEEN_LINES:
            self.last_line.setdefault(name, now)
            return
        self.last_line[name] = now
        print(f"[{self._status()}] {self._describe_event(event)}", flush=True)

    def _status(self) -> str:
        """The whole sweep, so short that an event has room beside it in 80 columns."""
        done, running, left = self._counts()
        status = f"{done}/{len(self.runs)}, {running} run, {left} left"
        if (seconds := self._seconds_left()) is not None:
            status += f" ({_clock(seconds)})"
        if (best := self._best_shown()) is not None:
            status += f", best {_short_accuracy(best)}"
        return status

    def _describe_event(self, event: Event) -> str:
        run, record = event.run, event.record
        # The model is left out where it is the same everywhere.
        model = f"{run.model} " if len({known.model for known in self.runs.values()}) > 1 else ""
        name = f"{model}{run.method} {run.optimizer} {run.learning_rate:g} s{run.seed}"
        if event.message:
            return f"{event.kind} {name}: {event.message}"
        if record is None or not record.epochs:
            return f"{event.kind} {name}"
        epochs = "" if record.status == "finished" else f" {len(record.epochs)}/{run.epochs}"
        return f"{event.kind}{epochs} {name} {_short_accuracy(record)}"


def describe(run: Run) -> str:
    """A run in a few words."""
    return f"{run.model} {run.method} {run.optimizer} lr {run.learning_rate:g} seed {run.seed}"


def _images(run: Run) -> str:
    """What images a run is evaluated on."""
    return "validation" if run.validation_examples else "test"


def _short_accuracy(record: RunRecord) -> str:
    on_validation = "val " if _images(record.run) == "validation" else ""
    return f"{on_validation}{_accuracy(record):.1%}"


def _accuracy(record: RunRecord) -> float:
    return record.epochs[-1].test_accuracy


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?:??"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
