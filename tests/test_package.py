"""What is shipped, what `import alpha_clip` costs, and which way imports go."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import alpha_clip

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "alpha_clip"
ASSETS = {path.name for path in (PACKAGE / "assets").iterdir() if not path.name.startswith(".")}


def python(*args: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh Python, which sees the repository only where `path` or `cwd` says so, prints."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    run = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# --- the distributions ---


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the repository, so that building leaves no litter in it."""
    target = tmp_path_factory.mktemp("source") / "alpha-clip"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    return Path(shutil.copytree(ROOT, target, ignore=ignored))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder), cwd=source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


def test_the_wheel_holds_all_modules_the_assets_and_py_typed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert modules <= names
    assert {f"alpha_clip/assets/{name}" for name in ASSETS} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "evaluation" / "assets").iterdir()} <= names
    assert "alpha_clip/py.typed" in names


def test_the_wheel_holds_nothing_else(wheel):
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert folders == {"alpha_clip", f"alpha_clip-{version_in_setup()}.dist-info"}


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < 10e6


def test_the_sdist_holds_the_assets_and_the_tests(source, tmp_path):
    code = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    python("-c", code, str(tmp_path), cwd=source)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"alpha_clip/assets/{name}" for name in ASSETS} <= names
    assert {"alpha_clip/py.typed", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")} <= names


def test_the_bundled_files_are_among_the_assets():
    assert {"bpe_merges.npy", "tiny.safetensors", "tiny_alpha.safetensors"} <= ASSETS


def test_the_installed_package_loads_tiny(installed, tmp_path):
    code = """
import alpha_clip
print(alpha_clip.__file__)
model, preprocess = alpha_clip.load("tiny", device="cpu")
print(tuple(model.encode_text(alpha_clip.tokenize(["a dog", "a cat"])).shape))
"""
    file, shape = python("-c", code, cwd=tmp_path, path=installed).splitlines()
    assert Path(file).is_relative_to(installed)
    assert shape.startswith("(2, ")


def test_the_version_is_setups(installed, tmp_path):
    version = python("-c", "import alpha_clip; print(alpha_clip.__version__)", cwd=tmp_path, path=installed)
    assert version == version_in_setup()


def version_in_setup() -> str:
    call = next(n for n in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if ast.unparse(n).startswith("setup("))
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    return next(ast.literal_eval(k.value) for k in call.value.keywords if k.arg == "version")


# --- import alpha_clip ---


def test_importing_the_package_imports_nothing_heavy_and_no_module_of_it(tmp_path):
    code = "import sys; before = set(sys.modules); import alpha_clip; print(*(set(sys.modules) - before))"
    imported = python("-c", code, cwd=tmp_path, path=ROOT).split()
    assert {name for name in imported if name.startswith("alpha_clip")} == {"alpha_clip"}
    third_party = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert third_party == {"alpha_clip"}


def test_load_imports_no_optional_package_and_builds_no_tokenizer(tmp_path):
    code = """
import sys, alpha_clip
alpha_clip.load
print(*{name.partition(".")[0] for name in sys.modules})
print(alpha_clip.tokenizer.shared_tokenizer.cache_info().currsize)
"""
    imported, tokenizers = python("-c", code, cwd=tmp_path, path=ROOT).splitlines()
    optional = {"huggingface_hub", "safetensors", "matplotlib", "transformers", "open_clip", "timm"}
    assert optional & set(imported.split()) == set()
    assert tokenizers == "0"


def test_the_core_imports_none_of_the_folders(tmp_path):
    code = """
import sys, alpha_clip
for name in alpha_clip.__all__:
    name == "__version__" or getattr(alpha_clip, name)
others = {"alpha_clip.training", "alpha_clip.onnx", "alpha_clip.evaluation", "alpha_clip.integrations"}
others |= {"alpha_clip.search", "alpha_clip.demo", "gradio", "scipy"}
others |= {"onnx", "onnxruntime", "matplotlib", "jinja2", "transformers", "open_clip", "alpha_clip.pipeline", "pyarrow"}
print(sorted(others & set(sys.modules)))
"""
    assert python("-c", code, cwd=tmp_path, path=ROOT) == "[]"


@pytest.mark.slow
def test_alpha_clip_onnx_waits_with_its_packages_until_they_are_needed(tmp_path):
    code = "import sys, alpha_clip.onnx; print(sorted({'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)))"
    assert python("-c", code, cwd=tmp_path, path=ROOT) == "[]"


def test_alpha_clip_integrations_imports_neither_the_trainer_nor_the_libraries(tmp_path):
    code = """
import sys, alpha_clip.integrations
print(sorted({"alpha_clip.training", "alpha_clip.evaluation", "transformers", "open_clip", "timm"} & set(sys.modules)))
"""
    assert python("-c", code, cwd=tmp_path, path=ROOT) == "[]"


def test_dir_lists_the_public_names():
    assert set(alpha_clip.__all__) == {
        "__version__",
        "AlphaWeightsNotFound",
        "HashMismatch",
        "IncompatibleCheckpoint",
        "Preprocess",
        "WeightsError",
        "available_alpha_weights",
        "available_models",
        "box_mask",
        "build_model",
        "embed_regions",
        "load",
        "push_to_hub",
        "save",
        "tokenize",
        "zero_shot_classifier",
    }
    assert {*alpha_clip.__all__, "model", "tokenizer", "transforms", "weights", "api"} <= set(dir(alpha_clip))


@pytest.mark.parametrize("name", sorted(alpha_clip._MODULES))
def test_modules_are_attributes_as_in_clip(name):
    assert getattr(alpha_clip, name).__name__ == f"alpha_clip.{name}"


@pytest.mark.parametrize("name", ["lode", "_merges", "training_loop"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'alpha_clip' has no attribute '{name}'"):
        getattr(alpha_clip, name)


def test_type_checkers_see_the_names_that_python_finds():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {n.names[0].name: n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1}
    assert seen == alpha_clip._HOME


# --- imports go one way ---

MAY_IMPORT = {
    "transformer": set(),
    "inputs": set(),
    "model": {"errors", "inputs", "transformer"},
    "tokenizer": set(),
    "clipart": set(),
    "backgrounds": {"clipart"},
    "scenes": {"backgrounds", "clipart"},
    "given_masks": set(),
    "wrappers": set(),
    "transforms": {"given_masks", "inputs"},
    "masks": {"transforms"},
    "rle": set(),
    "mask_sources": {"masks", "rle", "transforms"},
    "towers": {"model", "transforms", "wrappers"},
    "regions": {"inputs", "towers", "transforms", "wrappers"},
    "errors": set(),
    "atomic": set(),
    "hashes": {"atomic"},
    "checkpoints": {"atomic", "errors", "hashes", "model"},
    "sources": {"checkpoints", "errors", "hashes"},
    "catalogue": {"sources"},
    "vocabulary": {"errors", "tokenizer"},
    "weights": {"catalogue", "checkpoints", "errors", "hashes", "model", "sources", "vocabulary"},
    "sharing": {"atomic", "checkpoints", "model", "vocabulary"},
    "api": {"catalogue", "errors", "model", "transforms", "vocabulary", "weights"},
    "zero_shot": {"model", "tokenizer", "wrappers"},
    "attention_map": {"model", "transforms"},
    "cli": {"commands"},
    "command_inputs": {"search", "transforms"},
    "commands": {
        "api",
        "atomic",
        "attention_map",
        "catalogue",
        "command_inputs",
        "errors",
        "mask_sources",
        "model",
        "regions",
        "search",
        "tokenizer",
        "transforms",
        "zero_shot",
    },
    "__main__": {"cli"},
    "__init__": {"api", "catalogue", "errors", "model", "regions", "sharing", "tokenizer", "transforms", "zero_shot"},
}


def imports_of_ours(path: Path) -> set[str]:
    """Modules of this package that a module of its top level imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(["alpha_clip"] * node.level + [node.module] * bool(node.module))
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("alpha_clip.")}
    return found


ONNX_MAY_IMPORT = {  # of its own modules; from the core, whatever it needs
    "extra": set(),
    "folder": set(),
    "graph": set(),
    "serving": {"extra", "folder"},
    "export": {"extra", "folder", "graph", "serving"},
    "__main__": {"export", "folder"},
    "__init__": {"export", "serving"},
}


def test_imports_of_the_onnx_package_go_one_way():
    found = {path.stem: imports_of_ours(path) - {"alpha_clip"} for path in (PACKAGE / "onnx").glob("*.py")}
    assert found.keys() == ONNX_MAY_IMPORT.keys()
    assert all(found[module] <= ONNX_MAY_IMPORT[module] for module in found)


def test_every_module_of_the_core_has_a_rule():
    assert {path.stem for path in PACKAGE.glob("*.py")} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_go_one_way(module):
    assert imports_of_ours(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import alpha_clip.model", {"model"}),
        ("from alpha_clip import model, api", {"model", "api"}),
        ("from alpha_clip.model import CLIP", {"model"}),
        ("from . import weights", {"weights"}),
        ("from .training.loop import fit", {"training"}),
        ("def f():\n    from .model import CLIP", {"model"}),
        ("import torch\nfrom pathlib import Path", set()),
    ],
)
def test_imports_are_found_however_they_are_written(tmp_path, line, found):
    (tmp_path / "module.py").write_text(line)
    assert imports_of_ours(tmp_path / "module.py") == found
