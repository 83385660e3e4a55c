"""The commands of `eval-ingest`: each calls api.py, and tells what it gave.

What belongs here: one function a command, from its options to what is printed. What doesn't: flags
(cli.py), what is done (api.py and the rooms below), and the words (report/terminal.py).
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval_ingest import api
from eval_ingest.completion import shell_code
from eval_ingest.core.arguments import place_fault
from eval_ingest.engine import PROGRAM
from eval_ingest.errors import EvalIngestError, SpecError, UnknownDatasetError, optional_part
from eval_ingest.flags import given_fields
from eval_ingest.redaction import in_json
from eval_ingest.report import terminal
from eval_ingest.report.printing import Progress, say, screen, told
from eval_ingest.settings import Settings, user_path
from eval_ingest.store.atomic import read_bytes
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root

if TYPE_CHECKING:
    from eval_ingest.pipeline import Outcome


class Told(NamedTuple):
    """What a command tells."""

    facts: Any
    """For programs, as JSON."""
    lines: list[str]
    """For people."""
    failed: bool = False
    """True: it exits with 1."""


def run(command: str, options: argparse.Namespace) -> int:
    """Run a command, print what it tells, and give its exit code."""
    with Progress(quiet=options.json, check=options.check) as options.progress:
        found: Told = globals()[f"run_{command}"](options)
    if options.json:
        say(in_json(json.dumps(found.facts, indent=2, ensure_ascii=False)))
    elif found.lines:
        say(told(found.lines))
    return int(found.failed)


def _root() -> EvalRoot:
    return api.tidied(Settings.load())


# --------------------------------------------------------------------------------------- ingest


def run_ingest(options: argparse.Namespace) -> Told:
    """Ingest a dataset, or say what that would do."""
    spec = given_fields(options)
    if options.dry_run:
        planned = api.plan(options.name, overwrite=options.overwrite, **spec)
        return Told(planned.facts, planned.lines())
    if options.is_program:
        PROGRAM.set()
    done = api.ingest(
        options.name,
        register=options.register,
        overwrite=options.overwrite,
        progress=options.progress,
        tell=options.progress.line,
        **spec,
    )
    return Told(done.facts, done.lines())


def run_adopt(options: argparse.Namespace) -> Told:
    """Take over one dataset of another tool, or all; it fails if one of all did."""
    from eval_ingest.adopting import adoptable

    names = adoptable(_root()) if options.all else [options.name]
    facts: dict[str, Any] = {}
    progress = options.progress

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
    failed = any("error" in found for found in facts.values())
    return Told(facts, [] if names else [none], failed)


def run_validate(options: argparse.Namespace) -> Told:
    """Show what is inferred of a dataset."""
    found = api.validate(options.name, **given_fields(options))
    return Told(found.facts, found.lines())


def run_discover(options: argparse.Namespace) -> Told:
    """List what lies under some roots; it fails if one of them couldn't be looked into."""
    from eval_ingest.sources.looks import Memory
    from eval_ingest.watching import State, judge_all, survey

    settings = Settings.load()
    roots = options.root or settings.studio_roots
    if options.forget is not None:
        _forget(settings, options.forget)
        if not roots:
            text = f"{options.forget} is ingested again where it is found under a watched root"
            return Told({"forgotten": options.forget}, [text])
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
    unknown = any(judgement.state is State.UNKNOWN for judgement in judgements)
    lines = terminal.discover_lines(roots, judged, found.down)
    return Told(facts, lines, bool(found.down) or unknown)


def _forget(settings: Settings, name: str) -> None:
    from eval_ingest.store.catalog import forget_removed, removed_datasets

    if not forget_removed(settings, name):
        where, cure = "the list of removed datasets", "See eval-ingest discover."
        raise UnknownDatasetError(name, removed_datasets(settings), where, cure)


# ------------------------------------------------------------------------- looking at the root


def run_list(options: argparse.Namespace) -> Told:
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
    return Told(facts, found.lines())


def run_info(options: argparse.Namespace) -> Told:
    """Show all that is known of a dataset; of another tool's, its entry."""
    from eval_ingest.store.claims import their_entry

    root = _root()
    entry = their_entry(root, options.name)
    if entry is not None:
        return Told(entry, terminal.entry_lines(options.name, entry))
    found = api.Info.of(root, options.name, options.out)
    return Told(found.metadata.model_dump(mode="json", by_alias=True), found.lines())


def run_verify(options: argparse.Namespace) -> Told:
    """Read everything back; it fails if something isn't as it was written."""
    result = api.verify(options.name, progress=options.progress)
    lines = [f"{options.name}: {result.checked}"]
    lines += [f"  damaged: {problem}" for problem in result.problems]
    if result.problems:
        lines.append(f"repair it: {result.cure}")
    else:
        lines.append("everything is as it was written")
    return Told(result._asdict(), lines, bool(result.problems))


def run_report(options: argparse.Namespace) -> Told:
    """Write pictures, page and card."""
    paths = [_root().shown(path) for path in api.write_report(options.name, out=options.out)]
    page = next(path for path in paths if path.endswith("report.html"))
    lines = [*(f"  {path}" for path in paths), f"look at {page}"]
    return Told({"name": options.name, "files": paths}, lines)


def run_export(options: argparse.Namespace) -> Told:
    """Write a folder to publish."""
    name, windows = options.name, options.windows
    path = api.export(name, options.to, windows=windows, progress=options.progress)
    lines = [f"{name} is in {path}; its card is {path / 'README.md'}", _load(path)]
    return Told({"name": name, "path": str(path), "windows": windows}, lines)


