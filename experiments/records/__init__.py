"""What runs and measurements leave on disk. Nothing else in the project knows what these files look like.

`schema` says what a record holds, `working` keeps a run's own files while it is under way, `sharded` the checkpoints
of several hosts, `lines` the files that git holds, and `publish` makes these of those.
"""

from experiments.records.lines import read_runs as read_published
from experiments.records.publish import Published, publish, take_published
from experiments.records.schema import STATUSES, EpochMetrics, MeasurementRecord, RecordError, RunRecord
from experiments.records.working import (
    check_fits,
    exists,
    find_record,
    has_checkpoint,
    has_ended,
    read_checkpoint,
    read_dynamics,
    read_measurements,
    read_record,
    read_records,
    remove_checkpoint,
    remove_leftovers,
    sharded_checkpoint,
    write_checkpoint,
    write_dynamics,
    write_measurement,
    write_record,
)

__all__ = [
    "STATUSES",
    "EpochMetrics",
    "MeasurementRecord",
    "Published",
    "RecordError",
    "RunRecord",
    "check_fits",
    "exists",
    "find_record",
    "has_checkpoint",
    "has_ended",
    "publish",
    "read_checkpoint",
    "read_dynamics",
    "read_measurements",
    "read_published",
    "read_record",
    "read_records",
    "remove_checkpoint",
    "remove_leftovers",
    "sharded_checkpoint",
    "take_published",
    "write_checkpoint",
    "write_dynamics",
    "write_measurement",
    "write_record",
]
