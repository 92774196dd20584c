"""What ComfyUI-Manager and the Comfy registry read: requirements, the entry in pyproject.toml, what is left out."""

import re
from pathlib import Path

from layout_report import imported

ROOT = Path(__file__).parents[2]


def test_requirements_for_comfyui_manager_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    needed = [entry for entry in project["project"]["dependencies"] if not entry.startswith("torch")]
    assert set(needed) <= set(asked)
    extra = project["project"]["optional-dependencies"]["demo"]
    assert set(asked) - set(needed) <= set(extra), "floors must be those of the extra that has them"
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and "web" not in comfy
    floor = re.search(r">=(\d+)\.(\d+)", comfy["requires-comfyui"])
    from sedialect.nodes.versions import NEEDED

    assert tuple(map(int, floor.groups())) == NEEDED


def test_the_registry_entry_is_what_the_comfy_registry_reads():
    """As comfy-cli 1.23.0 reads it: three numbers in a version, classifiers that it knows, pictures in its bounds."""
    import tomllib

    from PIL import Image

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, about = project["tool"]["comfy"], project["project"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert {"Operating System :: OS Independent", "Environment :: GPU :: NVIDIA CUDA"} <= set(about["classifiers"])
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", about["name"]) and "comfyui" not in about["name"]
    raw = about["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for key, fits in (("Icon", lambda w, h: w <= 800 and h <= 400), ("Banner", lambda w, h: abs(w / h - 21 / 9) < 0.01)):
        assert comfy[key].startswith(raw)
        with Image.open(ROOT / comfy[key].removeprefix(raw)) as picture:
            assert picture.format == "PNG" and fits(*picture.size), picture.size


def test_what_the_registry_leaves_out_is_not_imported_by_the_nodes():
    left = [line.strip("/") for line in (ROOT / ".comfyignore").read_text().splitlines() if line.endswith("/")]
    assert "tests" in left
    for room in ("nodes", "kernels", "sedialect_core"):
        for path in (ROOT / room).rglob("*.py"):
            for dots, module in imported(path):
                up = len(path.relative_to(ROOT).parts)
                assert not (dots == up and module.split(".")[0] in left), f"{path.name} imports {module}"
