"""Images per second of the feature networks beside torch-fidelity and transformers; FID's time and memory.

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.13.0 transformers==5.23.0
    .venv-peers/bin/pip install --no-deps torch-fidelity==0.4.0
    python -m benchmarks.features .venv-peers/bin/python [--only inception|clip|fid]

Weights are drawn. Inception takes 8-bit images of 256 x 256 in batches of 8 and resizes them itself, as both programs
do; CLIP ViT-B/32 takes pixels of 224 x 224 that are prepared already. float32, as many threads as cores, in turn. FID:
seconds of `frechet_distance` at 2048 features, beside scipy's sqrtm of the product, and the most memory that statistics
of 30 000 images take. torch-fidelity imports torchvision, an empty stand-in of which is enough here.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import turns
from tests.parity.torchvision_stand_in import torchvision_stand_in

BATCH, ROUNDS, DIM = 8, 7, 2048
CLIP_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def images() -> np.ndarray:
    """A batch of 8-bit images."""
    return np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), dtype=np.uint8)


def pixels() -> np.ndarray:
    """A batch that CLIP's image half takes, channels last."""
    return np.random.default_rng(0).standard_normal((BATCH, 224, 224, 3)).astype(np.float32)


def serve_ours(network: str, folder: str) -> None:
    """Our worker."""
    import jax

    from imagen_jax.evals import load_extractor

    if network == "inception":
        extractor = load_extractor(os.path.join(folder, "inception.npz"), batch_size=BATCH)
        batch = images()
        turns.serve(lambda: extractor.features(batch, layers=("2048",)))
        return
    clip: Any = load_extractor(folder, batch_size=BATCH)
    prepared = pixels()
    turns.serve(lambda: jax.block_until_ready(clip.features_of_prepared(prepared)))


def peer_inception() -> Any:
    """torch-fidelity's network, its weights drawn."""
    import torch

    with torchvision_stand_in():
        from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    load = module.nn.Module.load_state_dict
    module.load_state_dict_from_url = lambda *args, **kwargs: {}  # type: ignore[assignment]
    module.nn.Module.load_state_dict = lambda self, state: None  # type: ignore[assignment]
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    module.nn.Module.load_state_dict = load
    return network


def serve_peer(network: str, folder: str) -> None:
    """The peer's worker."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    if network == "inception":
        model, batch = peer_inception(), torch.tensor(images()).permute(0, 3, 1, 2).contiguous()
        run = torch.inference_mode()(lambda: model(batch)[0].numpy())
    else:
        import transformers

        clip = transformers.CLIPModel.from_pretrained(folder).eval()
        prepared = torch.tensor(pixels()).permute(0, 3, 1, 2).contiguous()
        run = torch.inference_mode()(lambda: clip.get_image_features(pixel_values=prepared))
    turns.serve(run)


def write_weights(network: str, folder: str) -> None:
    """Writes the drawn weights that both load; needs the peer's libraries."""
    import torch

    if network == "inception":
        state = {name: value.numpy() for name, value in peer_inception().state_dict().items()}
        np.savez(os.path.join(folder, "inception.npz"), **state)
        return
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config={**CLIP_SIZES, "image_size": 224, "patch_size": 32})
    transformers.CLIPModel(config).save_pretrained(folder)


def measure_fid() -> None:
    """Prints FID's seconds and the statistics' memory."""
    import scipy.linalg

    from imagen_jax.evals.metrics import FeatureStatistics, frechet_distance

    rng = np.random.default_rng(0)
    sets = [FeatureStatistics(DIM) for _ in range(2)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for one in sets:
        for _ in range(30_000 // 64):
            one.update(np.maximum(rng.standard_normal((64, DIM), np.float32), 0))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"statistics of two times 30 000 images: at most {(after - before) / 1024:.0f} MiB more")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        frechet_distance(*sets)
        seconds.append(time.perf_counter() - start)
    print(f"frechet_distance at {DIM}: {min(seconds):.2f} s (to {max(seconds):.2f})")
    start = time.perf_counter()
    scipy.linalg.sqrtm(sets[0].covariance @ sets[1].covariance)
    print(f"scipy.linalg.sqrtm of the product: {time.perf_counter() - start:.2f} s")


def compare(python: str, network: str, peer: str) -> None:
    """Times a network in turn with its peer."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "benchmarks.features"]
        os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        if os.spawnv(os.P_WAIT, python, [python, *command, python, "--write", network, folder]):
            raise SystemExit(f"error: {python} cannot make the weights of {network}")
        programs = {
            "imagen_jax": [sys.executable, *command, python, "--ours", network, folder],
            peer: [python, *command, python, "--peer", network, folder],
        }
        seconds = turns.take_turns(programs, ROUNDS)
    for name, values in seconds.items():
        print(f"{network:10s} {name:16s} {BATCH / statistics.median(values):8.2f} images/s")
    print(f"{network:10s} {turns.ratio(seconds, peer, 'imagen_jax')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment that holds the peers")
    parser.add_argument("--only", choices=("inception", "clip", "fid"), help="one of the three; default all")
    for name in ("--write", "--ours", "--peer"):
        parser.add_argument(name, nargs=2, metavar=("NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for words, work in ((args.write, write_weights), (args.ours, serve_ours), (args.peer, serve_peer)):
        if words:
            return work(*words)
    if args.only in (None, "inception"):
        compare(args.python, "inception", "torch-fidelity")
    if args.only in (None, "clip"):
        compare(args.python, "clip", "transformers")
    if args.only in (None, "fid"):
        measure_fid()


if __name__ == "__main__":
    main()
