"""Memory of a large text encoder: what loading takes on the host, and whether T5-XXL fits on eight 16 GB TPU chips.

    python -m benchmarks.text_memory host       # writes a synthetic checkpoint of T5-XXL's widths, 6 layers, 5 GB
    python -m benchmarks.text_memory tpu        # compiles for v5e:2x4 ahead of time; no TPU, but '.[plan]'

The host holds parameters only on their way to a device. Here the device is the host too, so its share is counted
apart: `import_text` leaves nothing behind, and of `load_encoder` the parameters themselves are taken off. Counted is
anonymous memory (RssAnon, every 10 ms): pages of the mapped checkpoint are the file system's to drop.
"""

import os
import pathlib
import sys
import tempfile
import threading
import time

import numpy as np

GB = 1e9
LAYERS, VOCAB, DIM, MLP, HEADS, HEAD = 6, 32128, 4096, 10240, 64, 64


def write_checkpoint(folder: pathlib.Path) -> int:
    """A sharded Hugging Face folder of zeros, one file a layer; returns the bytes of its largest tensor."""
    import json

    from safetensors.numpy import save_file

    inner = HEADS * HEAD
    files = {"model-embeddings.safetensors": {"shared.weight": (VOCAB, DIM), "encoder.final_layer_norm.weight": (DIM,)}}
    for layer in range(LAYERS):
        block = f"encoder.block.{layer}.layer."
        shapes = {f"{block}0.SelfAttention.{name}.weight": (inner, DIM) for name in "qkv"}
        shapes |= {f"{block}0.SelfAttention.o.weight": (DIM, inner), f"{block}1.DenseReluDense.wo.weight": (DIM, MLP)}
        shapes |= {f"{block}1.DenseReluDense.{name}.weight": (MLP, DIM) for name in ("wi_0", "wi_1")}
        shapes |= {f"{block}{part}.layer_norm.weight": (DIM,) for part in (0, 1)}
        if layer == 0:
            shapes[f"{block}0.SelfAttention.relative_attention_bias.weight"] = (32, HEADS)
        files[f"model-{layer}.safetensors"] = shapes
    for file, shapes in files.items():
        save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / file)
    places = {name: file for file, shapes in files.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
        "vocab_size": VOCAB, "d_model": DIM, "d_ff": MLP, "d_kv": HEAD, "num_heads": HEADS, "num_layers": LAYERS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return max(4 * int(np.prod(shape)) for shapes in files.values() for shape in shapes.values())


def anonymous_bytes() -> int:
    """Anonymous memory of this process."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Peak:
    """Largest `anonymous_bytes() - held()` while the block runs."""

    def __init__(self, held):
        self._held, self._stop, self.value = held, threading.Event(), 0

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.value = max(self.value, anonymous_bytes() - self._held())
            time.sleep(0.01)

    def __enter__(self) -> "Peak":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def host() -> None:
    """Peak host memory of `import_text` and `load_encoder`."""
    import jax

    from imagen_jax.text import load_encoder
    from imagen_jax.text.weights.encoder_copy import import_text
    from imagen_jax.text.weights.pretrained import open_checkpoint

    def on_devices() -> int:
        return sum(array.nbytes for array in jax.live_arrays())

    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "checkpoint"
        folder.mkdir()
        largest = write_checkpoint(folder)
        total = sum(file.stat().st_size for file in folder.iterdir())
        allowed = 1.3 * largest + GB
        print(f"checkpoint {total / GB:.2f} GB, largest tensor {largest / GB:.2f} GB, allowed {allowed / GB:.2f} GB")
        jax.devices()
        print(f"before: {anonymous_bytes() / GB:.2f} GB (Python and its libraries)")
        config = open_checkpoint(str(folder)).config
        for label, held, work in (
            ("import_text", lambda: 0, lambda: import_text(str(folder), f"{directory}/copy", dtype="bfloat16")),
            ("load_encoder", on_devices, lambda: load_encoder(folder, dtype="bfloat16")),
            (
                "load_encoder, layers stacked",
                on_devices,
                lambda: load_encoder(folder, dtype="bfloat16", config=config.replaced(scan_layers=True)),
            ),
        ):
            with Peak(held) as peak:
                work()
            print(f"{label:28s} peak {peak.value / GB:.2f} GB of host memory")


def tpu() -> None:
    """Compiles T5-XXL, sharded over a v5e:2x4 slice, and prints its memory a chip."""
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5e-8", "TPU_SKIP_MDS_QUERY": "1"}
    from jax.experimental import topologies

    from imagen_jax.sharding.mesh import MeshConfig
    from imagen_jax.text.encoders.t5 import T5Config
    from imagen_jax.text.weights.pretrained import abstract_encoder

    described = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x4", chip_config_name="default", chips_per_host_bounds=(2, 2, 1)
    )
    sizes = {"vocab_size": VOCAB, "embed_dim": DIM, "num_heads": HEADS, "head_dim": HEAD, "mlp_dim": MLP}
    config = T5Config(**sizes, num_layers=24, scan_layers=True, dtype="bfloat16")
    for axes in ({"fsdp": 8, "data": 1}, {"tensor": 8, "data": 1}):
        mesh = MeshConfig(**axes).build(described.devices)
        for rows, length in ((64, 128), (256, 128), (1024, 32)):
            apply, params, tokens, mask = abstract_encoder(config, mesh, rows, length)
            start = time.perf_counter()
            memory = apply.lower(params, tokens, mask).compile().memory_analysis()
            print(
                f"{axes} {rows:5d} captions of {length:3d} tokens: "
                f"{memory.argument_size_in_bytes / 2**30:.2f} GiB parameters and ids, peak "
                f"{memory.peak_memory_in_bytes / 2**30:.2f} of 15.75 GiB a chip; "
                f"compiled in {time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    {"host": host, "tpu": tpu}[sys.argv[1]]()
