"""`python -m export RUN`: writes the run's model.onnx, MODEL_CARD.md and encoder.safetensors."""

import argparse
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from pydantic import ValidationError

import dermrw
from dermrw.config import Config
from dermrw.datasets.dataset import Splits
from dermrw.datasets.licences import licences_of
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.lesion_rule import LESION_RULE
from dermrw.decisions.triage import LEAST_POSITIVE, few_positive
from dermrw.diagnoses import DX, Classes
from dermrw.errors import UserError, plain_endings
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.evaluate import with_overrides
from dermrw.evaluation.image_checks import Checks
from dermrw.evaluation.predict import load_best
from dermrw.files import filled, open_regular, path_argument, require_writable, write_atomic
from dermrw.images.preprocess import Framing, read_image
from dermrw.inference.known_images import KnownImages
from dermrw.inference.model_file import (
    AveragedRun,
    ModelInfo,
    Precision,
    Proportion,
    Score,
    Triage,
    first_fault,
    resize_sentence,
)
from dermrw.inference.shipped import shipped_model
from dermrw.reports.report_schema import DefinedReport, Report, ShareWithInterval
from dermrw.reports.report_text import report_unit
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.image_record import METADATA, ImageRecord
from dermrw.training.run_data import classes_of, run_splits
from dermrw.training.run_folder import latest_run, open_run

from .build import build, check
from .card import model_card
from .diagram import reliability_diagram
from .encoder import encoder_of_model_file, write_encoder
from .half_weights import compare_precisions, rounded_network, store_half_weights
from .network import Averaged, Exported
from .report import official_reports, report_of, require_reported, score_reports
from .training_images import add_list, known_images

PICTURES = 12  # number of images in the comparison with torch
COMPARED = 200  # number of images in the comparison of fp16 with fp32 weights
MOST_LICENCE = 2000  # characters that a model file can state


def export(run: Path, overrides: Sequence[str], weights: Precision = "fp32") -> Path:
    """Writes RUN/model.onnx, after a check that ONNX Runtime agrees with torch, MODEL_CARD.md and encoder.safetensors.

    Args:
        run: the run's folder.
        overrides: `data.root=FOLDER` where the data has moved; `data.views=NUMBER` as in the evaluation.
        weights: how the weights of the layers are stored; fp16 halves the file.

    Raises:
        UserError: the run can't be read, the data of a run that is not evaluated yet can't be found, or ONNX Runtime
            disagrees with torch. Files of an earlier export are then unchanged.
    """
    config = with_overrides(open_run(run), run, overrides, "export")
    path, card, encoder = run / "model.onnx", run / "MODEL_CARD.md", run / "encoder.safetensors"
    for place in (path, card, encoder):
        require_writable(place)
    classes = classes_of(run, config)
    report = report_of(run, config, classes, overrides)
    evaluated = report.views or open_run(run).data.views  # reports of before 28 November 2026 have no views
    if config.data.views != evaluated:
        raise UserError(
            f"{run} was evaluated with data.views={evaluated}, not {config.data.views}: export it with "
            f"data.views={evaluated}, or evaluate it again with data.views={config.data.views}"
        )
    model, state = load_best(run, config, classes)
    require_reported(run, report, state)
    calibration = EqualPrevalence(report.calibration.temperature, report.calibration.offsets)
    network = Exported(model, calibration, checks_of(run, config, report), config.data.views)
    info = info_of(run, config, report, classes)
    print(f"Exporting {run}, {config.model.backbone}, epoch {report.epoch}", flush=True)
    splits = _splits(run, config)
    known = all_known_images(run, config, splits)
    official = official_reports(run, report, classes)

    with checked_file(path, network, info, weights, splits, known) as (candidate, info):
        digest = hashlib.sha256(candidate.read_bytes()).hexdigest()
        scores = score_reports(run, digest)
        text = model_card(report, info, digest, config, official=official, scores=scores)
        write_atomic(run / "reliability.png", reliability_diagram(run, info))
        write_atomic(card, text.encode())
        images = {METADATA: ImageRecord.of_run(run).to_text()}
        write_encoder(model, encoder, config.model.backbone, config.data.size, _origin(info), info.licence, images)
        candidate.replace(path)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB), {card}, {encoder}. Next: `make demo RUN={run}`.")
    return path


@contextmanager
def checked_file(
    path: Path,
    network: Exported | Averaged,
    info: ModelInfo,
    weights: Precision,
    splits: Splits | None,
    known: KnownImages | None,
) -> Iterator[tuple[Path, ModelInfo]]:
    """Builds a model file under a temporary name next to `path`, checks it, and removes it at the end.

    Yields:
        the temporary file, and the metadata in it.

    Raises:
        UserError: ONNX Runtime and torch disagree.
    """
    candidate, whole = path.with_name(".model.onnx.unchecked"), path.with_name(".model.onnx.fp32")
    pictures, kind = _pictures(splits, PICTURES)
    try:
        graph = build(network, info)
        if weights == "fp16":
            info = info.model_copy(update={"weights": weights})
            write_atomic(whole, graph.SerializeToString())
            network = rounded_network(network, graph)
            store_half_weights(graph)
            write_atomic(candidate, graph.SerializeToString())
            if kind == "validation images":
                rounding = compare_precisions(whole, candidate, _pictures(splits, COMPARED)[0])
                info = info.model_copy(update={"rounding": rounding})
                print(f"Weights in fp16, compared with fp32: {rounding}.", flush=True)
            del graph.metadata_props[:]
            onnx.helper.set_model_props(graph, info.to_props())
        content = graph.SerializeToString()
        write_atomic(candidate, content if known is None else add_list(content, known))
        worst = check(candidate, network, pictures)
        print(f"ONNX Runtime agrees with torch to {worst:.0e} on {len(pictures)} {kind}, in several batch sizes.")
        yield candidate, info
    finally:
        candidate.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)


