"""The catalogue of faults and the machinery that puts them in and takes them back; nothing here loads a model."""

from __future__ import annotations

import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.axes import axes_of
from compat.builtin import matrix_path
from compat.checks import CHECKS
from compat.faults import CLASSES, Fault, catalogue, fault
from compat.faults import patches as module
from compat.faults.patches import Company, Patches, Place
from compat.matrix import Model, read_matrix

NAMES = tuple(catalogue())


@cache
def _models(device: str) -> dict[str, Model]:
    return read_matrix(matrix_path("default"), device).models


# -- the catalogue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_names_cells_and_checks_that_exist(name: str) -> None:
    one = catalogue()[name]
    device = one.device or "cpu"
    models = _models(device)
    assert one.group in CLASSES
    assert one.cells, f"{name} names no cell that it touches"
    assert not set(one.cells) & set(one.spared), f"{name} both touches and spares a cell"
    applicable = set()
    for cell in (*one.cells, *one.spared):
        axes = axes_of(cell)
        assert axes["model"] in models, f"{name}: {cell} is of no model in models.toml"
        if cell in one.cells:
            applicable |= {c for c in CHECKS.names if CHECKS[c].applies(models[axes["model"]].task, axes)}
    assert set(one.seen_by) <= applicable, f"{name}: {set(one.seen_by) - applicable} is asked of none of its cells"
    assert one.benign or one.group != "benign", "the file of benign changes holds nothing else"


def test_every_class_has_faults_and_there_are_as_many_as_asked_for() -> None:
    harmful = [f for f in catalogue().values() if not f.benign]
    assert len(harmful) >= 45
    assert len(catalogue()) - len(harmful) >= 8
    by_device = {f.device for f in harmful}
    assert by_device >= {"", "cuda"}
    for device in ("cpu", "cuda"):
        own = [f for f in harmful if f.device in ("", device)]
        assert {f.group for f in own} >= {"masks", "windows", "scores", "heads", "positions", "precision"}


def test_the_catalogue_is_read_without_torch() -> None:
    script = (
        "import sys; from compat.faults import catalogue; catalogue(); "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="two faults are named"):
        fault(NAMES[0], title="", origin="", mechanism="", cells=("llama/fp32/eager/none",))(lambda patches: None)


def test_a_fault_without_a_check_that_sees_it_is_benign() -> None:
    assert Fault("a", "", "", "", lambda patches: None).benign
    assert not Fault("a", "", "", "", lambda patches: None, seen_by=("load",)).benign


# -- patches -----------------------------------------------------------------------------------------------------


def _stock(x: int) -> int:
    """As the library ships it."""
    return x + 1


class _Registry:
    """Looks like transformers' attention interface: a class-wide mapping behind an instance."""

    _global_mapping: dict[str, Any] = {}


class _Lazy(OrderedDict[str, object]):
    """Loads what it holds when it is looked through."""

    def items(self) -> object:  # type: ignore[override]
        raise AssertionError("a lazy mapping was looked through")


class _Base:
    def method(self, x: int) -> int:
        return x

    @classmethod
    def made(cls, x: int) -> tuple[type, int]:
        return cls, x

    @staticmethod
    def plain(x: int) -> int:
        return x


class _Derived(_Base):
    pass


@pytest.fixture
def library() -> Iterator[types.SimpleNamespace]:
    """A package under one of the names that faults look through: a function, and modules that imported it by name."""
    names = ("peft.compat_home", "peft.compat_user")
    home, user = (types.ModuleType(n) for n in names)
    home.stock = user.renamed = _stock  # type: ignore[attr-defined]
    user.table = {"a": _stock, "b": len}  # type: ignore[attr-defined]
    user.lazy = _Lazy()  # type: ignore[attr-defined]
    user.registry = _Registry()  # type: ignore[attr-defined]
    _Registry._global_mapping = {"sdpa": _stock}
    home.Base, home.Derived = _Base, _Derived  # type: ignore[attr-defined]
    sys.modules |= dict(zip(names, (home, user), strict=True))
    yield types.SimpleNamespace(home=home, user=user)
    for name in names:
        del sys.modules[name]


def test_a_function_is_replaced_wherever_it_was_imported_and_put_back(library: types.SimpleNamespace) -> None:
    patches = Patches()
    patches.function("peft.compat_home:stock", lambda own: lambda x: own(x) * 10)
    held = (library.home.stock, library.user.renamed, library.user.table["a"], _Registry._global_mapping["sdpa"])
    assert [f(1) for f in held] == [20, 20, 20, 20]
    assert library.user.table["b"] is len
    assert library.home.stock.__name__ == "_stock"
    patches.undo()
    held = (library.home.stock, library.user.renamed, library.user.table["a"], _Registry._global_mapping["sdpa"])
    assert all(f is _stock for f in held)


def test_a_module_that_is_loaded_while_a_fault_is_in_gets_the_original_back(library: types.SimpleNamespace) -> None:
    patches = Patches()
    patches.function("peft.compat_home:stock", lambda own: lambda x: 0)
    late = types.ModuleType("peft.compat_late")
    late.stock = library.home.stock  # type: ignore[attr-defined]
    sys.modules["peft.compat_late"] = late
    try:
        patches.undo()
        assert late.stock is _stock
    finally:
        del sys.modules["peft.compat_late"]


