"""Parameters of Flax NNX and linen, Equinox and Haiku: the same updates and sensible names."""
