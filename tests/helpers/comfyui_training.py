"""ComfyUI's *Train LoRA*, with a value for each of its inputs."""

from comfyui_server import Graph

TRAINING = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "steps": 3,
    "learning_rate": 0.0005,
    "rank": 16,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "bf16",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": True,
}


def trained(graph: Graph, model: list, latents: list, positive: list, **settings: object) -> list:
    """The node's first output, a LoRA."""
    return graph.add("TrainLoraNode", model=model, latents=latents, positive=positive, **{**TRAINING, **settings})
