"""The conformance kit: what every rule must show, in a class to subclass and in one function.

    class TestMine(RuleTests):
        plugins = ("mylib",)

        def cases(self) -> dict[str, Case]:
            net = lambda: nn.Sequential(nn.Linear(4, 6), MyOp(6), nn.Linear(6, 3))
            return {"between linears": Case(net, torch.randn(2, 4), [torch.randn(5, 4)])}

pytest finds the tests in the class. ``check_rules`` is the same for one model, without pytest.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from speedup.errors import SpeedupError
from speedup.expand import Expansion
from speedup.planning import ModelSpeedup
from speedup.plugins import load_plugins
from speedup.registry import Registry
from speedup.rule import Rule
from speedup.testing.after import check_again, check_moves
from speedup.testing.case import Case
from speedup.testing.contents import in_float64
from speedup.testing.equal import check_equal
from speedup.testing.laws import check_laws
from speedup.testing.masks import Masks, masked_copy
from speedup.testing.missing import find_missing


class MissingInference(UserWarning):
    """A rule says less than it could: an index that could have gone stays."""


@dataclass
class Findings:
    """What ``check_rules`` found in rules that are not wrong.

    Attributes:
        asked: names of the rules that were asked.
        kept: by kind of masks, the part of the parameters that is left.
        missing: what the rules could have said and did not, one line each.
    """

    asked: frozenset[str] = frozenset()
    kept: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"rules asked: {', '.join(sorted(self.asked))}"]
        lines += [f"masks of kind {kind!r}: {part:.0%} of the parameters are left" for kind, part in self.kept.items()]
        return "\n".join(lines + [f"missing: {line}" for line in self.missing])


def check_rules(
    make: Callable[[], nn.Module],
    inputs: Any,
    other_inputs: Sequence[Any] = (),
    *,
    registry: Registry,
    rules: Sequence[Rule],
    seed: int = 0,
) -> Findings:
    """Assert all that a rule must show on one model, and report what it could have said and did not.

    Args:
        make, inputs, other_inputs: see ``Case``.
        registry: the rules in use.
        rules: those under test, which are in the registry.

    Raises:
        AssertionError: a rule is wrong; the message says what, with which masks, and where to look.

    Example:
        >>> registry = Registry.from_rules(*default_registry().rules, rule)
        >>> print(check_rules(make, torch.randn(2, 4), registry=registry, rules=[rule]))
    """
    case = Case(make, inputs, other_inputs)
    kept = _equal(case, registry, seed)
    asked = _laws(case, registry, seed)
    _again(case, registry, seed)
    _moves(case, registry, seed)
    own = frozenset(rule.name for rule in rules)
    assert not own or asked & own, (
        f"no call of the model belongs to the rules {', '.join(sorted(own))}: is the op claimed, and does the model "
        f"call it? Rules that were asked: {', '.join(sorted(asked)) or 'none'}"
    )
    return Findings(asked, kept, _missing(case, registry, rules, seed))


class RuleTests:
    """Subclass it, name the plugins or the rules under test, and give ``cases``: pytest finds the tests.

    Attributes:
        plugins: names of installed plugins whose rules are under test.
        rules: rules under test that are not installed.
        unasked: names of rules that no case can ask, such as one that only hands its input through.
        seeds: how many random masks of each kind.
        rounds: how many random facts per call.
        missing_ok: whether rules may say less than they could; then it is a ``MissingInference`` warning.
    """

    plugins: Sequence[str] = ()
    rules: Sequence[Rule] = ()
    unasked: Sequence[str] = ()
    seeds: int = 1
    rounds: int = 4
    missing_ok: bool = True

    def cases(self) -> Mapping[str, Case] | Sequence[Case]:
        """The models to try the rules on, best with a name for each (override)."""
        raise NotImplementedError(f"{type(self).__name__} must say in cases() on which models its rules are tried")

    def registry(self) -> Registry:
        """The rules in use: those of all installed plugins, and ``rules`` (override it for others: ``registry_of``)."""
        own = [Registry.from_rules(*self.rules).plugins[0]] if self.rules else []
        return Registry([*load_plugins(), *own])

    def rules_under_test(self, registry: Registry) -> list[Rule]:
        """Of a registry, the rules of ``plugins``, and ``rules``."""
        found = list(self.rules)
        for name in self.plugins:
            mine = [plugin for plugin in registry.plugins if plugin.is_called(name)]
            assert mine, f"no plugin {name!r} is installed; `speedup plugins` lists those that are"
            for plugin in mine:
                assert plugin.status == "loaded", f"plugin {plugin.label} is {plugin.status}: {plugin.error}"
                found += plugin.rules
        return found

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each case."""
        if "case" in metafunc.fixturenames:
            cases = self._named()
            metafunc.parametrize("case", list(cases.values()), ids=list(cases))

    def _named(self) -> dict[str, Case]:
        cases = self.cases()
        return dict(cases) if isinstance(cases, Mapping) else {str(n): case for n, case in enumerate(cases)}

    def test_every_rule_has_a_case(self) -> None:
        """Each rule under test has a call in one of the models."""
        registry, asked = self.registry(), set[str]()
        for case in self._named().values():
            model = case.model()
            masks = next(iter(case.masks(model).values()))
            asked |= check_laws(model, case.inputs, masks, registry=registry, rounds=0)
        wanted = {r.name for r in self.rules_under_test(registry) if not isinstance(r, Expansion) and not r.layout_only}
        missing = sorted(wanted - asked - set(self.unasked))
        assert not missing, (
            f"no case has a call for these rules: {', '.join(missing)}. Is the op claimed in the form in which it "
            "arrives (`variants`), and do the call's arguments fit the rule?"
        )

    def test_equal_for_masks_of_every_kind(self, case: Case) -> None:
        """The small model answers as the masked one, its state_dict loads, its flags stay, gradients flow."""
        for seed in range(self.seeds):
            _equal(case, self.registry(), seed)

    def test_inference_is_pure_monotone_and_sound(self, case: Case) -> None:
        """The laws of ``check_laws``, for facts that the model may never show."""
        _laws(case, self.registry(), 0, self.rounds)

    def test_a_small_model_stays_as_it_is(self, case: Case) -> None:
        """Planned again without masks, nothing more goes, and nothing changes."""
        _again(case, self.registry(), 0)

    def test_a_small_model_moves_to_other_dtypes_and_devices(self, case: Case) -> None:
        """All that the original takes along, the small model does."""
        _moves(case, self.registry(), 0)

    def test_nothing_is_missing(self, case: Case) -> None:
        """What the rules could have said and did not: a warning, or a failure if ``missing_ok`` is False."""
        registry = self.registry()
        missing = _missing(case, registry, self.rules_under_test(registry), 0)
        assert self.missing_ok or not missing, "\n".join(missing)
        for line in missing:
            warnings.warn(line, MissingInference, stacklevel=2)


