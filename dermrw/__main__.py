"""The command line: download, check, train, eval."""

import argparse
import os
import sys
from pathlib import Path

import dermrw
from dermrw.config import CONFIGS, Config, load_config
from dermrw.errors import UserError

SAMPLE_NOTICE = """\
****************************************************************************************************************
 HAM10000 is not on this machine: this run uses the EMBEDDED SAMPLE, pictures drawn by dermrw itself.
 Its figures say that the software works and nothing about skin.
 For the real data: `make data` downloads it, or set HAM10000_DIR=FOLDER, or ARGS="data.root=FOLDER".
****************************************************************************************************************"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dermrw", description="Skin-lesion classification on HAM10000 by learning to reweight examples."
    )
    parser.add_argument("--version", action="version", version=f"dermrw {dermrw.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    get = commands.add_parser("download", help="fetch HAM10000 and the official ISIC 2018 validation and test sets")
    get.add_argument("folder", nargs="?", type=Path, default=Path("data/ham10000"), help="default: %(default)s")
    get.add_argument("--source", default="dataverse", help="dataverse or isic (default: %(default)s)")
    get.add_argument("--no-official", action="store_true", help="HAM10000 alone, without the official sets")
    check = commands.add_parser("check", help="print what a data folder holds and lacks")
    check.add_argument("folder", nargs="?", type=Path, help="default: HAM10000_DIR, then data/ham10000")
    fit = commands.add_parser("train", help="train or resume a run")
    fit.add_argument("config", nargs="?", type=Path, default=CONFIGS / "ham.yaml", help="default: configs/ham.yaml")
    fit.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=5 objective=erm")
    fit.add_argument("--run", type=Path, help="the run's folder; resumed where it exists (default: a new one)")
    score = commands.add_parser("eval", help="score a run on its test split and on ISIC's official sets")
    score.add_argument("run", nargs="?", type=Path, help="default: the latest run")
    score.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=FOLDER where the data has moved")
    return parser


def _with_sample(config: Config, overrides: list[str]) -> Config:
    """The config, or the embedded sample's where HAM10000 is asked for without a place and is at none; says so."""
    from dermrw.tables import find_ham10000

    if config.data.name == "ham10000" and find_ham10000(config.data.root) is None:
        config = load_config(CONFIGS / "sample.yaml", overrides)
    if config.data.name == "sample":
        print(SAMPLE_NOTICE, flush=True)
    return config


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "download":
        from dermrw.download import download

        download(arguments.folder, source=arguments.source, official=not arguments.no_official)
    elif arguments.command == "check":
        from dermrw.check import check

        check(arguments.folder)
    elif arguments.command == "train":
        from dermrw.train import train

        if "=" in str(arguments.config):  # overrides alone: the default config
            arguments.overrides.insert(0, str(arguments.config))
            arguments.config = CONFIGS / "ham.yaml"
        config = _with_sample(load_config(arguments.config, arguments.overrides), arguments.overrides)
        train(config, arguments.run)
        if config.data.name == "sample":
            print(SAMPLE_NOTICE)
    else:
        from dermrw.evaluate import evaluate
        from dermrw.runs import latest_run

        if arguments.run is not None and "=" in str(arguments.run):
            arguments.overrides.insert(0, str(arguments.run))
            arguments.run = None
        evaluate(arguments.run or latest_run(), arguments.overrides)


def main() -> None:
    """Runs a command; a user's mistake is one sentence and status 2, Ctrl-C status 130."""
    try:
        parser = _parser()
        arguments, rest = parser.parse_known_args()
        # argparse doesn't take positional arguments on both sides of an option where there are subcommands
        if any(item.startswith("-") for item in rest) or (rest and not hasattr(arguments, "overrides")):
            parser.error(f"unknown: {' '.join(rest)}")
        if rest:
            arguments.overrides.extend(rest)
        _run(arguments)
    except UserError as error:
        print(f"dermrw: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ndermrw: stopped; the same command with the same run goes on from its last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
