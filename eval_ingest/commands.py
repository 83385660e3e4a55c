"""The commands of `eval-ingest`: each calls api.py, and prints what it gave.

What belongs here: one function a command, from its options to an exit code. What doesn't: flags
(cli.py), what is done (api.py and the rooms below), and the words (report/terminal.py).
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_ingest import api
from eval_ingest.completion import shell_code
from eval_ingest.engine import PROGRAM
from eval_ingest.errors import EvalIngestError, SpecError, UnknownDatasetError
from eval_ingest.flags import given_fields
from eval_ingest.redaction import in_json
from eval_ingest.report import terminal
from eval_ingest.report.printing import Progress, say, screen, told
from eval_ingest.settings import Settings
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root

if TYPE_CHECKING:
    from eval_ingest.pipeline import Outcome


def _show(options: argparse.Namespace, facts: Any, lines: list[str]) -> None:
    if options.json:
        say(in_json(json.dumps(facts, indent=2, ensure_ascii=False)))
    elif lines:
        say(told(lines))


def _progress(options: argparse.Namespace) -> Progress:
    return Progress(quiet=options.json, check=options.check)


def _root() -> EvalRoot:
    return api.tidied(Settings.load())


# --------------------------------------------------------------------------------------- ingest


def run_ingest(options: argparse.Namespace) -> int:
    """Ingest a dataset, or say what that would do."""
    spec = given_fields(options)
    if options.dry_run:
        planned = api.plan(options.name, **spec)
        _show(options, planned.facts, planned.lines())
        return 0
    if options.is_program:
        PROGRAM.set()
    with _progress(options) as progress:
        done = api.ingest(
            options.name,
            register=options.register,
            overwrite=options.overwrite,
            progress=progress,
            tell=progress.line,
            **spec,
        )
    _show(options, done.facts, done.lines())
    return 0


def run_adopt(options: argparse.Namespace) -> int:
    """Take over one dataset of another tool, or all; 1 if one of all failed."""
    from eval_ingest.adopting import adoptable

    names = adoptable(_root()) if options.all else [options.name]
    facts: dict[str, Any] = {}
    with _progress(options) as progress:

        def tell(done: "Outcome") -> None:
            if not options.all:
                progress.line(terminal.outcome_line(done))

        for name in names:
            try:
                adopted = api.adopt(name, correct=options.correct, progress=progress, each=tell)
            except EvalIngestError as error:
                if not options.all:
                    raise
                facts[name] = {"error": str(error)}
                print(told([f"error: {error}"], sys.stderr), file=sys.stderr)
                continue
            facts[name] = terminal.adopted_facts(adopted)
            for line in terminal.adopted_lines(adopted):
                progress.line(line)
    none = "there is nothing to adopt: no dataset of another tool is registered here"
    _show(options, facts, [] if names else [none])
    return 1 if any("error" in found for found in facts.values()) else 0


def run_validate(options: argparse.Namespace) -> int:
    """Show what is inferred of a dataset."""
    found = api.validate(options.name, **given_fields(options))
    _show(options, found.facts, found.lines())
    return 0


def run_discover(options: argparse.Namespace) -> int:
    """List what lies under some roots; 1 if one of them couldn't be looked into."""
    from eval_ingest.sources.looks import Memory
    from eval_ingest.watching import State, judge_all, survey

    settings = Settings.load()
    roots = options.root or settings.studio_roots
    if options.forget is not None:
        _forget(settings, options.forget)
        if not roots:
            text = f"{options.forget} is ingested again where it is found under a watched root"
            _show(options, {"forgotten": options.forget}, [text])
            return 0
    if not roots:
        raise SpecError("give --root PATH_OR_URL, or set EVAL_INGEST_STUDIO_ROOTS")
    found = survey(roots, settings, memory=partial(Memory, full=options.full))
    judgements = judge_all(found.sightings, settings, options.full)
    judged = list(zip(found.sightings, judgements, strict=True))
    facts = {
        "datasets": [
            {
                "name": sighting.name,
                "source": sighting.found.url,
                "fingerprint": sighting.found.fingerprint,
                "task": str(judgement.task.kind) if judgement.task else None,
                "windows": sighting.found.windows,
                "state": str(judgement.state),
                "reason": judgement.reason,
            }
            for sighting, judgement in judged
        ],
        "down": found.down,
    }
    _show(options, facts, terminal.discover_lines(roots, judged, found.down))
    unknown = any(judgement.state is State.UNKNOWN for judgement in judgements)
    return 1 if found.down or unknown else 0