def _equal(case: Case, registry: Registry, seed: int) -> dict[str, float]:
    kept = {}
    model = case.model(seed)
    for kind, masks in case.masks(model, seed).items():
        with _quiet(), _told(kind, seed):
            kept[kind] = check_equal(model, case.inputs, masks, case.other_inputs, registry).kept
    return kept


def _laws(case: Case, registry: Registry, seed: int, rounds: int = 4) -> frozenset[str]:
    asked = frozenset[str]()
    model = case.model(seed)
    masks = case.masks(model, seed)
    for kind in [k for k in ("filters+biases", "mixed") if k in masks] or list(masks)[:1]:
        with _told(kind, seed):
            asked |= check_laws(model, case.inputs, masks[kind], registry=registry, seed=seed, rounds=rounds)
    return asked


def _again(case: Case, registry: Registry, seed: int) -> None:
    kind, _, small = _small(case, registry, seed)
    with _told(kind, seed):
        check_again(small, case.inputs, registry)


def _moves(case: Case, registry: Registry, seed: int) -> None:
    kind, masked, small = _small(case, registry, seed)
    with _told(kind, seed):
        check_moves(masked, small, case.inputs)


def _small(case: Case, registry: Registry, seed: int) -> tuple[str, nn.Module, nn.Module]:
    """The masked model and the small one, in float64 and eval mode."""
    kind, masks, model = _one(case, seed)
    masked = masked_copy(model, masks).double().eval()
    with _quiet(), _told(kind, seed):
        small = ModelSpeedup(copy.deepcopy(masked), in_float64(case.inputs), masks, registry=registry).speedup_model()
    return kind, masked, small


def _missing(case: Case, registry: Registry, rules: Sequence[Rule], seed: int) -> list[str]:
    model = case.model(seed)
    masks, found = case.masks(model, seed), dict[str, None]()
    for kind in [k for k in ("filters+biases", "biases", "columns") if k in masks] or list(masks)[:1]:
        with _told(kind, seed):
            lines = find_missing(model, case.inputs, masks[kind], registry=registry, rules=rules, seed=seed)
            found.update(dict.fromkeys(lines))
    return list(found)


def _one(case: Case, seed: int) -> tuple[str, Masks, nn.Module]:
    model = case.model(seed)
    masks = case.masks(model, seed)
    kind = next((k for k in ("filters+biases", "filters") if k in masks), next(iter(masks)))
    return kind, masks[kind], model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Layers that are masked whole are meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is masked whole")
        yield


@contextlib.contextmanager
def _told(kind: str, seed: int) -> Iterator[None]:
    """Say with which masks a check failed."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"with masks random_masks(model, {seed}, {kind!r}): {error}") from error
    except SpeedupError as error:
        error.add_note(f"with masks random_masks(model, {seed}, {kind!r})")
        raise
