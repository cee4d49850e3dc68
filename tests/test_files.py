from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fastdiff import _files
from fastdiff._files import atomic_write, replacing

# Loads the file by its path: the subprocess needs nothing else of the package.
WRITER = """
import pathlib, runpy, sys
atomic_write = runpy.run_path(sys.argv[1])["atomic_write"]
for version in range(1, 10_000):
    atomic_write(pathlib.Path(sys.argv[2]), bytes([version % 251]) * 16_000_000)
    print(version, flush=True)
"""


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"", b"second"):
        atomic_write(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(_files.os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_replaced_together(tmp_path):
    paths = tmp_path / "first", tmp_path / "second"
    with replacing(*paths) as temporaries:
        for number, temporary in enumerate(temporaries):
            temporary.write_bytes(bytes([number]))
        assert not any(path.exists() for path in paths)
    with pytest.raises(ZeroDivisionError), replacing(*paths) as (temporary, _):
        temporary.write_bytes(b"new")
        raise ZeroDivisionError
    assert [path.read_bytes() for path in paths] == [b"\0", b"\1"] and sorted(tmp_path.iterdir()) == list(paths)


def test_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(_files.os, name, lambda *args, n=name, f=real: calls.append(n) or f(*args))
    atomic_write(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the rename, the folder


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.07])
def test_file_is_whole_when_the_writer_is_killed(tmp_path, delay):
    path = tmp_path / "file"
    command = [sys.executable, "-c", WRITER, _files.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
    content = path.read_bytes()
    assert len(content) == 16_000_000 and len(set(content)) == 1
    atomic_write(path, b"next")  # what the killed writer left does not stand in the way
    assert path.read_bytes() == b"next" and list(tmp_path.iterdir()) == [path]
