"""Where the matrices that come with compat are: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path

OWN = (
    "default", "speed", "families", "flash", "flex", "modes", "positions", "paged", "quantization", "distillation",
    "bettertransformer", "onnxruntime", "upgrade",
)  # fmt: skip
"""Matrices that are called by name."""

_PACKAGE = Path(__file__).resolve().parent


def matrices_folder() -> Path:
    """The folder that holds default.toml, speed.toml, families.toml, upgrade.toml and models.toml."""
    installed = _PACKAGE / "matrices"
    return installed if installed.is_dir() else _PACKAGE.parent / "matrices"


def stack_names() -> tuple[str, ...]:
    """The names of compat's own stacks, in alphabetical order."""
    return tuple(sorted(p.stem for p in (matrices_folder() / "stacks").glob("*.toml")))


def matrix_path(named: str, folder: Path = Path()) -> Path:
    """The matrix file that a user names, below `folder`; the names in OWN are compat's own unless a file has that
    name."""
    path = folder / named
    return matrices_folder() / f"{named}.toml" if named in OWN and not path.exists() else path
