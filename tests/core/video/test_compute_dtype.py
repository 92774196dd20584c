"""The dtype that is computed in: measured, reported, and overruled by the user."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_pipelines import build

from sedialect.sedialect_core import demo
from sedialect.sedialect_core.video import compute_dtype
from sedialect.sedialect_core.video.compute_dtype import choose_dtype
from sedialect.sedialect_core.video.sampling import computed_in, in_words, load_pipeline


@pytest.fixture
def timed(monkeypatch):
    """Times to be found, by operation: in float32 and in bfloat16."""

    def pretend(linear: tuple[float, float], convolution: tuple[float, float]) -> None:
        compute_dtype.of_cpu.cache_clear()
        monkeypatch.setattr(compute_dtype, "measure", lambda: {"linear": linear, "convolution": convolution})

    yield pretend
    compute_dtype.of_cpu.cache_clear()


@pytest.mark.parametrize(
    ("linear", "convolution", "dtype", "said"),
    [
        ((1.0, 0.4), (1.0, 0.5), torch.bfloat16, "bfloat16 is fast on this CPU"),
        ((1.0, 5.0), (1.0, 11.0), torch.float32, "bfloat16 is not fast on this CPU"),
        ((1.0, 0.4), (1.0, 11.0), torch.float32, "linear 0.4, convolution 11"),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast_in_everything(timed, linear, convolution, dtype, said):
    timed(linear, convolution)
    choice = choose_dtype("cpu")
    assert choice.dtype == dtype and said in choice.reason and str(choice).startswith(choice.name)


def test_what_the_user_asks_for_wins_and_gpus_compute_in_bfloat16(timed):
    timed((1.0, 5.0), (1.0, 5.0))
    assert str(choose_dtype("cpu", "bfloat16")) == "bfloat16: asked for"
    assert choose_dtype("cuda:1").dtype == torch.bfloat16


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpus_without_bfloat16_compute_in_float16(capability, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("cuda").name == name


def test_a_process_measures_once_and_keeps_its_threads(timed, monkeypatch):
    threads, calls = torch.get_num_threads(), []
    found = compute_dtype.measure()
    assert set(found) == {"linear", "convolution"} and all(seconds > 0 for pair in found.values() for seconds in pair)
    assert torch.get_num_threads() == threads
    timed((1.0, 1.0), (1.0, 1.0))
    monkeypatch.setattr(compute_dtype, "measure", lambda: calls.append(1) or found)
    assert choose_dtype("cpu") is choose_dtype(torch.device("cpu")) and len(calls) == 1


def test_a_clock_tells_which_is_slow(monkeypatch):
    """The real measurement, whose clock runs slower for bfloat16: the ratios are what the clock said."""
    monkeypatch.setattr(compute_dtype, "_seconds", lambda work: {torch.float32: 1.0, torch.bfloat16: 3.0}[work().dtype])
    assert compute_dtype.measure() == {"linear": (1.0, 3.0), "convolution": (1.0, 3.0)}


def test_an_ordinary_cpu_s_choice_is_told_by_doctor():
    """Not which: that depends on the speed. The variables must reach the measurement, which reads no flags."""
    variables = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-P", "-m", "sedialect", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  dtype") and "this CPU" in line)
    assert line.split()[1] in ("bfloat16:", "float32:") and "convolution" in line


def test_wans_autoencoder_is_loaded_in_float32_and_results_say_so(timed):
    timed((1.0, 0.5), (1.0, 0.5))
    pipe = load_pipeline(demo.MODEL, choose_dtype("cpu"), "cpu")
    assert pipe.transformer.dtype == torch.bfloat16 and {p.dtype for p in pipe.vae.parameters()} == {torch.float32}
    told = computed_in(pipe)
    assert told["dtype"] == "bfloat16" and told["vae_dtype"] == "float32" and "is fast" in told["dtype_reason"]
    assert in_words(told).endswith("; the autoencoder in float32")


def test_other_autoencoders_have_the_dtype_of_the_rest(tmp_path):
    build("cogvideox")[0].save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, choose_dtype("cpu", "bfloat16"), "cpu")
    assert pipe.vae.dtype == pipe.transformer.dtype == torch.bfloat16
    assert in_words(computed_in(pipe)) == "bfloat16 (asked for)"


def test_a_pipeline_from_elsewhere_is_reported_as_it_is():
    assert computed_in(build("wan")[0]) == {
        "dtype": "float32",
        "dtype_reason": "as the pipeline was given",
        "vae_dtype": "float32",
    }
