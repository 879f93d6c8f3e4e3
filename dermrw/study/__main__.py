"""`python -m dermrw.study`: performs the missing runs of the study, then writes the report from all results."""

import argparse
import shlex
import sys
import warnings
from difflib import get_close_matches
from pathlib import Path

from dermrw.errors import UserError, plain_endings
from dermrw.files import filled
from dermrw.study.plan import RESULTS, Run, read_plan


def main() -> None:
    """Runs the study from the command line."""
    parser = argparse.ArgumentParser("dermrw.study", description=__doc__)
    parser.add_argument("--budget", default="cpu", help="cpu, full, embeddings, alone or toy (default: %(default)s)")
    parser.add_argument("--table", action="append", help="perform only this table; repeat it for several tables")
    parser.add_argument(
        "--run", type=filled, metavar="NAME", help="perform only this run, such as ham_reweight-0, in this process"
    )
    parser.add_argument(
        "--again", action="store_true", help="with --run: repeat a finished run and compare it with its result"
    )
    parser.add_argument("--list", action="store_true", help="print the commands of the missing runs")
    parser.add_argument("--report", action="store_true", help="write the report from the existing results")
    parser.add_argument("--jobs", type=_jobs, help="number of runs at a time (default: one per GPU, or per core)")
    parser.add_argument("--hours", type=_hours, help="start no further run after this many hours")
    parser.add_argument("--ray", action="store_true", help="distribute the runs with Ray")
    parser.add_argument(
        "--weights", help="file of ImageNet weights for the HAM10000 runs (default: those of torchvision)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    with plain_endings("dermrw.study"):
        _run(arguments)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of hours, not {text}")
    return hours


def _run(arguments: argparse.Namespace) -> None:
    plan = read_plan()
    if arguments.budget not in plan.budgets:
        raise UserError(f"--budget must be {' or '.join(plan.budgets)}, not {arguments.budget}")
    tables = plan.tables_of(arguments.budget)
    unknown = [name for name in arguments.table or [] if name not in tables]
    if unknown:
        raise UserError(f"--budget {arguments.budget} has no table {unknown[0]}: choose one of {', '.join(tables)}")
    if sum([arguments.report, arguments.list, bool(arguments.run)]) > 1:
        raise UserError("--report, --list and --run exclude each other: give only one of them")
    if not RESULTS.is_dir() and not arguments.run:
        print(f"dermrw.study: {RESULTS} is not in this folder, so all runs count as missing", file=sys.stderr)
    runs = plan.runs(arguments.budget, arguments.table)
    if arguments.report:
        _report(arguments.budget)
        return
    from dermrw.study.execute import (
        Options,
        check_weights,
        command,
        execute,
        execute_again,
        find_data,
        run_all,
        run_with_ray,
        workers,
    )
    from dermrw.study.result import finished

    if arguments.weights and not Path(arguments.weights).expanduser().is_file():
        raise UserError(f"--weights {arguments.weights} is not a file: name a file of ImageNet weights")
    options = Options(arguments.weights, arguments.keep)
    if arguments.run:
        (execute_again if arguments.again else execute)(_named(plan.runs(arguments.budget), arguments.run), options)
        return
    if arguments.again:
        raise UserError("--again requires the name of a run: --run NAME --again")
    missing = [run for run in runs if not finished(run)]
    if arguments.list:
        for run in missing:
            print(shlex.join(["python", *command(run, options)[1:]]))
        return
    jobs = arguments.jobs or workers()
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished; {len(missing)} remain, {jobs} at a time")
    find_data(missing)
    check_weights(missing, options)
    seconds = None if arguments.hours is None else 3600 * arguments.hours
    failed = []
    for run, status in run_with_ray(missing, options) if arguments.ray else run_all(missing, options, jobs, seconds):
        print(f"{run.name}: {'done' if status == 0 else f'failed with status {status}'}", flush=True)
        failed += [run.name] if status else []
    _report(arguments.budget)
    if failed:
        sys.exit(f"dermrw.study: {len(failed)} runs failed ({', '.join(failed[:5])}): read runs/study/NAME.log")


def _named(runs: list[Run], name: str) -> Run:
    matches = [run for run in runs if run.name == name]
    if not matches:
        names = [run.name for run in runs]
        close = (get_close_matches(name, names, 1) or names)[0]  # --list prints only what is missing
        raise UserError(f"the study has no run {name}: name a row and a seed, such as {close}")
    return matches[0]


def _report(budget: str) -> None:
    from dermrw.study.report import write_report

    print(write_report(budget))


if __name__ == "__main__":
    main()
