"""Benchmarks of fastdiff: `python bench/run.py kernels --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

# The folder of a script comes first in the path: there, files would hide installed packages of their names. The package
# `bench` lies in the folder above. Appended, so that an installed fastdiff comes before the sources.
_FOLDER = Path(__file__).resolve().parent
sys.path = [entry for entry in sys.path if Path(entry).resolve() != _FOLDER] + [str(_FOLDER.parent)]

from bench import samplers  # noqa: E402
from bench.kernels import command as kernels  # noqa: E402
from bench.models import command as models  # noqa: E402
from bench.pipelines import command as pipelines  # noqa: E402
from bench.worker import WorkerFailed  # noqa: E402

COMMANDS = {"kernels": kernels, "samplers": samplers, "models": models, "pipeline": pipelines}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    parser = _Parser(prog="bench/run.py", description="Benchmarks of fastdiff.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.HELP, description=command.HELP))
    arguments = parser.parse_args(argv)
    try:
        COMMANDS[arguments.command].run(arguments)
    except ValueError as error:
        parser.error(str(error))
    except WorkerFailed as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
