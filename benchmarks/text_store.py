"""Embedding stores beside padded TFRecords of the same embeddings: bytes a caption, and embeddings read a second.

    python -m benchmarks.text_store

Captions have COCO-like lengths: 8 + Poisson(6) tokens, 14 on average, at most 40. Embeddings are drawn, not encoded:
size and speed do not hang on their values. Bytes count every file of a store. Read are random batches of one store
and the stream of one TFRecord file, each on one core, in turn.
"""

import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks import turns

PADDED_TOKENS = 128
SIZES = ((1024, 20_000), (4096, 5_000))  # width, captions
READ_DIM, READ_TOKENS, READ_COUNT, BATCH, ROUNDS = 1024, 20, 20_000, 256, 7


def write_store(directory: str, dtype: str, lengths: np.ndarray, dim: int) -> None:
    """A store of drawn embeddings in one shard."""
    from imagen_jax.text.store.reader import StoreWriter

    rng = np.random.default_rng(0)
    writer = StoreWriter(directory, fingerprint={"dtype": dtype}, embed_dim=dim)
    drawn = (rng.standard_normal((n, dim), np.float32) for n in lengths)
    keys = [f"{i:012d}".encode() for i in range(len(lengths))]
    writer.write_shard(0, drawn, keys, range(len(lengths)))
    writer.finish(np.zeros((1, dim), np.float32))


def sizes() -> None:
    """Bytes a caption, against float16 padded to 128 tokens."""
    print(f"{'width':>6s} {'dtype':>9s} {'tokens':>7s} {'bytes a caption':>16s} {'padded float16':>15s} {'ratio':>6s}")
    for dim, count in SIZES:
        lengths = np.minimum(8 + np.random.default_rng(1).poisson(6, count), 40)
        padded = PADDED_TOKENS * dim * 2
        for dtype in ("bfloat16", "int8"):
            with tempfile.TemporaryDirectory() as directory:
                write_store(directory, dtype, lengths, dim)
                total = sum(file.stat().st_size for file in pathlib.Path(directory).iterdir())
            each = total / count
            print(f"{dim:6d} {dtype:>9s} {lengths.mean():7.1f} {each:16.0f} {padded:15d} {padded / each:6.1f}")


def serve_store(directory: str) -> None:
    """Reads the whole store in random batches."""
    from imagen_jax.text.store import reader as store_module

    store_module.MEMORY_BYTES = 0
    store = store_module.EmbeddingStore.open(directory)
    keys = [f"{i:012d}".encode() for i in range(READ_COUNT)]

    def read() -> None:
        order = np.random.default_rng(2).permutation(READ_COUNT)
        for start in range(0, READ_COUNT, BATCH):
            found = store.lookup([keys[i] for i in order[start : start + BATCH]])
            assert found[0].shape == (READ_TOKENS, READ_DIM)

    turns.serve(read)


def serve_tfrecord(path: str) -> None:
    """Reads padded float16 embeddings through tf.data, in the order of the file."""
    import tensorflow as tf

    spec = {"text": tf.io.FixedLenFeature([], tf.string), "num_tokens": tf.io.FixedLenFeature([], tf.int64)}

    def parse(records: tf.Tensor) -> tf.Tensor:
        raw = tf.io.decode_raw(tf.io.parse_example(records, spec)["text"], tf.float16)
        return tf.cast(tf.reshape(raw, (-1, PADDED_TOKENS, READ_DIM)), tf.float32)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1

    def read() -> None:
        dataset = tf.data.TFRecordDataset(path).batch(BATCH).map(parse).with_options(options)
        for batch in dataset.as_numpy_iterator():
            assert batch.shape[1:] == (PADDED_TOKENS, READ_DIM)

    turns.serve(read)


def write_tfrecord(path: str) -> None:
    """The store's embeddings, padded, as float16."""
    import tensorflow as tf

    def examples() -> Iterator[bytes]:
        rng = np.random.default_rng(0)
        for _ in range(READ_COUNT):
            padded = np.zeros((PADDED_TOKENS, READ_DIM), np.float16)
            padded[:READ_TOKENS] = rng.standard_normal((READ_TOKENS, READ_DIM), np.float32)
            feature = {
                "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[padded.tobytes()])),
                "num_tokens": tf.train.Feature(int64_list=tf.train.Int64List(value=[READ_TOKENS])),
            }
            yield tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    with tf.io.TFRecordWriter(path) as writer:
        for example in examples():
            writer.write(example)


def reading() -> None:
    """Embeddings a second on one core."""
    command = ["taskset", "-c", "0", sys.executable, "-m", "benchmarks.text_store"]
    with tempfile.TemporaryDirectory() as directory:
        programs = {}
        for dtype in ("bfloat16", "int8"):
            write_store(f"{directory}/{dtype}", dtype, np.full(READ_COUNT, READ_TOKENS), READ_DIM)
            programs[f"store, {dtype}"] = [*command, "store", f"{directory}/{dtype}"]
        write_tfrecord(f"{directory}/padded.tfrecord")
        programs["padded TFRecord"] = [*command, "tfrecord", f"{directory}/padded.tfrecord"]
        seconds = turns.take_turns(programs, ROUNDS)
    for name, values in seconds.items():
        print(f"{name:16s} {READ_COUNT / statistics.median(values):9.0f} embeddings/s")
    for name in list(programs)[:2]:
        print(turns.ratio(seconds, "padded TFRecord", name))


def main() -> None:
    if sys.argv[1:2] == ["store"]:
        serve_store(sys.argv[2])
    elif sys.argv[1:2] == ["tfrecord"]:
        serve_tfrecord(sys.argv[2])
    else:
        sizes()
        reading()


if __name__ == "__main__":
    main()
