"""Experiments that measure what gradient normalization does: run as `python -m experiments`."""
