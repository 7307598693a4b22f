"""speedup rules for reductions over any axes, and for ops that run along an axis.

Where removing zeros changes nothing (sum, norm), the reduced axes are contracted; elsewhere (mean) they stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speedup import Node, Rule, hookimpl, variants


class Reduction(Rule):
    """Reduces the axes in ``dim`` (all of them when it is not given)."""

    call = "input, dim=None, keepdim=False, *, axis=None, keepdims=None, dtype=None, out=None, correction=None"
    operands = ("input",)

    def neutral(self, node: Node) -> bool:
        """Whether entries that are 0 may be left out."""
        return False

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        reduced = _axes(node.arg("dim", node.arg("axis")), node.arg("axis"), value.ndim)
        keep = node.arg("keepdim") or node.arg("keepdims")
        gone = "x" if self.neutral(node) else "~x"
        inner = " ".join(f"{gone}{i}" if i in reduced else f"a{i}" for i in range(value.ndim))
        outer = " ".join(("1" if keep else "") if i in reduced else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([outer] * len(node.outputs))}"


class Sum(Reduction):
    def neutral(self, node: Node) -> bool:
        return True


class Norm(Reduction):
    """A vector norm: zeros do not count, but it is not linear, so only a constant 0 is known to come out."""

    call = "input, ord=2, dim=None, keepdim=False, *, dtype=None, out=None"

    def neutral(self, node: Node) -> bool:
        return float(node.arg("ord", 2)) >= 0

    def uniform(self, node: Node) -> bool:
        return False


class Moments(Reduction):
    """std and var, whose second argument may be the old ``unbiased``."""

    call = "input, dim=None, unbiased=True, keepdim=False, *, axis=None, correction=None, out=None"

    def signature(self, node: Node) -> str:
        if isinstance(node.arg("dim"), bool):
            raise TypeError("unbiased given in the place of dim")
        return super().signature(node)


class Along(Rule):
    """Runs along one axis, which stays whole (cumsum, sort)."""

    call = "input, dim=-1, *args, **kwargs"
    operands = ("input",)

    def signature(self, node: Node) -> str:
        value = node.operands[0]
        assert value is not None
        along = _axes(node.arg("dim"), None, value.ndim)
        inner = " ".join(f"~x{i}" if i in along else f"a{i}" for i in range(value.ndim))
        return f"{inner} -> {', '.join([inner] * len(node.outputs))}"


def _axes(dim: int | Sequence[int] | None, axis: int | Sequence[int] | None, ndim: int) -> set[int]:
    chosen = axis if dim is None else dim
    if chosen is None or chosen == ():
        return set(range(ndim))
    if not isinstance(chosen, int | Sequence):
        raise TypeError("the axes to reduce are no integers")
    return {d % ndim for d in ((chosen,) if isinstance(chosen, int) else chosen)} if ndim else set()


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Sum(name="sum", functions=variants("sum", "nansum")),
        Reduction(
            name="reduction",
            functions=variants(
                "mean",
                "nanmean",
                "amax",
                "amin",
                "max",
                "min",
                "prod",
                "any",
                "all",
                "argmax",
                "argmin",
                "median",
                "nanmedian",
                "mode",
                "logsumexp",
                "count_nonzero",
            ),
        ),
        Moments(name="moments", functions=variants("std", "var")),
        Norm(name="vector_norm", functions=variants("vector_norm")),
        Along(
            name="along", functions=variants("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort")
        ),
    ]
