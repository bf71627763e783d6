"""Read a matrix file and expand it into cells. Pure but for reading the files named.

In: a TOML file (format: docs/matrices.md). Out: a `Matrix` whose `cells` hold every combination that the file names,
those that it leaves out with their reason among them. Errors name the file, the key and the nearest valid value.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compat.axes import ALL_AXES, ATTENTION, AXES, DTYPES, MODES, PLAIN, QUANTIZATIONS, identity_of, nearest
from compat.builtin import matrices_folder, stack_names
from compat.checks import CHECKS, DEPTHS, EVERY_TASK
from compat.device import DEVICE_TYPES
from compat.speed.settings import SettingError, SpeedSettings, from_table

SOURCES = ("probe", "shape", "package", "folder", "hub")

_MATRIX_KEYS = ("title", "models", "axes", "include", "exclude", "checks", "settings", "speed", "device",
                "expectations")  # fmt: skip
_SETTINGS = {"seed": int, "depth": str, "timeout_seconds": (int, float), "memory_limit_bytes": int, "stack": str}
_MODEL_KEYS: dict[str, Any] = {
    "source": str, "task": str, "type": str, "config": dict, "features": list, "package": str, "file": str,
    "distribution": str, "path": str, "repo": str, "revision": str, "seed": int, "query_gain": (int, float),
    "embedding_gain": (int, float), "branch_gain": (int, float), "choice_bias": (int, float), "teacher": str,
    "routed_by_token": bool, "legacy_config": bool, "padding_sides": list, "trust_remote_code": bool,
    "timeout_seconds": (int, float), "parameters": int, "linear_parameters": int,
}  # fmt: skip
_REQUIRED = {
    "probe": ("type",), "shape": ("type", "config"), "package": ("package", "file", "distribution"),
    "folder": ("path",), "hub": ("repo",),
}  # fmt: skip


NO_MODE = "not asked: a model that was converted or exported is another one already"
"""Why a mode leaves out the backends that convert or export a model themselves."""


class MatrixError(ValueError):
    """A matrix or model file that cannot be used: says which file, which key, what is wrong, what would be right."""

    def __init__(self, file: Path | str, key: str, problem: str, hint: str = "") -> None:
        text = f"{file}: {key}: {problem}" + (f"; nearest valid: {hint!r}" if hint else "")
        super().__init__(text)
        self.file, self.key, self.hint = str(file), key, hint


@dataclass(frozen=True)
class Model:
    """A row of models.toml, as the worker gets it."""

    name: str
    row: Mapping[str, Any]

    @property
    def task(self) -> str:
        """One of compat.checks.EVERY_TASK."""
        return str(self.row["task"])

    @property
    def features(self) -> frozenset[str]:
        """What the family has that others have not: `moe`, `window`, ...; a shape has `shape`."""
        return frozenset(self.row.get("features", ())) | ({"shape"} if self.shape else frozenset())

    @property
    def digest(self) -> str:
        """Equal for equal rows: stored figures hold for the very model that they were measured on."""
        aside = ("features", "timeout_seconds", "parameters", "linear_parameters")
        content = {k: v for k, v in self.row.items() if k not in aside}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def real(self) -> bool:
        """Whether its weights are a real checkpoint's."""
        return self.row["source"] not in ("probe", "shape")

    @property
    def shape(self) -> bool:
        """Whether it is a model at full size with random weights: for speed and memory only."""
        return bool(self.row["source"] == "shape")


@dataclass(frozen=True)
class CellSpec:
    """A cell to run, or one that the matrix leaves out (`excluded` says why)."""

    model: str
    dtype: str
    attention: str
    quantization: str
    checks: tuple[str, ...]
    excluded: str = ""
    mode: str = PLAIN

    @property
    def axes(self) -> dict[str, str]:
        """Axis -> value, in the order of the id; without `mode` where that is plain."""
        return {name: getattr(self, name) for name in (AXES if self.mode == PLAIN else ALL_AXES)}

    @property
    def id(self) -> str:
        """E.g. `llama/bf16/flash_attention_2/bnb-nf4`, and `llama/bf16/sdpa/none/compile` in a mode."""
        return identity_of(self.axes)


@dataclass(frozen=True)
class Settings:
    """What else a matrix may set."""

    seed: int = 0
    depth: str = "standard"
    """One of compat.checks.DEPTHS."""
    timeout_seconds: float | None = None
    memory_limit_bytes: int | None = None
    stack: str = ""
    """The stack whose interpreter the workers run unless another is asked for: a name, or a file; "" for none."""
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    """What the speed check is asked to measure."""