def test_a_method_keeps_its_kind_and_an_inherited_one_is_put_on_the_class_named(
    library: types.SimpleNamespace,
) -> None:
    patches = Patches()
    patches.method("peft.compat_home:Derived.method", lambda own: lambda self, x: own(self, x) + 1)
    patches.method("peft.compat_home:Derived.made", lambda own: lambda cls, x: (own(cls, x)[0], x + 1))
    patches.method("peft.compat_home:Derived.plain", lambda own: lambda x: own(x) + 1)
    assert (_Derived().method(1), _Derived.made(1), _Derived.plain(1)) == (2, (_Derived, 2), 2)
    assert (_Base().method(1), _Base.made(1), _Base.plain(1)) == (1, (_Base, 1), 1)
    patches.undo()
    assert (_Derived().method(1), _Derived.made(1), _Derived.plain(1)) == (1, (_Derived, 1), 1)
    assert not {"method", "made", "plain"} & set(vars(_Derived)), "an inherited method is inherited again"


def test_what_is_missing_raises_and_changes_nothing(library: types.SimpleNamespace) -> None:
    patches = Patches()
    with pytest.raises(AttributeError):
        patches.function("peft.compat_home:not_there", lambda own: own)
    with pytest.raises(KeyError):
        patches.item({}, "not there", 1)
    patches.undo()
    assert library.home.stock is _stock


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=12))
def test_undoing_restores_every_item_and_attribute_whatever_the_order(changes: list[tuple[str, int]]) -> None:
    mapping = {"a": 1, "b": 2, "c": 3}
    owner = types.SimpleNamespace(a=1)
    patches = Patches()
    for name, value in changes:
        patches.item(mapping, name, value)
        patches.attribute(owner, name, value)
    patches.undo()
    assert mapping == {"a": 1, "b": 2, "c": 3}
    assert vars(owner) == {"a": 1}


@given(st.lists(st.sets(st.sampled_from("abcdex"), min_size=1, max_size=3), min_size=1, max_size=6))
def test_in_company_no_two_replace_the_same_and_all_of_it_goes(wanted: list[set[str]]) -> None:
    """`x` is a place that is not there."""
    mapping = dict.fromkeys("abcde", "stock")

    def put(keys: set[str], name: str) -> Callable[[Patches], None]:
        def apply(patches: Patches) -> None:
            for key in sorted(keys):
                patches.item(mapping, key, name)
                patches.reached()

        return apply

    faults = {f"f{i}": put(keys, f"f{i}") for i, keys in enumerate(wanted)}
    company = Company()
    if len(wanted) == 1 and "x" in wanted[0]:
        with pytest.raises(KeyError):
            company.enter(faults)
        assert not company.inside
    else:
        company.enter(faults)
        taken: set[str] = set()
        inside: list[str] = []
        aside: list[str] = []
        for name, keys in zip(faults, wanted, strict=True):
            if "x" not in keys:
                (aside if keys & taken else inside).append(name)
                taken |= set() if keys & taken else keys
        assert (list(company.inside), list(company.set_aside)) == (inside, aside)
        assert company.names == tuple(faults)
        assert set(mapping.values()) - {"stock"} == set(inside)
        assert sum(company.reached.values()) == len(taken)
        assert tuple(company.reached) == company.inside
    company.leave()
    assert set(mapping.values()) == {"stock"}
    assert not company.names + company.inside


def test_two_functions_under_one_name_are_one_place(library: types.SimpleNamespace) -> None:
    def wrap(patches: Patches) -> None:
        patches.function("peft.compat_home:stock", lambda own: lambda x: own(x) * 10)

    def registered(patches: Patches) -> None:
        patches.item(_Registry._global_mapping, "sdpa", len)

    def elsewhere(patches: Patches) -> None:
        patches.method("peft.compat_home:Base.method", lambda own: lambda self, x: 0)

    company = Company()
    company.enter({"wrap": wrap, "registered": registered, "again": wrap, "elsewhere": elsewhere})
    assert company.inside == ("wrap", "elsewhere")
    assert company.set_aside == ("registered", "again"), "a registry that holds the function is the same place"
    assert library.user.renamed(1) == 20
    company.leave()
    assert library.user.renamed is _stock
    assert _Registry._global_mapping["sdpa"] is _stock


def _times(factor: int, name: str = "stock") -> Callable[[Patches], None]:
    def multiplied(own: Callable[[int], int]) -> Callable[[int], int]:
        return lambda x: own(x) * factor

    return lambda patches: patches.function(f"peft.compat_home:{name}", multiplied)


def test_what_was_replaced_twice_goes_back_to_the_first(library: types.SimpleNamespace) -> None:
    patches = Patches()
    for factor in (10, 7):
        _times(factor)(patches)
    assert library.user.renamed(1) == 140
    patches.undo()
    assert library.user.renamed is library.home.stock is _stock


def test_a_company_looks_once_for_all_that_goes_back(
    library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.home.other = other = _times  # any function
    company = Company()
    company.enter({name: _times(10, name) for name in ("stock", "other")})
    assert company.inside == ("stock", "other")
    looks: list[int] = []
    look = module._replace_everywhere

    def counted(new: Mapping[int, Any]) -> set[Place]:
        looks.append(len(new))
        return look(new)

    monkeypatch.setattr(module, "_replace_everywhere", counted)
    company.leave()
    assert looks == [2]
    assert library.home.other is other
    assert library.user.renamed is library.home.stock is _stock


def test_reached_counts() -> None:
    patches = Patches()
    assert patches.times_reached == 0
    patches.reached()
    patches.reached()
    assert patches.times_reached == 2
