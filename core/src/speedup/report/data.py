"""What a report holds: plain data, from which the text, the JSON, the notebook and the page are made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from speedup.drop import Dropped
from speedup.kinds import Kind

if TYPE_CHECKING:
    from speedup.fast.told import Fusing
    from speedup.report.reasons import Reason

Pair = tuple[int, int]
"""A number before and after."""


@dataclass(frozen=True)
class Layer:
    """One parameter or buffer before and after.

    Attributes:
        kept: by axis the indices of which anything is kept, for axes of which not all are.
        kind: ``parameter`` or ``buffer``.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    kept: dict[int, list[int]]
    kind: str = "parameter"


@dataclass(frozen=True)
class Module:
    """One module: what itself holds and runs, without the modules inside.

    Attributes:
        path: its qualified name; the model itself has the empty one.
        type: the name of its class.
        parameters: how many numbers its own parameters have, before and after.
        macs: multiply-accumulate operations of its own calls, before and after.
    """

    path: str
    type: str
    parameters: Pair = (0, 0)
    macs: Pair = (0, 0)


@dataclass(frozen=True)
class Kept:
    """Masked output indices of a parameter that stay, and why.

    Attributes:
        name: the parameter.
        indices: along ``axis``.
        why: what keeps them.
        where: ``file:line`` of the call that does.
        parameters: how many numbers of the parameter they are.
        kind: of the reason, see `speedup.kinds.Kind`.
        call: the call that keeps them, by its module; "" where none does.
        op: its op.
        partners: the layers that would have to be masked alike, where masks do not line up.
        note: why a rule did not take the call, where one claims its op.
        command: what begins a plugin for the op, where none claims it.
        axis: the first one, or another that makes an axis of the output (the columns of a table of embeddings).
    """

    name: str
    indices: list[int]
    why: str
    where: str
    parameters: int
    kind: Kind = Kind.RULE
    call: str = ""
    op: str = ""
    partners: tuple[str, ...] = ()
    note: str = ""
    command: str = ""
    axis: int = 0


@dataclass(frozen=True)
class Repaired:
    """A size in the code of a module that follows the plan: an attribute, or an argument of one call."""

    module: str
    what: str
    where: str


