"""The command line: `fastdiff demo | train | doctor`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from fastdiff._version import __version__
from fastdiff.cli import demo, doctor, train
from fastdiff.cli.errors import CommandError

COMMANDS = {"demo": demo, "train": train, "doctor": doctor}
INTERRUPTED = 128 + 2  # what shells give for a process that SIGINT ended


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastdiff", description="Fused CPU and CUDA kernels for diffusion models.")
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.HELP, description=command.HELP))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done; 1: it failed, for the reason in the one line on stderr; 2: wrong arguments; 130: interrupted.
    """
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as exit:  # argparse has said what is wrong, or has printed the help
        return int(exit.code or 0)
    try:
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"fastdiff {arguments.command}: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `fastdiff doctor | head -1`: nobody reads on, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        what_remains = f": {interrupt}" if str(interrupt) else ""
        print(f"\nfastdiff {arguments.command}: interrupted{what_remains}", file=sys.stderr)
        return INTERRUPTED
