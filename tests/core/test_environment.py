"""Versions and machine in words: one wording, whatever asks for it."""

import re

import pytest
import torch

from sedialect.sedialect_core.environment import device_name, environment, gpu_facts, machine_line, package_versions

WHERE = {
    "device": "NVIDIA H100",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1", "transformers": None},
    "peers": {"torchao": "0.18.0", "sdnq": None},
    "gpu": {"compute capability": "9.0", "memory, GB": 85},
    "date": "2026-11-27",
}


def test_the_line_has_device_versions_and_date_and_what_is_not_installed_is_left_out():
    assert machine_line(WHERE) == (
        "NVIDIA H100 (compute capability 9.0, memory, GB 85); torch 2.13.0, diffusers 0.42.1, torchao 0.18.0; 2026-11-27."
    )
    assert machine_line(WHERE, ["torch"]) == "NVIDIA H100; torch 2.13.0; 2026-11-27."


def test_the_line_of_this_machine():
    where = environment()
    pattern = rf".+; sedialect .+, torch {re.escape(torch.__version__)}.*; \d{{4}}-\d\d-\d\d\."
    assert re.fullmatch(pattern, machine_line(where))
    assert where["device"] == device_name("cuda" if torch.cuda.is_available() else "cpu")
    assert gpu_facts("cpu") == {} and re.fullmatch(r"\S+ CPU, \d+ threads", device_name("cpu"))


def test_a_package_that_is_not_installed_has_no_version():
    assert package_versions(("torch", "sedialect-that-is-not-there")) == {
        "torch": torch.__version__,
        "sedialect-that-is-not-there": None,
    }


@pytest.mark.parametrize("missing", ["versions", "date", "device"])
def test_results_of_others_that_lack_something_still_have_a_line(missing):
    assert machine_line({key: value for key, value in WHERE.items() if key != missing}).endswith(".")


def test_a_package_is_found_by_the_names_of_its_other_builds(tmp_path, monkeypatch):
    """On Windows the modules of triton are in a package called triton-windows."""
    folder = tmp_path / "triton_windows-3.6.0.post25.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: triton-windows\nVersion: 3.6.0.post25\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert package_versions(("triton", "torch")) == {"triton": "3.6.0.post25", "torch": None}
