"""Datasets on the Hugging Face Hub: `eval-ingest publish` and `eval-ingest pull`.

A dataset repository is an eval root: registry.json, README.md, and a folder a dataset. What is
published is what `export` writes; metadata.json comes last, so that whoever reads while files
arrive sees the version before. `EvalDataset("hf://ORG/REPO/NAME")` reads it through the cache of
remote eval roots; `pull` makes it a local one, whole and verified.

What doesn't belong here: what of a dataset may be told to everybody (core/public.py), and what its
card says (report/page.py).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_ingest.copying.rslearn_files import Samples, configs, remove_copy
from eval_ingest.copying.verify import verify
from eval_ingest.core.arguments import checked
from eval_ingest.core.entry import UNTOLD, Metadata, is_ours, opening
from eval_ingest.core.hub import HubAddress
from eval_ingest.core.public import public, require_public
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import is_name
from eval_ingest.decoding.beside import check_beside, check_content
from eval_ingest.decoding.limits import parse_json
from eval_ingest.decoding.metadata import parse_metadata
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import IntegrityError, OutdatedError, SpecError, StoreError, optional_part
from eval_ingest.redaction import redacted
from eval_ingest.report.printing import table
from eval_ingest.settings import Settings, user_path
from eval_ingest.sources.base import WindowFiles
from eval_ingest.sources.local import LocalSource
from eval_ingest.store import registry
from eval_ingest.store.atomic import (
    file_crc32c,
    read_bytes,
    remove_path,
    store_errors,
    write_bytes,
)
from eval_ingest.store.claims import holds_published
from eval_ingest.store.locks import folder_aside
from eval_ingest.store.outcomes import read_outcome
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.paths import PUBLISHED
from eval_ingest.store.registry_file import understood
from eval_ingest.store.roots.base import DatasetStore, EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.seal import write_sealed_json
from eval_ingest.store.told_apart import require_told_apart

if TYPE_CHECKING:
    from huggingface_hub import HfApi

AT_ONCE = 64
"""Files a commit."""
ATTEMPTS = 10
"""So often is a publication put together anew where somebody else was faster."""
WAIT_S = 5.0
"""For another process that writes the dataset which is pulled."""
_LAST = ("metadata.json", "opening.json", "README.md", "registry.json")
_TEXTS = {".json", ".yaml", ".geojson"}


@dataclass(frozen=True)
class Published:
    """What was, or would be, published."""

    url: str
    """hf://ORG/REPO/NAME."""
    files: dict[str, int]
    """Bytes of each file, by its path in the repository."""
    sent: list[str] = field(default_factory=list)
    """Those that weren't there yet."""
    commit: str = ""
    """The last commit; empty: nothing had to be sent, or a dry run."""

    def lines(self, dry_run: bool) -> list[str]:
        """What the command line prints."""
        total = sum(self.files.values())
        told = f"{len(self.files)} files, {total / 2**20:.1f} MiB"
        if dry_run:
            rows = [["file", "bytes"], *([path, f"{n:,}"] for path, n in self.files.items())]
            return [
                *table(rows),
                f"would publish {told} to {self.url}; nothing was sent (--dry-run)",
            ]
        name = self.url.rsplit("/", 1)[-1]
        return [
            f"{name} is published: {told}, {len(self.sent)} of them sent now",
            f'load it: EvalDataset("{self.url}", split="train")',
            f"or copy it: eval-ingest pull {self.url}",
        ]


