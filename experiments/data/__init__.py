"""Data sets, by name: every source gives the same arrays."""
