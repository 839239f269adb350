"""Captions a second through T5 v1.1 base: ours beside transformers' torch T5EncoderModel, same weights and threads.

    pip install -c constraints.txt -e '.[parity]'
    python -m benchmarks.text_encoding [--device cuda]

Weights are drawn. Captions have COCO-like lengths (8 + Poisson(6) tokens, at most 40) in random order, and both sides
take batches of 64. The peer pads a batch to its longest caption, once in the order of the captions, as a data loader
does, and once with captions of like length together; ours always does the latter, at lengths that compile once each.
"""

import os
import statistics
import sys
import tempfile

import numpy as np

from benchmarks import turns

SIZES = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
COUNT, BATCH, ROUNDS = 512, 64, 5


def captions() -> list[list[int]]:
    """Token ids of COUNT captions."""
    rng = np.random.default_rng(0)
    return [[*rng.integers(3, 32_000, n - 1).tolist(), 1] for n in np.minimum(8 + rng.poisson(6, COUNT), 40)]


def serve_ours(folder: str) -> None:
    """Encodes all captions through TextEncoder."""
    from imagen_jax.text.encoder import TextConfig, TextEncoder
    from imagen_jax.text.weights.pretrained import Pretrained

    config = TextConfig(encoder=Pretrained(path=folder), vocabulary_path="bytes", max_length=128)
    encoder, tokens = TextEncoder(config), captions()
    turns.serve(lambda: encoder.encode_tokens(tokens, BATCH))


def serve_peer(folder: str, device: str, by_length: bool) -> None:
    """Encodes all captions through transformers."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.T5EncoderModel.from_pretrained(folder).eval().to(device)
    tokens = captions()
    if by_length:
        tokens.sort(key=len)

    @torch.inference_mode()
    def encode() -> None:
        for start in range(0, COUNT, BATCH):
            chosen = tokens[start : start + BATCH]
            longest = max(len(ids) for ids in chosen)
            ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in chosen], device=device)
            embeddings = model(ids, attention_mask=ids != 0).last_hidden_state.cpu().numpy()
            _ = [row[: len(one)] for row, one in zip(embeddings, chosen, strict=True)]

    turns.serve(encode)


def main() -> None:
    if sys.argv[1] == "ours":
        return serve_ours(sys.argv[2])
    if sys.argv[1].startswith("peer"):
        return serve_peer(sys.argv[2], sys.argv[3], sys.argv[1] == "peer-by-length")
    import torch
    import transformers

    device = sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu")
        transformers.T5EncoderModel(config).save_pretrained(folder)
        command = [sys.executable, "-m", "benchmarks.text_encoding"]
        programs = {
            "imagen_jax": [*command, "ours", folder],
            "transformers": [*command, "peer", folder, device],
            "transformers, by length": [*command, "peer-by-length", folder, device],
        }
        seconds = turns.take_turns(programs, ROUNDS)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores, {device}")
    for name, values in seconds.items():
        print(f"{name:24s} {COUNT / statistics.median(values):8.1f} captions/s")
    print(turns.ratio(seconds, "transformers", "imagen_jax"))
    print(turns.ratio(seconds, "transformers, by length", "imagen_jax"))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv += ["--device", "cpu"]
    main()
