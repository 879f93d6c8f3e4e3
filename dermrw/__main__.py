"""The command line: download, check, train, eval, audit, predict. Each imports what it needs, predict no torch."""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import dermrw
from dermrw.errors import UserError, plain_endings

if TYPE_CHECKING:
    from dermrw.config import Config

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
    fit.add_argument("config", nargs="?", default="configs/ham.yaml", help="a YAML file (default: %(default)s)")
    fit.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=5 objective=erm")
    fit.add_argument("--processes", type=int, default=1, metavar="N", help="train in N processes of this machine")
    fit.add_argument("--run", type=Path, help="the run's folder; resumed where it exists (default: a new one)")
    score = commands.add_parser("eval", help="score a run on its test split and on ISIC's official sets")
    score.add_argument("run", nargs="?", type=Path, help="default: the latest run")
    score.add_argument("overrides", nargs="*", metavar="key=value", help="data.root=FOLDER where the data has moved")
    look = commands.add_parser("audit", help="a gallery of the training images that weighed least in a run")
    look.add_argument("run", nargs="?", type=Path, help="default: the latest run")
    look.add_argument("--count", type=int, default=100, help="images to show (default: %(default)s)")
    use = commands.add_parser("predict", help="classify images with a model file; needs no torch")
    use.add_argument("model", type=Path, help="the .onnx that `make export` wrote")
    use.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="images, and folders of images")
    use.add_argument("--csv", required=True, type=Path, help="where the probabilities go, in ISIC's format")
    use.add_argument(
        "--prevalence",
        default="equal",
        help="equal (the default), training, or each share: mel=0.05,nv=0.8,…",
    )
    use.add_argument("--lesions", type=Path, help="a CSV with image and lesion_id: images of a lesion are combined")
    use.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    return parser


def _training_config(name: str, overrides: list[str]) -> "Config":
    """The config, or the embedded sample's where HAM10000 is asked for without a place and is at none."""
    from dermrw.config import CONFIGS, find_config, load_config
    from dermrw.datasets.ham10000 import find_ham10000

    config = load_config(find_config(name), overrides)
    if config.data.name == "ham10000" and find_ham10000(config.data.root) is None:
        config = load_config(CONFIGS / "sample.yaml", overrides)
    return config


def _run(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # torch's own, on import of functorch
    if arguments.command == "download":
        from dermrw.datasets.download import download

        download(arguments.folder, source=arguments.source, official=not arguments.no_official)
    elif arguments.command == "check":
        from dermrw.datasets.verify import check

        check(arguments.folder)
    elif arguments.command == "train":
        from dermrw.training.distributed import launched, speaks
        from dermrw.training.launch import launch

        if arguments.processes < 1:
            raise UserError(f"--processes takes a number from 1 on, not {arguments.processes}")
        if arguments.processes > 1 and not launched():
            launch(arguments.processes, sys.argv[1:])
            return
        from dermrw.training.train import train

        if "=" in arguments.config:  # overrides alone: the default config
            arguments.overrides.insert(0, str(arguments.config))
            arguments.config = "configs/ham.yaml"
        config = _training_config(arguments.config, arguments.overrides)
        if config.data.name == "sample" and speaks():
            print(SAMPLE_NOTICE, flush=True)
        train(config, arguments.run)
        if config.data.name == "sample" and speaks():
            print(SAMPLE_NOTICE)
    elif arguments.command == "audit":
        from dermrw.evaluation.audit import audit
        from dermrw.training.run_folder import latest_run

        audit(arguments.run or latest_run(), arguments.count)
    elif arguments.command == "predict":
        from dermrw.inference.predict_files import predict

        predict(
            arguments.model,
            arguments.paths,
            arguments.csv,
            prevalence=arguments.prevalence,
            lesions=arguments.lesions,
            device=arguments.device,
        )
    else:
        from dermrw.evaluation.evaluate import evaluate
        from dermrw.training.run_folder import latest_run

        if arguments.run is not None and "=" in str(arguments.run):
            arguments.overrides.insert(0, str(arguments.run))
            arguments.run = None
        evaluate(arguments.run or latest_run(), arguments.overrides)


def main() -> None:
    """Runs a command; a user's mistake is one sentence and status 2, Ctrl-C status 130."""
    if os.environ.get("RANK", "0") != "0":  # one of several processes: the leading one shows its progress
        os.environ["TQDM_DISABLE"] = "1"
    with plain_endings("dermrw"):
        parser = _parser()
        arguments, rest = parser.parse_known_args()
        # argparse doesn't take positional arguments on both sides of an option where there are subcommands
        if any(item.startswith("-") for item in rest) or (rest and not hasattr(arguments, "overrides")):
            parser.error(f"unknown: {' '.join(rest)}")
        if rest:
            arguments.overrides.extend(rest)
        _run(arguments)


if __name__ == "__main__":
    main()
