"""fastdiff.allocator: large activations stay mapped, shown by the page faults that no longer happen."""

import platform
import subprocess
import sys

import pytest

from fastdiff import allocator

# In a process of its own, since the setting cannot be undone. 64 MiB: above the 32 MiB that glibc keeps by itself.
# Forty operations first: the heap still grows in the first ten or so, until its free blocks fit aligned requests.
COUNT_FAULTS = """
import resource, sys, torch
from fastdiff.allocator import tune_allocator
if sys.argv[1] == "tuned":
    assert tune_allocator() is True
x = torch.ones(16 << 20)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    y = torch.relu(x)
before = faults()
for _ in range(10):
    y = torch.relu(x)
print((faults() - before) // 10)
"""


def faults_per_operation(setting: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting exists in glibc alone")
def test_large_activations_are_no_longer_page_faulted():
    assert faults_per_operation("default") > 30 * faults_per_operation("tuned")


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("mallopt was looked up"))
    assert allocator.tune_allocator() is False
