"""Nodes that time the steps of a run."""

import json
import time

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from safetensors.torch import save_file

from .schemas import ENDS, schema

TIMES = {}  # seconds of each step, by the name of the run


def synchronize():
    for number in range(torch.cuda.device_count()):
        torch.cuda.synchronize(number)


class TestTimed(io.ComfyNode):
    """A clone of which every step is timed, from idle devices to idle devices, until `SeDialectTestTimes` asks."""

    @classmethod
    def define_schema(cls):
        return schema(
            "Timed",
            inputs=[io.Model.Input("model"), io.String.Input("run")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, run):
        def timed(executor, *args, **kwargs):
            synchronize()
            start = time.perf_counter()
            try:
                return executor(*args, **kwargs)
            finally:
                synchronize()
                TIMES.setdefault(run, []).append(time.perf_counter() - start)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sedialect_tests", timed)
        return io.NodeOutput(model)


class TestTimes(io.ComfyNode):
    """Seconds of each step of a timed run, and the latents in a file."""

    @classmethod
    def define_schema(cls):
        return schema("Times", **ENDS, inputs=[io.Latent.Input("samples"), io.String.Input("run"), io.String.Input("file")])

    @classmethod
    def execute(cls, samples, run, file):
        save_file({"samples": samples["samples"].cpu().contiguous()}, file)
        return io.NodeOutput(ui={"text": (json.dumps(TIMES.pop(run, [])),)})


NODES = (TestTimed, TestTimes)