def _load(path: Path) -> str:
    return f'load it: EvalDataset("{path.name}", "train", root="{path.parent}")'


def run_publish(options: argparse.Namespace) -> Told:
    """Publish a dataset on the Hub."""
    from eval_ingest.integrations.huggingface import publish

    found = publish(
        options.name,
        options.to,
        licence=options.licence,
        citation=None if options.citation is None else _text_or_file(options.citation),
        windows=options.windows,
        private=options.private,
        dry_run=options.dry_run,
        progress=options.progress,
    )
    return Told(vars(found), found.lines(options.dry_run))


def _text_or_file(text: str) -> str:
    """What a file of this name says, if there is one; else the text itself."""
    if place_fault(text) or not (path := user_path(text)).is_file():
        return text
    try:
        return (read_bytes(path) or b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text ({error}); save it as such") from error


def run_pull(options: argparse.Namespace) -> Told:
    """Copy a dataset from the Hub."""
    from eval_ingest.integrations.huggingface import pull

    path = pull(options.url, root=options.to, progress=options.progress)
    lines = [f"{path.name} is in {path}, as it was published", _load(path)]
    return Told({"name": path.name, "path": str(path)}, lines)


def run_remove(options: argparse.Namespace) -> Told:
    """Delete a dataset, once a person has agreed; an adopted one is given back."""
    removed = api.remove(options.name, agreed=lambda what: options.yes or _agreed(what))
    if removed is None:
        return Told({"removed": None}, ["nothing was deleted"])
    left = {"left": list(removed.left)} if removed.left else {}
    return Told({"removed": removed.name, **left}, removed.lines())


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise SpecError(f"removing {what} needs --yes when nobody can be asked")
    return input(f"delete {what}? [y/N] ").strip().lower() == "y"


# --------------------------------------------------------------------------------------- scores


def run_sweep(options: argparse.Namespace) -> Told:
    """Score encoders on datasets; it fails if one of them couldn't be."""
    from eval_ingest.sweep.run import run_sweep
    from eval_ingest.sweep.suite import Suite

    suite = Suite() if options.suite is None else Suite.load(options.suite)
    suite = suite.having(**{name: getattr(options, name, None) for name in Suite.model_fields})
    out, progress = options.out, options.progress
    tell = None if options.json else progress.line
    table = run_sweep(suite, out, device=options.device, progress=progress, tell=tell)
    drawn = table.computed and not options.no_plots
    plots = _draw(out, "a picture (without: --no-plots)") if drawn else []
    return Told(table.facts(out, plots), table.lines(out, plots), bool(table.failures))


def _draw(out: Path, what: str) -> list[Path]:
    with optional_part("ingest", what):
        from eval_ingest.sweep.plots import draw
    from eval_ingest.sweep.results import read_rows

    return draw(read_rows(out), out / "plots")


def run_leaderboard(options: argparse.Namespace) -> Told:
    """Show what sweeps found."""
    from eval_ingest.sweep.results import board_lines, leaderboard_json

    boards = api.leaderboard(options.out)
    if options.plots:
        _draw(options.out, "what --plots draws")
    width = screen() or 120
    lines = [line for board in boards for line in board_lines(board, width)]
    return Told(leaderboard_json(boards), lines)


def run_signal(options: argparse.Namespace) -> Told:
    """Measure how well datasets tell models apart; it fails if one of them couldn't be measured."""
    from eval_ingest.store.atomic import write_bytes
    from eval_ingest.sweep.signal import signal

    found = signal(
        "all" if options.all else options.name,
        encoders=options.encoders,
        most_windows=options.windows,
        budget_s=options.budget,
        progress=options.progress,
    )
    if options.suite is not None and found.suite:
        write_bytes(options.suite, found.suite_text.encode())
    return Told(found.facts, found.lines(), bool(found.failures))


def run_tasks(options: argparse.Namespace) -> Told:
    """Print the registry as tasks: code and arguments are passed on, and never wrapped."""
    from eval_ingest.store.catalog import read_catalog
    from eval_ingest.sweep.tasks import as_overrides, as_python, left_out_lines, trainer_tasks

    settings = Settings.load()
    known = read_catalog(settings, broken={})
    found = trainer_tasks(open_root(settings), options.datasets, known)
    if options.form == "python" and not options.json:
        print(as_python(found))
    elif not options.json:
        print("\n".join(as_overrides(found)))
        # Not among the arguments: these lines go to xargs.
        print("\n".join(left_out_lines(found)), end="", file=sys.stderr)
    tasks = {task.name: task.fields for task in found.tasks}
    return Told({"registry": found.registry, "tasks": tasks, "left_out": found.left_out}, [])


# ----------------------------------------------------------------------------------------- other


def run_completion(options: argparse.Namespace) -> Told:
    """Print what a shell has to run, as it is."""
    code = shell_code(options.shell)
    if not options.json:
        say(code)
    return Told({"shell": options.shell, "code": code}, [])


def run_rebuild(options: argparse.Namespace) -> Told:
    """Compile registry.json anew."""
    from eval_ingest.store.registry import rebuild_registry

    root = _root()
    entries = rebuild_registry(root)
    names = ", ".join(sorted(entries)) or "none"
    text = f"{root.shown(root.layout.registry)}: {len(entries)} datasets: {names}"
    return Told({"datasets": sorted(entries)}, [text])