@checked
def publish(
    name: str,
    to: str,
    *,
    root: str | Path | None = None,
    licence: str | None = None,
    citation: str | None = None,
    windows: bool = False,
    private: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Published:
    """Publish a dataset on the Hugging Face Hub; run again after a stop, it goes on.

    What is there already isn't sent again.

    Args:
        name: the dataset.
        to: hf://ORG/REPO, a dataset repository; it is made if it isn't there.
        root: where the dataset is; default OLMOEARTH_EVAL_DATASETS.
        licence: such as CC-BY-4.0; needed unless the dataset's spec says it.
        citation: how it is to be cited, as text or BibTeX; needed, "" for none.
        windows: with the rslearn copy, a folder a window; without: the packed samples.
        private: a repository that is made is for its owner alone.
        dry_run: only list what would be sent.
        progress: see `ingest`.

    Raises:
        SpecError: no licence, no citation, or no address on the Hub.
        UnknownDatasetError: there is no such dataset.
        StoreError: the Hub can't be reached or refuses, or a file tells what is private.

    >>> publish("crops", "hf://allenai/evals", licence="CC-BY-4.0", citation="")  # doctest: +SKIP
    """
    address = HubAddress.parse(str(to))
    if address.name not in (None, name):
        raise SpecError(f"{to} names another dataset than {name}; give hf://{address.repo}")
    settings = Settings.load(eval_root=root)
    eval_root = open_root(settings)
    metadata = registry.require_metadata(eval_root, name)
    licence = (licence or metadata.spec.licence or "").strip()
    if not licence:
        raise SpecError(
            f"{name} has no licence, and without one nobody may use it; say it, such as "
            "--licence CC-BY-4.0"
        )
    if citation is None:
        raise SpecError(
            'say how it is to be cited: --citation "TEXT or BibTeX", or --citation "" for none'
        )
    from eval_ingest.report.export import export_dataset  # what draws isn't needed to pull

    parent = user_path(settings.cache) / "publish"
    with folder_aside(parent, "*", f"{name} is being published") as staging:
        export_dataset(eval_root, name, staging, windows, progress, licence, citation)
        private_places = {str(eval_root.path), metadata.source}
        if dry_run:
            return _composed(staging, name, address, private_places, b"")
        api = _api()
        with _asking(address):
            api.create_repo(address.repo, repo_type="dataset", private=private, exist_ok=True)
        for left in reversed(range(ATTEMPTS)):
            with _asking(address):
                head = api.repo_info(**_where(address)).sha
            before = _beside_others(api, address, name, staging, head)
            found = _composed(staging, name, address, private_places, before)
            with suppress(*([OutdatedError] if left else [])):  # then of what is there by now
                return _send(api, address, name, staging, found, progress, head)
        raise AssertionError  # the last attempt tells


def _composed(
    staging: Path, name: str, address: HubAddress, places: set[str], before: bytes
) -> Published:
    """What a dataset's publication consists of, written, and looked through for what is private.

    What the others say lies beside it, and isn't sent; `before` is their registry.json.
    """
    _cover(staging, name)
    _say_where(staging, address, before)
    ours = [p for p in sorted((staging / name).rglob("*")) if p.is_file()]
    ours += [staging / "README.md", staging / "registry.json"]
    _refuse_private(staging, ours, places, before)
    sizes = {str(path.relative_to(staging)): path.stat().st_size for path in ours}
    return Published(address._replace(name=name).url, sizes)


def _api() -> "HfApi":
    with optional_part("hub", "the Hub"):
        from huggingface_hub import HfApi
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _where(address: HubAddress, head: str | None = None) -> dict[str, Any]:
    """The repository at an address's revision, or at a commit, as every request names it."""
    return {"repo_id": address.repo, "repo_type": "dataset", "revision": head or address.revision}


@contextmanager
def _asking(address: HubAddress) -> Iterator[None]:
    """Requests to the Hub, whose failures say what to do."""
    from huggingface_hub import errors

    again = "run the same command again: it goes on where it was"
    try:
        with _without_its_bars():
            yield
    except errors.RepositoryNotFoundError as error:
        raise StoreError(
            f"there is no dataset repository {address.url}, or it is private and you aren't "
            "logged in: hf auth login"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (409, 412):
            raise OutdatedError(
                f"others publish in {address.url} at the same time, so nothing of theirs was "
                f"replaced; {again}"
            ) from error
        cure = (
            "log in with a token that may write: hf auth login" if status in (401, 403) else again
        )
        why = redacted(str(error))
        raise StoreError(f"the Hub refused {address.url} ({why}); {cure}") from error
    # RuntimeError: an upload that failed; HTTPError: its HTTP library's own, without an answer.
    except (OSError, RuntimeError, getattr(errors, "HTTPError", OSError)) as error:
        why = redacted(str(error))
        raise StoreError(
            f"{address.url} can't be reached or written ({why}); see to network and login, and "
            f"{again}"
        ) from error


# ------------------------------------------------------------------------------ what is sent


def _beside_others(
    api: "HfApi", address: HubAddress, name: str, staging: Path, head: str | None
) -> bytes:
    """Have what a commit's other datasets say of themselves, for registry and cover.

    Gives the commit's registry.json as it stands.
    """
    for left in staging.iterdir():
        if left.name != name:
            remove_path(left)
    where = _where(address, head)
    with _asking(address):
        for path in api.list_repo_files(**where):
            other, _, file = path.partition("/")
            told = file in ("metadata.json", "README.md") and is_name(other) and other != name
            if told or path == "registry.json":
                api.hf_hub_download(**where, filename=path, local_dir=staging)
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    before = read_bytes(staging / "registry.json") or b""
    known, root = understood(before or None).text.values, EvalRoot(staging)
    ours = {other for other, entry in known.items() if isinstance(entry, dict) and is_ours(entry)}
    registry.change_registry(root, ours.difference(root.dataset_names()))
    return before


def _cover(staging: Path, name: str) -> None:
    """README.md of the repository: a dataset's card, or the list of them; all in its header."""
    import yaml

    from eval_ingest.core.plain_yaml import YamlProblem, load_whole_yaml

    cards = {path.parent.name: path.read_text(errors="replace")
             for path in sorted(staging.glob("*/README.md"))}  # fmt: skip
    headers = {}
    for one, card in cards.items():
        try:
            headers[one] = load_whole_yaml(card.split("---\n", 2)[1])
            for config in headers[one].get("configs", []):
                config["config_name"] = one
                for part in config["data_files"]:
                    part["path"] = f"{one}/{part['path']}"
        except (YamlProblem, LookupError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{one}/README.md in the repository is no card of ours; publish {one} anew"
            ) from error
    configs = [config for header in headers.values() for config in header.get("configs", [])]
    header = {**headers[name], "configs": configs}
    if len(cards) == 1:
        body = re.sub(r"\]\((?!https?:)", f"]({name}/", cards[name].split("---\n", 2)[2])
    else:
        header = {"tags": header["tags"][:5], "license": "other", "configs": configs}
        licences = {
            one: found.get("license_name", found.get("license")) for one, found in headers.items()
        }
        rows = [f"| [{one}]({one}/README.md) | {licences[one]} |" for one in cards]
        body = "\n# Evals\n\n| dataset | licence |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    (staging / "README.md").write_text(f"---\n{text}---\n{body}")


def _say_where(staging: Path, address: HubAddress, before: bytes) -> None:
    """In registry.json, where the datasets are for everybody, and not here.

    Where it says what it said before it is that to the byte: it tells when it was written.
    """

    def named(here_named: RegistryText) -> RegistryText:
        entries = []
        for entry in here_named.entries:
            where = json.dumps(address._replace(name=entry.name).url)
            here = json.dumps(str(staging / entry.name))
            entries.append(replace(entry, raw=entry.raw.replace(here, where)))
        return replace(here_named, entries=tuple(entries))

    root = EvalRoot(staging)
    now = root.update_registry(named)
    known = understood(before or None)
    if before and not known.damage and known.text.values == now.values:
        write_bytes(root.layout.registry, before)
    for left in [root.layout.registry_lock, *staging.glob(".*")]:
        left.unlink(missing_ok=True)
    for left in staging.glob("registry.*.json"):
        left.unlink()


def _refuse_private(staging: Path, paths: list[Path], places: set[str], before: bytes) -> None:
    """Look through everything but packed numbers once more: rasters may name files, too.

    But for entries of registry.json that everybody can read already.

    Raises:
        StoreError: a text tells a path, a bucket, an address or a secret; or any file one of the
            places.
    """
    known = places | {str(Path.home()), str(staging)} - {"/", ""}
    said = understood(before or None).text.values
    for path in paths:
        if path.suffix == ".npy":
            continue
        data = path.read_bytes()
        if path.name == "registry.json":
            entries = understood(data).text.entries
            data = "\n".join(e.raw for e in entries if e.value != said.get(e.name)).encode()
        told = [text for text in known if text.encode() in data]
        if path.suffix in _TEXTS:
            told += filter(None, map(_private, data.decode(errors="replace").splitlines()))
        if told:
            raise StoreError(
                f"{path.relative_to(staging)} would tell everybody {redacted(told[0])[:200]!r}, so "
                "nothing was sent; publish without --windows, or take it out of the dataset"
            )


def _private(line: str) -> str:
    """What of a line isn't for everybody, with some of what stands before it; empty: nothing."""
    plain = line.replace("hf://", "https://")
    rest = public(plain)
    pairs = enumerate(zip(plain, rest, strict=False))
    begins = next((k for k, (one, other) in pairs if one != other), len(rest))
    return "" if plain == rest else plain[max(begins - 20, 0) : begins + 60]


def _send(
    api: "HfApi",
    address: HubAddress,
    name: str,
    staging: Path,
    found: Published,
    progress: Progress,
    head: str | None,
) -> Published:
    """Send what isn't there yet: a portion a commit, what makes it a version last.

    Raises:
        OutdatedError: somebody has made another commit since `head`.
        StoreError: the Hub can't be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

    with _asking(address):
        tree = list(api.list_repo_tree(**_where(address, head), recursive=True))
    listed = [entry for entry in tree if isinstance(entry, RepoFile)]
    there = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in listed}
    new = [
        path for path in found.files
        if path not in there or there[path] not in _digests(staging / path)
    ]  # fmt: skip
    last = [path for path in new if path.rsplit("/", 1)[-1] in _LAST]
    first = [path for path in new if path not in last]
    stale = [path for path in there if path.startswith(f"{name}/") and path not in found.files]
    portions = [first[k : k + AT_ONCE] for k in range(0, len(first), AT_ONCE)]
    done, began = 0, head
    for paths in [*portions, last]:
        operations: list[Any] = [CommitOperationAdd(path, staging / path) for path in paths]
        if paths is last:
            operations += [CommitOperationDelete(path) for path in stale]
        if operations:
            message = f"{name}: {len(operations)} files"
            with _asking(address):
                head = api.create_commit(
                    **_where(address), operations=operations, commit_message=message,
                    parent_commit=head,
                ).oid  # fmt: skip
        done += len(paths)
        progress("files sent", done, len(new))
    return replace(found, sent=new, commit="" if head is None or head == began else head)


@contextmanager
def _without_its_bars() -> Iterator[None]:
    """The Hub's client draws a bar a file; one line says what was sent or fetched."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _digests(path: Path) -> tuple[str, str]:
    """What the Hub calls a file's content: of LFS files SHA-256, of others git's blob id."""
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            blob.update(part)
            sha256.update(part)
    return sha256.hexdigest(), blob.hexdigest()


# ------------------------------------------------------------------------------------- pulling


@checked
def pull(url: str, *, root: str | Path | None = None, progress: Progress = no_progress) -> Path:
    """Copy a dataset from the Hugging Face Hub into an eval root, verified; gives its folder.

    Stopped, it goes on when it is run again. A version that lies there already is replaced.
    `EvalDataset(url, split)` reads it without: what is asked for, through the cache.

    Args:
        url: hf://ORG/REPO/NAME, with @REVISION after REPO for a certain one.
        root: a folder; default OLMOEARTH_EVAL_DATASETS.
        progress: see `ingest`.

    Raises:
        SpecError: no address of a dataset, or the eval root isn't a folder.
        StoreError: the Hub can't be reached, or has no such dataset.
        IntegrityError: what arrived isn't what was published.
    """
    address = HubAddress.parse(url)
    if address.name is None:
        raise SpecError(f"{url} names no dataset; give hf://{address.repo}/DATASET")
    target = open_root(Settings.load(eval_root=root))
    if target.cache_bytes is not None:
        raise SpecError(f"datasets are pulled into a folder, and the eval root is {target.url}")
    api, name = _api(), address.name
    store = target.dataset(name)
    _refuse_own(store)
    with _asking(address):
        where = _where(address, api.repo_info(**_where(address)).sha)
        listed = api.list_repo_files(**where)
    wanted = [path for path in listed if path.startswith(f"{name}/")]
    if odd := [path for path in wanted if {"", ".", ".."}.intersection(path.split("/"))]:
        raise StoreError(f"{address.url} has a file {odd[0]!r}, which would lie elsewhere")
    if f"{name}/metadata.json" not in wanted:
        names = sorted(p.split("/")[0] for p in listed if re.fullmatch(r"[^/]+/metadata\.json", p))
        raise StoreError(f"{address.url}: the repository holds {', '.join(names) or 'no dataset'}")
    # Whatever else its owner keeps beside what was published is nothing of ours.
    wanted = [path for path in wanted if path.split("/")[1] in PUBLISHED]
    with store.hold(WAIT_S, f"{name} is being pulled"):
        _refuse_own(store)
        aside = target.path / f".{name}.pull"
        with store_errors("pulling to", aside):
            aside.mkdir(parents=True, exist_ok=True)
        require_told_apart(aside, wanted)
        _fetch(api, address, where, wanted, aside, progress)
        try:
            _verified(EvalRoot(aside), name, progress)
        except IntegrityError:
            shutil.rmtree(aside)  # else it would be taken for what has arrived already
            raise
        store.withdraw()  # by renaming, as what comes: readers find the one or the other
        os.rename(aside / name, store.layout.path)
    shutil.rmtree(aside, ignore_errors=True)
    registry.rebuild_registry(target)
    return store.layout.path


def _fetch(
    api: "HfApi",
    address: HubAddress,
    where: dict[str, Any],
    wanted: list[str],
    aside: Path,
    progress: Progress,
) -> None:
    """Have these files in a folder, and no others that a pull of another version has left."""
    there = {path for path in aside.glob("[!.]*/**/*") if not path.is_dir()}
    for stale in there - {aside / path for path in wanted}:
        remove_path(stale)
    for done, path in enumerate(wanted, start=1):
        with _asking(address):
            api.hf_hub_download(**where, filename=path, local_dir=aside)
        progress("files fetched", done, len(wanted))
    shutil.rmtree(aside / ".cache", ignore_errors=True)


def _refuse_own(store: DatasetStore) -> None:
    """What was ingested here is not replaced by what was pulled, nor is a link to elsewhere."""
    if store.linked_to:
        raise StoreError(
            f"{store.url} is a link to {store.linked_to}; remove the link, and what is there, or "
            "pull into another eval root"
        )
    if whose(store) is not Whose.NOBODYS and not holds_published(store):
        raise StoreError(
            f"{store.url} is there already and wasn't pulled; remove it, or pull into another "
            "eval root"
        )


def _verified(aside: EvalRoot, name: str, progress: Progress) -> None:
    """Check what arrived: whole, and nothing that we wouldn't have written.

    Raises:
        IntegrityError: it isn't.
    """
    store = aside.dataset(name)
    with _arriving(name):
        metadata = registry.require_metadata(aside, name)
    require_public(metadata)
    with _arriving(name):
        damaged = verify(store, metadata, progress).problems
        if registry.read_opening(store) != opening(metadata):
            damaged.append(f"{store.layout.opening.name} is of another version than metadata.json")
        index = _arrived(store, metadata, "window_index")
        if index.source != UNTOLD:
            damaged.append(f"{store.layout.window_index.name} says where windows came from")
        if metadata.spec.copy_mode != "windows":
            remove_copy(store)
        elif not damaged:
            _write_configs(store, metadata)
            damaged += _foreign(store, metadata)
        if damaged:
            raise IntegrityError(damaged[0])


@contextmanager
def _arriving(name: str) -> Iterator[None]:
    """What is damaged came so: ingesting it, as another record's cure is, is nothing to do here."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(
            f"{name} arrived damaged: {error.what}",
            "pull it again; if that doesn't help, it was published so",
        ) from error


def _arrived(store: DatasetStore, metadata: Metadata, stage: str) -> Any:
    """A stage's outcome, which is of the version that was published."""
    found = read_outcome(store, stage)
    if found is None or found.fingerprint != metadata.fingerprints[stage]:
        raise IntegrityError(f"the outcome of {stage} is missing, or of another version")
    return found


def _write_configs(store: DatasetStore, metadata: Metadata) -> None:
    """Have config.json and model.yaml as we write them: in others, rslearn runs what is named."""
    layout, copy = store.layout, _arrived(store, metadata, "weka_copy")
    index = _arrived(store, metadata, "window_index")
    splits = _arrived(store, metadata, "split_assignment").joined(index)
    for name, data in configs(Samples(metadata.config, index, splits)).items():
        if read_bytes(layout.path / name) != data:
            write_bytes(layout.path / name, data)
            copy.files[name] = file_crc32c(layout.path / name)
            write_sealed_json(layout.weka_copy, copy.model_dump())


def _foreign(store: DatasetStore, metadata: Metadata) -> Iterator[str]:
    """What is in a copy's windows that rslearn, or GDAL, would do more with than read it."""
    source = LocalSource(str(store.layout.path))
    for files in source.windows(source.groups(), metadata.config.layer_names):
        read = partial(_read, source, files)
        try:
            parse_metadata(parse_json(read("metadata.json"), "metadata.json", ""))
            check_beside(files, read)
            check_content(files.by_path, read)
        except (Unreadable, KeyError) as error:
            yield f"window {files.key}: {error}"


def _read(source: LocalSource, files: WindowFiles, path: str) -> bytes:
    return source.read(files.group, files.name, files.by_path[path])
