"""Files of records that are read by their numbers, from this machine or from buckets."""

from imagen_jax.array_records.files import RecordFiles, open_records
from imagen_jax.array_records.index import SUFFIX, write_index
from imagen_jax.array_records.remote import Wanted

__all__ = ["SUFFIX", "RecordFiles", "Wanted", "open_records", "write_index"]
