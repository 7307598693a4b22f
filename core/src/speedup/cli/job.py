"""What the commands that make a model small share: the model, its masks and its input, and the plan for them."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import speedup
from speedup.cli.progress import step
from speedup.cli.target import add_input, add_model, load_input, load_model, make_model
from speedup.errors import InputError
from speedup.inputs import resolve_inputs
from speedup.masks import apply_masks, load
from speedup.planned import Plan
from speedup.verification import Inputs


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model, its masks and its input."""
    add_model(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--masks",
        metavar="FILE",
        help="the masks: a file as speedup.plan reads it (never runs code), or zeros for the zeros in the weights; "
        "without this and --criterion, those that the model itself carries",
    )
    which.add_argument(
        "--criterion",
        metavar="NAME",
        help="in place of masks: what says which channels matter least, such as l1 (see speedup.prune_masks)",
    )
    parser.add_argument(
        "--sparsity", type=float, default=0.5, help="with --criterion: the part that goes (default: 0.5)"
    )
    parser.add_argument(
        "--scope", choices=("layer", "global"), default="layer", help="with --criterion (default: layer)"
    )
    parser.add_argument("--ignore", metavar="PATTERN", nargs="+", default=[], help="with --criterion: what stays whole")
    parser.add_argument(
        "--round-to",
        type=lambda text: int(text) if text.isdigit() else text,
        default=1,
        metavar="N",
        help="with --criterion: channels are multiples of N, of what cpu or cuda prefers, or measured",
    )
    add_input(parser)
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda:0 (default: cpu)")
    parser.add_argument(
        "--constants",
        choices=("exact", "drop"),
        default="exact",
        help="fold what masked filters leave behind, or leave it out so that the answers change (default: exact)",
    )


def add_fast(parser: argparse.ArgumentParser) -> None:
    """Add the options that make the small model faster than its sizes do."""
    parser.add_argument(
        "--fuse", action="store_true", help="for a model that only infers: batch norms go into their neighbours"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="weights of convolutions of images in that memory format"
    )


def add_small(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a small model that was saved, and those that say how one is made anew."""
    parser.add_argument(
        "--small", metavar="DIR", help="a small model that speedup run wrote; without it one is made anew"
    )
    add_fast(parser)


class Job:
    """The model, the input and the masks of a command line.

    Raises:
        SpeedupError: one of them cannot be used.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        step(f"building {args.model}")
        self.device = _device(args.device)
        self.model = load_model(args).to(self.device)
        self.dummy_input: Any = pytree.tree_map_only(torch.Tensor, lambda t: t.to(self.device), load_input(args))
        self.masks = load(self.model, args.masks if args.criterion is None else self._chosen())

    def _chosen(self) -> dict[str, torch.Tensor]:
        """Masks by a criterion."""
        args = self.args
        step(f"choosing channels by {args.criterion}")
        return speedup.prune_masks(
            self.model,
            self.dummy_input,
            args.criterion,
            args.sparsity,
            scope=args.scope,
            ignore=args.ignore,
            round_to=args.round_to,
        )

    @property
    def inputs(self) -> Inputs:
        """The arguments of a call of the model."""
        return resolve_inputs(self.dummy_input)

    def plan(self, model: nn.Module | None = None) -> Plan:
        """Plan for the model, or for another one like it."""
        return speedup.plan(
            self.model if model is None else model, self.dummy_input, self.masks, constants=self.args.constants
        )

    def small(self) -> nn.Module:
        """The small model: the saved one of ``--small``, else one that is made from a copy of the model."""
        if self.args.small is not None:
            return speedup.load(make_model(self.args.model), self.args.small).to(self.device)
        return self.plan(copy.deepcopy(self.model)).apply(**self.fast)

    @property
    def fast(self) -> dict[str, Any]:
        """What ``Plan.apply`` is to do beyond cutting."""
        return {"fuse": self.args.fuse, "channels_last": self.args.channels_last}

    def masked(self) -> nn.Module:
        """A copy of the model with the masks applied for good."""
        return apply_masks(copy.deepcopy(self.model), self.masks)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {str(error).partition(chr(10))[0]}") from error
    return device
