"""Makes torch_vit.npz: a small Vision Transformer of PyTorch's own layers, its outputs and its gradients.

    pip install torch==2.13.0 numpy
    python tests/experiments/models/make_torch_vit.py

PyTorch is no dependency of the tests; they read the file.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

PATCH, WIDTH, HEADS, DEPTH, CLASSES, IMAGE_SIZE, CHANNELS = 4, 12, 3, 2, 5, 8, 2


class Network(nn.Module):
    """Patches and a class token through `TransformerEncoder`; logits of the token and of the mean over all tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, (IMAGE_SIZE // PATCH) ** 2 + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH,
            HEADS,
            dim_feedforward=4 * WIDTH,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, norm=norm, enable_nested_tensor=False)
        self.to_logits = nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.encoder(x + self.position)
        return self.to_logits(x[:, 0]), self.to_logits(x.mean(1))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    network = Network().double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # Scales of norms lie about 1; float32, so that both networks have the very same weights.
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_((1 + values if is_scale else values).float())
    images = torch.randn(3, CHANNELS, IMAGE_SIZE, IMAGE_SIZE, generator=generator).double()
    labels = torch.tensor([0, 3, 4])

    by_token, by_mean = network(images)
    loss = nn.functional.cross_entropy(by_token, labels)
    loss.backward()
    arrays = {
        "images": images.permute(0, 2, 3, 1).numpy(),
        "labels": labels.numpy(),
        "logits_token": by_token.detach().numpy(),
        "logits_mean": by_mean.detach().numpy(),
    }
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        arrays[f"parameter/{name}"] = parameter.detach().float().numpy()
        arrays[f"gradient/{name}"] = parameter.grad.numpy()
    np.savez_compressed(Path(__file__).with_name("torch_vit.npz"), **arrays)


if __name__ == "__main__":
    main()
