"""Models, by name: Flax NNX modules called as `model(images, train=True)`."""
