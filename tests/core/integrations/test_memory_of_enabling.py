"""What enabling from disk takes in memory, text encoder included: a fresh process, whose own pages are counted meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from tiny_pipelines import VOCABULARY, tokenizer

SCRATCH = 32e6  # bytes that encoding one layer takes on a CPU, whatever its size, and what allocators keep
LOAD = """
import json, pathlib, sys, threading, time
import sedialect, torch, diffusers
from sedialect import SeDialectConfig

def held():  # the process's own pages: those of mapped files are the system's to drop
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
config = SeDialectConfig()
mapping = {"transformer": config, "text_encoder": config}
wanted = diffusers.PipelineQuantizationConfig(quant_mapping=mapping)
def load(folder):
    return diffusers.WanPipeline.from_pretrained(folder, quantization_config=wanted, dtype=torch.bfloat16)

load(sys.argv[2])  # a tiny one: what is imported on the way takes memory, too
before, seen, done = held(), [], threading.Event()

def watch():
    while not done.wait(0.002):
        seen.append(held())

thread = threading.Thread(target=watch)
thread.start()
pipe = load(sys.argv[1])
done.set()
thread.join()
tensors = {id(t): t for m in (pipe.transformer, pipe.text_encoder, pipe.vae) for t in (*m.parameters(), *m.buffers())}
print(json.dumps({"grown": max(seen) - before, "kept": sum(t.nbytes for t in tensors.values()), "samples": len(seen)}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="own pages are read from /proc/self/status")
def test_enabling_from_disk_takes_the_quantized_pipeline_and_one_layer(tmp_path, one_thread):
    whole = save(tmp_path / "large", layers=4, width=512, hidden=2048)
    save(tmp_path / "tiny", layers=1, width=32, hidden=64)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-P", "-c", LOAD, str(tmp_path / "large"), str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-1500:]
    said = json.loads(done.stdout.splitlines()[-1])
    layer = 4 * 512 * 2048  # the largest, in float32
    assert said["samples"] > 50
    assert said["kept"] < said["grown"] < said["kept"] + layer + SCRATCH < whole, (said, whole)


def save(folder: Path, layers: int, width: int, hidden: int) -> int:
    """A pipeline in 16 bit; bytes of its transformer and text encoder."""
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=width // 16,
        attention_head_dim=16,
        text_dim=width,
        freq_dim=64,
        ffn_dim=hidden,
        num_layers=layers,
    )
    sizes = {"d_model": width, "d_kv": 16, "d_ff": hidden, "num_layers": layers, "num_heads": width // 16}
    encoder = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=len(VOCABULARY), feed_forward_proj="gated-gelu", **sizes)
    )
    pipe = diffusers.WanPipeline(
        transformer=transformer.to(torch.bfloat16),
        transformer_2=None,
        vae=diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1),
        text_encoder=encoder.to(torch.bfloat16),
        tokenizer=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipe.save_pretrained(folder)
    return sum(p.nbytes for model in (transformer, encoder) for p in model.parameters())
