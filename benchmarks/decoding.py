"""CPU time of decoding, cutting and resizing JPEG photographs, beside tf.data, grain with Pillow, and libjpeg-turbo.

    python -m benchmarks.decoding .venv-peers/bin/python [--sizes 64 256 1024] [--rounds 9]

The other environment holds grain, pillow and simplejpeg. Of each photograph, a square of 1.25 times the size, a random
window of `size` pixels becomes x0 and a quarter of its side low_res, float32 in batches. All programs take turns, each
with one thread; what is compared is their CPU time, so that other work on the machine does not blur it. The last row is
the whole input pipeline: records, embeddings of 14 tokens, pictures.
"""

import argparse
import functools
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.turns import ratio, take_turns

PHOTOS = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
)
BATCH, TOKENS, WIDTH = {64: 64, 256: 32, 1024: 8}, 64, 64
OURS, PIPELINE = ("ours", "tf.data"), "pipeline"


def photographs(side: int) -> list[bytes]:
    """JPEG files of quality 90, squares of `side` pixels."""
    files = []
    for package, name in PHOTOS:
        found = find_spec(package)
        assert found is not None and found.origin is not None, "pip install '.[photos]'"
        picture = Image.open(Path(found.origin).parent / name).convert("RGB")
        least = min(picture.size)
        left, top = (picture.width - least) // 2, (picture.height - least) // 2
        buffer = io.BytesIO()
        square = picture.crop((left, top, left + least, top + least)).resize((side, side), Image.Resampling.BICUBIC)
        square.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def tensorflow_batches(files: list[bytes], size: int, fused: bool) -> Iterator[Any]:
    """Batches of tf.data: by this package's map, or by a map of one's own for each operation."""
    import tensorflow as tf

    from imagen_jax.data import preprocessors

    numbers = tf.data.Dataset.counter()
    dataset = tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(files).repeat(), numbers))
    dataset = dataset.map(lambda file, number: {"image": file, "stream": tf.stack((tf.zeros_like(number), number))})
    steps = [
        preprocessors.decode_image(size * 5 // 4),
        preprocessors.crop(size, "random"),
        preprocessors.make_images(size, size // 4),
    ]
    if fused:
        dataset = preprocessors.in_one_map(steps, 1)(dataset)
    else:
        dataset = functools.reduce(lambda found, step: found.map(step), steps, dataset)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    return dataset.batch(BATCH[size]).with_options(options).as_numpy_iterator()


def peer_batches(files: list[bytes], size: int, kind: str) -> Iterator[Any]:
    """Batches of grain with Pillow, or of a plain loop over simplejpeg and Pillow's resize."""

    def images(pixels: np.ndarray, number: int) -> dict[str, np.ndarray]:
        top, left = np.random.default_rng(number).integers(0, len(pixels) - size + 1, 2).tolist()
        window = pixels[top : top + size, left : left + size]
        small = Image.fromarray(np.ascontiguousarray(window)).resize((size // 4,) * 2, Image.Resampling.BILINEAR)
        return {
            "x0": window.astype(np.float32) / 127.5 - 1,
            "low_res": np.asarray(small).astype(np.float32) / 127.5 - 1,
        }

    if kind == "grain":
        import grain

        def decode(number: int) -> dict[str, np.ndarray]:
            picture = Image.open(io.BytesIO(files[number % len(files)])).convert("RGB")
            return images(np.asarray(picture), number)

        # By default grain reads 500 batches ahead: 20 GB at 1024 pixels.
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(grain.MapDataset.range(1 << 30).map(decode).batch(BATCH[size]).to_iter_dataset(ahead))

    import simplejpeg

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, 1 << 30, BATCH[size]):
            found = []
            for number in range(start, start + BATCH[size]):
                # As exact as the others.
                pixels = simplejpeg.decode_jpeg(files[number % len(files)], fastdct=False, fastupsample=False)
                found.append(images(pixels, number))
            yield {name: np.stack([one[name] for one in found]) for name in found[0]}

    return batches()


def pipeline_batches(files: list[bytes], size: int, folder: str) -> Iterator[Any]:
    """Batches of the input pipeline, from a corpus and a store of bfloat16."""
    from imagen_jax.data.config import DataConfig
    from imagen_jax.data.pipeline import BatchIterator
    from imagen_jax.data.records import FORMAT_VERSION, Record, SplitWriter, encode_record
    from imagen_jax.files import write_json
    from imagen_jax.text.store.writer import StoreWriter

    corpus, keys = Path(folder, "corpus"), [b"%08d" % number for number in range(4 * BATCH[size])]
    corpus.mkdir()
    writer, side = SplitWriter(corpus, "train", 500), size * 5 // 4
    for number, key in enumerate(keys):
        image = files[number % len(files)]
        writer.write(encode_record(Record(key=key, image=image, caption="c", height=side, width=side)))
    manifest = {"format_version": FORMAT_VERSION, "image_size": side, "num_rejected": 0}
    write_json(corpus / "corpus.json", {**manifest, "splits": {"train": writer.finish()}})
    store = StoreWriter(str(Path(folder, "store")), fingerprint={"dtype": "bfloat16"}, embed_dim=WIDTH)
    store.write_shard(0, [np.ones((14, WIDTH), np.float32)] * len(keys), keys, list(range(len(keys))))
    store.finish(np.zeros((1, WIDTH), np.float32))
    config = DataConfig(
        corpus_dir=str(corpus), store_dir=str(Path(folder, "store")), image_size=size, low_res_size=size // 4,
        max_text_length=TOKENS, crop="random",
    )  # fmt: skip
    return BatchIterator(config, batch_size=BATCH[size], seed=0, start_step=0)


def serve_cpu(step: Callable[[], object]) -> None:
    """As `turns.serve`, with CPU seconds; a turn ends when the threads that read ahead have come to rest."""

    def timed() -> float:
        start = time.process_time()
        step()
        used = time.process_time()
        while True:
            time.sleep(0.05)
            if time.process_time() - used < 0.002:
                return used - start
            used = time.process_time()

    timed()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(timed(), flush=True)


def child(kind: str, size: int, files: list[bytes], folder: str) -> None:
    """Makes batches of one program when told to."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if kind == PIPELINE:
        batches = pipeline_batches(files, size, folder)
    elif kind in OURS:
        batches = tensorflow_batches(files, size, kind == "ours")
    else:
        batches = peer_batches(files, size, kind)
    count = max(2, 2048 // size)
    serve_cpu(lambda: [next(batches) for _ in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", help="python of the environment with grain, pillow and simplejpeg")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        files = [path.read_bytes() for path in sorted(Path(args.folder).glob("*.jpg"))]
        with tempfile.TemporaryDirectory() as scratch:
            return child(args.child, args.sizes[0], files, scratch)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for number, file in enumerate(photographs(size * 5 // 4)):
                Path(folder, f"{number}.jpg").write_bytes(file)
            command = ["-m", "benchmarks.decoding", "-", "--sizes", str(size), "--folder", folder, "--child"]
            programs = {
                kind: [python, *command, kind]
                for python, kinds in ((sys.executable, (*OURS, PIPELINE)), (args.peers, ("grain", "simplejpeg")))
                for kind in kinds
            }
            seconds = take_turns(programs, args.rounds)
        count = max(2, 2048 // size) * BATCH[size]
        for kind, found in seconds.items():
            print(f"| {size} | {kind} | {1000 * float(np.median(found)) / count:.3f} ms |", flush=True)
        for kind in ("tf.data", "grain", "simplejpeg"):
            print(f"{size}: {ratio(seconds, kind, 'ours')}, {ratio(seconds, kind, PIPELINE)}", flush=True)


if __name__ == "__main__":
    main()
