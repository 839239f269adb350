"""Mean and covariance of features, gathered batch by batch and merged over processes.

Statistics hold n, the mean and the scatter S = sum of (x - mean)(x - mean)^T in float64. Two sets merge exactly
(Chan, Golub and LeVeque, 1979):

    delta = mean_b - mean_a,  mean = mean_a + delta n_b / (n_a + n_b)
    S = S_a + S_b + delta delta^T n_a n_b / (n_a + n_b)

so a device, host or process gathers its own images, and order changes nothing but rounding. At 2048 features they take
32 MiB, however many images there are.
"""

import io
import zipfile
from typing import Any

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.evals.metrics.inputs import as_features
from imagen_jax.files import StrPath, as_path, write_bytes


class FeatureStatistics:
    """Number, mean and scatter of features.

    Args:
      dim: width of the features; >= 1.
      identity: what made them (weights, layer, resize); "" is not known. Statistics of two identities do not mix.

    Attributes:
      num_examples: rows so far.
      mean: float64 [dim].
      scatter: float64 [dim, dim], sum of outer products about the mean.
    """

    def __init__(self, dim: int, identity: str = ""):
        check_count("dim", dim)
        self.identity = identity
        self.num_examples = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))

    @classmethod
    def of(cls, features: Any, identity: str = "") -> "FeatureStatistics":
        """Statistics of one array [n, d]."""
        found = as_features("the features", features)
        made = cls(found.shape[1], identity)
        made.update(found)
        return made

    def update(self, features: Any) -> None:
        """Adds a batch of features [n, dim]; n may be 0.

        Raises:
          UserError: another width, or a value that is not finite.
        """
        if np.ndim(features) == 2 and not len(features):
            return
        batch = as_features("the features", features)
        if batch.shape[1] != len(self.mean):
            raise UserError(
                f"the features have {batch.shape[1]} columns; expected {len(self.mean)}, as the rows before"
            )
        mean = batch.mean(axis=0)
        batch -= mean
        self._add(len(batch), mean, batch.T @ batch)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds the examples of another process.

        Raises:
          UserError: its statistics are of another width or identity.
        """
        check_same(self, other)
        if other.num_examples:
            self._add(other.num_examples, other.mean, other.scatter)

    def _add(self, number: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        delta, total = mean - self.mean, self.num_examples + number
        self.scatter += scatter
        self.scatter += np.outer(delta, delta * (self.num_examples * number / total))
        self.mean = self.mean + delta * (number / total)
        self.num_examples = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 [dim, dim].

        Raises:
          UserError: there are fewer than two examples.
        """
        if self.num_examples < 2:
            raise UserError(f"a covariance needs at least 2 images; got {self.num_examples}")
        return self.scatter / (self.num_examples - 1)

    def save(self, path: StrPath) -> None:
        """Writes an .npz of mu and sigma, as pytorch-fid's, and of num_examples and identity; whole or not at all."""
        buffer = io.BytesIO()
        facts = {"num_examples": np.int64(self.num_examples), "identity": np.str_(self.identity)}
        np.savez(buffer, allow_pickle=False, mu=self.mean, sigma=self.covariance, **facts)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: StrPath, stated: tuple[int, str] | None = None) -> "FeatureStatistics":
        """Reads what `save` wrote, or mu and sigma of pytorch-fid or clean-fid.

        Args:
          path: of the file.
          stated: number of images and identity of mu and sigma alone, which do not say what made them; None: only
            what `save` wrote is read.

        Raises:
          UserError: there is no such file, or it is damaged or holds something else.
        """
        try:
            with np.load(io.BytesIO(as_path(path).read_bytes()), allow_pickle=False) as found:
                mean, covariance = np.asarray(found["mu"], np.float64), np.asarray(found["sigma"], np.float64)
                if "identity" not in found.files and stated is not None:
                    number, identity = stated
                else:
                    number, identity = int(found["num_examples"]), str(found["identity"])
        except FileNotFoundError as error:
            raise UserError(f"no statistics at {path}; give the .npz that an evaluation wrote") from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} holds no statistics ({type(error).__name__}: {error}): expected an .npz of mu, sigma, "
                "num_examples and identity; gather them again from the reference images"
            ) from error
        dim = len(mean) if mean.ndim == 1 else 0
        whole = covariance.shape == (dim, dim) and number >= 2 and np.isfinite(covariance).all()
        if not dim or not whole or not np.isfinite(mean).all():
            raise UserError(
                f"{path} holds mu {mean.shape}, sigma {covariance.shape} and num_examples {number}; expected finite "
                "[d], [d, d] and at least 2: gather them again from the reference images"
            )
        made = cls(dim, identity)
        made.num_examples, made.mean, made.scatter = number, mean, covariance * (number - 1)
        return made


def check_same(a: FeatureStatistics, b: FeatureStatistics) -> None:
    """Refuses two statistics that are not of the same features.

    Raises:
      UserError: their widths differ, or their identities where both are known.
    """
    if len(a.mean) != len(b.mean):
        raise UserError(
            f"statistics of {len(a.mean)} and of {len(b.mean)} features do not compare; take both from one layer of "
            "one extractor"
        )
    if a.identity and b.identity and a.identity != b.identity:
        raise UserError(
            f"statistics of other features do not compare: one was made by {a.identity}, the other by {b.identity}; "
            "gather both with one extractor and one resize"
        )