@dataclass(frozen=True)
class Matrix:
    """An expanded matrix."""

    path: Path
    sha256: str
    title: str
    device: str
    models: dict[str, Model]
    cells: tuple[CellSpec, ...]
    settings: Settings = field(default_factory=Settings)
    expectations: Path | None = None
    """The file of what is known to fail, where the matrix names one."""


def read_matrix(path: Path, device: str) -> Matrix:
    """The matrix at `path` for a device type; a file that only names others by device is followed.

    Raises MatrixError for anything that cannot be used.
    """
    data, raw = _read(path)
    _known_keys(path, "", data, _MATRIX_KEYS)
    if "device" in data:
        target = _by_device(path, data, device)
        if "device" in _read(target)[0]:
            raise MatrixError(path, f"device.{device}", f"{target.name} picks by device too; name a matrix")
        return read_matrix(target, device)
    digest = hashlib.sha256(raw)
    models = _models(path, data, digest)
    checks = _names(
        path, "checks", data.get("checks", [kind.name for kind in CHECKS if not kind.on_request]), CHECKS.names
    )
    blocks = [("axes", _table(path, "axes", data.get("axes")))]
    for i, block in enumerate(_tables(path, "include", data)):
        blocks.append((f"include[{i}]", block))
    cells: dict[str, CellSpec] = {}
    for key, block in blocks:
        for cell in _product(path, key, block, models, checks):
            known = cells.get(cell.id)
            both = cell if known is None else replace(cell, checks=_merged(known.checks, cell.checks))
            cells[cell.id] = both
    excluded = _exclusions(path, data, models)
    named = _typed(path, "expectations", data.get("expectations", ""), str)
    kept = tuple(_excluded(cell, excluded) for cell in cells.values())
    return Matrix(
        path=path,
        sha256=digest.hexdigest(),
        title=_typed(path, "title", data.get("title", path.stem), str),
        device=device,
        models={name: models[name] for name in dict.fromkeys(c.model for c in kept)},
        cells=kept,
        settings=_settings(path, data),
        expectations=_inside(path, "expectations", named) if named else None,
    )


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise MatrixError(path, "(file)", error.strerror or str(error), nearest(path.name, beside)) from error
    try:
        return tomllib.loads(raw.decode("utf-8")), raw
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MatrixError(path, "(file)", f"not valid TOML: {error}") from error


def _by_device(path: Path, data: dict[str, Any], device: str) -> Path:
    table = _table(path, "device", data["device"])
    others = [k for k in data if k not in ("device", "title")]
    if others:
        raise MatrixError(path, others[0], "a file that picks by device holds nothing else but a title")
    _known_keys(path, "device", table, DEVICE_TYPES)
    if device not in table:
        raise MatrixError(path, f"device.{device}", "no matrix is named for this device", next(iter(table), ""))
    return _inside(path, f"device.{device}", _typed(path, f"device.{device}", table[device], str))


def _inside(path: Path, key: str, name: str) -> Path:
    """A file named relative to `path`, which must stay in its folder."""
    folder = path.resolve().parent
    if "\0" in name:
        raise MatrixError(path, key, f"{name!r} is no file name")
    target = (folder / name).resolve()
    if not target.is_relative_to(folder):
        raise MatrixError(path, key, f"{name!r} leaves the folder of the matrix")
    return target


def _models(path: Path, data: dict[str, Any], digest: Any) -> dict[str, Model]:
    """compat's own models, with those of the file that the matrix names (or of models.toml beside it) on top."""
    files = [matrices_folder() / "models.toml"]
    if "models" in data:
        files.append(_inside(path, "models", _typed(path, "models", data["models"], str)))
    elif (path.parent / "models.toml").is_file():
        files.append(path.parent / "models.toml")
    models: dict[str, Model] = {}
    for file in dict.fromkeys(f.resolve() for f in files):
        table, raw = _read(file)
        digest.update(raw)
        _known_keys(file, "", table, ("defaults", "models"))
        defaults = _table(file, "defaults", table.get("defaults", {}))
        _known_keys(file, "defaults", defaults, ("probe",))
        _table(file, "defaults.probe", defaults.get("probe", {}))
        for name, row in _table(file, "models", table.get("models", {})).items():
            models[name] = _model(file, name, _table(file, f"models.{name}", row), defaults.get("probe", {}))
        for name in table.get("models", {}):
            models[name] = _taught(file, models[name], models)
    return models


