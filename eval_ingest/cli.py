"""The command line: what can be said. `eval-ingest --help` shows every command with examples.

What belongs here: commands, flags, exit codes, and what is told where a line can't be understood.
What doesn't: what a command does (commands.py, which calls api.py).
"""

import argparse
import atexit
import contextlib
import difflib
import gc
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from eval_ingest import __version__
from eval_ingest.completion import SHELLS, complete, dataset_names
from eval_ingest.errors import EvalIngestError, UnknownDatasetError, brief, lacking, lacks
from eval_ingest.interrupts import STOPPED, interruptible

EXAMPLES = """\
examples:
  eval-ingest list                      what is known and what is ingested
  eval-ingest validate gs://b/crops     what is inferred, and from where
  eval-ingest ingest tolbi_crops        a dataset of the catalog
  eval-ingest ingest crops --source gs://b/crops --ratios 80 10 10
  eval-ingest discover --root gs://b    what is there, and what of it is new
  eval-ingest info tolbi_crops
  eval-ingest verify tolbi_crops        read it back and compare checksums
  eval-ingest sweep --encoder pixels --datasets all
                                        score a frozen encoder on every dataset
  eval-ingest leaderboard               what the sweeps found
  eval-ingest tasks --format olmoearth  as OlmoEarth's downstream tasks

A NAME may be given as --name NAME, too.

environment:
  OLMOEARTH_EVAL_DATASETS  where ingested datasets are
                           (default weka://dfive-default/olmoearth/...)
"""


INGEST_EXAMPLES = """\
examples:
  eval-ingest ingest tolbi_crops
  eval-ingest ingest crops --source gs://bucket/crops
  eval-ingest ingest crops --source gs://b/crops --groups 20251210
  eval-ingest ingest crops --source /data/crops --tags oep_eval split=val
  eval-ingest ingest crops --source /data/crops --ratios 80 10 10 \\
    --split-strategy spatial --block-size 5000
  eval-ingest ingest crops --source /data/crops --dry-run
"""


PUBLISH = """\
Where the data came from, paths, addresses and secrets are left out. What is
there already isn't sent again, so that a publication that was stopped goes on.

examples:
  eval-ingest publish tolbi_crops --to hf://org/evals \\
    --licence CC-BY-4.0 --citation cite.bib
  eval-ingest publish tolbi_crops --to hf://org/evals \\
    --licence CC0-1.0 --citation "" --dry-run
  eval-ingest pull hf://org/evals/tolbi_crops --to /data/evals
"""


ADOPT = """\
The other tool's windows stay where they are, and its entry in registry.json
keeps every value.

examples:
  eval-ingest adopt yemen_crop
  eval-ingest adopt --all
  eval-ingest adopt yemen_crop --correct  puts right what is wrong in its entry
"""


COMPLETION = """\
examples, in ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
  eval "$(eval-ingest completion bash)"
  eval "$(eval-ingest completion zsh)"
  eval-ingest completion fish | source
"""


TASKS = """\
examples:
  eval-ingest tasks --format olmoearth > our_tasks.py
  eval-ingest tasks --format olmoearth --datasets tolbi_crops nandi
  eval-ingest tasks --format olmoearth --as overrides | \\
    xargs python train.py train my_run local
"""


SIGNAL = """\
examples:
  eval-ingest signal tolbi_crops
  eval-ingest signal --all --budget 120 --suite suites/proposed.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 1 with a message if not, 2 for a usage error."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None:  # this process is ours alone, and makes little garbage
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looked for in all packages
        if given[:1] == ["ingest"]:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # it would start threads for nothing
        gc.set_threshold(20_000, 50, 100)
        atexit.register(gc.freeze)  # nor need the interpreter look for it when it ends
        _tell_what_is_noted()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stand-in: it takes any character
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with interruptible(KeyboardInterrupt) as check:
            options = _parse(given)
            options.check, options.is_program = check, arguments is None
            code: int = options.run(options)
            sys.stdout.flush()
            return code
    except EvalIngestError as error:
        _complain(f"error: {error}")
        if isinstance(error, UnknownDatasetError) and error.near:
            again = [_corrected(argument, error) for argument in given]
            _complain(f"try: eval-ingest {shlex.join(again)}")
        return 1
    except ModuleNotFoundError as error:  # none of ours: those of an extra
        _complain(f"error: {lacks('this', error.name, 'ingest')}")
        return 1
    except (OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):  # of what prints before anything is done
            from eval_ingest.report.printing import hush

            hush()
            return 0
        told = lacking(error) or _of_a_path(error)
        if told is None:
            raise
        _complain(f"error: {told}")
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same command again: it goes on where it was", file=sys.stderr)
        return STOPPED


def _corrected(argument: str, error: UnknownDatasetError) -> str:
    """An argument with the near name in the place of the unknown one."""
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{error.near[0]}" if value == error.name else argument


def _of_a_path(error: BaseException) -> Exception | None:
    """What to say of a path that can't even be looked at, whichever command came upon it."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return None
    from eval_ingest.store.atomic import store_error  # brings what --help does without

    return store_error(str(error.filename), "looking at", error)


