"""What users install: built, unpacked, and installed into a fresh environment."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> set[str]:
    """What git would ship: tracked files, and new ones that are not ignored."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


def packaged() -> set[str]:
    """Files that a package needs at run time."""
    rooms = ("kernels/", "sedialect_core/", "nodes/", "web/", "bench/", "cli/", "training/")
    inside = {name for name in tracked() if name.startswith(rooms) or ("/" not in name and name.endswith(".py"))}
    return inside | {"py.typed"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """An sdist from a clean copy, and a wheel from that sdist."""
    source, out = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("dist")
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-P", "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    assert names == {f"sedialect/{name}" for name in packaged()}
    assert not any(name.startswith(("kernels/", "nodes/", "tests/", "sedialect/tests/")) for name in names)


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()}
    assert packaged() | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= names


def test_every_package_folder_is_listed():
    """One that is not would be missing from the wheel without a word."""
    folders = {Path(name).parent for name in packaged() if name.endswith("__init__.py")}
    expected = {".".join(["sedialect", *folder.parts]) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_the_wheel_installs_into_a_fresh_environment_and_runs_there(built, tmp_path):
    """The environment borrows torch and the rest from this one; sedialect itself comes from the wheel alone."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(built["wheel"])]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    code = (
        "import sedialect; from sedialect.sedialect_core import demo; "
        "print(sedialect.__file__, sedialect.Formatbook.builtin().digest[:8], (demo.MODEL / 'model_index.json').is_file())"
    )
    done = subprocess.run([str(python), "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    location, digest, has_model = done.stdout.split()
    assert Path(location).is_relative_to(tmp_path) and len(digest) == 8 and has_model == "True"
    help_text = subprocess.run([str(python.parent / "sedialect"), "--help"], capture_output=True, text=True, check=True)
    assert "compare" in help_text.stdout


def test_the_bundled_model_is_small():
    folder = ROOT / "sedialect_core" / "demo" / "model"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 24_000_000
