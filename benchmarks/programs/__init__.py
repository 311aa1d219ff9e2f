"""What XLA makes of the transformations for accelerators that are not there: `python -m benchmarks.programs`."""