def _forget(settings: Settings, name: str) -> None:
    from eval_ingest.store.catalog import forget_removed, removed_datasets

    if not forget_removed(settings, name):
        where, cure = "the list of removed datasets", "See eval-ingest discover."
        raise UnknownDatasetError(name, removed_datasets(settings), where, cure)


# ------------------------------------------------------------------------- looking at the root


def run_list(options: argparse.Namespace) -> int:
    """List what is registered, and what the catalog knows besides."""
    found = api.list_datasets(catalog=True)
    facts = {
        "eval_root": found.url,
        "registered": {name: one.entry for name, one in found.items() if one.entry},
        "catalog": {
            name: one.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for name, one in found.items()
            if one.spec is not None
        },
    }
    _show(options, facts, found.lines())
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Show all that is known of a dataset; of another tool's, its entry."""
    from eval_ingest.store.claims import their_entry

    root = _root()
    entry = their_entry(root, options.name)
    if entry is not None:
        _show(options, entry, terminal.entry_lines(options.name, entry))
        return 0
    found = api.Info.of(root, options.name, options.out)
    _show(options, found.metadata.model_dump(mode="json", by_alias=True), found.lines())
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Read everything back; 1 if something isn't as it was written."""
    with _progress(options) as progress:
        result = api.verify(options.name, progress=progress)
    lines = [f"{options.name}: {result.checked}"]
    lines += [f"  damaged: {problem}" for problem in result.problems]
    if result.problems:
        lines.append(f"repair it: eval-ingest ingest {options.name} --overwrite")
    else:
        lines.append("everything is as it was written")
    _show(options, result._asdict(), lines)
    return 1 if result.problems else 0


def run_report(options: argparse.Namespace) -> int:
    """Write pictures, page and card."""
    paths = [_root().shown(path) for path in api.write_report(options.name, out=options.out)]
    page = next(path for path in paths if path.endswith("report.html"))
    lines = [*(f"  {path}" for path in paths), f"look at {page}"]
    _show(options, {"name": options.name, "files": paths}, lines)
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Write a folder to publish."""
    name = options.name
    with _progress(options) as progress:
        path = api.export(name, options.to, windows=options.windows, progress=progress)
    lines = [
        f"{name} is in {path}; its card is {path / 'README.md'}",
        f'load it: EvalDataset("{name}", "train", root="{path.parent}")',
    ]
    _show(options, {"name": name, "path": str(path), "windows": options.windows}, lines)
    return 0


def run_publish(options: argparse.Namespace) -> int:
    """Publish a dataset on the Hub."""
    from eval_ingest.integrations.huggingface import publish

    citation = options.citation
    if citation and "\n" not in citation and Path(citation).expanduser().is_file():
        citation = Path(citation).expanduser().read_text()
    with _progress(options) as progress:
        found = publish(
            options.name,
            options.to,
            licence=options.licence,
            citation=citation,
            windows=options.windows,
            private=options.private,
            dry_run=options.dry_run,
            progress=progress,
        )
    facts = {"url": found.url, "files": found.files, "sent": found.sent, "commit": found.commit}
    _show(options, facts, found.lines(options.dry_run))
    return 0


def run_pull(options: argparse.Namespace) -> int:
    """Copy a dataset from the Hub."""
    from eval_ingest.integrations.huggingface import pull

    with _progress(options) as progress:
        path = pull(options.url, root=options.to, progress=progress)
    lines = [
        f"{path.name} is in {path}, as it was published",
        f'load it: EvalDataset("{path.name}", "train", root="{path.parent}")',
    ]
    _show(options, {"name": path.name, "path": str(path)}, lines)
    return 0


def run_remove(options: argparse.Namespace) -> int:
    """Delete a dataset, once a person has agreed; an adopted one is given back."""
    removed = api.remove(options.name, agreed=lambda what: options.yes or _agreed(what))
    if removed is None:
        print("nothing was deleted")
    else:
        _show(options, {"removed": removed.name}, removed.lines())
    return 0


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise SpecError(f"removing {what} needs --yes when nobody can be asked")
    return input(f"delete {what}? [y/N] ").strip().lower() == "y"


# --------------------------------------------------------------------------------------- scores


def run_sweep(options: argparse.Namespace) -> int:
    """Score encoders on datasets; 1 if one of them couldn't be."""
    from eval_ingest.sweep.run import run_sweep
    from eval_ingest.sweep.suite import Suite

    suite = Suite() if options.suite is None else Suite.load(options.suite)
    suite = suite.having(**{name: getattr(options, name, None) for name in Suite.model_fields})
    out, plots = options.out, []
    with _progress(options) as progress:
        tell = None if options.json else progress.line
        table = run_sweep(suite, out, device=options.device, progress=progress, tell=tell)
        if table.computed and not options.no_plots:
            plots = _draw(out)
    _show(options, table.facts(out, plots), table.lines(out, plots))
    return 1 if table.failures else 0


