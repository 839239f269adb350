"""A small DINOv2 in the names of transformers."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save


def write_dinov2(folder: Path, registers: bool) -> None:
    """A DINOv2 of one layer, of random weights."""
    rng, d, patch = np.random.default_rng(0), 8, 8
    config = {"model_type": "dinov2", "hidden_size": d, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"mlp_ratio": 2, "image_size": 48, "patch_size": patch, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.position_embeddings": (1, 37, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (d,),
    }
    if registers:
        config |= {"model_type": "dinov2_with_registers", "num_register_tokens": 2}
        shapes["embeddings.register_tokens"] = (1, 2, d)
    layer = "encoder.layer.0."
    for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
        shapes |= {f"{layer}{name}.weight": (d, d), f"{layer}{name}.bias": (d,)}
    shapes |= {f"{layer}attention.output.dense.weight": (d, d), f"{layer}attention.output.dense.bias": (d,)}
    shapes |= {f"{layer}mlp.fc1.weight": (2 * d, d), f"{layer}mlp.fc1.bias": (2 * d,)}
    shapes |= {f"{layer}mlp.fc2.weight": (d, 2 * d), f"{layer}mlp.fc2.bias": (d,)}
    shapes |= {f"{layer}layer_scale{i}.lambda1": (d,) for i in (1, 2)}
    for norm in (f"{layer}norm1", f"{layer}norm2", "layernorm"):
        shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    (folder / "model.safetensors").write_bytes(
        save({name: rng.random(one, np.float32) for name, one in shapes.items()})
    )
    (folder / "config.json").write_text(json.dumps(config))
