"""The root is loaded by three strangers: `import sedialect`, ComfyUI's loader, and pytest. None may be surprised."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sedialect

ROOT = Path(__file__).parents[1]


def run(code: str, *flags: str) -> str:
    return subprocess.run([sys.executable, "-P", *flags, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_imports_nothing_heavy():
    loaded = set(run("import sedialect, sys; print(*sys.modules)").split())
    heavy = {"torch", "diffusers", "transformers", "gradio", "numpy", "safetensors", "huggingface_hub", "triton"}
    assert not loaded & heavy


def test_public_names_are_there_on_first_use():
    code = "import sedialect; print(*(getattr(sedialect, n).__name__ for n in sedialect.__all__))"
    assert run(code).split() == sedialect.__all__
    with pytest.raises(AttributeError, match="no attribute 'Sedialect'"):
        sedialect.Sedialect  # noqa: B018


def test_registering_imports_little_on_top_of_diffusers():
    """wrapt and parts of this package, and of everything else no more than diffusers' pipelines bring by themselves."""
    loaded = "from diffusers import DiffusionPipeline; import sys; print(*sys.modules)"
    added = set(run(f"import sedialect; {loaded}").split()) - set(run(loaded).split())
    assert {name.partition(".")[0] for name in added} <= {"sedialect", "wrapt"}
    fronts = ("nodes", "web", "bench", "sedialect_core.demo", "cli")
    assert not [name for name in added if name.startswith(tuple(f"sedialect.{front}" for front in fronts))]
    assert "sedialect.sedialect_core.integrations.pipelines" in added, "it did register"


def test_comfyui_loads_the_folder_under_a_path_for_a_name_without_registering():
    """What ComfyUI 0.33 does with custom_nodes/sedialect: a spec from the file, a name from the path."""
    code = f"""
import importlib.util, sys
name = {str(ROOT)!r}.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, {str(ROOT / "__init__.py")!r})
module = importlib.util.module_from_spec(spec); sys.modules[name] = module; spec.loader.exec_module(module)
print("wrapt" in sys.modules, "torch" in sys.modules, module.Formatbook.builtin().shapes)
from diffusers import DiffusionPipeline
print(hasattr(DiffusionPipeline, "enable_sedialect"))
"""
    assert run(code).split() == ["False", "False", "4", "False"]


def test_pytest_may_import_the_root_without_a_package():
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("__init__", {str(ROOT / "__init__.py")!r})
importlib.util.module_from_spec(spec).__spec__.loader.exec_module(importlib.util.module_from_spec(spec))
print("fine")
"""
    assert run(code).strip() == "fine"


def test_two_copies_in_one_program_do_not_take_each_others_operators():
    code = """
import sys, torch
from torch import nn
linear, x, layers = nn.Linear(64, 48), torch.randn(5, 64), []
for copy in range(2):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sedialect"]:
        del sys.modules[name]
    from sedialect import SeDialectLinear
    layers.append((SeDialectLinear, SeDialectLinear.from_linear(linear)))
assert layers[0][0] is not layers[1][0]
with torch.no_grad():
    first, second = (layer(x) for _, layer in layers)
assert torch.equal(first, second)
x.requires_grad_()
assert torch.equal(*(torch.autograd.grad(layer(x).sum(), x)[0] for _, layer in layers))
with torch.no_grad():
    for _, layer in layers:
        assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), first)
print("equal")
"""
    assert run(code) == "equal\n"


def test_the_version_stands_in_one_piece():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == sedialect.__version__


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-P", "-m", "sedialect", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout and "doctor" in done.stdout