def _taught(file: Path, model: Model, models: Mapping[str, Model]) -> Model:
    """`model` with its teacher's row in place of the name."""
    named = model.row.get("teacher")
    if named is None:
        return model
    key = f"models.{model.name}.teacher"
    teacher = models[_one_of(file, key, named, tuple(models))]
    taught = CHECKS["distillation"].tasks
    if model.task not in taught or teacher.task != model.task:
        tasks = " or ".join(taught)
        raise MatrixError(file, key, f"student and teacher need one task, {tasks}: {model.task}, {teacher.task}")
    if teacher.row.get("teacher"):
        raise MatrixError(file, key, f"{named!r} is a student itself")
    if model.row["source"] == "probe" and teacher.row["source"] not in ("probe", "shape"):
        raise MatrixError(file, key, "a probe is distilled when it is made, from another probe")
    if model.shape or teacher.shape:
        raise MatrixError(file, key, "a shape has random weights: it can neither teach nor have learned")
    return Model(model.name, {**model.row, "teacher": dict(teacher.row)})


def _model(file: Path, name: str, row: dict[str, Any], defaults: dict[str, Any]) -> Model:
    key = f"models.{name}"
    if not name or any(c in name for c in "/\\\n\r\t\0"):
        raise MatrixError(file, key, "a model's name is part of ids: no slashes or control characters")
    _known_keys(file, key, row, tuple(_MODEL_KEYS))
    for part, value in row.items():
        _typed(file, f"{key}.{part}", value, _MODEL_KEYS[part])
    source = _one_of(file, f"{key}.source", row.get("source"), SOURCES)
    _one_of(file, f"{key}.task", row.get("task"), EVERY_TASK)
    for part in _REQUIRED[source]:
        if part not in row:
            raise MatrixError(file, f"{key}.{part}", f"is required for source {source!r}")
    for feature in row.get("features", []):
        _typed(file, f"{key}.features", feature, str)
    for part in ("timeout_seconds", "parameters", "linear_parameters"):
        if not row.get(part, 1) > 0:
            raise MatrixError(file, f"{key}.{part}", f"{row[part]!r} is not above 0")
    for side in row.get("padding_sides", []):
        _one_of(file, f"{key}.padding_sides", side, ("left", "right"))
    complete = {**row, "name": name}
    if source == "probe":
        complete["config"] = {**defaults, **row.get("config", {})}
    if source == "folder":
        own = Path(row["path"])  # absolute: where the user says; relative: within the folder of the file
        complete["path"] = str(own) if own.is_absolute() else str(_inside(file, f"{key}.path", row["path"]))
    if source == "package" and (Path(row["file"]).is_absolute() or ".." in Path(row["file"]).parts):
        raise MatrixError(file, f"{key}.file", f"{row['file']!r} leaves the package's folder")
    return Model(name, complete)


def _product(
    path: Path, key: str, block: dict[str, Any], models: dict[str, Model], checks: tuple[str, ...]
) -> Iterable[CellSpec]:
    """Every combination of a block's axis values, in the order in which they are written."""
    _known_keys(path, key, block, (*ALL_AXES, "checks"))
    known = _known_values(models)
    for axis in AXES:
        if axis not in block:
            raise MatrixError(path, f"{key}.{axis}", "is missing; every block names all four axes")
    block = {"mode": [PLAIN], **block}
    shapes = tuple(name for name, model in models.items() if model.shape)
    values = {
        axis: _names(path, f"{key}.{axis}", block[axis], known[axis], True, shapes if axis == "model" else ())
        for axis in ALL_AXES
    }
    asked = _names(path, f"{key}.checks", block["checks"], CHECKS.names) if "checks" in block else checks
    if "checks" in block and set(values["model"]) <= set(shapes):
        _of_shapes(path, f"{key}.checks", asked)
    for combination in itertools.product(*values.values()):
        axes = dict(zip(ALL_AXES, combination, strict=True))
        model = models[axes["model"]]
        able = [c for c in asked if (CHECKS[c].shapes or not model.shape) and CHECKS[c].row_key in ("", *model.row)]
        applicable = tuple(c for c in able if CHECKS[c].applies(model.task, axes))
        backend = ATTENTION[axes["attention"]]
        other = axes["mode"] != PLAIN and (backend.convert or backend.provider)
        yield CellSpec(**axes, checks=applicable, excluded=NO_MODE if other else "")


def _known_values(models: dict[str, Model]) -> dict[str, tuple[str, ...]]:
    """Axis -> the values that a block may name."""
    return {
        "model": tuple(models),
        "dtype": DTYPES.names,
        "attention": ATTENTION.names,
        "quantization": QUANTIZATIONS.names,
        "mode": MODES.names,
    }


