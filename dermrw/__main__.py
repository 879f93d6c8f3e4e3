"""The command line: download, check, train, eval, audit, compare, export, predict, score and demo.

Each command imports its modules when it runs, so that compare, predict, score and demo need no torch.
"""

import argparse
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import dermrw
from dermrw.errors import UserError, plain_endings
from dermrw.files import path_argument

if TYPE_CHECKING:
    from dermrw.config import Config

# commands that are a package of their own, in the checkout's folder of that name and in the wheel below dermrw
PACKAGES = {"demo": "app", "export": "export"}
EXTRAS = {
    "demo": "demo",
    "predict": "demo",
    "compare": "score",
    "score": "score",
}  # the extra that a command needs; the others need train

SAMPLE_NOTICE = """\
****************************************************************************************************************
 HAM10000 was not found: this run uses the EMBEDDED SAMPLE of pictures drawn by dermrw, not photographs of skin.
 Its figures only show that the software works.
 To use HAM10000, download it with `make data`, or set HAM10000_DIR=FOLDER or ARGS="data.root=FOLDER".
****************************************************************************************************************"""


def _download(arguments: argparse.Namespace) -> None:
    from dermrw.datasets.download import download

    download(arguments.folder, source=arguments.source, official=not arguments.no_official)


def _check(arguments: argparse.Namespace) -> None:
    from dermrw.datasets.verify import check

    folder, overrides = arguments.folder, arguments.overrides
    if folder is not None and "=" in str(folder) and not folder.exists():  # no folder, only overrides
        folder, overrides = None, [str(folder), *overrides]
    check(folder, arguments.images, overrides)


def _train(arguments: argparse.Namespace) -> None:
    from dermrw.training.device import check_device
    from dermrw.training.distributed import launched, prints_messages, require_an_image_each
    from dermrw.training.launch import launch

    if arguments.processes < 1:
        raise UserError(f"--processes must be at least 1, not {arguments.processes}")
    if "=" in arguments.config:  # no config file, only overrides: use the default config
        arguments.overrides.insert(0, arguments.config)
        arguments.config = "configs/ham.yaml"
    config = _training_config(arguments.config, arguments.overrides)
    check_device(config.train.device)  # mistakes are named before processes start and data is read
    if arguments.processes > 1 and not launched():
        require_an_image_each(config.train.batch_size, arguments.processes)
        launch(arguments.processes, sys.argv[1:])
        return
    from dermrw.training.train import train

    notice = config.data.name == "sample" and prints_messages()
    if notice:
        print(SAMPLE_NOTICE, flush=True)
    train(config, arguments.run)
    if notice:
        print(SAMPLE_NOTICE)


def _training_config(name: str, overrides: list[str]) -> "Config":
    """Returns the config, or the embedded sample's if the config names HAM10000 and it is not on this machine."""
    from dermrw.config import CONFIGS, find_config, load_config
    from dermrw.datasets.ham10000 import find_ham10000

    config = load_config(find_config(name), overrides)
    if config.data.name == "ham10000" and find_ham10000(config.data.root) is None:
        config = load_config(CONFIGS / "sample.yaml", overrides)
    return config


def _eval(arguments: argparse.Namespace) -> None:
    from dermrw.evaluation.evaluate import evaluate
    from dermrw.training.run_folder import latest_run

    if arguments.run is not None and "=" in str(arguments.run):  # no run, only overrides: evaluate the latest run
        arguments.overrides.insert(0, str(arguments.run))
        arguments.run = None
    evaluate(arguments.run or latest_run(), arguments.overrides)


def _audit(arguments: argparse.Namespace) -> None:
    from dermrw.evaluation.audit import audit
    from dermrw.training.run_folder import latest_run

    audit(arguments.run or latest_run(), arguments.count)


