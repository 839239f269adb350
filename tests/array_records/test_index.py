"""Where records lie in their files, against what was written."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from imagen_jax.array_records.index import cut, index_of, span, write_index
from imagen_jax.errors import UserError

BLOCK = 1 << 16


def write(path, records, options="group_size:1,uncompressed"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def test_every_record_is_cut_out_of_its_span(tmp_path):
    """Records that end at, before and behind the headers at every 64 KiB, and longer ones than that."""
    path, rng = tmp_path / "records", np.random.default_rng(0)
    lengths = [0, 1, 127, 128, 70_000, 200_000, 3, *range(BLOCK - 400, BLOCK + 400, 37), *rng.integers(0, 9000, 300)]
    records = [rng.bytes(length) for length in lengths]
    write(path, records)
    content = path.read_bytes()
    for entry, record in zip(index_of(path, len(records)), records, strict=True):
        start, end = span(entry)
        assert cut(content[start:end], entry) == record


def test_a_flipped_bit_and_a_short_answer_are_noticed(tmp_path):
    path = tmp_path / "records"
    write(path, [b"first", b"second" * 20_000])
    content = bytearray(path.read_bytes())
    first, second = index_of(path, 2)
    start, end = span(second)
    content[end - 1] ^= 1
    assert cut(bytes(content[start:end]), second) is None
    assert cut(bytes(content[start : end - 1]), second) is None
    assert cut(bytes(content[slice(*span(first))]), first) == b"first"


@pytest.mark.parametrize("options", ["group_size:2,uncompressed", "group_size:1,zstd"])
def test_files_of_other_options_have_no_index(tmp_path, options):
    write(tmp_path / "records", [b"a" * 100, b"b" * 100], options)
    with pytest.raises(UserError, match="0 records that can be read one by one; expected 2"):
        index_of(tmp_path / "records", 2)


def test_a_written_index_is_of_16_bytes_a_record_and_says_so(tmp_path):
    write(tmp_path / "records", [b"x"] * 5)
    noted = write_index(tmp_path / "records", 5)
    assert (tmp_path / noted["file"]).stat().st_size == noted["num_bytes"] == 5 * 16
