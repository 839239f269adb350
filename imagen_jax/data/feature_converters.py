"""seqio feature converters: from a task's examples to exactly what a stage takes.

The base class checks, before and after, that every feature is there with its dtype, rank and length, and
names the feature, the stage of the check, what it got and what it expected.
"""

from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

_Spec = seqio.FeatureConverter.FeatureSpec
_IMAGE = _Spec(dtype=tf.float32, rank=3)
# A picture of any size has a known number of channels alone, which stands for its length.
_SIZED_IMAGE = _Spec(dtype=tf.float32, rank=3, sequence_dim=2)
_FRAMING = _Spec(dtype=tf.float32, rank=1)
_TEXT = _Spec(dtype=tf.float32, rank=2)
_MASK = _Spec(dtype=tf.bool, rank=1)
_SOURCE = _Spec(dtype=tf.int32, rank=0)


class BaseFeatureConverter(seqio.FeatureConverter):
    """x0 [h, w, 3], text [n, d] → the same with text zero-padded to its full length, and text_mask.

    Args:
      with_source: the number of the example's source is kept too.
      sized: pictures may have any size, and have their framing.
      text_dtype: of text, float32 or bfloat16.
      check_lengths: looks at the lengths of every example, twice, which costs as much as decoding a small picture;
        False where the shapes are known before an example is made.
    """

    TASK_FEATURES: ClassVar[Mapping[str, seqio.FeatureConverter.FeatureSpec]] = {"x0": _IMAGE, "text": _TEXT}
    MODEL_FEATURES: ClassVar[Mapping[str, seqio.FeatureConverter.FeatureSpec]] = {
        **TASK_FEATURES,
        "text_mask": _MASK,
    }
    PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, tf.DType] | None] = None

    def __init__(
        self,
        with_source: bool = False,
        text_dtype: tf.DType = tf.float32,
        check_lengths: bool = True,
        sized: bool = False,
    ) -> None:
        super().__init__(pack=False, apply_length_check=check_lengths)
        own = {"text": _Spec(dtype=text_dtype, rank=2)} | ({"source": _SOURCE} if with_source else {})
        if sized:
            images = {name: _SIZED_IMAGE for name in self.TASK_FEATURES if name in ("x0", "low_res")}
            own = {**own, **images, "framing": _FRAMING}
        self.TASK_FEATURES = {**self.TASK_FEATURES, **own}  # type: ignore[misc]
        self.MODEL_FEATURES = {**self.MODEL_FEATURES, **own}  # type: ignore[misc]

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        length = task_feature_lengths["text"]

        def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            text = example["text"]
            num_tokens = tf.shape(text)[0]
            features = {name: example[name] for name in self.TASK_FEATURES}
            features["text"] = tf.ensure_shape(
                tf.pad(text, ((0, length - num_tokens), (0, 0))), (length, text.shape[1])
            )
            features["text_mask"] = tf.sequence_mask(num_tokens, length)
            return features

        return ds.map(convert)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """Lengths of the model features: the mask is as long as the text."""
        return {**task_feature_lengths, "text_mask": task_feature_lengths["text"]}


class SuperResolutionFeatureConverter(BaseFeatureConverter):
    """As the base converter, with low_res [h', w', 3]."""

    TASK_FEATURES: ClassVar[Mapping[str, seqio.FeatureConverter.FeatureSpec]] = {
        **BaseFeatureConverter.TASK_FEATURES,
        "low_res": _IMAGE,
    }
    MODEL_FEATURES: ClassVar[Mapping[str, seqio.FeatureConverter.FeatureSpec]] = {
        **TASK_FEATURES,
        "text_mask": _MASK,
    }