def _of_shapes(path: Path, key: str, asked: tuple[str, ...]) -> None:
    """Refuse checks that a block of nothing but shapes names and that cannot be asked of them."""
    for check in asked:
        if not CHECKS[check].shapes:
            able = [name for name in CHECKS.names if CHECKS[name].shapes]
            problem = f"{check!r} says nothing of random weights, which all models of this block have"
            raise MatrixError(path, key, f"{problem}; of a shape can be asked: {', '.join(able)}")


def _exclusions(path: Path, data: dict[str, Any], models: dict[str, Model]) -> list[tuple[dict[str, Any], str]]:
    """(axis -> values, reason) of each [[exclude]]."""
    known = _known_values(models)
    rules = []
    for i, block in enumerate(_tables(path, "exclude", data)):
        key = f"exclude[{i}]"
        _known_keys(path, key, block, (*ALL_AXES, "reason"))
        reason = _typed(path, f"{key}.reason", block.get("reason"), str)
        if not reason.strip():
            raise MatrixError(path, f"{key}.reason", "is empty")
        axes = {a: _names(path, f"{key}.{a}", block[a], known[a], patterns=True) for a in ALL_AXES if a in block}
        if not axes:
            raise MatrixError(path, key, "names no axis, so it would leave out everything")
        rules.append((axes, reason))
    return rules


def _excluded(cell: CellSpec, rules: list[tuple[dict[str, Any], str]]) -> CellSpec:
    for axes, reason in rules:
        if all(getattr(cell, axis) in values for axis, values in axes.items()):
            return replace(cell, excluded=reason)
    return cell


def _merged(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(c for c in CHECKS.names if c in first or c in second)


def _settings(path: Path, data: dict[str, Any]) -> Settings:
    table = _table(path, "settings", data.get("settings", {}))
    _known_keys(path, "settings", table, tuple(_SETTINGS))
    for name, value in table.items():
        _typed(path, f"settings.{name}", value, _SETTINGS[name])
        if name in ("timeout_seconds", "memory_limit_bytes") and not value > 0:
            raise MatrixError(path, f"settings.{name}", f"{value!r} is not above 0")
    if "stack" in table:
        table = {**table, "stack": _stack(path, table["stack"])}
    if "depth" in table:
        _one_of(path, "settings.depth", table["depth"], DEPTHS)
    try:
        return Settings(**table, speed=from_table(_table(path, "speed", data.get("speed", {}))))
    except SettingError as error:
        raise MatrixError(path, f"speed.{error.key}", error.problem, error.hint) from error


def _stack(path: Path, named: str) -> str:
    """A stack of compat's own by name, or a file that ends in .toml, relative to the matrix."""
    if named.endswith(".toml"):
        return str(_inside(path, "settings.stack", named))
    return _one_of(path, "settings.stack", named, stack_names())


# -- values ------------------------------------------------------------------------------------------------------


def _known_keys(file: Path, key: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            where = f"{key}.{name}" if key else name
            raise MatrixError(file, where, "unknown key", nearest(name, known))


def _typed(file: Path, key: str, value: Any, kind: Any) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is None:
        raise MatrixError(file, key, "is missing")
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise MatrixError(file, key, f"{value!r} is a {type(value).__name__}, not a {names}")
    return value


def _table(file: Path, key: str, value: Any) -> dict[str, Any]:
    table: dict[str, Any] = _typed(file, key, value, dict)
    return table


def _tables(file: Path, key: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = _typed(file, key, data.get(key, []), list)
    return [_table(file, f"{key}[{i}]", b) for i, b in enumerate(blocks)]


def _one_of(file: Path, key: str, value: Any, known: tuple[str, ...]) -> str:
    text: str = _typed(file, key, value, str)
    if text not in known:
        raise MatrixError(file, key, f"unknown value {text!r}", nearest(text, known))
    return text


def _names(
    file: Path, key: str, value: Any, known: tuple[str, ...], patterns: bool = False, in_full: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """A list of known names; with `patterns`, `*` and `?` stand for every known name that fits and that is not among
    those `in_full`, which have to be written out."""
    names: list[str] = []
    for item in _typed(file, key, value, list):
        text = _typed(file, key, item, str)
        if patterns and any(c in text for c in "*?"):
            fitting = [name for name in fnmatch.filter(known, text) if name not in in_full]
            if not fitting:
                shapes = next(iter(fnmatch.filter(in_full, text)), "")
                problem = " but shapes, which are written out" if shapes else ""
                raise MatrixError(file, key, f"pattern {text!r} fits nothing{problem}", shapes)
            names += fitting
        else:
            names.append(_one_of(file, key, text, known))
    if not names:
        raise MatrixError(file, key, "is empty")
    return tuple(dict.fromkeys(names))
