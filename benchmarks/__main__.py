"""The command line: python -m benchmarks parity | inference | training | refine | eyes | gpu."""

from __future__ import annotations

from collections.abc import Sequence

from vae_runtime.cli.arguments import run
from vae_train.commands import check_packages


def main(arguments: Sequence[str]) -> int:
    """Run a command line; its exit status. MissingPackageError where the packages of training are not installed."""
    check_packages("the benchmarks need")

    from benchmarks import commands

    return commands.main(arguments)


if __name__ == "__main__":
    run(main)
