"""Time of `Cascade.load` of a bundle beside reading its bytes, in turns in one process, the page cache warm for both.

    python -m benchmarks.bundle_load BUNDLE [--grow 1.6] [--rounds 7]

`--grow` measures a copy with as many GB of random parameters more: loading takes them, and only drawing would not.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from imagen_jax import Cascade
from imagen_jax.export import arrays
from imagen_jax.export.bundle import DIGESTS, HEADER, MAX_FILE_BYTES, STAGES, load_bundle
from imagen_jax.files import sha256_of_files

_ARRAY_BYTES = 16 << 20


def grow(bundle: Path, folder: Path, gigabytes: float) -> Path:
    """Copies a bundle and puts parameters into its first stage that no network has."""
    made = Path(shutil.copytree(bundle, folder / "bundle"))
    header = json.loads((made / HEADER).read_text())
    stage = header["stages"][0]
    rng = np.random.default_rng(0)
    count = max(1, round(gigabytes * 1e9 / _ARRAY_BYTES))
    leaves = {f"more_{i}": rng.standard_normal(_ARRAY_BYTES // 4, np.float32) for i in range(count)}
    beside = folder / "more"
    beside.mkdir()
    for name in arrays.write_arrays(str(beside), leaves, MAX_FILE_BYTES):
        shutil.move(beside / name, made / STAGES / stage["folder"] / f"more-{name}")
        stage["files"].append(f"more-{name}")
    (made / HEADER).write_text(json.dumps(header))
    (made / DIGESTS).unlink()
    names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
    sums = sha256_of_files([made / name for name in names])
    (made / DIGESTS).write_text(json.dumps(dict(zip(names, sums, strict=True))))
    return made


def read_all(bundle: Path) -> list[bytes]:
    """The bytes of every file, as a program that checks nothing reads them."""
    return [path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--grow", type=float, default=0.0, metavar="GB")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        bundle = grow(args.bundle, Path(folder), args.grow) if args.grow else args.bundle
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
        ways = {
            "reading": lambda: read_all(bundle),
            "load_bundle": lambda: load_bundle(str(bundle)),
            "Cascade.load": lambda: Cascade.load(str(bundle)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.rounds + 1):
            for name, way in ways.items():
                begun = time.perf_counter()
                found = way()
                if number:
                    seconds[name].append(time.perf_counter() - begun)
                del found
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, {args.rounds} rounds: median, lowest to highest")
    for name, values in seconds.items():
        ratios = [one / other for one, other in zip(values, seconds["reading"], strict=True)]
        print(
            f"{name:13} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f}), "
            f"{statistics.median(ratios):.2f}x reading ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
