from __future__ import annotations

from dataclasses import replace

import pytest

from server.catalog.gguf import check, check_parts
from server.catalog.plan import Memory, Wishes, plan, read_shape
from server.core.errors import ModelFileError
from tests.catalog.plan_headers import (
    SMALL,
    encode,
    metadata,
    number,
    tensors,
    write_header,
    write_split,
)


def test_all_parts_of_a_split_model_are_read(tmp_path):
    paths = write_split(tmp_path, SMALL, 3)
    parts = check_parts(paths[0])
    assert [part.path for part in parts] == paths
    assert check(paths[0]).path == paths[0]
    assert sum(len(part.tensors) for part in parts) == len(list(tensors(SMALL)))


def test_a_split_model_takes_what_the_whole_one_takes(tmp_path):
    whole = write_header(tmp_path / "whole.gguf", SMALL)
    parts = write_split(tmp_path, SMALL, 4)
    wishes, card = Wishes(slots=2, n_ctx=512), Memory(gpu_total=1 << 30)
    one, many = (plan(read_shape(check_parts(path)), wishes, card) for path in (whole, parts[0]))
    assert many.weights_gpu == one.weights_gpu
    assert many.total_gpu == one.total_gpu


def test_the_first_part_may_hold_no_tensors(tmp_path):
    own = [number("split.no", 0), number("split.count", 2)]
    made, _ = encode(metadata(SMALL) + own, [])
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(made)
    made, size = encode([number("split.no", 1), number("split.count", 2)], list(tensors(SMALL)))
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(made + bytes(size - len(made)))
    assert check(first).tensors == ()


def test_a_missing_part_is_named(tmp_path):
    paths = write_split(tmp_path, SMALL, 3)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf is missing"):
        check(paths[0])


def test_a_later_part_says_which_one_to_give(tmp_path):
    paths = write_split(tmp_path, SMALL, 2)
    with pytest.raises(ModelFileError, match=r"not the first part .*give model-00001-of-00002"):
        check(paths[1])


def test_a_renamed_part_is_refused(tmp_path):
    paths = write_split(tmp_path, SMALL, 2)
    with pytest.raises(ModelFileError, match="finds the others by its name"):
        check(paths[0].rename(tmp_path / "model.gguf"))


def test_a_truncated_later_part_is_noticed(tmp_path):
    paths = write_split(tmp_path, SMALL, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"00002-of-00002\.gguf is truncated: 100 bytes"):
        check(paths[0])


def test_parts_of_different_models_are_told_apart(tmp_path):
    paths = write_split(tmp_path, SMALL, 2)
    other = tmp_path / "other"
    other.mkdir()
    foreign = write_split(other, replace(SMALL, layers=4), 2)
    paths[1].write_bytes(foreign[1].read_bytes())
    with pytest.raises(ModelFileError, match=r"hold \d+ tensors, but it claims"):
        check(paths[0])
    paths[1].write_bytes(foreign[0].read_bytes())
    with pytest.raises(ModelFileError, match="calls itself part 0 of 2, not 1 of 2"):
        check(paths[0])


@pytest.mark.parametrize("count", [5000, 2**32 - 1])
def test_a_lying_number_of_parts_is_refused(tmp_path, count):
    made, _ = encode([*metadata(SMALL), number("split.count", count)], [])
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(made)
    with pytest.raises(ModelFileError, match=f"claims {count} parts"):
        check(path)