@dataclass
class Report:
    """What a plan does, as data; it is also the function that writes the page: ``plan.report("report.html")``.

    Attributes:
        barriers: calls without a rule, with their places.
        gained: parameters that the small model has and the original has not (a bias that takes up constants).
        dropped, changes: for ``constants="drop"``: the calls that miss constants, and the change of each output.
        effects: for an ill-conditioned model, by output: how far changing the last digit of every weight moves it, as
            a part of its largest entry. The check took that into account. Empty for all other models.
        repaired: sizes in the code that follow the plan.
        uncalled: modules with parameters that no run called, on the dummy input: they stay as they are.
        fusing: what ``apply(fuse=True)`` fused, and what it left as it was and why; None before.
        channels_last: the weights that ``apply(channels_last=True)`` brought into that memory format.
        parameters, macs: totals before and after; MACs are those of the run on the dummy input.

    Example:
        >>> report = speedup.plan(model, torch.randn(1, 3, 224, 224), masks).report
        >>> report.headline
        >>> report.reasons[0].advice
        >>> report("report.html")
    """

    find_layers: Callable[[], list[Layer]] = field(default=list, repr=False)
    find_modules: Callable[[], list[Module]] = field(default=list, repr=False)
    find_stays: Callable[[], list[Kept]] = field(default=list, repr=False)
    find_page: Callable[[], dict[str, Any]] = field(default=dict, repr=False)
    barriers: list[str] = field(default_factory=list)
    gained: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    repaired: list[Repaired] = field(default_factory=list)
    uncalled: list[str] = field(default_factory=list)
    fusing: Fusing | None = None
    channels_last: list[str] = field(default_factory=list)
    parameters: Pair = (0, 0)
    macs: Pair = (0, 0)

    @cached_property
    def layers(self) -> list[Layer]:
        """Every parameter and buffer before and after (found when first asked for)."""
        return self.find_layers()

    @cached_property
    def modules(self) -> list[Module]:
        """Every module, in the order of ``named_modules`` (found when first asked for)."""
        return self.find_modules()

    @cached_property
    def stays(self) -> list[Kept]:
        """Masked indices that stay, the most parameters first (found when first asked for)."""
        return sorted(self.find_stays(), key=lambda k: -k.parameters)

    @cached_property
    def reasons(self) -> list[Reason]:
        """Why masked indices stay and what can be done about it, the most parameters first."""
        from speedup.report.reasons import ranked

        return ranked(self.stays)

    @property
    def headline(self) -> str:
        """The totals in one line."""
        (p0, p1), (m0, m1) = self.parameters, self.macs
        return f"parameters {p0:,} -> {p1:,} ({percent(p1, p0)}), MACs {m0:,} -> {m1:,} ({percent(m1, m0)})"

    @property
    def conditioning(self) -> str:
        """What to know of an ill-conditioned model, in one sentence; "" for all others."""
        if not self.effects:
            return ""
        return (
            f"ill-conditioned: changing the last digit of every weight changes the answers by {max(self.effects):.1g} "
            "of their largest entry, so each call was checked for itself, and the answers less strictly"
        )

    @property
    def not_called(self) -> str:
        """What to know of modules that no run called, in one sentence; "" where all were."""
        if not self.uncalled:
            return ""
        from speedup.report.reasons import some

        return (
            f"not called on the dummy input, and as before: {some(self.uncalled, 4)}; code that calls them later may "
            "find that what they read has become smaller"
        )

    def __call__(self, path: str | os.PathLike[str], *, title: str = "") -> None:
        """Write the report as one HTML file that needs nothing else: no network, no other file.

        Args:
            path: where; a file that is there is replaced, and only when the new one is whole.
            title: of the page; by default the class of the model.

        Raises:
            OSError: the file cannot be written.
        """
        from speedup.report.page import write_page

        write_page(self, path, title)

    def text(self, width: int | None = None, depth: int | None = None, color: bool = False) -> str:
        """The report for a terminal.

        Args:
            width: in columns, at least 40; by default that of the terminal, 100 where there is none.
            depth: how many levels of modules get rows of their own; by default as many as fit into 60 rows.
            color: with the escape sequences of terminals.
        """
        from speedup.report.text import render

        return render(self, width, depth, color)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "format": 1,
            "parameters": list(self.parameters),
            "macs": list(self.macs),
            "tensors": [
                {
                    "name": x.name,
                    "before": list(x.before),
                    "after": list(x.after),
                    "kept": {str(a): i for a, i in x.kept.items()},
                }
                for x in self.layers
            ],
            "modules": [
                {"path": m.path, "type": m.type, "parameters": list(m.parameters), "macs": list(m.macs)}
                for m in self.modules
            ],
            "gained": self.gained,
            "repaired": [vars(r) for r in self.repaired],
            "uncalled": self.uncalled,
            "fused": [{"module": f.module, "into": list(f.into)} for f in self.fusing.fused] if self.fusing else [],
            "plain": [{"module": f.module, "into": list(f.into)} for f in self.fusing.plain] if self.fusing else [],
            "fixed": self.fusing.fixed if self.fusing else [],
            "channels last": self.channels_last,
            "not fused": [vars(s) for s in self.fusing.stays] if self.fusing else [],
            "reasons": [r.to_dict() for r in self.reasons],
            "stays": [{**vars(k), "kind": k.kind.value, "partners": list(k.partners)} for k in self.stays],
            "barriers": self.barriers,
            "dropped": [vars(d) for d in self.dropped],
            "changes": self.changes,
            "effects": [e if isfinite(e) else None for e in self.effects],
        }

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from speedup.report.notebook import to_html

        return to_html(self)


def percent(after: int, before: int) -> str:
    """The share that is left."""
    return f"{100 * after / before:.1f}%" if before else "100.0%"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as people write it: 64x3x7x7."""
    return "x".join(map(str, shape)) or "scalar"


def place(why: str, where: str) -> str:
    """A reason with the place of its call."""
    return ", ".join(text for text in (why, short_path(where)) if text)


def short_path(where: str) -> str:
    """A place in code without what every place has in common: installed packages, the working directory."""
    for root in ("/site-packages/", "/dist-packages/", f"{os.getcwd()}/"):
        where = where.replace("\\", "/").rpartition(root)[2]
    return where
