"""Wrong command lines, help, version and exit codes of `fastdiff`."""

from __future__ import annotations

import os
import subprocess

import pytest

import fastdiff
from fastdiff.cli import COMMANDS, build_parser, doctor, main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required"),
        (("paint",), "invalid choice: 'paint'"),
        (("demo", "--colour"), "unrecognized arguments: --colour"),
        (("demo", "--images", "0"), "argument --images: must be a whole number from 1 to 400, got '0'"),
        (("demo", "--images", "many"), "argument --images: must be a whole number"),
        (("demo", "--steps", "0"), "argument --steps: must be a whole number"),
        (("demo", "--seed", "-1"), "argument --seed: must be a whole number"),
        (("demo", "--threads", "0"), "argument --threads: must be a whole number"),
        (("demo", "--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
        (("train", "--steps", "ten"), "argument --steps: invalid int value: 'ten'"),
        (("doctor", "me"), "unrecognized arguments: me"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(run, arguments, words):
    assert words in run(*arguments).failed_in_one_line(code=2)


def test_help_and_version(run):
    assert run("--version").out == f"fastdiff {fastdiff.__version__}\n"
    for command in COMMANDS:
        result = run(command, "--help")
        assert result.code == 0 and COMMANDS[command].HELP.split()[0] in result.out and not result.err
    assert set(COMMANDS) == {"demo", "train", "doctor"}
    assert build_parser().parse_args(["demo"]).images == 36


def test_interrupt_is_130_and_a_bug_stays_a_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "fastdiff doctor: interrupted"

    def broken(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pipe")
def test_a_reader_that_goes_away_is_no_error(script):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        process = subprocess.run([script, "doctor"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0 and process.stderr == ""
