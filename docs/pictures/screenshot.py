"""Take the picture of a report: ``PYTHONPATH=. python docs/pictures/screenshot.py`` writes ``report.png`` beside it.

It needs torchvision and a Chromium. The model is a ResNet-50 with random weights; a random third of the filters of
every convolution is masked, drawn layer by layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torchvision
from torch import nn

import speedup
from speedup.testing import randomize
from tests.browser import Browser

HERE = Path(__file__).parent


def plan() -> speedup.Plan:
    torch.manual_seed(0)
    model = randomize(torchvision.models.resnet50(weights=None)).eval()
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            keep = torch.ones(module.out_channels)
            keep[torch.randperm(len(keep))[: len(keep) // 3]] = 0
            masks[name] = {"weight": keep.view(-1, 1, 1, 1).expand_as(module.weight)}
    return speedup.plan(model, torch.randn(1, 3, 224, 224), masks)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Browser() as page:
        path = Path(folder) / "report.html"
        plan().report(path)
        page.send("Emulation.setDeviceMetricsOverride", width=1500, height=860, deviceScaleFactor=1, mobile=False)
        page.open(path)
        page.run("document.querySelector('.reason button').click()")
        page.run("document.getElementById('tab-layers').click()")
        page.run(
            "[...document.querySelectorAll('#layers tbody button')]"
            ".find((b) => b.textContent === 'layer2.1.conv2').click()"
        )
        page.run("document.getElementById('tab-reasons').click()")
        page.picture(HERE / "report.png")


if __name__ == "__main__":
    main()
