"""The CIFAR ResNet of `experiments.models.resnet` and its training in PyTorch, to compare speeds with."""

# PyTorch is not a requirement: without it the benchmark leaves its rows out.
# pyright: reportMissingImports=false
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, with a 1x1 convolution and BatchNorm as shortcut where the shape changes."""

    def __init__(self, in_features: int, features: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_features, features, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1, bias=False),
            nn.BatchNorm2d(features),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_features != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_features, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))


def cifar_resnet(depth: int, num_classes: int = 10) -> nn.Module:
    """Three stages of (depth - 2) / 6 blocks with 16, 32 and 64 features."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for features in (16, 32, 64):
        for block in range((depth - 2) // 6):
            stride = 2 if block == 0 and features > 16 else 1
            layers.append(BasicBlock(width, features, stride))
            width = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def make_epoch(depth: int, images: np.ndarray, labels: np.ndarray, batch_size: int):
    """Makes a function that trains for one epoch with SGD and momentum 0.9, and the number of parameters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = cifar_resnet(depth).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # uint8, channels last in memory
    targets = torch.from_numpy(labels).long().to(device)

    def epoch() -> float:
        order = torch.randperm(len(data), device=device)
        total = torch.zeros((), device=device)
        for start in range(0, len(data) - batch_size + 1, batch_size):
            indices = order[start : start + batch_size]
            batch = (data[indices].float() / 255 - 0.5) / 0.25
            loss = cross_entropy(model(batch), targets[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item()

    return epoch, sum(parameter.numel() for parameter in model.parameters())