def _draw(out: Path) -> list[Path]:
    from eval_ingest.sweep.plots import draw
    from eval_ingest.sweep.results import read_rows

    return draw(read_rows(out), out / "plots")


def run_leaderboard(options: argparse.Namespace) -> int:
    """Show what sweeps found."""
    from eval_ingest.sweep.results import board_lines, leaderboard_json

    boards = api.leaderboard(options.out)
    if options.plots:
        _draw(options.out)
    width = screen() or 120
    lines = [line for board in boards for line in board_lines(board, width)]
    _show(options, leaderboard_json(boards), lines)
    return 0


def run_signal(options: argparse.Namespace) -> int:
    """Measure how well datasets tell models apart; 1 if one of them couldn't be measured."""
    from eval_ingest.store.atomic import write_bytes
    from eval_ingest.sweep.signal import signal

    with _progress(options) as progress:
        found = signal(
            "all" if options.all else options.name,
            encoders=options.encoders,
            most_windows=options.windows,
            budget_s=options.budget,
            progress=progress,
        )
    if options.suite is not None and found.suite:
        write_bytes(options.suite, found.suite_text.encode())
    _show(options, found.facts, found.lines())
    return 1 if found.failures else 0


def run_tasks(options: argparse.Namespace) -> int:
    """Print the registry as tasks: code and arguments are passed on, and never wrapped."""
    from eval_ingest.store.catalog import read_catalog
    from eval_ingest.sweep.tasks import as_overrides, as_python, left_out_lines, trainer_tasks

    settings = Settings.load()
    known = read_catalog(settings, broken={})
    found = trainer_tasks(open_root(settings), options.datasets, known)
    if options.json:
        tasks = {task.name: task.fields for task in found.tasks}
        facts = {"registry": found.registry, "tasks": tasks, "left_out": found.left_out}
        _show(options, facts, [])
    elif options.form == "python":
        print(as_python(found))
    else:
        print("\n".join(as_overrides(found)))
        # Not among the arguments: these lines go to xargs.
        print("\n".join(left_out_lines(found)), end="", file=sys.stderr)
    return 0


# ----------------------------------------------------------------------------------------- other


def run_completion(options: argparse.Namespace) -> int:
    """Print what a shell has to run."""
    code = shell_code(options.shell)
    say(json.dumps({"shell": options.shell, "code": code}) if options.json else code)
    return 0


def run_rebuild(options: argparse.Namespace) -> int:
    """Compile registry.json anew."""
    from eval_ingest.store.registry import rebuild_registry

    root = _root()
    entries = rebuild_registry(root)
    names = ", ".join(sorted(entries)) or "none"
    text = f"{root.shown(root.layout.registry)}: {len(entries)} datasets: {names}"
    _show(options, {"datasets": sorted(entries)}, [text])
    return 0
