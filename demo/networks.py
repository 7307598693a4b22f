"""The networks of the four examples: VGG-16 and VGG-19 for images of 32x32, and the small "naive" net for 28x28."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOL = "M"

#: Output channels of the convolutions, stage by stage; `POOL` halves the image.
VGG_STAGES: dict[int, tuple[int | str, ...]] = {
    16: (64, 64, POOL, 128, 128, POOL, *[256] * 3, POOL, *[512] * 3, POOL, *[512] * 3),
    19: (64, 64, POOL, 128, 128, POOL, *[256] * 4, POOL, *[512] * 4, POOL, *[512] * 4),
}


class VGG(nn.Module):
    """VGG with BatchNorm for 3x32x32 images: 3x3 convolutions without bias, and two linear layers at the end."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth not in VGG_STAGES:
            raise ValueError(f"depth must be one of {sorted(VGG_STAGES)}, not {depth}")
        self.features = _features(VGG_STAGES[depth])
        self.pool = nn.AvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Linear(512, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, `(n, classes)`, of images `(n, 3, 32, 32)`."""
        x = self.pool(self.features(images))
        x = x.view(x.size(0), -1)
        return self.classifier(x)


class NaiveNet(nn.Module):
    """Two convolutions and two linear layers for 1x28x28 images; activations, pools and the view are functions."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.bn1 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.bn2 = nn.BatchNorm2d(50)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores, `(n, classes)`, of images `(n, 1, 28, 28)`."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


def build(name: str, seed: int) -> nn.Module:
    """A freshly initialised network, `vgg16`, `vgg19` or `naive`; the caller's random state stays as it was."""
    makers = {"vgg16": lambda: VGG(16), "vgg19": lambda: VGG(19), "naive": NaiveNet}
    if name not in makers:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(makers)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = makers[name]()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def _features(stages: tuple[int | str, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for stage in stages:
        if isinstance(stage, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [
                nn.Conv2d(channels, stage, 3, padding=1, bias=False),
                nn.BatchNorm2d(stage),
                nn.ReLU(inplace=True),
            ]
            channels = stage
    return nn.Sequential(*layers)
