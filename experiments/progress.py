"""Shows a sweep while it runs: a live display on a terminal, one plain line per event elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.config import Run
from experiments.records import RunRecord
from experiments.sweep import Event

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Context manager that is given to `sweep` as `on_event`."""

    def __init__(self, title: str, runs: Sequence[Run], console: Console | None = None):
        self.title = title
        self.console = console or Console()
        self.runs = {run.name: run for run in runs}
        self.epochs_done = dict.fromkeys(self.runs, 0)
        self.ended: set[str] = set()
        self.running: dict[str, RunRecord | None] = {}
        self.best: RunRecord | None = None
        self.trained = 0  # epochs, by this sweep
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
        if self.best is None or _accuracy(record) > _accuracy(self.best):
            self.best = record

    def _seconds_left(self) -> float | None:
        """As many seconds per epoch as so far, compilation included."""
        if not self.trained:
            return None
        left = sum(
            run.epochs - self.epochs_done[name] for name, run in self.runs.items() if name not in self.ended
        )
        return (time.monotonic() - self.start) / self.trained * left

    def _display(self) -> Group:
        total, done, running = len(self.runs), len(self.ended), len(self.running)
        left = _clock(self._seconds_left())
        status = f"{done} done, {running} running, {total - done - running} left, {left} to go"
        epochs = sum(run.epochs for run in self.runs.values())
        epochs_done = sum(
            run.epochs if name in self.ended else self.epochs_done[name] for name, run in self.runs.items()
        )
        lines = [
            Text(f"{self.title}: {status}", "bold", overflow="ellipsis", no_wrap=True),
            ProgressBar(total=max(epochs, 1), completed=epochs_done, width=min(self.console.width, 78)),
        ]
        if self.best is not None:
            best = f"best so far: {_accuracy(self.best):.2%} {describe(self.best.run)}"
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
        line = f"[{len(self.ended)}/{len(self.runs)}] {event.kind} {describe(event.run)}"
        if event.record is not None and event.record.epochs:
            metrics = event.record.epochs[-1]
            line += (
                f": epoch {len(event.record.epochs)}/{event.run.epochs}, training loss"
                f" {metrics.train_loss:.4g}, test accuracy {metrics.test_accuracy:.2%}"
            )
        if event.message:
            line += f": {event.message}"
        elif event.kind != "skipped":
            line += f" ({_clock(self._seconds_left())} to go)"
        print(line, flush=True)


def describe(run: Run) -> str:
    """A run in a few words."""
    return f"{run.model} {run.method} {run.optimizer} lr {run.learning_rate:g} seed {run.seed}"


def _accuracy(record: RunRecord) -> float:
    return record.epochs[-1].test_accuracy


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?:??"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