def _origin(info: ModelInfo) -> str:
    return f"{info.name} (sha256 of best.pt {info.digest})"


def export_encoder(model: Path, out: Path) -> None:
    """Writes only the encoder, of a run (its best epoch) or of a model file.

    Raises:
        UserError: as of `encoder_of_model_file`; or the run can't be read.
    """
    require_writable(out)
    if not model.is_dir():
        runs, worst = encoder_of_model_file(model, out)
        part = f", the first of its {runs} networks" if runs else ""
        print(f"{out}: the encoder of {model}{part}. Its embeddings agree with ONNX Runtime to {worst:.0e}.")
        return
    config = open_run(model)
    codes = tuple(load_checkpoint(model / "best.pt")["classes"])
    network, state = load_best(model, config, Classes(codes, codes, codes, None))
    digest = hashlib.sha256((model / "best.pt").read_bytes()).hexdigest()
    origin = f"{model.resolve().name} (sha256 of best.pt {digest})"
    licence, images = _licence(model, config), {METADATA: ImageRecord.of_run(model).to_text()}
    write_encoder(network, out, config.model.backbone, config.data.size, origin, licence, images)
    print(f"{out}: the encoder of {model}, epoch {state['epoch']}")


def info_of(run: Path, config: Config, report: DefinedReport, classes: Classes) -> ModelInfo:
    """Returns the metadata of the model file of a run, or of an average that was evaluated in the folder `run`."""
    no_triage = no_triage_reason(report)
    try:
        triage = None if no_triage else _triage(report)
        return ModelInfo(
            format="dermrw 2" if report.decisions.triage_prevalence is None else "dermrw 3",
            name=run.resolve().name,
            created=time.strftime("%Y-%m-%d", time.gmtime()),
            version=dermrw.__version__,
            digest=report.checkpoint_sha256,
            runs=tuple(
                AveragedRun(name=part.run, backbone=part.backbone, digest=part.checkpoint_sha256)
                for part in report.runs or ()
            ),
            backbone=report.backbone,
            objective=report.objective,
            origin=report.weights,
            size=config.data.size,
            resize=resize_sentence(Framing.of(config.data)),
            field_of_view=config.data.field_of_view,
            crop=config.data.crop,
            interpolation=Framing.of(config.data).interpolation,
            colour_constancy=config.model.colour_constancy,
            codes=classes.codes,
            columns=classes.columns,
            names=classes.names,
            malignant=classes.malignant,
            **({"subject": "lesion"} if report_unit(report) == "lesions" else {}),
            temperature=report.calibration.temperature,
            offsets=report.calibration.offsets,
            prevalence=report.training_prevalence,
            lesion_rule=LESION_RULE,
            smallest=config.data.size // 2,
            limits=report.decisions.limits,
            refused=_proportion(report.decided.refused),
            coverage=report.decisions.fitted.sets.coverage,
            thresholds=tuple(report.decisions.thresholds.values()),
            covered=_proportion(report.decided.sets.coverage if report.decided.sets else None),
            triage=triage,
            no_triage=no_triage,
            score=Score(
                balanced_accuracy=report.balanced_accuracy,
                interval_95=report.interval_95,
                scored_on=report.scored_on,
                images=report.images,
            ),
            warning=report.warning,
            licence=_licence(run, config),
        )
    except ValidationError as error:
        raise UserError(f"{run} can't be exported, because a model file can't store its {first_fault(error)}") from None


def _licence(run: Path, config: Config) -> str:
    """Sentences on the licence of the data, and of the weights that the run, or a run of the average, started from."""
    own = licences_of(config)
    records = ImageRecord.of_runs(run)
    earlier = dict.fromkeys(sentence for record in records for sentence in record.licences if sentence not in own)
    text = " ".join([*own, *(f"Training started from weights with this licence: {sentence}" for sentence in earlier)])
    return text if len(text) <= MOST_LICENCE else f"{text[: MOST_LICENCE - 2]} …"


def _proportion(part: ShareWithInterval | None) -> Proportion | None:
    if part is None:
        return None
    return Proportion(share=part.share, interval_95=part.interval_95, images=part.images)


