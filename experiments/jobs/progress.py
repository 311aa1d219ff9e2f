"""Shows a sweep while it runs: a live display on a terminal, one plain line per event elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Iterable

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from experiments import hosts
from experiments.jobs.silence import Watch
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
        self.live: _Display | None = None
        self.watch = Watch(self._tell_silence)
        self._lock = threading.Lock()  # of what is printed: by this thread and by the watch's

    def __enter__(self) -> "Progress":
        if self.console.is_terminal and hosts.is_first():
            self.live = _Display(self.console, self._headings)
            self.live.start()
        if hosts.is_first():
            self.watch.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        if hosts.is_first():
            self.watch.__exit__(*exception)
        if self.live is not None:
            self.live.stop()

    def add(self, runs: Iterable[Run]) -> None:
        """Adds runs that are still to be made."""
        for run in runs:
            self.runs[run.name] = run
            self.epochs_done.setdefault(run.name, 0)

    def __call__(self, event: Event) -> None:
        """Takes one event of the sweep."""
        name = event.run.name
        if event.kind == "started":
            self.watch.started(name, event.worker or 0)
        elif event.kind == "epoch":
            self.watch.heard(name)
        else:
            self.watch.ended(name)
        with self._lock:
            self._take(event)

    def _tell_silence(self, name: str, line: str) -> None:
        """Says that a run has not been heard of for long; called in the watch's thread."""
        with self._lock:
            if self.live is None:
                print(f"[{self._status()}] silent {self._short_name(self.runs[name])}: {line}", flush=True)
            else:
                self.console.print(Text(f"silent: {describe(self.runs[name])}: {line}", "yellow"))

    def _take(self, event: Event) -> None:
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
            return
        self._show(event)
        if event.kind in ("retried", "failed", "diverged"):
            self.console.print(Text(f"{event.kind}: {describe(event.run)} {event.message}".rstrip(), "red"))

    def _note_best(self, record: RunRecord | None) -> None:
        if record is None or record.status != "finished" or not record.epochs:
            return
        images = _images(record.run)
        if images not in self.best or _accuracy(record) > _accuracy(self.best[images]):
            self.best[images] = record

    def _best_shown(self) -> RunRecord | None:
        """The best run on test images; on validation images only until there is one."""
        return self.best.get("test") or self.best.get("validation")

    def _counts(self) -> tuple[int, int, int]:
        """How many runs are done, are running and are left."""
        done, running = len(self.ended), len(self.running)
        return done, running, len(self.runs) - done - running

    def _seconds_left(self) -> float | None:
        """An estimate from the seconds per epoch so far, compilation included."""
        if not self.trained:
            return None
        left = sum(
            run.epochs - self.epochs_done[name] for name, run in self.runs.items() if name not in self.ended
        )
        return (time.monotonic() - self.start) / self.trained * left

    def _headings(self) -> list[Text]:
        done, running, left = self._counts()
        status = f"{done} done, {running} running, {left} left, {_clock(self._seconds_left())} to go"
        lines = [Text(f"{self.title}: {status}", "bold", overflow="ellipsis", no_wrap=True)]
        if (record := self._best_shown()) is not None:
            accuracy = f"{_images(record.run)} accuracy {_accuracy(record):.2%}"
            best = f"best so far: {accuracy} {describe(record.run)}"
            lines.append(Text(best, overflow="ellipsis", no_wrap=True))
        return lines

    def _show(self, event: Event) -> None:
        assert self.live is not None
        name, run, record = event.run.name, event.run, event.record
        epochs = sum(run.epochs for run in self.runs.values())
        epochs_done = sum(
            run.epochs if name in self.ended else self.epochs_done[name] for name, run in self.runs.items()
        )
        self.live.show("all runs", epochs_done, epochs)
        if name not in self.running:
            self.live.hide(describe(run))
        elif record is None or not record.epochs:
            self.live.show(describe(run), self.epochs_done[name], run.epochs, "compiling")
        else:
            last = record.epochs[-1]
            note = f"loss {last.train_loss:.3g}"
            if last.test_accuracy is not None:
                note += f", {last.test_accuracy:.2%}"
            self.live.show(describe(run), len(record.epochs), run.epochs, note)

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

    def _short_name(self, run: Run) -> str:
        # The model is omitted if all runs have the same one.
        model = f"{run.model} " if len({known.model for known in self.runs.values()}) > 1 else ""
        return f"{model}{run.method} {run.optimizer} {run.learning_rate:g} s{run.seed}"

    def _describe_event(self, event: Event) -> str:
        run, record = event.run, event.record
        name = self._short_name(run)
        if event.message:
            return f"{event.kind} {name}: {event.message}"
        if record is None or not record.epochs:
            return f"{event.kind} {name}"
        epochs = "" if record.status == "finished" else f" {len(record.epochs)}/{run.epochs}"
        last = record.epochs[-1]
        known = f"loss {last.train_loss:.3g}" if last.test_accuracy is None else _short_accuracy(record)
        return f"{event.kind}{epochs} {name} {known}"


class _Display(rich.progress.Progress):
    """Headings, and below them a bar for all runs and one for each that is under way."""

    def __init__(self, console: Console, headings: Callable[[], list[Text]]):
        self.headings = headings
        self.tasks_by_name: dict[str, TaskID] = {}
        name = Column(no_wrap=True, overflow="ellipsis", ratio=1, max_width=44)
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=name),
            BarColumn(bar_width=11),
            TextColumn("{task.completed}/{task.total}", justify="right", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=2,
        )

    def show(self, name: str, done: int, total: int, note: str = "") -> None:
        """Shows how far something is."""
        if name not in self.tasks_by_name:
            self.tasks_by_name[name] = self.add_task(name, total=total, note=note)
        self.update(self.tasks_by_name[name], completed=done, total=total, note=note)

    def hide(self, name: str) -> None:
        """No longer shows something."""
        if (task := self.tasks_by_name.pop(name, None)) is not None:
            self.remove_task(task)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from top to bottom."""
        yield from self.headings()
        yield self.make_tasks_table(self.tasks)


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
    accuracy = record.epochs[-1].test_accuracy
    return math.nan if accuracy is None else accuracy


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?:??"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
