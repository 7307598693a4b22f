"""A plugin whose rule answers rubbish: one message that names plugin, version, rule, call and line; the rest works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import speedup
from speedup import Registry, SpeedupError
from speedup.testing import mask_indices, randomize

InstallPlugin = Callable[..., str]

PLUGIN = """
    import numpy as np
    import torch
    from torch import nn
    from speedup import Constant, Rule, Unused, hookimpl

    class Scale(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.features = features
            self.weight = nn.Parameter(torch.ones(features))

        def forward(self, x):
            return x * self.weight

    class ScaleRule(Rule):
        name = "scale"
        modules = (Scale,)
        operands = ("input", "weight")
        axes = "* c, c -> * c"
        annihilates = {{"weight": ("input",)}}
        sizes = {{"features": "c"}}

        {method}

    @hookimpl
    def speedup_rules():
        lin = Rule(name="lin", modules=(nn.Linear,), operands=("input", "weight", "bias"), axes="* i, o i, o? -> * o",
                   sizes={{"in_features": "i", "out_features": "o"}}, bias="bias")
        return [lin, ScaleRule()]
"""

# What the rule does, and what the message must say of it.
RUBBISH = {
    "wrong shape": (
        "def infer_from_input(self, node, facts): return {'output': Constant(np.ones(6, bool), np.zeros(6))}",
        r"gave a fact of shape \(6,\) about output of 1 \(.*\) of shape \(2, 6\)",
    ),
    "wrong size": (
        "def infer_from_output(self, node, facts): return {'weight': Unused(np.zeros(5, bool))}",
        r"gave a fact of shape \(5,\) about 1.weight of shape \(6,\)",
    ),
    "mask of the wrong dtype": (
        "def infer_from_output(self, node, facts): return {'input': Unused(np.zeros((1, 6)))}",
        "infer_from_output returned a mask of float64 for 'input', not a numpy array of bool",
    ),
    "mask that is a tensor": (
        "def infer_from_output(self, node, facts): return {'input': Unused(torch.zeros(1, 6, dtype=torch.bool))}",
        "infer_from_output returned a mask of Tensor for 'input', not a numpy array of bool",
    ),
    "value of the wrong dtype": (
        "def infer_from_input(self, node, facts): return {'output': Constant(facts.mask(0), np.array([['0']]))}",
        "infer_from_input returned a value of <U1 for 'output', not a numpy array of float64",
    ),
    "no dict": ("def infer_from_input(self, node, facts): return [3]", r"infer_from_input returned \[3\], not a dict"),
    "unknown operand": (
        "def infer_from_output(self, node, facts): return {'inputs': Unused(facts.unused(2))}",
        r"for 'inputs'; return Constant or Affine for outputs and Unused for operands \(input, weight\)",
    ),
    "too many evaluated": (
        "def evaluate(self, node, arrays): return [arrays[0], arrays[0]]",
        "evaluate returned 2 arrays for 1 output",
    ),
    "evaluated to another shape": (
        "def evaluate(self, node, arrays): return [np.zeros((5, 4, 6))]",
        r"gave a fact of shape \(1, 1, 6\) about output of 1",
    ),
    "takes a constant back": (
        """def infer_from_input(self, node, facts):
            self.count = getattr(self, "count", 0) + 1
            return {'output': Constant(np.arange(6)[None] == self.count % 6, np.zeros((1, 6)))}""",
        "takes back a constant of output of 1 .*; facts may only be added",
    ),
    "writes into the facts": (
        "def infer_from_input(self, node, facts): facts.mask(0)[...] = True; return {}",
        r"raised in infer_from_input: ValueError\('assignment destination is read-only'\)",
    ),
    "writes into a weight": (
        "def infer_from_weight(self, node, facts): facts.value(1)[...] = 0.0; return {}",
        r"raised in infer_from_weight: ValueError\('assignment destination is read-only'\)",
    ),
    "writes into a tensor": (
        "def infer_from_weight(self, node, facts): node.operands[1].tensor.zero_(); return {}",
        "writes into 1.weight in infer_from_weight: a rule changes no tensor of the model",
    ),
    "returns the module itself": (
        "def replace(self, node, keep): keep.module.features = 4; return keep.module",
        "replace returned the module itself; make a new one",
    ),
    "raises": ("def constrain(self, node, keep): raise LookupError('oh')", r"raised in constrain: LookupError\('oh'\)"),
    "raises when it claims": (
        "def claims(self, module): raise LookupError('oh')",
        "failed when it was asked for a torch.nn.Sequential: LookupError: oh",
    ),
    "signature with a fault": (
        "def constrain(self, node, keep): from speedup.axes import parse; parse('* c, (c -> * c')",
        r"raised in constrain: '\(' without '\)'",
    ),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_refused_and_named_and_the_rest_works(kind: str, install_plugin: InstallPlugin) -> None:
    method, message = RUBBISH[kind]
    module = __import__(install_plugin("scaling", PLUGIN.format(method=method), version="2.3"))
    install_plugin("other")
    model = nn.Sequential(nn.Linear(3, 6), module.Scale(6), nn.Linear(6, 2), nn.Identity())
    randomize(model).double().eval()
    masks = mask_indices(model, {"0.weight": [1], "0.bias": [1], "1.weight": [2]})
    given = torch.randn(2, 3).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SpeedupError, match=message) as caught:
        speedup.plan(model, given, masks, registry=Registry.load(strict=True))
    text = str(caught.value)
    assert "rule 'scale' of plugin 'scaling' (fake-scaling 2.3)" in text
    assert ".py:" in text
    assert "1 (" in text or "the model (" in text, "the call"
    assert "\n" not in text.split("\n    ")[0], "one line, but for a signature"
    if kind != "writes into a tensor":
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert model[1].features == 6
    # Without that plugin all else goes on.
    speedup.plan(model, given, masks, registry=Registry.load(disable=["scaling"]))


def test_the_rules_can_be_heard(
    install_plugin: InstallPlugin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SPEEDUP_TRACE: which rule said what about which call."""
    module = __import__(install_plugin("scaling", PLUGIN.format(method="pass"), version="2.3"))
    model = randomize(nn.Sequential(nn.Linear(3, 6), module.Scale(6), nn.Identity(), nn.Linear(6, 2))).eval()
    masks = mask_indices(model, {"0.weight": [1], "1.weight": [2]})

    def heard(names: str) -> list[str]:
        monkeypatch.setenv("SPEEDUP_TRACE", names)
        speedup.plan(model, torch.randn(2, 3), masks, registry=Registry.load())
        return capsys.readouterr().err.splitlines()

    everything = heard("1")
    assert any("1 (" in line and "rule 'scale' of plugin 'scaling' (fake-scaling 2.3)" in line for line in everything)
    assert any("rule 'scale': infer_from_output: input is unused at 1 of 6 along axis 1 [2]" in x for x in everything)
    assert any("rule 'lin': infer_from_input: output is constant at 1 of 6 along axis 1 [1]" in x for x in everything)
    assert any("rule 'scale': replace: Scale()" in line for line in everything)
    for names in ("scale", "Scale", "nothing,scale"):
        assert {line.split()[1] for line in heard(names)} == {"[1]"}, names
    assert {line.split()[1] for line in heard("3")} == {"[2]"}
    assert len(heard("scaling")) == len(everything)
    assert heard("") == []
    assert Path(__file__).name in "".join(everything)