def _predict(arguments: argparse.Namespace) -> None:
    from dermrw.inference.find_images import model_and_paths
    from dermrw.inference.predict_files import predict

    model, paths = model_and_paths(arguments.paths)
    predict(
        model,
        paths,
        arguments.csv,
        prevalence=arguments.prevalence,
        lesions=arguments.lesions,
        device=arguments.device,
        workers=arguments.workers,
    )


def _compare(arguments: argparse.Namespace) -> None:
    from dermrw.evaluation.compare import print_comparison

    print_comparison(arguments.runs, arguments.truth, arguments.lesions)


def _score(arguments: argparse.Namespace) -> None:
    from dermrw.inference.shipped import shipped_model
    from dermrw.scoring.score import score

    model = arguments.model
    if model is None:
        print("Using the model shipped with dermrw")
        model = shipped_model()
    elif model.is_dir():  # a run
        model /= "model.onnx"
    score(
        model,
        arguments.data,
        images=arguments.images,
        label_map=arguments.map,
        binary=arguments.binary,
        by=arguments.by,
        refit=arguments.refit,
        out=arguments.out,
        device=arguments.device,
        workers=arguments.workers,
    )


def _run_package(command: str, command_line: list[str]) -> None:
    """Runs `main` of the package behind a command."""
    name, here = PACKAGES[command], Path(dermrw.__file__).resolve().parent
    if (here / name).is_dir():  # installed from a wheel
        name = f"dermrw.{name}"
    else:
        sys.path.insert(0, str(here.parent))
    importlib.import_module(f"{name}.__main__").main(command_line, f"dermrw {command}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dermrw", description="Skin-lesion classification on HAM10000 by learning to reweight examples."
    )
    parser.add_argument("--version", action="version", version=f"dermrw {dermrw.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    download = commands.add_parser(
        "download", help="download HAM10000 and the official ISIC 2018 validation and test sets"
    )
    download.set_defaults(func=_download)
    download.add_argument(
        "folder", nargs="?", type=path_argument, default=Path("data/ham10000"), help="default: %(default)s"
    )
    download.add_argument("--source", default="dataverse", help="dataverse or isic (default: %(default)s)")
    download.add_argument("--no-official", action="store_true", help="only HAM10000, without the official sets")

    check = commands.add_parser("check", help="check a data folder, or your own labelled images")
    check.set_defaults(func=_check)
    check.add_argument(
        "folder", nargs="?", type=path_argument, metavar="TABLE_OR_FOLDER",
        help="HAM10000's folder, a CSV with the columns image and label, or a folder with a folder per class (default: "
        "HAM10000_DIR, then data/ham10000)",
    )  # fmt: skip
    check.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="keys of data, as for training; with HAM10000 data.extra=TABLE, the images that training would add to it",
    )  # fmt: skip
    check.add_argument(
        "--images",
        type=path_argument,
        metavar="FOLDER",
        help="as data.images=FOLDER: the images of a table (default: its folder)",
    )

    train = commands.add_parser("train", help="train a model, or resume a run")
    train.set_defaults(func=_train)
    train.add_argument("config", nargs="?", default="configs/ham.yaml", help="a YAML file (default: %(default)s)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=5 objective=erm")
    train.add_argument("--processes", type=int, default=1, metavar="N", help="train in N processes on this machine")
    train.add_argument(
        "--run", type=path_argument, help="the run's folder; an existing run is resumed (default: a new folder)"
    )

    evaluate = commands.add_parser("eval", help="evaluate a run on its test split and on the official ISIC sets")
    evaluate.set_defaults(func=_eval)
    evaluate.add_argument("run", nargs="?", type=path_argument, help="default: the latest run")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=FOLDER")

    audit = commands.add_parser("audit", help="make a gallery of the training images with the lowest weights")
    audit.set_defaults(func=_audit)
    audit.add_argument("run", nargs="?", type=path_argument, help="default: the latest run")
    audit.add_argument("--count", type=int, default=100, help="number of images (default: %(default)s)")

    compare = commands.add_parser("compare", help="compare runs: their configs, and their scores on the same images")
    compare.set_defaults(func=_compare)
    compare.add_argument(
        "runs",
        nargs="+",
        type=path_argument,
        metavar="RUN",
        help="runs, folders of averages, or files such as predictions.csv; the first is the baseline",
    )
    compare.add_argument(
        "--truth", type=path_argument, help="the true classes of the images in files, as a CSV in the ISIC format"
    )
    compare.add_argument(
        "--lesions", type=path_argument, help="a CSV with the columns image and lesion_id, for the intervals of files"
    )

    predict = commands.add_parser("predict", help="classify images with a model file; needs no torch")
    predict.set_defaults(func=_predict)
    predict.add_argument(
        "paths",
        nargs="+",
        type=path_argument,
        metavar="PATH",
        help="images or folders of images, after a model file (.onnx) or run (default: the model shipped with dermrw)",
    )
    predict.add_argument("--csv", required=True, type=path_argument, help="the CSV file to write, in the ISIC format")
    predict.add_argument(
        "--prevalence",
        default="equal",
        help="equal (the default), training, or the share of each class: mel=0.05,nv=0.8,…",
    )
    predict.add_argument(
        "--lesions",
        type=path_argument,
        help="a CSV with the columns image and lesion_id; images of one lesion are combined",
    )
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    predict.add_argument(
        "--workers", type=int, metavar="N", help="processes for many images (default: the CPUs that may be used)"
    )

    score = commands.add_parser("score", help="score a model file on your labelled images; needs no torch")
    score.set_defaults(func=_score)
    score.add_argument(
        "model", nargs="?", type=path_argument, help="an .onnx file or a run (default: the model shipped with dermrw)"
    )
    score.add_argument(
        "data",
        type=path_argument,
        metavar="TABLE_OR_FOLDER",
        help="a CSV with the columns image and label, optionally group, or a folder with a folder per class",
    )
    score.add_argument(
        "--images", type=path_argument, metavar="FOLDER", help="the images (default: the folder of the table)"
    )
    score.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="MAP",
        help="your labels: mel=melanoma,nv=nevus|naevus, with SCC= to leave SCC out; or a CSV with label and code. May "
        "be repeated",
    )
    score.add_argument(
        "--binary", action="store_true", help="score malignant against benign; the labels 1 and 0 mean these two"
    )
    score.add_argument("--by", action="append", default=[], metavar="COLUMN", help="show subgroups of this column, too")
    score.add_argument(
        "--out", type=path_argument, metavar="FOLDER", help="the folder to write into (default: score/NAME)"
    )
    score.add_argument(
        "--refit",
        type=path_argument,
        metavar="NEW.onnx",
        help="fit prevalence, triage and prediction sets on these images, and write a new model file with its card",
    )
    score.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    score.add_argument(
        "--workers", type=int, metavar="N", help="processes for many images (default: the CPUs that may be used)"
    )

    # `main` runs these two; they have parsers of their own
    commands.add_parser("export", add_help=False, help="write a run's model as one .onnx file, with its model card")
    commands.add_parser("demo", add_help=False, help="serve a model as a web page on this machine; needs no torch")
    return parser


def main() -> None:
    """Runs a command; a user's mistake prints one sentence and exits with status 2, Ctrl-C with status 130."""
    if os.environ.get("RANK", "0") != "0":  # only the first of several processes shows progress bars
        os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # raised by torch when it imports functorch
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    with plain_endings("dermrw", EXTRAS.get(command, "train")):
        if command in PACKAGES:
            _run_package(command, sys.argv[2:])
            return
        parser = _parser()
        arguments, rest = parser.parse_known_args()
        # with subcommands, argparse does not accept positional arguments on both sides of an option
        if any(item.startswith("-") for item in rest) or (rest and not hasattr(arguments, "overrides")):
            parser.error(f"unrecognised arguments: {' '.join(rest)}")
        if rest:
            arguments.overrides.extend(rest)
        arguments.func(arguments)


if __name__ == "__main__":
    main()
