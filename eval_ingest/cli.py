"""The command line: parse, call, print. `eval-ingest --help` shows every command with examples."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from eval_ingest import __version__
from eval_ingest.errors import EvalIngestError, SpecError
from eval_ingest.flags import add_spec_flags, given_fields
from eval_ingest.redaction import in_json
from eval_ingest.sweep.command import add_commands as add_sweep_commands

if TYPE_CHECKING:
    from eval_ingest.store.roots.base import EvalRoot

EXAMPLES = """\
examples:
  eval-ingest list                                  what is known and what is ingested
  eval-ingest validate --source gs://bucket/crops   what an ingest would do, nothing written
  eval-ingest ingest --name tolbi_crops             a dataset of the catalog
  eval-ingest ingest --name crops --source gs://bucket/crops --ratios 80 10 10
  eval-ingest discover --root gs://bucket/datasets  which datasets are there, and what is new
  eval-ingest info --name tolbi_crops
  eval-ingest verify --name tolbi_crops             read everything back and compare checksums
  eval-ingest sweep --encoder pixels --datasets all   score a frozen encoder on every dataset
  eval-ingest leaderboard                           what the sweeps found
  eval-ingest tasks --format olmoearth              the registry as OlmoEarth's downstream tasks

environment:
  OLMOEARTH_EVAL_DATASETS   where ingested datasets are (default weka://dfive-default/olmoearth/...)
"""


INGEST_EXAMPLES = """\
examples:
  eval-ingest ingest --name tolbi_crops
  eval-ingest ingest --name crops --source gs://bucket/crops
  eval-ingest ingest --name crops --source gs://bucket/crops --groups 20251210 --max-samples 16
  eval-ingest ingest --name crops --source /data/crops --tags oep_eval split=val --ratios 80 10 10
  eval-ingest ingest --name crops --source /data/crops --split-strategy spatial --block-size 5000
  eval-ingest ingest --name crops --source /data/crops --dry-run
"""


ADOPT = """\
The other tool's windows stay where they are, and its entry in registry.json keeps every value.

examples:
  eval-ingest adopt --name yemen_crop
  eval-ingest adopt --all
  eval-ingest adopt --name yemen_crop --correct     what is wrong in its entry is put right
"""
JUDGED_AT_ONCE = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 1 with a message if not, 2 for a usage error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except EvalIngestError as error:
        _complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same command again: it goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def _complain(text: str) -> None:
    from eval_ingest.report.terminal import fitted, screen

    width = screen(sys.stderr) or len(text)  # into a file as it is
    print("\n".join(fitted(text.splitlines(), width)), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, instead of after a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        _complain(f"error: {message}; see {self.prog} --help")
        self.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eval-ingest",
        description="Turn labelled rslearn datasets into registered evals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eval-ingest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    ingest = _command(
        commands, "ingest", _ingest, "ingest a dataset and register it", INGEST_EXAMPLES
    )
    ingest.add_argument("--name", required=True, help="the dataset; from the catalog, or new")
    add_spec_flags(ingest)
    ingest.add_argument(
        "--register",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="publish it in the registry (default); without: all stages but the last",
    )
    ingest.add_argument(
        "--overwrite", action="store_true", help="ingest anew although nothing has changed"
    )
    ingest.add_argument("--dry-run", action="store_true", help="say what would be done; no writing")

    adopt = _command(commands, "adopt", _adopt, "take over what another tool has ingested", ADOPT)
    which = adopt.add_mutually_exclusive_group(required=True)
    which.add_argument("--name", help="as it is registered by the other tool, or its folder")
    which.add_argument("--all", action="store_true", help="every dataset of another tool")
    adopt.add_argument(
        "--correct",
        action="store_true",
        help="write what is found into its entry, where that says something else",
    )

    validate = _command(commands, "validate", _validate, "show what is inferred, and from where")
    validate.add_argument("--name", default=None, help="a dataset of the catalog")
    add_spec_flags(validate)

    discover = _command(commands, "discover", _discover, "find datasets, and say what is new")
    discover.add_argument(
        "--root",
        action="append",
        metavar="PATH_OR_URL",
        help="look below it; may be repeated (default: EVAL_INGEST_STUDIO_ROOTS)",
    )
    discover.add_argument(
        "--forget", metavar="NAME", help="no longer ignore a dataset that was removed"
    )
    discover.add_argument(
        "--full",
        action="store_true",
        help="list every window's name (default: where the last list may be old by now)",
    )
    _command(commands, "list", _list, "datasets in the registry and in the catalog")
    info = _command(commands, "info", _info, "everything about an ingested dataset")
    info.add_argument("--name", required=True)
    verify = _command(commands, "verify", _verify, "read back what was ingested and compare")
    verify.add_argument("--name", required=True)
    report = _command(commands, "report", _report, "pictures, an HTML page and a dataset card")
    report.add_argument("--name", required=True)
    export = _command(commands, "export", _export, "write a dataset as a folder to publish")
    export.add_argument("--name", required=True)
    export.add_argument("--to", required=True, metavar="DIR", help="becomes an eval root")
    export.add_argument(
        "--windows",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with the rslearn copy (default), or only the packed samples",
    )
    remove = _command(commands, "remove", _remove, "delete an ingested dataset")
    remove.add_argument("--name", required=True)
    remove.add_argument("--yes", action="store_true", help="don't ask")

    add_sweep_commands(commands, _command)

    registry = commands.add_parser("registry", help="look after registry.json")
    actions = registry.add_subparsers(metavar="ACTION", required=True)
    _command(actions, "rebuild", _rebuild, "compile registry.json from every metadata.json")
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    examples: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


# --------------------------------------------------------------------------------------- ingest


def _ingest(options: argparse.Namespace) -> int:
    from eval_ingest import api
    from eval_ingest.report.terminal import Progress

    spec = given_fields(options)
    if options.dry_run:
        planned = api.plan(options.name, **spec)
        _print(options, planned.facts, planned.lines())
        return 0
    with Progress(quiet=options.json) as progress:
        done = api.ingest(
            options.name,
            register=options.register,
            overwrite=options.overwrite,
            progress=progress,
            tell=lambda line: None if options.json else progress.line(line),
            **spec,
        )
    _print(options, done.facts, done.lines())
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from eval_ingest import api
    from eval_ingest.adopting import adoptable
    from eval_ingest.report.terminal import Progress, adopted_facts, adopted_lines, outcome_line

    names = [options.name] if options.name else adoptable(_root())
    facts, failed = {}, 0
    with Progress(quiet=options.json) as progress:
        for name in names:
            try:
                adopted = api.adopt(
                    name,
                    correct=options.correct,
                    progress=progress,
                    each=lambda outcome: (
                        None
                        if options.json or options.all
                        else progress.line(outcome_line(outcome))
                    ),
                )
            except EvalIngestError as error:
                if options.name:
                    raise
                failed += 1
                facts[name] = {"error": str(error)}
                _complain(f"error: {error}")
                continue
            facts[name] = adopted_facts(adopted)
            if not options.json:
                for line in adopted_lines(adopted):
                    progress.line(line)
    if options.json:
        _print(options, facts, [])
    elif not names:
        print("there is nothing to adopt: no dataset of another tool is registered here")
    return 1 if failed else 0


def _validate(options: argparse.Namespace) -> int:
    from eval_ingest import api

    found = api.validate(options.name, **given_fields(options))
    _print(options, found.facts, found.lines())
    return 0


def _discover(options: argparse.Namespace) -> int:
    from eval_ingest.errors import UnknownDatasetError
    from eval_ingest.report.terminal import discover_lines
    from eval_ingest.settings import Settings
    from eval_ingest.sources.looks import Memory
    from eval_ingest.store.catalog import forget_removed, removed_datasets
    from eval_ingest.watching import State, look_at, survey

    settings = Settings.load()
    roots = options.root or settings.studio_roots
    if options.forget is not None:
        if not forget_removed(settings, options.forget):
            ignored = removed_datasets(settings)
            cure = "See eval-ingest discover."
            where = "the list of removed datasets"
            raise UnknownDatasetError(options.forget, ignored, where, cure)
        if not roots:
            text = f"{options.forget} is ingested again where it is found under a watched root"
            _print(options, {"forgotten": options.forget}, [text])
            return 0
    if not roots:
        raise SpecError("give --root PATH_OR_URL, or set EVAL_INGEST_STUDIO_ROOTS")
    found = survey(roots, settings, memory=partial(Memory, full=options.full))
    with ThreadPoolExecutor(JUDGED_AT_ONCE, thread_name_prefix="discover") as pool:
        judgements = list(pool.map(lambda sighting: look_at(sighting, settings), found.sightings))
    judged = list(zip(found.sightings, judgements, strict=True))
    facts = {
        "datasets": [
            {
                "name": sighting.name,
                "source": sighting.found.url,
                "fingerprint": sighting.found.fingerprint,
                "task": str(judgement.config.task.kind) if judgement.config else None,
                "windows": sighting.found.windows,
                "state": str(judgement.state),
                "reason": judgement.reason,
            }
            for sighting, judgement in judged
        ],
        "down": found.down,
    }
    _print(options, facts, discover_lines(roots, judged, found.down))
    unknown = any(judgement.state is State.UNKNOWN for _, judgement in judged)
    return 1 if found.down or unknown else 0


# ------------------------------------------------------------------------- looking at the root


def _list(options: argparse.Namespace) -> int:
    from eval_ingest import api

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
    _print(options, facts, found.lines())
    return 0


def _info(options: argparse.Namespace) -> int:
    from eval_ingest import api
    from eval_ingest.report.terminal import entry_lines
    from eval_ingest.store.claims import their_entry

    entry = their_entry(_root(), options.name)
    if entry is not None:
        _print(options, entry, entry_lines(options.name, entry))
        return 0
    found = api.info(options.name)
    _print(options, found.metadata.model_dump(mode="json", by_alias=True), found.lines())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from eval_ingest import api
    from eval_ingest.report.terminal import Progress

    with Progress(quiet=options.json) as progress:
        result = api.verify(options.name, progress=progress)
    lines = [f"{options.name}: {result.checked}"]
    lines += [f"  damaged: {problem}" for problem in result.problems]
    if result.problems:
        lines.append(f"repair it: eval-ingest ingest --name {options.name} --overwrite")
    else:
        lines.append("everything is as it was written")
    _print(options, result._asdict(), lines)
    return 1 if result.problems else 0


def _report(options: argparse.Namespace) -> int:
    from eval_ingest import api

    root = _root()
    paths = [root.shown(path) for path in api.write_report(options.name)]
    page = next(path for path in paths if path.endswith("report.html"))
    lines = [*(f"  {path}" for path in paths), f"look at {page}"]
    _print(options, {"name": options.name, "files": paths}, lines)
    return 0


def _export(options: argparse.Namespace) -> int:
    from eval_ingest import api
    from eval_ingest.report.terminal import Progress

    name = options.name
    with Progress(quiet=options.json) as progress:
        path = api.export(name, options.to, windows=options.windows, progress=progress)
    lines = [
        f"{name} is in {path}; its card is {path / 'README.md'}",
        f'load it: OLMOEARTH_EVAL_DATASETS={path.parent} and EvalDataset("{name}", split="train")',
    ]
    _print(options, {"name": name, "path": str(path), "windows": options.windows}, lines)
    return 0


def _remove(options: argparse.Namespace) -> int:
    from eval_ingest.settings import Settings
    from eval_ingest.store.catalog import drop_spec, note_removed
    from eval_ingest.store.ownership import Whose, whose
    from eval_ingest.store.registry import read_metadata, remove_dataset, require_metadata

    root = _root()
    store = root.dataset(options.name)
    if not store.is_there():  # else it is removed, be it published, damaged or half removed
        require_metadata(root, options.name)
    path = store.url
    adopted = whose(store) is Whose.ADOPTED
    what = f"what is ours in {path}" if adopted else f"{path} and everything in it"
    if not options.yes:
        if not sys.stdin.isatty():
            raise SpecError(f"removing {path} needs --yes when nobody can be asked")
        if input(f"delete {what}? [y/N] ").strip().lower() != "y":
            print("nothing was deleted")
            return 0
    source = ""
    with contextlib.suppress(EvalIngestError):
        metadata = read_metadata(store)
        source = metadata.source if metadata is not None else ""
    settings = Settings.load()
    noted = bool(source) and not adopted and note_removed(settings, options.name, source)
    remove_dataset(root, options.name)
    drop_spec(settings, options.name)
    lines = [f"{options.name} is removed from {root.url}"]
    if adopted:
        lines = [f"{options.name} is given back: windows and entry are as they were in {path}"]
    if noted:
        lines.append(
            f"where {source} is found under a watched root it is ignored; to have it again: "
            f"eval-ingest discover --forget {options.name}, or ingest it by its name"
        )
    _print(options, {"removed": options.name}, lines)
    return 0


def _rebuild(options: argparse.Namespace) -> int:
    from eval_ingest.store.registry import rebuild_registry

    root = _root()
    entries = rebuild_registry(root)
    names = ", ".join(sorted(entries)) or "none"
    text = f"{root.shown(root.layout.registry)}: {len(entries)} datasets: {names}"
    _print(options, {"datasets": sorted(entries)}, [text])
    return 0


def _root() -> "EvalRoot":
    from eval_ingest.api import tidied
    from eval_ingest.settings import Settings

    return tidied(Settings.load())


def _print(options: argparse.Namespace, facts: Any, lines: list[str]) -> None:
    if options.json:
        print(in_json(json.dumps(facts, indent=2, ensure_ascii=False)))
    else:
        from eval_ingest.report.terminal import fitted

        print("\n".join(fitted(lines)))


if __name__ == "__main__":
    sys.exit(main())
