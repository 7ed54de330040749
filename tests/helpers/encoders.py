"""A small DINOv2 of random weights, as a folder and in the place of the packaged encoder."""

import json
from pathlib import Path

import numpy as np

from metajax.data.features import pictures

SIZES = {"width": 8, "depth": 2, "heads": 2, "patch": 4, "hidden": 12}


def dinov2_arrays(width=8, depth=2, hidden=12, patch=4, side=3, seed=0):
    """Draws arrays of a small DINOv2, by the names of its file."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + side * side, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for index in range(depth):
        block = f"encoder.layer.{index}."
        for name in (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
        ):
            shapes |= {f"{block}{name}.weight": (width, width), f"{block}{name}.bias": (width,)}
        shapes |= {
            f"{block}attention.output.dense.weight": (width, width),
            f"{block}attention.output.dense.bias": (width,),
            f"{block}mlp.fc1.weight": (hidden, width),
            f"{block}mlp.fc1.bias": (hidden,),
            f"{block}mlp.fc2.weight": (width, hidden),
            f"{block}mlp.fc2.bias": (width,),
            f"{block}layer_scale1.lambda1": (width,),
            f"{block}layer_scale2.lambda1": (width,),
        }
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_dinov2(folder: Path, arrays=None, **config) -> Path:
    """Writes the folder of a small DINOv2 in Hugging Face's layout."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    known = {
        "model_type": "dinov2",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "mlp_ratio": 2,
    }
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    save_file(dinov2_arrays(hidden=16) if arrays is None else arrays, folder / "model.safetensors")
    return folder


def packaged(folder: Path, monkeypatch) -> None:
    """Puts the encoder of a folder in the place of the packaged one."""

    def load(nowhere, side, sha256):
        assert nowhere is None
        encoder = pictures._dinov2(str(folder), side, sha256)
        return encoder._replace(name=pictures.EFFICIENTNET)

    monkeypatch.setattr(pictures, "ENCODERS", {**pictures.ENCODERS, pictures.EFFICIENTNET: load})