def no_triage_reason(report: Report) -> str | None:
    """Returns the reason why a run on the user's own images has no triage.

    Reports of dermrw before 28 November 2026 have a threshold even if no threshold can have the sensitivity that is
    aimed at. Such a threshold is not exported.
    """
    fitted = report.decisions.fitted.triage
    if report.data == "table" and fitted and fitted.validation.sensitivity.lesions < LEAST_POSITIVE:
        return few_positive(fitted.validation.sensitivity.lesions, report_unit(report))
    return report.decisions.no_triage


def _triage(report: DefinedReport) -> Triage | None:
    if report.decisions.triage_threshold is None:
        return None
    point = report.decided.triage
    return Triage(
        threshold=report.decisions.triage_threshold,
        sensitivity=_proportion(point.sensitivity if point else None),
        specificity=_proportion(point.specificity if point else None),
        prevalence=report.decisions.triage_prevalence,
    )


def checks_of(run: Path, config: Config, report: DefinedReport) -> Checks:
    """Returns the image checks that `eval` fitted.

    Raises:
        UserError: the file is absent or damaged, of another evaluation than the report, or fitted on changed colours.
    """
    path = run / "familiarity.npz"
    try:
        with open_regular(path) as file:
            content = file.read()
        if report.checks_sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError("it is not of the evaluation that wrote report.json")
        checks = Checks.load(content)
        if config.model.colour_constancy != "none" and not checks.own_colours:
            raise ValueError("an earlier version of dermrw fitted it on pixels with colour constancy")
        return checks
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be used ({error}): write it again with `make eval RUN={run}`") from None


def _splits(run: Path, config: Config) -> Splits | None:
    """The run's image sets; None, with a message, if the images cannot be read."""
    try:
        return run_splits(run, config)
    except UserError as error:
        print(f"The images of the run can't be read: {error}", flush=True)
        return None


def all_known_images(run: Path, config: Config, splits: Splits | None) -> KnownImages | None:
    """The list of the run's training images: without the images, of their ids alone; None for CIFAR-10's numbers."""
    if config.data.name == "cifar10":
        return None
    records = ImageRecord.of_runs(run)
    if splits is None and not all(len(record.fitted.hashes) for record in records):
        print("The model file lists the ids of its training images, but not their perceptual hashes.", flush=True)
    # those of the records are of 224 px, and small copies are found best by hashes of their own size
    known = KnownImages.of([], []) if splits is None else known_images(splits, config)
    for record in records:
        known = known.united(record.known)
    return known


def _pictures(splits: Splits | None, count: int) -> tuple[list[npt.NDArray[np.uint8]], str]:
    """Returns images of the run's validation split, or drawn ones if the data is not available, and a description."""
    try:
        if splits is not None:
            sources = splits.validation.sources
            chosen = [sources[i] for i in np.linspace(0, len(sources) - 1, min(count, len(sources))).astype(int)]
            return [np.asarray(read_image(source)) for source in chosen], "validation images"
    except UserError as error:
        print(f"The images of the run can't be read: {error}", flush=True)
    print("The check uses drawn pictures.", flush=True)
    drawn = [
        draw_lesion(DX[i % len(DX)], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 200 + 9 * i, 270)
        for i in range(count)
    ]
    return drawn, "drawn pictures"


def main(command_line: Sequence[str] | None = None, program: str = "python -m export") -> None:
    """Runs the export. A user error prints one sentence and exits with status 2.

    Args:
        command_line: the arguments; default: those of the process.
        program: the name of the command, for messages.
    """
    parser = argparse.ArgumentParser(
        program, description="Write a run's model as one .onnx file, and its encoder; or the average of several runs."
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        type=filled,
        metavar="RUN | key=value",
        help="the run's folder (default: the latest), or several with -o; with --encoder a model file, too (default: "
        "the one shipped); and key=value, such as data.root=FOLDER if the data has moved",
    )
    parser.add_argument(
        "-o", "--out", type=path_argument, metavar="FILE", help="the model file of several runs, in a folder of its own"
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "fp16"),
        default="fp32",
        help="how the file stores the weights of its layers (default: %(default)s); fp16 halves the file, and "
        "everything is still computed in float32; the command compares both on validation images",
    )
    parser.add_argument(
        "--encoder", type=path_argument, metavar="FILE", help="write only the network without its head, as safetensors"
    )
    arguments = parser.parse_intermixed_args(command_line)
    overrides = [item for item in arguments.arguments if "=" in item]
    runs = [Path(item) for item in arguments.arguments if "=" not in item]
    with plain_endings(program.removeprefix("python -m ")):
        if arguments.encoder:
            if overrides:
                parser.error(f"--encoder takes no key=value, such as {overrides[0]}")
            if len(runs) > 1:
                parser.error("--encoder takes one run or model file")
            export_encoder(runs[0] if runs else shipped_model(), arguments.encoder)
        elif len(runs) > 1:
            if arguments.out is None:
                parser.error("several runs are averaged: name the model file with -o FILE")
            from .average import export_average  # it imports this module

            export_average(runs, arguments.out, overrides, arguments.weights)
        elif arguments.out is not None:
            parser.error("-o is for the average of several runs: a single run's model file is RUN/model.onnx")
        else:
            export(runs[0] if runs else latest_run(), overrides, arguments.weights)


if __name__ == "__main__":
    main()
