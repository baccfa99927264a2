"""Files that are no safetensors, or not whole, are refused with one line that names them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import safetensors_file

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def written(folder, header, *, data=8, length=None):
    """A file with this header, in bytes or as JSON, and so many bytes of zeros after it."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(head) if length is None else length
    path = folder / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + head + bytes(data))
    return path


def test_tensors_and_metadata_come_back(tmp_path):
    arrays = {"half": np.ones((2, 3), np.float16), "rows": np.arange(4, dtype=np.int32)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"seed": "3"})
    tensors, metadata = safetensors_file.read(tmp_path / "x.safetensors")
    assert metadata == {"seed": "3"}
    assert tensors["half"].dtype == np.float16
    np.testing.assert_array_equal(tensors["rows"], [0, 1, 2, 3])


def test_a_file_of_eight_bytes_more_than_its_header_is_read(tmp_path):
    tensors, _ = safetensors_file.read(written(tmp_path, GOOD))
    np.testing.assert_array_equal(tensors["a"], [0, 0])


@pytest.mark.parametrize("content", [b"", b"\x01\x00\x00", b"not a header at all"])
def test_what_has_no_header_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors: not a readable safetensors file"):
        safetensors_file.read(tmp_path / "x.safetensors")


def test_a_header_longer_than_the_file_is_refused_before_it_is_read(tmp_path):
    path = written(tmp_path, GOOD, length=2**63)
    with pytest.raises(UserError, match=f"should have {2**63} bytes, the file has"):
        safetensors_file.read(path)


def test_an_oversized_header_is_refused_although_the_file_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "LARGEST_HEADER", 10)
    with pytest.raises(UserError, match=r"header has \d+ bytes, at most 10 are read"):
        safetensors_file.read(written(tmp_path, GOOD))


@pytest.mark.parametrize(
    "header", [b"{'a': 1}", b"\xff\xfe\x00", b"[" * 5000, b"[1, 2]", b"3", {"a": 1}, {"a": {}}]
)
def test_a_header_that_is_no_table_of_tensors_is_refused(tmp_path, header):
    with pytest.raises(UserError, match="not a readable safetensors file"):
        safetensors_file.read(written(tmp_path, header))


def test_a_cut_off_file_says_how_much_is_there(tmp_path):
    with pytest.raises(UserError, match="cut off: its tensors have 8 bytes, 5 are there"):
        safetensors_file.read(written(tmp_path, GOOD, data=5))


def test_tensors_that_overlap_are_refused(tmp_path):
    header = GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}
    with pytest.raises(UserError, match="not a readable safetensors file"):
        safetensors_file.read(written(tmp_path, header, data=12))


@pytest.mark.parametrize("kind", ["BF16", "F64", "F8_E4M3", 7])
def test_numbers_of_another_kind_are_named(tmp_path, kind):
    header = {"a": {"dtype": kind, "shape": [4], "data_offsets": [0, 8]}}
    with pytest.raises(UserError, match=rf"1 tensors are {kind}, such as a; F16 and F32"):
        safetensors_file.read(written(tmp_path, header))
