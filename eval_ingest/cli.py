"""The command line: parse, call, print. `eval-ingest --help` shows every command with examples."""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from eval_ingest import __version__
from eval_ingest.errors import EvalIngestError, SpecError
from eval_ingest.flags import add_spec_flags, given_fields
from eval_ingest.redaction import in_json, redacted
from eval_ingest.sweep.command import add_commands as add_sweep_commands

if TYPE_CHECKING:
    from eval_ingest.core.spec import DatasetSpec
    from eval_ingest.job import Job
    from eval_ingest.pipeline import Outcome
    from eval_ingest.settings import Settings
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


def _spec(options: argparse.Namespace, settings: "Settings") -> "DatasetSpec":
    """The catalog's spec, if there is one, with the flags laid over it."""
    from eval_ingest.core.spec import DatasetSpec, check_name, name_from
    from eval_ingest.store.catalog import find_spec, read_catalog

    given = given_fields(options)
    if given.get("copy") == "adopted":
        raise SpecError(
            "--copy adopted is what eval-ingest adopt does; give it the dataset's --name"
        )
    if options.name is None and "source" not in given:
        raise SpecError("give --source PATH_OR_URL, or --name of a dataset in the catalog")
    name = options.name
    name = check_name(name_from(_last_folder(given["source"])) if name is None else name)
    known = read_catalog(settings).get(name)
    if known is None and "source" not in given:
        find_spec(settings, name)  # raises, naming the near ones
    base = known.model_dump(by_alias=True, exclude_unset=True) if known is not None else {}
    if "splits" in given:
        given["splits"] = {**base.get("splits", {}), **given["splits"]}
    return DatasetSpec.parse({"name": name, **base, **given}, f"the flags of {name}")


def _last_folder(source: str) -> str:
    last = source.rstrip("/").rsplit("/", 1)[-1]
    return last.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")


# --------------------------------------------------------------------------------------- ingest


