"""Unpacks COCO's captions and images of 2014 from TFDS's prepared `coco_captions`, as COCO's own download unpacks.

For FID and CLIP score on COCO: the folder serves `CocoPrompts.folder` of sweeps, and SPLIT/ in it REFERENCE_DIR of
`eval`. Images are copied as they are encoded; val2014 takes 6.6 GB. A second run copies what is missing.

    imagen_jax script data/unpack_coco.py --dataset ~/tensorflow_datasets/coco_captions/2014/1.1.0 --out coco
"""

import argparse
import sys

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.errors import exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder of a version of the prepared dataset")
    parser.add_argument("--out", required=True, help="folder to write annotations/ and the split's images to")
    parser.add_argument("--split", default="val2014", help="val2014 or train2014 (default %(default)s)")
    options = parser.parse_args()

    from imagen_jax.evals.coco_tfds import unpack_coco

    with bucket_errors():
        print(f"{options.out}: {unpack_coco(options.dataset, options.out, options.split).told()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
