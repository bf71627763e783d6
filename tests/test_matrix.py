"""Laws of expansion, and every way in which a matrix or model file can be wrong."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from hypothesis import given
from hypothesis import strategies as st

from compat.axes import AXES as AXIS_NAMES
from compat.builtin import matrices_folder
from compat.checks import CHECKS
from compat.matrix import CellSpec, MatrixError, read_matrix

from .matrix_files import AXES, TINY, block, write

Axes = dict[str, list[str]]


def _read(text: str) -> tuple[CellSpec, ...]:
    with tempfile.TemporaryDirectory() as folder:
        return read_matrix(write(Path(folder), text), "cpu").cells


# -- laws --------------------------------------------------------------------------------------------------------


@given(AXES)
def test_expansion_is_the_product_of_the_axes_in_order(axes: Axes) -> None:
    expected = ["/".join(values) for values in itertools.product(*(axes[name] for name in AXIS_NAMES))]
    assert [cell.id for cell in _read(block("axes", axes))] == expected


@given(AXES, AXES)
def test_an_include_adds_its_product_and_repeats_no_cell(axes: Axes, more: Axes) -> None:
    cells = _read(block("axes", axes) + block("[include]", more))
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids), "a cell id stands twice"
    both = {"/".join(v) for x in (axes, more) for v in itertools.product(*(x[name] for name in AXIS_NAMES))}
    assert set(ids) == both


@given(AXES, AXES)
def test_excluded_cells_are_kept_with_their_reason(axes: Axes, rule: Axes) -> None:
    whole = _read(block("axes", axes))
    cells = _read(block("axes", axes) + block("[exclude]", rule, 'reason = "known to hang"'))
    assert [c.id for c in cells] == [c.id for c in whole], "excluding must not drop a cell"
    for cell in cells:
        left_out = all(cell.axes[axis] in values for axis, values in rule.items())
        assert cell.excluded == ("known to hang" if left_out else ""), cell.id


@given(AXES, st.lists(st.sampled_from(CHECKS.names), min_size=1, unique=True))
def test_a_cell_has_the_checks_that_fit_its_task(axes: Axes, checks: list[str]) -> None:
    tasks = {"llama": "causal-lm", "opt": "causal-lm", "bert": "masked-lm", "t5": "seq2seq-lm",
             "vit": "image-classification", "minilm-l6": "feature-extraction"}  # fmt: skip
    for cell in _read(f"checks = {checks!r}\n".replace("'", '"') + block("axes", axes)):
        fitting = {c for c in checks if CHECKS[c].applies(tasks[cell.model], cell.axes) and not CHECKS[c].row_key}
        assert set(cell.checks) == fitting, cell.id


def test_checks_of_a_cell_named_twice_are_merged_in_the_order_of_the_registry() -> None:
    one = {"model": ["llama"], "dtype": ["fp32"], "attention": ["sdpa"], "quantization": ["none"]}
    (cell,) = _read(
        block("axes", one, 'checks = ["memory"]') + block("[include]", one, 'checks = ["load", "agreement"]')
    )
    assert cell.checks == ("load", "agreement", "memory")


def test_patterns_stand_for_every_known_name_that_fits() -> None:
    axes = {"model": ["gpt*"], "dtype": ["*16"], "attention": ["sdpa-?????"], "quantization": ["bnb-nf4*"]}
    cells = _read(block("axes", axes))
    assert {c.model for c in cells} == {
        "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gpt_oss-routed", "gptj",
    }  # fmt: skip
    assert {c.dtype for c in cells} == {"fp16", "bf16"}
    assert {c.attention for c in cells} == {"sdpa-flash", "sdpa-cudnn"}
    assert {c.quantization for c in cells} == {"bnb-nf4", "bnb-nf4-dq", "bnb-nf4-fp32compute", "bnb-nf4-bf16storage"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_default_matrix_expands_on_every_device(device: str) -> None:
    matrix = read_matrix(matrices_folder() / "default.toml", device)
    assert len(matrix.cells) > 300
    assert all(cell.checks for cell in matrix.cells if not cell.excluded), "a cell without a check says nothing"
    assert {cell.model for cell in matrix.cells} == set(matrix.models)


def test_the_hash_covers_the_models_file(tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    write(tmp_path, '[models.mine]\nsource = "hub"\nrepo = "a/b"\ntask = "causal-lm"\n', "models.toml")
    first = read_matrix(path, "cpu").sha256
    write(tmp_path, '[models.mine]\nsource = "hub"\nrepo = "a/c"\ntask = "causal-lm"\n', "models.toml")
    assert read_matrix(path, "cpu").sha256 != first, "a changed model must not look like the same matrix"


def test_own_models_stand_beside_and_over_those_of_compat(tmp_path: Path) -> None:
    write(tmp_path, '[models.opt]\nsource = "folder"\npath = "here"\ntask = "causal-lm"\n', "models.toml")
    matrix = read_matrix(write(tmp_path, TINY), "cpu")
    assert matrix.models["opt"].row["path"] == str(tmp_path.resolve() / "here")
    assert matrix.models["opt"].real
    assert not matrix.models["llama"].real


def test_a_students_row_holds_its_teachers(tmp_path: Path) -> None:
    rows = '[models.small]\nsource = "folder"\npath = "small"\ntask = "causal-lm"\nteacher = "large"\n'
    write(tmp_path, rows + rows.replace("small", "large").replace('teacher = "large"\n', ""), "models.toml")
    models = read_matrix(write(tmp_path, TINY.replace('"opt", "llama"', '"small", "large"')), "cpu").models
    assert models["small"].row["teacher"] == dict(models["large"].row)
    assert models["small"].row["teacher"]["path"] == str(tmp_path.resolve() / "large")
    assert "teacher" not in models["large"].row


def test_distillation_is_asked_of_students_only() -> None:
    cells = read_matrix(matrices_folder() / "distillation.toml", "cpu").cells
    asked = {c.model for c in cells if "distillation" in c.checks}
    assert asked == {"distilbert-student"}
    assert {c.model for c in cells} == {"distilbert-student", "bert-teacher"}


SHAPE = '[models.big]\nsource = "shape"\ntype = "llama"\ntask = "causal-lm"\nconfig = { hidden_size = 64 }\n'


def _with_shape(folder: Path, models: str, checks: str = "") -> tuple[CellSpec, ...]:
    write(folder, SHAPE, "models.toml")
    text = f'[axes]\nmodel = {models}\ndtype = ["fp32"]\nattention = ["eager"]\nquantization = ["none"]\n{checks}'
    return read_matrix(write(folder, text), "cpu").cells


def test_a_shape_is_asked_only_what_random_weights_can_answer(tmp_path: Path) -> None:
    [big, llama] = _with_shape(tmp_path, '["big", "llama"]', 'checks = ["agreement", "speed", "load", "memory"]\n')
    assert big.checks == ("speed", "load", "memory")
    assert llama.checks == ("agreement", "speed", "load", "memory")
    [alone] = _with_shape(tmp_path, '["big"]')
    assert set(alone.checks) == {"load", "speed", "memory"}


def test_a_block_of_shapes_that_names_another_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match=r"'padding' says nothing of random weights.*load, speed, memory") as caught:
        _with_shape(tmp_path, '["big"]', 'checks = ["load", "padding"]\n')
    assert caught.value.key == "axes.checks"


def test_a_pattern_takes_no_shape(tmp_path: Path) -> None:
    names = {cell.model for cell in _with_shape(tmp_path, '["*"]')}
    assert "llama" in names
    assert not names & {"big", "llama-7b", "opt-350m"}
    with pytest.raises(MatrixError, match="fits nothing but shapes, which are written out; nearest valid: 'big'"):
        _with_shape(tmp_path, '["bi*"]')


def test_a_shape_has_its_own_dimensions_and_a_feature(tmp_path: Path) -> None:
    _with_shape(tmp_path, '["big"]')
    big = read_matrix(tmp_path / "matrix.toml", "cpu").models["big"]
    assert big.row["config"] == {"hidden_size": 64}, "none of the probes' defaults"
    assert big.features == {"shape"}
    assert big.shape
    assert not big.real


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_speed_matrix_holds_shapes_and_the_default_one_none(device: str) -> None:
    speed, default = (read_matrix(matrices_folder() / f"{name}.toml", device) for name in ("speed", "default"))
    assert all(model.shape for model in speed.models.values())
    assert {check for cell in speed.cells for check in cell.checks} == {"load", "speed", "memory"}
    assert not any(model.shape for model in default.models.values())


# -- bad matrices ------------------------------------------------------------------------------------------------

AXES_TEXT = '[axes]\nmodel = ["llama"]\ndtype = ["fp32"]\nattention = ["eager"]\nquantization = ["none"]\n'


def _axis(axis: str, value: str) -> str:
    lines = [f"{axis} = {value}" if line.startswith(f"{axis} =") else line for line in AXES_TEXT.splitlines()]
    return "\n".join(lines) + "\n"


BAD: dict[str, tuple[str, str, str]] = {
    # name: (text, key that the message names, nearest valid value or a part of the problem)
    "unknown top-level key": ("exclued = []\n" + AXES_TEXT, "exclued", "'exclude'"),
    "unknown key in axes": (AXES_TEXT + 'quantisation = ["none"]\n', "axes.quantisation", "'quantization'"),
    "unknown key in include": (AXES_TEXT + '[[include]]\natention = ["llama"]\n', "include[0].atention", "'attention'"),
    "unknown key in exclude": (AXES_TEXT + '[[exclude]]\nreasons = "x"\n', "exclude[0].reasons", "'reason'"),
    "unknown key in settings": (AXES_TEXT + "[settings]\nsede = 1\n", "settings.sede", "'seed'"),
    "unknown model": (_axis("model", '["lama"]'), "axes.model", "'llama'"),
    "unknown dtype": (_axis("dtype", '["bfloat16"]'), "axes.dtype", "'bf16'"),
    "unknown attention": (_axis("attention", '["flash_attention2"]'), "axes.attention", "'flash_attention_2'"),
    "unknown quantization": (_axis("quantization", '["bnb-nf5"]'), "axes.quantization", "'bnb-nf4'"),
    "unknown check": ('checks = ["agrement"]\n' + AXES_TEXT, "checks", "'agreement'"),
    "unknown check in a block": (AXES_TEXT + 'checks = ["sped"]\n', "axes.checks", "'speed'"),
    "unknown setting": (AXES_TEXT + '[settings]\nsead = 1\n', "settings.sead", "'seed'"),
    "unknown value in exclude": (
        AXES_TEXT + '[[exclude]]\nattention = ["spda"]\nreason = "x"\n', "exclude[0].attention", "'sdpa'"),
    "pattern that fits nothing": (_axis("model", '["lama*"]'), "axes.model", "fits nothing"),
    "axes missing": ('title = "x"\n', "axes", "is missing"),
    "one axis missing": (AXES_TEXT.replace('dtype = ["fp32"]\n', ""), "axes.dtype", "is missing"),
    "one axis of an include missing": (AXES_TEXT + '[[include]]\nmodel = ["opt"]\n', "include[0].dtype", "is missing"),
    "empty axis": (_axis("model", "[]"), "axes.model", "is empty"),
    "empty checks": ("checks = []\n" + AXES_TEXT, "checks", "is empty"),
    "axis is a string": (_axis("dtype", '"fp32"'), "axes.dtype", "not a list"),
    "axis holds a number": (_axis("dtype", "[32]"), "axes.dtype", "not a str"),
    "axes is a list": ("axes = []\n", "axes", "not a dict"),
    "include is a table": (AXES_TEXT + '[include]\nmodel = ["opt"]\n', "include", "not a list"),
    "include holds a string": ('include = ["opt"]\n' + AXES_TEXT, "include[0]", "not a dict"),
    "exclude without a reason": (AXES_TEXT + '[[exclude]]\nmodel = ["llama"]\n', "exclude[0].reason", "is missing"),
    "exclude of everything": (AXES_TEXT + '[[exclude]]\nreason = "x"\n', "exclude[0]", "names no axis"),
    "exclude with a reason that says nothing": (
        AXES_TEXT + '[[exclude]]\nmodel = ["llama"]\nreason = ""\n', "exclude[0].reason", ""),
    "title is a number": ("title = 1\n" + AXES_TEXT, "title", "not a str"),
    "unknown stack": (AXES_TEXT + '[settings]\nstack = "onnxruntim"\n', "settings.stack", "'onnxruntime'"),
    "stack outside": (AXES_TEXT + '[settings]\nstack = "../x.toml"\n', "settings.stack", "leaves the folder"),
    "stack that is no text": (AXES_TEXT + "[settings]\nstack = 3\n", "settings.stack", "not a str"),
    "bool for int": (AXES_TEXT + "[settings]\nseed = true\n", "settings.seed", "is a bool"),
    "bool for number": (AXES_TEXT + "[settings]\ntimeout_seconds = true\n", "settings.timeout_seconds", "is a bool"),
    "float for int": (AXES_TEXT + "[settings]\nseed = 1.5\n", "settings.seed", "not a int"),
    "timeout of 0": (AXES_TEXT + "[settings]\ntimeout_seconds = 0\n", "settings.timeout_seconds", "not above 0"),
    "timeout that is no number": (AXES_TEXT + "[settings]\ntimeout_seconds = nan\n", "settings.timeout_seconds", ""),
    "memory limit below 0": (
        AXES_TEXT + "[settings]\nmemory_limit_bytes = -1\n", "settings.memory_limit_bytes", "not above 0"),
    "models leaves the folder": ('models = "../models.toml"\n' + AXES_TEXT, "models", "leaves the folder"),
    "models is absolute": ('models = "/etc/passwd"\n' + AXES_TEXT, "models", "leaves the folder"),
    "models is a list": ('models = ["models.toml"]\n' + AXES_TEXT, "models", "not a str"),
    "models does not exist": ('models = "absent.toml"\n' + AXES_TEXT, "(file)", "No such file"),
    "models holds a NUL": ('models = "a\\u0000b"\n' + AXES_TEXT, "models", ""),
    "device with axes": ('[device]\ncpu = "x.toml"\n' + AXES_TEXT, "axes", "holds nothing else"),
    "unknown device": ('[device]\ncdua = "x.toml"\n', "device.cdua", "'cuda'"),
    "no matrix for this device": ('[device]\ncuda = "x.toml"\n', "device.cpu", "no matrix"),
    "device leaves the folder": ('[device]\ncpu = "../x.toml"\n', "device.cpu", "leaves the folder"),
    "device file does not exist": ('[device]\ncpu = "absent.toml"\n', "(file)", "No such file"),
    "device names itself": ('[device]\ncpu = "matrix.toml"\n', "device.cpu", ""),
    "device file is a number": ("[device]\ncpu = 1\n", "device.cpu", "not a str"),
    "not TOML": ("[axes\n", "(file)", "not valid TOML"),
    "empty file": ("", "axes", "is missing"),
}  # fmt: skip


def _cases(table: dict[str, tuple[str, str, str]]) -> list[ParameterSet]:
    return [pytest.param(*case, id=name) for name, case in table.items()]


@pytest.mark.parametrize(("text", "key", "part"), _cases(BAD))
def test_a_bad_matrix_names_file_key_and_what_would_be_right(tmp_path: Path, text: str, key: str, part: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(MatrixError) as caught:
        read_matrix(path, "cpu")
    message = str(caught.value)
    assert caught.value.key == key, message
    assert str(tmp_path) in message, f"names no file: {message}"
    assert part in message, message


PROBE = '[models.mine]\nsource = "probe"\ntype = "llama"\ntask = "causal-lm"\n'

BAD_MODELS: dict[str, tuple[str, str, str]] = {
    "unknown key in the file": ('[model.mine]\nsource = "hub"\n', "model", "'models'"),
    "unknown key of a model": (PROBE + "confg = {}\n", "models.mine.confg", "'config'"),
    "unknown source": (PROBE.replace("probe", "prob"), "models.mine.source", "'probe'"),
    "source missing": (PROBE.replace('source = "probe"\n', ""), "models.mine.source", "is missing"),
    "unknown task": (PROBE.replace("causal-lm", "casual-lm"), "models.mine.task", "'causal-lm'"),
    "task missing": (PROBE.replace('task = "causal-lm"\n', ""), "models.mine.task", "is missing"),
    "type missing": (PROBE.replace('type = "llama"\n', ""), "models.mine.type", "is required"),
    "type is a number": (PROBE.replace('"llama"', "3"), "models.mine.type", "not a str"),
    "config is a string": (PROBE + 'config = "x"\n', "models.mine.config", "not a dict"),
    "trust is a number": (PROBE + "trust_remote_code = 1\n", "models.mine.trust_remote_code", "not a bool"),
    "gain is a bool": (PROBE + "query_gain = true\n", "models.mine.query_gain", "is a bool"),
    "unknown padding side": (PROBE + 'padding_sides = ["lefft"]\n', "models.mine.padding_sides", "'left'"),
    "features holds a number": (PROBE + "features = [1]\n", "models.mine.features", ""),
    "timeout of a model below 0": (PROBE + "timeout_seconds = -1\n", "models.mine.timeout_seconds", ""),
    "model is a string": ('[models]\nmine = "llama"\n', "models.mine", "not a dict"),
    "name with a slash": (PROBE.replace("models.mine", 'models."a/b"'), "models.a/b", "no slashes"),
    "name is empty": (PROBE.replace("models.mine", 'models.""'), "models.", "part of ids"),
    "type of a shape missing": (
        '[models.mine]\nsource = "shape"\nconfig = {}\ntask = "causal-lm"\n', "models.mine.type", "is required"),
    "config of a shape missing": (
        '[models.mine]\nsource = "shape"\ntype = "llama"\ntask = "causal-lm"\n', "models.mine.config", "is required"),
    "no parameters": (PROBE + "parameters = 0\n", "models.mine.parameters", "not above 0"),
    "parameters as text": (PROBE + 'parameters = "7B"\n', "models.mine.parameters", "is a str"),
    "repo missing": ('[models.mine]\nsource = "hub"\ntask = "causal-lm"\n', "models.mine.repo", "is required"),
    "path missing": ('[models.mine]\nsource = "folder"\ntask = "causal-lm"\n', "models.mine.path", "is required"),
    "path leaves the folder": (
        '[models.mine]\nsource = "folder"\npath = "../x"\ntask = "causal-lm"\n', "models.mine.path", "leaves"),
    "file leaves the package": (
        '[models.mine]\nsource = "package"\npackage = "p"\nfile = "../x"\ndistribution = "p"\ntask = "causal-lm"\n',
        "models.mine.file", "leaves the package"),
    "file is absolute": (
        '[models.mine]\nsource = "package"\npackage = "p"\nfile = "/x"\ndistribution = "p"\ntask = "causal-lm"\n',
        "models.mine.file", "leaves the package"),
    "unknown default": ("[defaults.prob]\na = 1\n", "defaults.prob", "'probe'"),
    "defaults is a number": ("defaults = 1\n", "defaults", "not a dict"),
    "defaults.probe is a number": ("defaults = { probe = 1 }\n" + PROBE, "defaults.probe", "not a dict"),
    "unknown teacher": (PROBE + 'teacher = "lama"\n', "models.mine.teacher", "'llama'"),
    "teacher is a number": (PROBE + "teacher = 1\n", "models.mine.teacher", "not a str"),
    "teacher of another task": (PROBE + 'teacher = "bert"\n', "models.mine.teacher", "causal-lm, masked-lm"),
    "teacher that is a student": (
        PROBE.replace("causal-lm", "masked-lm") + 'teacher = "distilbert-student"\n', "models.mine.teacher", "itself"),
    "teacher is a shape": (PROBE + 'teacher = "llama-7b"\n', "models.mine.teacher", "random weights"),
    "a probe's teacher is a checkpoint": (
        PROBE + 'teacher = "smollm2-135m"\n', "models.mine.teacher", "from another probe"),
    "student of images": (
        PROBE.replace("causal-lm", "image-classification") + 'teacher = "vit"\n', "models.mine.teacher", "one task"),
    "not TOML": ("[models.mine\n", "(file)", "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "key", "part"), _cases(BAD_MODELS))
def test_a_bad_models_file_is_named(tmp_path: Path, text: str, key: str, part: str) -> None:
    models = write(tmp_path, text, "models.toml")
    with pytest.raises(MatrixError) as caught:
        read_matrix(write(tmp_path, AXES_TEXT), "cpu")
    message = str(caught.value)
    assert caught.value.key == key, message
    assert str(models) in message, f"does not name models.toml: {message}"
    assert part in message, message


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "matrix.toml"
    path.write_bytes(b'title = "\xff\xfe"\n' + AXES_TEXT.encode())
    with pytest.raises(MatrixError, match="not valid TOML") as caught:
        read_matrix(path, "cpu")
    assert caught.value.file == str(path)


def test_a_missing_file_suggests_the_one_beside_it(tmp_path: Path) -> None:
    write(tmp_path, AXES_TEXT, "nightly.toml")
    with pytest.raises(MatrixError, match=r"No such file.*'nightly.toml'"):
        read_matrix(tmp_path / "nightli.toml", "cpu")


def test_a_folder_is_not_a_matrix(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="directory"):
        read_matrix(tmp_path, "cpu")


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    write(outside, "", "models.toml")
    (inside / "theirs.toml").symlink_to(outside / "models.toml")
    with pytest.raises(MatrixError, match="leaves the folder"):
        read_matrix(write(inside, 'models = "theirs.toml"\n' + AXES_TEXT), "cpu")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_matrix_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrix.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(MatrixError):  # no text this short names all four axes
            read_matrix(path, "cpu")
