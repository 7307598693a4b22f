"""Masks: from any source to what the engine takes.

    loaded = speedup.masks.load(model, "masks.safetensors")
    loaded.parameters["conv1.weight"]  # bool, True = keep

`speedup.plan`, `ModelSpeedup` and `verify` take all that `load` takes. One file per source:

===================  ==================================================================
`files`              files of `torch.save`, safetensors, numpy
`names`              nested (NNI) and flat dicts, names with and without wrappers
`activations`        `_input_0` and `_output_0` of NNI 3
`carried`            models of `torch.nn.utils.prune` and `torch.ao.pruning`
`zeros`              exact zeros in the weights
===================  ==================================================================

`check` holds every mask against its parameter, and `hints` has the words for what is wrong.
"""

from speedup.masks.check import compact, fully_masked, normalize_masks
from speedup.masks.load import SOURCES, LoadedMasks, Prepared, Source, apply_masks, load

__all__ = [
    "SOURCES",
    "LoadedMasks",
    "Prepared",
    "Source",
    "apply_masks",
    "compact",
    "fully_masked",
    "load",
    "normalize_masks",
]