def _ingest(options: argparse.Namespace) -> int:
    from eval_ingest import pipeline
    from eval_ingest.dry_run import dry_run
    from eval_ingest.job import open_job
    from eval_ingest.report.terminal import (
        Progress,
        dry_run_lines,
        outcome_line,
        summary,
        summary_lines,
    )
    from eval_ingest.settings import Settings
    from eval_ingest.store.catalog import add_spec
    from eval_ingest.store.claims import refuse_theirs

    settings = Settings.load()
    spec = _spec(options, settings)
    if options.dry_run:
        store = _root().dataset(spec.name)
        path = store.url
        refuse_theirs(store, spec)
        with tempfile.TemporaryDirectory() as scratch:
            plan = dry_run(open_job(spec, settings, root=scratch, looks=True))
        plan["path"] = str(path)
        _print(options, plan, dry_run_lines(plan))
        return 0
    with Progress(quiet=options.json) as progress:
        job = open_job(spec, settings, progress=progress)
        if options.source is not None and not options.overwrite:
            _refuse_another_source(job)
        if options.overwrite:
            pipeline.forget(job)
        stages = pipeline.STAGES if options.register else pipeline.STAGES[:-1]

        def tell(outcome: "Outcome") -> None:
            if not options.json:
                progress.line(outcome_line(outcome))

        outcomes = pipeline.ingest(job, tell, stages)
    add_spec(settings, spec)
    done = summary(job, outcomes)
    _print(options, done, summary_lines(done))
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from eval_ingest.adopting import adopt, adoptable
    from eval_ingest.report.command import report
    from eval_ingest.report.terminal import Progress, adopted_facts, adopted_lines, outcome_line
    from eval_ingest.settings import Settings

    settings = Settings.load()
    names = [options.name] if options.name else adoptable(_root())
    facts, failed = {}, 0
    with Progress(quiet=options.json) as progress:
        for name in names:
            try:
                adopted = adopt(
                    settings,
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
            if adopted.ran:
                report(_root(), name)
            if not options.json:
                for line in adopted_lines(adopted):
                    progress.line(line)
    if options.json:
        _print(options, facts, [])
    elif not names:
        print("there is nothing to adopt: no dataset of another tool is registered here")
    return 1 if failed else 0


def _refuse_another_source(job: "Job") -> None:
    """A name that is taken is not given to another dataset by mistake."""
    from eval_ingest.store.outcomes import read_outcome

    published = read_outcome(job.store, "registry_entry")
    if published is not None and published.source != job.origin:
        raise SpecError(
            f"{job.spec.name} is ingested already, from {published.source}; "
            f"give {job.origin} another --name, or replace the old one with --overwrite"
        )


def _validate(options: argparse.Namespace) -> int:
    from eval_ingest.job import open_job
    from eval_ingest.report.terminal import config_lines
    from eval_ingest.settings import Settings

    settings = Settings.load()
    spec = _spec(options, settings)
    with tempfile.TemporaryDirectory() as scratch:  # for archives, which have to be unpacked
        job = open_job(spec, settings, root=scratch, looks=True)
        _print(options, _job_facts(job), config_lines(job))
    return 0


def _job_facts(job: "Job") -> dict[str, Any]:
    return {
        "spec": job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "source": redacted(job.source.url),
        "config": job.config.model_dump(mode="json"),
    }


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
    from eval_ingest.report.terminal import list_lines
    from eval_ingest.settings import Settings
    from eval_ingest.store.catalog import read_catalog
    from eval_ingest.store.registry import read_registry
    from eval_ingest.store.roots.open import open_root

    settings = Settings.load()
    catalog = read_catalog(settings)
    root = _tidied(open_root(settings))
    registry = read_registry(root)
    facts = {
        "eval_root": root.url,
        "registered": registry,
        "catalog": {
            name: spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for name, spec in catalog.items()
        },
    }
    _print(options, facts, list_lines(root.url, registry, catalog))
    return 0


def _info(options: argparse.Namespace) -> int:
    from eval_ingest.report.terminal import entry_lines, info_lines
    from eval_ingest.store.claims import their_entry
    from eval_ingest.store.registry import require_metadata

    root = _root()
    entry = their_entry(root, options.name)
    if entry is not None:
        _print(options, entry, entry_lines(options.name, entry))
        return 0
    metadata = require_metadata(root, options.name)
    facts = metadata.model_dump(mode="json", by_alias=True)
    _print(options, facts, info_lines(metadata, root.dataset(options.name).url))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from eval_ingest.report.terminal import Progress
    from eval_ingest.verifying import verify_dataset

    with Progress(quiet=options.json) as progress:
        result = verify_dataset(_root(), options.name, progress)
    lines = [f"{options.name}: {result.checked}"]
    lines += [f"  damaged: {problem}" for problem in result.problems]
    if result.problems:
        lines.append(f"repair it: eval-ingest ingest --name {options.name} --overwrite")
    else:
        lines.append("everything is as it was written")
    _print(options, result._asdict(), lines)
    return 1 if result.problems else 0


def _report(options: argparse.Namespace) -> int:
    from eval_ingest.report.command import report

    facts, lines = report(_root(), options.name)
    _print(options, facts, lines)
    return 0


def _export(options: argparse.Namespace) -> int:
    from eval_ingest.report.command import export
    from eval_ingest.report.terminal import Progress

    with Progress(quiet=options.json) as progress:
        facts, lines = export(_root(), options.name, options.to, options.windows, progress)
    _print(options, facts, lines)
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


def _root() -> Any:
    from eval_ingest.settings import Settings
    from eval_ingest.store.roots.open import open_root

    return _tidied(open_root(Settings.load()))


def _tidied(root: "EvalRoot") -> "EvalRoot":
    """The root, in which no removal is left half done, as far as this user may write."""
    from eval_ingest.store.registry import finish_removals

    with contextlib.suppress(EvalIngestError):
        finish_removals(root)
    return root


def _print(options: argparse.Namespace, facts: Any, lines: list[str]) -> None:
    if options.json:
        print(in_json(json.dumps(facts, indent=2, ensure_ascii=False)))
    else:
        from eval_ingest.report.terminal import fitted

        print("\n".join(fitted(lines)))


if __name__ == "__main__":
    sys.exit(main())
