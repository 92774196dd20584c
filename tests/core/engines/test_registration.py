"""The entry point, without vLLM."""

import importlib
import logging
import subprocess
import sys
import tomllib
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sedialect.sedialect_core.engines import registration
from sedialect.sedialect_core.errors import ModelError

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_entry_point_names_the_function():
    module, _, function = PROJECT["entry-points"]["vllm.general_plugins"]["sedialect"].partition(":")
    assert getattr(importlib.import_module(module), function) is registration.register


def test_the_extra_asks_for_the_version_that_is_asked_for_at_run_time():
    least = ".".join(map(str, registration.LEAST))
    assert {f"vllm-omni>={least}", f"vllm>={least}"} < set(PROJECT["optional-dependencies"]["vllm"])


def test_without_vllm_omni_nothing_is_registered_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(registration, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "sedialect"):
        registration.register()
    assert "vLLM-Omni is not installed" in caplog.text and "sedialect[vllm]" in caplog.text


@pytest.mark.parametrize(("version", "told"), [("0.28.0", True), ("0.30.0", False), ("0.31.0.dev1", False), ("1.0", False)])
def test_an_older_vllm_omni_is_refused(monkeypatch, version, told):
    monkeypatch.setattr(registration, "find_spec", lambda name: object())
    monkeypatch.setattr(registration, "installed_version", lambda: version)
    problem = registration.refusal()
    assert (problem is not None) == told
    assert problem is None or f"vLLM-Omni {version}" in problem


def test_another_loader_is_refused_by_what_it_lacks():
    module = SimpleNamespace(__name__="loaders", DiffusersPipelineLoader=type("Loader", (), {"_get_weight_sources": int}))
    with pytest.raises(ModelError, match="loaders lacks _init_from_load_format"):
        registration.extend_loader(module)


def test_the_loader_is_extended_once_also_where_another_plugin_has_wrapped_it(monkeypatch):
    calls = []
    made = torch.nn.Module()

    class Loader:
        def _init_from_load_format(self, load_format):
            return made

    Loader._get_weight_sources = Loader._prepare_weights = lambda self: None
    theirs = Loader._init_from_load_format
    Loader._init_from_load_format = wraps(theirs)(lambda self, *args: theirs(self, *args))
    module = SimpleNamespace(__name__="loaders", DiffusersPipelineLoader=Loader)
    serving = SimpleNamespace(serve=lambda pipeline, loader: calls.append(pipeline))
    monkeypatch.setitem(sys.modules, f"{registration.__package__}.serving", serving)
    for _ in range(2):
        registration.extend_loader(module)
    assert Loader()._init_from_load_format("default") is made
    assert calls == [made]


def test_importing_sedialect_and_the_entry_point_imports_no_vllm():
    script = "import sedialect, sys; from sedialect.sedialect_core.engines import registration; print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