def _tell_what_is_noted() -> None:
    """Have what the package notes be lines of the command: what is waited for, and what is odd."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(OSError):  # nobody reads it any more
                _complain(record.getMessage())

    log = logging.getLogger("eval_ingest")
    log.setLevel(logging.INFO)
    log.addHandler(Told())


def _complain(text: str) -> None:
    from eval_ingest.report.printing import told

    print(told(text.splitlines(), sys.stderr), file=sys.stderr)


def _folder(text: str) -> Path:
    from eval_ingest.core.arguments import folder_fault  # brings numpy, which --help does without
    from eval_ingest.settings import user_path

    if fault := folder_fault(text):
        raise argparse.ArgumentTypeError(f"{brief(text, 60)} {fault}; give a path on this machine")
    return user_path(text)  # a shell doesn't in --out=~/sweeps


# --------------------------------------------------------------------------------- what is said


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, instead of after a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            message = f"{message.partition(':')[0]}: no {choice[1]!r}"
            message += _near(choice[1], re.findall(r"'(.*?)'", choice[2]))
        _complain(f"error: {message}; see {self.prog} --help")
        self.exit(2)


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there is {', '.join(known)}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; exits with 2, and one line, if it can't be understood."""
    whole = _parser()
    complete(whole)
    # A name after flags is left over by argparse, which looks for it before them alone.
    options, left = whole.parse_known_args(arguments)
    parser, dataset = options.parser, options.dataset
    if dataset:
        if options.word is None and left and not left[0].startswith("-"):
            options.word = left.pop(0)
        if None not in (options.word, options.name) and options.word != options.name:
            parser.error(f"give one name, and not both {options.word} and {options.name}")
        options.name = options.name if options.word is None else options.word
    for word in left:
        flags = re.findall(r"--[a-z][a-z-]*", parser.format_help())
        hint = _near(word, flags) if word.startswith("--") else ""
        parser.error(f"{word!r} is not understood{hint.partition('; there is')[0]}")
    is_all = getattr(options, "all", False)
    if is_all and options.name is not None:
        parser.error("give a NAME or --all, and not both")
    if dataset == "needed" and options.name is None and not is_all:
        parser.error("it needs the NAME of a dataset; which there are: eval-ingest list")
    if dataset == "or source" and options.source is None and "/" in (options.name or ""):
        options.source, options.name = options.name, None
    return options


