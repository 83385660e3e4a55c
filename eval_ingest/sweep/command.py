"""The commands `sweep`, `leaderboard` and `tasks`: flags in, lines out."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_ingest.core.arguments import folder_fault
from eval_ingest.errors import brief
from eval_ingest.flags import add_suite_flags

if TYPE_CHECKING:
    from eval_ingest.sweep.results import Cell, Leaderboard, ResultTable
    from eval_ingest.sweep.suite import Suite

AddCommand = Callable[..., argparse.ArgumentParser]

DEFAULT_OUT = "sweep_results"

TASKS_EXAMPLES = """\
examples:
  eval-ingest tasks --format olmoearth > our_tasks.py
  eval-ingest tasks --format olmoearth --datasets tolbi_crops nandi
  eval-ingest tasks --format olmoearth --as overrides | \\
    xargs python train.py train my_run local
"""

SIGNAL_EXAMPLES = """\
examples:
  eval-ingest signal tolbi_crops
  eval-ingest signal --all --budget 120 --suite suites/proposed.yaml
"""


def _folder(text: str) -> Path:
    if fault := folder_fault(text):
        raise argparse.ArgumentTypeError(f"{brief(text, 60)} {fault}; give a folder here")
    return Path(text).expanduser()  # a shell doesn't in --out=~/sweeps


def add_commands(commands: Any, add_command: AddCommand) -> None:
    """Add the commands.

    Args:
        commands: what argparse's add_subparsers returned.
        add_command: called with (commands, name, function, help).
    """
    sweep = add_command(
        commands, "sweep", _sweep, "score frozen encoders on ingested datasets, all or some"
    )
    add = sweep.add_argument
    add("--suite", type=_folder, metavar="YAML", help="a suite; flags win over what it says")
    add_suite_flags(sweep)
    add("--device", help="cpu or cuda; default: a GPU if there is one")
    text = f"default {DEFAULT_OUT}"
    add("--out", type=_folder, default=Path(DEFAULT_OUT), metavar="DIR", help=text)
    add("--no-plots", action="store_true", help="no pictures")

    board = add_command(commands, "leaderboard", _leaderboard, "scores: datasets by encoders")
    board.add_argument("--out", type=_folder, default=Path(DEFAULT_OUT), metavar="DIR")
    board.add_argument("--plots", action="store_true", help="draw the pictures anew")

    measure = add_command(
        commands,
        "signal",
        _signal,
        "how well datasets tell models apart",
        SIGNAL_EXAMPLES,
        "needed",
    )
    add = measure.add_argument
    add("--all", action="store_true", help="every dataset; proposes a suite")
    add("--encoder", dest="encoders", nargs="+", metavar="NAME",
        help="more models than constant, noise and pixels; default random, and olmoearth:nano "
        "if its weights are at hand")  # fmt: skip
    add("--windows", type=int, default=256, metavar="N", help="of a split at most; default 256")
    add("--budget", type=float, default=60.0, metavar="SECONDS", help="of the suite; default 60")
    add("--suite", type=_folder, metavar="YAML", help="where the proposed suite is written")

    tasks = add_command(
        commands,
        "tasks",
        _tasks,
        "the registry as downstream tasks of another trainer",
        TASKS_EXAMPLES,
    )
    add = tasks.add_argument
    add("--format", choices=("olmoearth",), default="olmoearth", help="whose trainer")
    add(
        "--as",
        dest="form",
        choices=("python", "overrides"),
        default="python",
        help="a Python module with EVAL_TASKS (default), or command line arguments",
    )
    add("--datasets", nargs="+", default=[], metavar="NAME", help="default: all")


def _sweep(options: argparse.Namespace) -> int:
    from eval_ingest.report.printing import Progress, say, told
    from eval_ingest.sweep.run import run_sweep

    with Progress(quiet=options.json) as progress:
        table = run_sweep(
            _suite(options),
            options.out,
            device=options.device,
            progress=progress,
            tell=None if options.json else progress.line,
        )
        plots = []
        if table.computed and not options.no_plots:
            plots = _draw(options.out)
    if options.json:
        say(json.dumps(_facts(table, options.out, plots), indent=2, ensure_ascii=False))
    else:
        say(told(_summary(table, options.out, plots)))
    return 1 if table.failures else 0


def _suite(options: argparse.Namespace) -> "Suite":
    from eval_ingest.sweep.suite import Suite

    suite = Suite() if options.suite is None else Suite.load(options.suite)
    return suite.having(**{name: getattr(options, name, None) for name in Suite.model_fields})


def _draw(out: Path) -> list[Path]:
    from eval_ingest.sweep.plots import draw
    from eval_ingest.sweep.results import read_rows

    return draw(read_rows(out), out / "plots")


def _facts(table: "ResultTable", out: Path, plots: Sequence[Path]) -> dict[str, Any]:
    return {
        "rows": [row.model_dump(mode="json") for row in table.rows],
        "computed": table.computed,
        "failures": [failure.__dict__ for failure in table.failures],
        "out": str(out),
        "plots": [str(path) for path in plots],
    }


def _summary(table: "ResultTable", out: Path, plots: Sequence[Path]) -> list[str]:
    lines = []
    if table.rows:
        old = len(table.rows) - table.computed
        new = f"{table.computed} new score{'s' * (table.computed != 1)}"
        lines += ["", f"{new}, {old} there already, in {out}"]
        lines.append(f"see them: eval-ingest leaderboard --out {out}")
    if plots:
        lines.append(f"pictures: {plots[0].parent} ({len(plots)})")
    if table.failures:
        names = ", ".join(f"{failure.encoder} on {failure.dataset}" for failure in table.failures)
        lines += ["", f"{len(table.failures)} failed, see above: {names}"]
    return lines


def _leaderboard(options: argparse.Namespace) -> int:
    from eval_ingest.sweep.results import leaderboard_json, leaderboards, read_rows

    boards = leaderboards(read_rows(options.out))
    if options.plots:
        _draw(options.out)
    if options.json:
        print(json.dumps(leaderboard_json(boards), indent=2, ensure_ascii=False))
    else:
        from eval_ingest.report.printing import say, screen, told

        width = screen() or 120
        say(told([line for board in boards for line in board_lines(board, width)]))
    return 0


def _signal(options: argparse.Namespace) -> int:
    from eval_ingest.report.printing import Progress, say, told
    from eval_ingest.store.atomic import write_bytes
    from eval_ingest.sweep.signal import signal

    with Progress(quiet=options.json) as progress:
        found = signal(
            "all" if options.all else options.name,
            encoders=options.encoders,
            most_windows=options.windows,
            budget_s=options.budget,
            progress=progress,
        )
    if options.suite is not None and found.suite:
        write_bytes(options.suite, found.suite_text.encode())
    if options.json:
        print(json.dumps(found.facts, indent=2, ensure_ascii=False))
    else:
        say(told(found.lines()))
    return 1 if found.failures else 0


def _tasks(options: argparse.Namespace) -> int:
    from eval_ingest.settings import Settings
    from eval_ingest.store.catalog import read_catalog
    from eval_ingest.store.roots.open import open_root
    from eval_ingest.sweep.tasks import as_overrides, as_python, left_out_lines, trainer_tasks

    settings = Settings.load()
    root = open_root(settings)
    found = trainer_tasks(root, options.datasets, read_catalog(settings, broken={}))
    if options.json:
        tasks = {task.name: task.fields for task in found.tasks}
        facts = {"registry": found.registry, "tasks": tasks, "left_out": found.left_out}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif options.form == "python":
        print(as_python(found))
    else:
        print("\n".join(as_overrides(found)))
        # Not among the arguments: these lines go to xargs.
        print("\n".join(left_out_lines(found)), end="", file=sys.stderr)
    return 0


def board_lines(board: "Leaderboard", width: int = 120) -> list[str]:
    """A leaderboard as a table; the best of each dataset is starred.

    Datasets by encoders where that fits into so many columns, else a line per dataset and encoder.
    """
    from eval_ingest.report.printing import table

    seeds = max((cell.seeds for cell in board.cells.values()), default=1)
    title = (
        f"{board.split} scores, probes trained on {100 * board.label_fraction:.4g}% of train"
        + (
            f"; means of up to {seeds} seeds; [lowest and highest end of their 95% intervals]"
            if seeds > 1
            else "; [95% interval]"
        )
        + ("; * best" if len(board.encoders) > 1 else "")
    )
    wide = [["dataset", "metric", "train", board.split, *board.encoders]]
    tall = [["dataset", "metric", "train", board.split, "encoder", "score"]]
    for dataset in board.datasets:
        best = board.best(dataset)
        cells = {e: board.cells[dataset, e] for e in board.encoders if (dataset, e) in board.cells}
        if not cells:
            continue
        one = next(iter(cells.values()))
        metric = one.metric + (" (low)" if one.lower_is_better else "")
        facts = [dataset, metric, f"{one.n_train:,}", f"{one.n_test:,}"]
        texts = {e: _cell(cell, e in best) for e, cell in cells.items()}
        wide.append([*facts, *(texts.get(e, "-") for e in board.encoders)])
        for encoder, text in texts.items():
            tall.append([*facts, encoder, text])
            facts = [""] * len(facts)
    lines = table(wide, width=sys.maxsize)
    if max(map(len, lines)) > width:
        lines = table(tall)
    return [title, *lines, ""]


def _cell(cell: "Cell", best: bool) -> str:
    score = _number(cell.score) + ("*" if best else " ")
    if cell.low is None or cell.high is None:
        return score
    return f"{score} [{_number(cell.low)}, {_number(cell.high)}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
