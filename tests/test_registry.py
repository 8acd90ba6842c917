"""Declarations of methods: nonsense is refused when it is registered, and a trait is what the method does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib_merge import METHODS
from lib_merge.errors import DeclarationError
from lib_merge.linalg import LowRank, Term
from lib_merge.linalg.core import core_space
from lib_merge.methods import (
    CoreInput,
    DenseInput,
    Gives,
    Knob,
    RowInput,
    ScalarInput,
    Scope,
    Space,
    registry,
)
from lib_merge.methods.election import NORMALIZE, SCOPE, TRIM


def _sum(given: DenseInput) -> torch.Tensor:
    return given.deltas.sum(0)


def _with_knob(given: DenseInput, *, level: float) -> torch.Tensor:
    return level * given.deltas.sum(0)


def _knob(**more):
    return {"knobs": (Knob(**{"name": "level", "default": 0.5, "help": "How much.", **more}),)}


def _scalar(given: ScalarInput) -> list[float]:
    return list(given.weights)


def _by_position(given: DenseInput, level: float) -> torch.Tensor:
    return level * given.deltas.sum(0)


def _trims(given: DenseInput, *, trim_scope: str) -> torch.Tensor:
    del trim_scope
    return given.deltas.sum(0)


def _normal(given: DenseInput, *, normalize: bool) -> torch.Tensor:
    del normalize
    return given.deltas.sum(0)


def _nothing_given() -> None:
    return None


# what is declared beside a sound declaration, the function, and the sentence that refuses it
WRONG = {
    "a misspelt space": ({"space": "scaler"}, _sum, "space is 'scaler'; it takes scalar or core or dense"),
    "a misspelt result": ({"space": "core", "gives": "colums"}, _sum, "gives is 'colums'; it takes core or rows"),
    "misspelt bases": ({"space": "core", "bases": "lefft"}, _sum, "bases is 'lefft'"),
    "a misspelt Gram": ({"space": "scalar", "reads": "modul"}, _scalar, "reads is 'modul'"),
    "a word that is not declared": ({"symetric": False}, _sum, "no 'symetric' to declare. Did you mean symmetric"),
    "a name twice": ({"name": "ties"}, _sum, "there is a method of that name already"),
    "a name with a blank": ({"name": "my method"}, _sum, "no Python name"),
    "no sentence": ({"sentence": "Adds"}, _sum, "a sentence with a full stop"),
    "no paper": ({"paper": "Yadav 2023"}, _sum, "a link to its paper"),
    "no source": ({"sources": (0, 2)}, _sum, "it takes 0 to 2 sources"),
    "fewer than least": ({"sources": (3, 2)}, _sum, "it takes 3 to 2 sources"),
    "a role too few": ({"roles": ("style",), "sources": (2, 2)}, _sum, "it has 1 roles and takes 2 to 2 sources"),
    "roles of any number": ({"roles": ("style", "subject")}, _sum, "takes 1 to any number of sources"),
    "a role twice": ({"roles": ("style", "style"), "sources": (2, 2)}, _sum, "named twice"),
    "a Gram in dense space": ({"reads": "module"}, _sum, "which is for scalar methods, and is dense"),
    "rows in dense space": ({"gives": "rows"}, _sum, "gives and bases are for core methods, and it is dense"),
    "bases in scalar space": ({"space": "scalar", "bases": "singular"}, _scalar, "and it is scalar"),
    "left bases of a core": ({"space": "core", "bases": "left"}, _sum, "left bases alone are for methods that give rows"),
    "a default out of range": (_knob(default=1.5), _with_knob, "the default 1.5 of knob level is none of its values"),
    "a default that is no choice": (_knob(default="low", choices=("mass",)), _with_knob, "the default 'low'"),
    "a range upside down": (_knob(minimum=1.0, maximum=0.0), _with_knob, "knob level goes from 1 to 0"),
    "a step of nothing": (_knob(step=0.0), _with_knob, "in steps of 0"),
    "a step past the range": (_knob(step=2.0), _with_knob, "in steps of 2"),
    "a misspelt scope": (_knob(scope="sorce"), _with_knob, "the scope of level is 'sorce'; it takes recipe or source"),
    "a help that is no sentence": (_knob(help="how much"), _with_knob, "the help of knob level is no sentence"),
    "a knob twice": ({"knobs": 2 * _knob()["knobs"]}, _with_knob, "a knob is named twice"),
    "a knob with a blank": (_knob(name="how much"), _with_knob, "'how much' is no Python name"),
    "a function without the knob": (_knob(), _sum, "its knobs are level, its function takes none"),
    "a function with another knob": (_knob(name="lam"), _with_knob, "its knobs are lam, its function takes level"),
    "a knob that is not declared": ({}, _with_knob, "its knobs are none, its function takes level"),
    "a knob by position": (_knob(), _by_position, "put a \\* before them"),
    "a function of another space": ({"space": "scalar"}, _sum, "takes DenseInput and is given ScalarInput"),
    "a function of rows that gives a core": ({"space": "core", "gives": "rows"}, _sum, "and is given RowInput"),
    "a function that is given nothing": ({}, _nothing_given, "its function takes no DenseInput"),
    "a global trim without shares": ({"knobs": (SCOPE,)}, _trims, "trim_scope needs a knob trim_fraction"),
    "normalize without the trait": ({"knobs": (NORMALIZE,)}, _normal, "not declared to normalise"),
    "a stack that is dense": ({"stacks": True, "adds": True}, _sum, "what stacks is a scalar sum"),
    "a variant that is not there": ({"core_variant": "core_tees"}, _sum, "'core_tees' is no core method"),
    "a variant that is dense": ({"core_variant": "ties"}, _sum, "'ties' is no core method"),
    "a variant with other knobs": ({"core_variant": "core_ties"}, _sum, "'core_ties' has other knobs"),
    "help for what nobody complains of": ({"helps": {"mudy": "x"}}, _sum, "it helps against mudy; known are muddy"),
}  # fmt: skip
SOUND = {
    "name": "toy",
    "title": "Toy",
    "sentence": "Adds.",
    "paper": "https://arxiv.org/abs/2212.04089",
    "space": "dense",
}


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    return registry.METHODS


def _register(declared, function):
    declared = {**SOUND, **declared}
    return registry.merge_method(declared.pop("name"), **declared)(function)


@pytest.mark.parametrize("case", list(WRONG))
def test_nonsense_is_refused_when_it_is_registered(case, methods):
    declared, function, sentence = WRONG[case]
    before = list(methods)
    with pytest.raises(DeclarationError, match=sentence) as refused:
        _register(declared, function)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("method '")
    assert list(methods) == before


@pytest.mark.parametrize(
    ("declared", "function"),
    [
        ({}, _sum),
        (_knob(), _with_knob),
        ({"space": "scalar", "reads": "recipe"}, _scalar),
        ({"roles": ("style", "subject"), "sources": (2, 2)}, _sum),
        ({"knobs": (NORMALIZE,), "normalises": True}, _normal),
    ],
)
def test_a_sound_declaration_is_registered_with_enums(declared, function, methods):
    assert _register(declared, function) is function
    method = methods["toy"]
    assert method.function is function
    assert isinstance(method.space, Space)
    assert all(isinstance(knob.scope, Scope) for knob in method.knobs)
    assert f"{method.space}" == declared.get("space", "dense")  # texts and JSON see the word


# ---------------------------------------------------------------- traits are what methods do

TRAITS = ("elects", "drops", "stacks", "adds", "averages", "kin_only", "removes", "spherical", "normalises")


def _method_of(name):
    method = METHODS[name]
    count = max(2, method.sources[0])
    return method, count, method.settings({}, count)


def _applied(method, settings, taus, weights, seed=0):
    """What a method makes of small dense sources that already carry their weights."""
    noise = torch.Generator().manual_seed(seed)
    weights = tuple(weights)
    if method.space is Space.SCALAR:
        deltas = [tau / weight for tau, weight in zip(taus, weights)]
        flat = torch.stack([tau.flatten() for tau in taus])
        given = ScalarInput(weights, weights, lambda: (flat @ flat.T).double().numpy())
        factors = method.function(given, **settings)
        return sum(factor * delta for factor, delta in zip(factors, deltas))
    if method.space is Space.DENSE:
        stack = torch.stack(list(taus))

        def least(source, share):
            sizes = stack[source].abs().flatten().sort().values
            count = int(share * len(sizes) + 1e-9)
            return float(sizes[count - 1]) if count else -1.0

        def most(source, share):
            sizes = stack[source].abs().flatten().sort().values
            count = int(share * len(sizes) + 1e-9)
            return float(sizes[-count]) if count else float("inf")

        def selection(_):
            energy = stack.square().sum((1, 2))
            return 0.0, [float(value) for value in energy / energy.sum()]

        def uniform(_):
            return torch.rand(stack.shape[1:], generator=noise)

        return method.function(DenseInput(weights, stack, least, most, selection, uniform), **settings)
    size = taus[0].shape[0]
    deltas = [LowRank(*tau.shape, (Term(1.0, tau, torch.eye(tau.shape[1])),)) for tau in taus]
    space = core_space(deltas, method.bases)
    if method.gives is Gives.ROWS:
        given = RowInput(
            weights, space.rows, space.bound, lambda _, count: torch.rand(count, generator=noise)
        )
        return space.spanned_rows(method.function(given, **settings)).low_rank().dense()
    if method.gives is Gives.COLUMNS:
        from lib_merge.methods import ColumnInput

        factors = method.function(ColumnInput(weights, space.columns()), **settings)
        return sum(taus) * factors.float()
    roles = method.roles or (None,) * size
    uniform = lambda _, count: torch.rand(count, generator=noise, dtype=torch.float64)  # noqa: E731
    given = CoreInput(weights, space.cores, space.svd, roles, uniform)
    return space.spanned(method.function(given, **settings)).low_rank().dense()


def _taus(count, seed=1, size=8):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(size, size, generator=g) for _ in range(count)]


@pytest.mark.parametrize("name", METHODS)
def test_what_drops_depends_on_the_draw_and_nothing_else_does(name):
    method, count, settings = _method_of(name)
    taus = _taus(count)
    first, again = (_applied(method, settings, taus, [1.0] * count, seed) for seed in (1, 2))
    assert (not torch.equal(first, again)) == method.drops


@pytest.mark.parametrize("name", METHODS)
def test_what_stacks_is_the_sum_and_what_adds_is_one_in_direction_and_full_size(name):
    method, count, settings = _method_of(name)
    taus, weights = _taus(count), (0.8, -0.5, 0.3)[:count]
    taus = [weight * tau for weight, tau in zip(weights, taus)]
    result, total = _applied(method, settings, taus, weights), sum(taus)
    same = float((result - total).norm() / total.norm())
    assert method.stacks == (same < 1e-6 and name == registry.DEFAULT_METHOD)
    cosine = float((result * total).sum() / (result.norm() * total.norm()))
    assert not method.adds or cosine > 1 - 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_what_averages_makes_strangers_fainter(name):
    method, count, settings = _method_of(name)
    taus = _taus(count, size=40)
    result = float(_applied(method, settings, taus, [1.0] * count).norm())
    alone = max(float(tau.norm()) for tau in taus)
    if method.averages:
        assert result < 0.8 * alone
    assert method.kin_only == (result < 0.2 * alone)


def test_what_elects_sides_with_the_stronger_sign():
    """Numbers of opposite signs, 2 against −1: who elects gives the first alone, whatever it then makes of it."""
    for name, method in METHODS.items():
        if method.sources[0] > 2 or method.roles or method.space is not Space.DENSE:
            continue
        settings = method.settings({}, 2)
        off = {"drop_rate": (0.0, 0.0), "epsilon": 0.0, "trim_fraction": (0.0, 0.0), "gamma": 0.0}
        settings |= {knob: value for knob, value in off.items() if knob in settings}
        strong, weak = torch.full((2, 6), 2.0), torch.full((2, 6), -1.0)
        result = _applied(method, settings, [strong, weak], [1.0, 1.0])
        assert torch.allclose(result, strong) == method.elects, name


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.core_variant])
def test_a_core_variant_takes_the_same_steps(name):
    """One source on the diagonal: its shared directions are the numbers themselves, so both give the same."""
    method, variant = METHODS[name], METHODS[METHODS[name].core_variant]
    source = torch.diag(torch.tensor([5.0, -4.0, 3.0, 2.0, 1.0]))
    other = torch.diag(torch.tensor([-2.0, 3.0, 1.0, -1.0, 2.5]))
    settings = method.settings({}, 2)
    off = {"drop_rate": (0.0, 0.0)}  # draws differ in number, so that only without them is the same the same
    settings |= {knob: value for knob, value in off.items() if knob in settings}
    own = _applied(method, settings, [source, other], [1.0, 1.0])
    shared = {knob: value for knob, value in settings.items() if knob != "trim_scope"}
    assert torch.allclose(_applied(variant, shared, [source, other], [1.0, 1.0]), own, atol=1e-5)
    assert {knob.name for knob in variant.knobs} == set(shared)


def test_a_knob_is_a_trait_of_its_own():
    """What a knob promises and what a trait says agree."""
    for method in METHODS.values():
        names = {knob.name for knob in method.knobs}
        assert ("drop_rate" in names) == method.drops
        assert "elect" not in names or method.elects
        assert ("normalize" in names) <= method.normalises
        assert np.isfinite([knob.step for knob in method.knobs]).all()
    assert METHODS["ties"].global_trim({"trim_scope": "global", "trim_fraction": (0.2,)}) == (0.2,)
    assert METHODS["ties"].global_trim({"trim_scope": "module", "trim_fraction": (0.2,)}) is None
    assert TRIM.scope is Scope.SOURCE