def _command(
    commands: Any,
    name: str,
    text: str,
    examples: str | None = None,
    dataset: str = "",
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: what argparse's add_subparsers returned.
        name: of the command; run_NAME of commands.py does it.
        text: what it does.
        examples: of its use.
        dataset: "needed" or "or source" where it takes a dataset's name.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(_run, name), parser=parser, dataset=dataset)
    if dataset:
        is_new = dataset == "or source"
        argument = parser.add_argument(
            "word",
            nargs="?",
            metavar="NAME",
            help="the dataset; of the catalog, or new" if is_new else "the dataset",
        )
        argument.completer = lambda **_: dataset_names(dataset)  # type: ignore[attr-defined]
        parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _run(command: str, options: argparse.Namespace) -> int:
    from eval_ingest import commands  # brings what they need, which `--help` doesn't wait for

    return commands.run(command, options)


def _parser() -> argparse.ArgumentParser:
    # They take a moment, in which a person may press Ctrl-C: by now that is listened to.
    from eval_ingest.core.suite import DEFAULT_OUT
    from eval_ingest.flags import add_spec_flags, add_suite_flags

    parser = _Parser(
        prog="eval-ingest",
        description="Turn labelled rslearn datasets into registered evals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eval-ingest {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    out = Path(DEFAULT_OUT)
    command = partial(_command, commands)
    switch = argparse.BooleanOptionalAction

    text = "ingest a dataset and register it"
    ingest = command("ingest", text, INGEST_EXAMPLES, dataset="or source")
    add_spec_flags(ingest)
    add = ingest.add_argument
    text = "publish it in the registry (default); without: all stages but the last"
    add("--register", action=switch, default=True, help=text)
    add("--overwrite", action="store_true", help="ingest anew although nothing has changed")
    add("--dry-run", action="store_true", help="say what would be done; no writing")

    text = "take over what another tool has ingested"
    adopt = command("adopt", text, ADOPT, dataset="needed")
    adopt.add_argument("--all", action="store_true", help="every dataset of another tool")
    text = "write what is found into its entry, where that says something else"
    adopt.add_argument("--correct", action="store_true", help=text)

    text = "show what is inferred, and from where"
    add_spec_flags(command("validate", text, dataset="or source"))

    add = command("discover", "find datasets, and say what is new").add_argument
    text = "look below it; may be repeated (default: EVAL_INGEST_STUDIO_ROOTS)"
    add("--root", action="append", metavar="PATH_OR_URL", help=text)
    add("--forget", metavar="NAME", help="no longer ignore a dataset that was removed")
    text = "list every window's name (default: where the last list may be old by now)"
    add("--full", action="store_true", help=text)

    command("list", "datasets in the registry and in the catalog")
    for shown in (
        command("info", "everything about an ingested dataset", dataset="needed"),
        command("report", "pictures, an HTML page and a dataset card", dataset="needed"),
    ):
        text = f"what sweeps wrote, for its scores; default {out}"
        shown.add_argument("--out", type=_folder, default=out, metavar="DIR", help=text)
    command("verify", "read back what was ingested and compare", dataset="needed")

    text = "write a dataset as a folder to publish"
    add = command("export", text, dataset="needed").add_argument
    add("--to", required=True, metavar="DIR", help="becomes an eval root")
    text = "with the rslearn copy (default), or only the packed samples"
    add("--windows", action=switch, default=True, help=text)

    text = "publish a dataset on the Hugging Face Hub"
    add = command("publish", text, PUBLISH, dataset="needed").add_argument
    add("--to", required=True, metavar="hf://ORG/REPO", help="made if it isn't there")
    add("--licence", help="such as CC-BY-4.0; needed unless the dataset's spec says it")
    add(
        "--citation",
        metavar="TEXT_OR_FILE",
        help='how it is to be cited, which has to be said: BibTeX or words; "" for none',
    )
    text = "with the rslearn copy, or only the packed samples (default)"
    add("--windows", action=switch, default=False, help=text)
    add("--private", action="store_true", help="a repository that is made is for its owner alone")
    add("--dry-run", action="store_true", help="list what would be sent")

    text = "copy a dataset from the Hugging Face Hub, and verify it"
    add = command("pull", text).add_argument
    add("url", metavar="hf://ORG/REPO/NAME", help="with @REVISION after REPO for a certain one")
    add("--to", metavar="DIR", help="an eval root; default OLMOEARTH_EVAL_DATASETS")

    remove = command("remove", "delete an ingested dataset", dataset="needed")
    remove.add_argument("--yes", action="store_true", help="don't ask")

    sweep = command("sweep", "score frozen encoders on ingested datasets, all or some")
    add = sweep.add_argument
    add("--suite", type=_folder, metavar="YAML", help="a suite; flags win over what it says")
    add_suite_flags(sweep)
    add("--device", help="cpu or cuda; default: a GPU if there is one")
    add("--out", type=_folder, default=out, metavar="DIR", help=f"default {out}")
    add("--no-plots", action="store_true", help="no pictures")

    add = command("leaderboard", "scores: datasets by encoders").add_argument
    add("--out", type=_folder, default=out, metavar="DIR")
    add("--plots", action="store_true", help="draw the pictures anew")

    text = "how well datasets tell models apart"
    add = command("signal", text, SIGNAL, dataset="needed").add_argument
    add("--all", action="store_true", help="every dataset; proposes a suite")
    text = "more models than constant, noise and pixels; default random, and olmoearth:nano "
    text += "if its weights are at hand"
    add("--encoder", dest="encoders", action="extend", nargs="+", metavar="NAME", help=text)
    add("--windows", type=int, default=256, metavar="N", help="of a split at most; default 256")
    add("--budget", type=float, default=60.0, metavar="SECONDS", help="of the suite; default 60")
    add("--suite", type=_folder, metavar="YAML", help="where the proposed suite is written")

    text = "the registry as downstream tasks of another trainer"
    add = command("tasks", text, TASKS).add_argument
    add("--format", choices=("olmoearth",), default="olmoearth", help="whose trainer")
    text = "a Python module with EVAL_TASKS (default), or command line arguments"
    add("--as", dest="form", choices=("python", "overrides"), default="python", help=text)
    add("--datasets", action="extend", nargs="+", default=[], metavar="NAME", help="default: all")

    text = "what a shell has to run to complete this program's commands"
    command("completion", text, COMPLETION).add_argument("shell", choices=SHELLS)

    registry = commands.add_parser("registry", help="look after registry.json")
    actions = registry.add_subparsers(metavar="ACTION", required=True)
    _command(actions, "rebuild", "compile registry.json from every metadata.json")
    return parser


if __name__ == "__main__":  # as `python -m eval_ingest` does
    sys.exit(main())
