"""scripts/bench: benchmarks of Foil and its peers on the same workloads and the same machine.

Every case alternates repetitions of its implementations, reports medians with their spread, and compares results with a
reference: if losses or greedy tokens disagree, the case is VOID and the exit status is 1.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import report, row_checkpoint, row_generate, row_parallel, row_round, row_train, row_weights
from peers.machine import Machine
from peers.setting import ROOT, Setting
from peers.table import Table

# The rows, in the order in which they run.
ROWS = {
    "generate": row_generate.generate,
    "eos": row_generate.eos,
    "reward": row_train.reward,
    "dpo": row_train.dpo,
    "smollm": row_train.smollm,
    "parallel": row_parallel.parallel,
    "round": row_round.whole_round,
    "checkpoint": row_checkpoint.checkpoint,
    "weights": row_weights.weights,
}
# The quick table omits rows that alone take minutes.
QUICK = ("generate", "eos", "reward", "dpo", "parallel", "checkpoint", "weights")
RESULTS = Path(__file__).with_name("RESULTS.md")
FULL_TURNS, QUICK_TURNS = (3, 5), (1, 2)  # warm-ups, repetitions


def row_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"no row is named {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    return names


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="less than 5 minutes: fewer rows, smaller work, 1 warm-up, 2 repetitions")
    add("--only", type=row_names, metavar="ROW[,ROW]", help=f"only these of: {', '.join(ROWS)}")
    add("--precision", choices=("fp32", "bf16"), help="only this one (default: both if a row has both)")
    add("--reps", type=positive, metavar="N", help="counted repetitions (default: 5; long cases take at most 3)")
    add("--threads", type=positive, default=2, metavar="N", help="threads of each implementation (default: 2)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device of all implementations (default: cpu)")
    add(
        "--data",
        type=Path,
        default=Path(os.environ.get("FOIL_TEST_MODELS", ROOT.parent / "shared")) / "data",
        metavar="DIR",
        help="folder with hh/, golden/ and tinystories.txt.gz (default: data in the folder of FOIL_TEST_MODELS; see tests/README.md)",
    )
    add("--json", type=Path, metavar="FILE", help="write all metrics to this file")
    add(
        "--write-results",
        action="store_true",
        help="write the table to scripts/peers/RESULTS.md; with --only, only these rows are replaced",
    )
    add("--no-build", action="store_true", help="measure target/release as it is")
    add("--peers-only", action="store_true", help="neither build nor run Foil: to work on the peers")
    chosen = parser.parse_args()
    if chosen.write_results and (chosen.quick or chosen.peers_only):
        parser.error("RESULTS.md contains complete cases: --write-results goes without --quick and --peers-only")
    return chosen


def require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        sys.exit("bench: --device cuda, but torch sees no CUDA device here (torch.cuda.is_available() is false)")


def build() -> None:
    command = ["cargo", "build", "--release", "--workspace", "--bins"]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode != 0:
        sys.exit(f"bench: `{' '.join(command)}` failed; see its messages above")


def main() -> None:
    # SIGTERM is an ordinary exit: runners are ended and scratch files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: stopped"))
    chosen = arguments()
    if chosen.device == "cuda":
        require_cuda()
    # Before the build, so that its load does not count as that of another program.
    table = Table(Machine.here(chosen.device, shlex.join(["scripts/bench", *sys.argv[1:]])))
    if not (chosen.peers_only or chosen.no_build):
        build()
    report.show_machine(table)
    warm_ups, repetitions = QUICK_TURNS if chosen.quick else FULL_TURNS
    with tempfile.TemporaryDirectory(prefix="foil-bench-") as scratch:
        setting = Setting(
            data=chosen.data,
            scratch=Path(scratch),
            device=chosen.device,
            threads=chosen.threads,
            precisions=(chosen.precision,) if chosen.precision else ("fp32", "bf16"),
            quick=chosen.quick,
            peers_only=chosen.peers_only,
        )
        turns = warm_ups, chosen.reps or repetitions
        for name in chosen.only or (QUICK if chosen.quick else ROWS):
            table.run(name, ROWS[name], setting, turns, report.show_latest)
    report.show_end(table)
    if chosen.json:
        report.write_json(chosen.json, table)
    if chosen.write_results:
        write = report.update_results if chosen.only and RESULTS.exists() else report.write_results
        write(RESULTS, table)
    if table.unsound:
        sys.exit(f"bench: void, failed or skipped: {', '.join(table.unsound)}")


if __name__ == "__main__":
    main()
