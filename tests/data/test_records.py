"""Records read at random from several files, by several threads."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from pixtok.data.records import Records

SIZES = (3, 1, 200, 40)


def content(number: int) -> bytes:
    return f"{number} ".encode() * (number + 1)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    number, paths = 0, [tmp_path / f"{file}" for file in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(size):
            writer.write(content(number))
            number += 1
        writer.close()
    return paths


def test_every_record_is_found_in_its_file(files):
    records = Records(files)
    assert len(records) == sum(SIZES)
    for number in np.random.default_rng(0).permutation(sum(SIZES)).tolist():
        assert records[number] == content(number)
    for number in (-1, sum(SIZES)):
        with pytest.raises(IndexError, match=f"record {number} of 244"):
            records[number]


def test_threads_do_not_read_each_others_records(files):
    records = Records(files)
    begin = threading.Barrier(8)

    def some(seed: int) -> bool:
        begin.wait()
        numbers = np.random.default_rng(seed).integers(sum(SIZES), size=400).tolist()
        return all(records[number] == content(number) for number in numbers)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(some, range(8)))


def test_a_copy_for_another_process_reads_the_same(files):
    records = Records(files)
    records[5]  # opens a file
    copied = pickle.loads(pickle.dumps(records))
    assert [copied[number] for number in (243, 0, 100)] == [content(number) for number in (243, 0, 100)]


def test_a_file_that_is_not_there_is_no_empty_one(files):
    files[1].unlink()
    with pytest.raises(Exception, match=f"No such file or directory.*{files[1]}"):
        Records(files)


def test_a_record_that_is_damaged_is_no_record(tmp_path):
    noise = np.random.default_rng(0).bytes(5000)  # nothing that compression would shorten
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "0"), "group_size:1")
    for number in range(3):
        writer.write(noise if number == 1 else content(number))
    writer.close()
    held = bytearray((tmp_path / "0").read_bytes())
    held[held.find(noise[2000:2100])] ^= 1
    (tmp_path / "0").write_bytes(held)
    records = Records([tmp_path / "0"])
    for _ in range(2):
        with pytest.raises(Exception, match="Corrupted"):
            records[1]
        assert [records[0], records[2]] == [content(0), content(2)]
