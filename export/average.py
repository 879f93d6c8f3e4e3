"""`python -m export RUN RUN … -o FILE`: writes the average of several runs as one model file, with its card.

The file's folder holds the reports of the average, as a run's folder holds those of the run, and `averaged_runs.json`
with the folders of the runs.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dermrw.errors import UserError
from dermrw.evaluation.average import Member, evaluate_average, joint_splits, require_alike
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.evaluate import device_of, with_overrides
from dermrw.evaluation.predict import Predictor, load_best
from dermrw.files import require_writable, write_atomic
from dermrw.inference.model_file import Precision
from dermrw.training.device import Placement
from dermrw.training.image_overlap import require_same_pictures
from dermrw.training.image_record import ImageRecord
from dermrw.training.run_data import classes_of, run_splits
from dermrw.training.run_folder import AVERAGED_RUNS, open_run

from .__main__ import all_known_images, checked_file, checks_of, info_of
from .card import model_card
from .diagram import reliability_diagram
from .network import Averaged, Exported
from .report import official_reports, parsed_report, report_of, require_reported


def export_average(runs: Sequence[Path], path: Path, overrides: Sequence[str], weights: Precision = "fp32") -> Path:
    """Writes the average of several runs as one model file, with reports and card next to it.

    Args:
        runs: their folders.
        path: the model file. Its folder must be new, empty or of an earlier average.
        overrides: `data.root=FOLDER` where the data has moved; `data.views=NUMBER` for other views of each image.
        weights: how the weights of the layers are stored.

    Raises:
        UserError: the runs can't be averaged (see `require_alike`), the folder holds other files, or ONNX Runtime
            disagrees with torch.
    """
    folder = path.parent
    if path.suffix != ".onnx":
        raise UserError(f"-o {path} must end in .onnx, such as -o {path / 'model.onnx'}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / AVERAGED_RUNS).is_file():
        raise UserError(
            f"the reports of the average are written next to its model file, but {folder} holds other files: name a "
            f"file in a folder of its own, such as -o {folder / 'average' / path.name}"
        )
    members = [_member(run, overrides) for run in runs]
    require_alike(members)
    config, classes = members[0].config, members[0].splits.classes
    parts = [_network(member) for member in members]
    _require_equal_maps(runs, parts, config.data.size)
    folder.mkdir(parents=True, exist_ok=True)
    require_writable(path)
    write_atomic(folder / AVERAGED_RUNS, json.dumps([str(run.resolve()) for run in runs], indent=1).encode())
    views = f"{config.data.views} views" if config.data.views > 1 else "one view"
    print(f"Evaluating the average of {', '.join(str(run) for run in runs)}, {views} of each image", flush=True)
    report = parsed_report(json.dumps(evaluate_average(members, folder)).encode(), classes)
    calibration = EqualPrevalence(report.calibration.temperature, report.calibration.offsets)
    info = info_of(folder, config, report, classes)
    splits = joint_splits(members)
    known = all_known_images(folder, config, splits)
    official = official_reports(folder, report, classes)
    with checked_file(path, Averaged(parts, calibration).cpu(), info, weights, splits, known) as (candidate, info):
        digest = hashlib.sha256(candidate.read_bytes()).hexdigest()
        text = model_card(report, info, digest, config, official=official)
        write_atomic(folder / "reliability.png", reliability_diagram(folder, info))
        write_atomic(folder / "MODEL_CARD.md", text.encode())
        candidate.replace(path)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB), {folder / 'MODEL_CARD.md'}. Next: `make demo MODEL={path}`.")
    return path


def _member(run: Path, overrides: Sequence[str]) -> Member:
    """Returns a run with its network; it is evaluated first if it was not since its last training."""
    config = with_overrides(open_run(run), run, overrides, "export")
    report = report_of(run, config, classes_of(run, config), overrides)
    splits = run_splits(run, config)
    require_same_pictures(ImageRecord.of_run(run), splits.validation, config)
    device = device_of(config, overrides)
    placement = Placement(device, "fp32", config.train.channels_last is True)
    network, state = load_best(run, config, splits.classes)
    require_reported(run, report, state)
    model = placement.place(network).eval()
    checks = checks_of(run, config, report).to(device)
    return Member(run, config, splits, Predictor(model, checks, config.data, placement), report)


def _network(member: Member) -> Exported:
    """Returns the network of a run, on its device, with the calibration of this run."""
    fitted = member.report.calibration
    calibration = EqualPrevalence(fitted.temperature, fitted.offsets)
    predictor = member.predictor
    return Exported(predictor.model, calibration, predictor.checks, member.config.data.views)


def _require_equal_maps(runs: Sequence[Path], parts: Sequence[Exported], size: int) -> None:
    """Checks that the activation maps of the networks can be averaged.

    Raises:
        UserError: they differ in size.
    """
    with torch.no_grad():
        pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        sizes = [tuple(part(pixels.to(part.offsets.device))[1].shape[2:]) for part in parts]
    for run, found in zip(runs, sizes, strict=True):
        if found != sizes[0]:
            raise UserError(
                f"{runs[0]} and {run} can't be averaged, because their activation maps have {sizes[0][0]} × "
                f"{sizes[0][1]} and {found[0]} × {found[1]} positions: name runs of one model.backbone"
            )
