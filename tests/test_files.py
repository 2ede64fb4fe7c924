"""Files: atomic writing, locks, bounded reading."""

from __future__ import annotations

import errno
import gzip
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from dcpnas_lite import files


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = f"from dcpnas_lite import files; files.write({str(tmp_path / 'a')!r}, '\\u03b1\\u0302')"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert (tmp_path / "a").read_bytes() == "α̂".encode()


def test_readers_see_whole_files_while_four_write(tmp_path):
    path, contents = tmp_path / "a", [bytes([65 + i]) * (100_000 + i) for i in range(4)]
    files.write(path, contents[0])
    stop = threading.Event()

    def keep_writing(content):
        while not stop.is_set():
            files.write(path, content)

    writers = [threading.Thread(target=keep_writing, args=(c,)) for c in contents]
    for writer in writers:
        writer.start()
    seen = {path.read_bytes() for _ in range(500)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= set(contents) and os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    files.write(tmp_path / "a", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device; not written"):
        files.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]
    with pytest.raises(OSError, match="No such file"):
        files.write(tmp_path / "nowhere" / "a", "new")


HOLD = """
import sys, time
from dcpnas_lite import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["", "table.csv"])
def test_the_lock_names_its_holder_and_goes_with_it(tmp_path, name):
    target = tmp_path / name
    holder = subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"in use by process {holder.pid} on "), files.lock(target):
        pass
    (tmp_path / f".{name}.1-00.part").write_text("of a killed writer")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.lock(target):
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on "), files.lock(target):
            pass
        assert not list(tmp_path.glob(".*.part"))
    assert os.listdir(tmp_path) == []


def test_many_threads_hold_a_lock_one_at_a_time(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(50):
            try:
                with files.lock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except BlockingIOError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) + len(refused) == 400


def test_reading_is_bounded(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert files.read(path, "text", 11) == b"x" * 11
    with pytest.raises(ValueError, match="a: expected text of at most 10 bytes, got a larger file"):
        files.read(path, "text", 10)
    with pytest.raises(ValueError, match="expected text, got a folder"):
        files.read(tmp_path, "text")
    packed = gzip.compress(b"x" * 10_000_000)
    assert len(files.gunzip(packed, 10_000_000, path)) == 10_000_000
    with pytest.raises(ValueError, match="expected at most 9,999,999 bytes of content"):
        files.gunzip(packed, 9_999_999, path)
    for damaged in (packed[:-1], packed[:50], b"", packed[:-5] + b"\0" + packed[-4:], b"text"):
        with pytest.raises(ValueError, match="a: damaged gzip file"):
            files.gunzip(damaged, 10_000_000, path)


def test_a_zip_that_grows_is_refused_before_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 1 << 20)
    bomb = files.arrays_to_bytes({"zeros": np.zeros(1 << 18)}, compress=True)
    assert len(bomb) < 1 << 14
    with pytest.raises(ValueError, match="more than 1,048,576"):
        files.arrays_from_bytes(bomb, "a.npz", "arrays")


def test_arrays_without_a_checksum_are_read_where_that_is_allowed(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    assert files.arrays_from_bytes(buffer.getvalue(), "a", "arrays", sealed=False)["a"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="its checksum is wrong"):
        files.arrays_from_bytes(buffer.getvalue(), "a", "arrays")
    assert zipfile.ZipFile(io.BytesIO(files.arrays_to_bytes({"a": np.arange(3)}))).testzip() is None


def test_sealed_json(tmp_path):
    path = tmp_path / "a.json"
    files.write(path, files.seal({"α": 1.5, "b": [None, "x"]}, "a thing"))
    assert files.unseal(path, "a thing") == {"α": 1.5, "b": [None, "x"]}
    with pytest.raises(ValueError, match="got a damaged one"):
        files.unseal(path, "another thing")
    path.write_text(path.read_text(encoding="utf8").replace("1.5", "2.5"), encoding="utf8")
    with pytest.raises(ValueError, match="got a damaged one"):
        files.unseal(path, "a thing")
    for text in ("[]", "3", "", "{", "[" * 100_000, '{"a": 1}', "\xff"):
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match="a.json: expected a thing"):
            files.unseal(path, "a thing")
