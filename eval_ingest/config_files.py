"""A dataset's configuration files as texts: where each is read from, and whose variables it knows.

`--olmoearth-run-config-path` names a folder or one file, and goes before the source. What the
texts mean is inference/.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from eval_ingest.core.plain_yaml import YamlProblem, load_yaml
from eval_ingest.core.spec import DatasetSpec
from eval_ingest.errors import ConfigError
from eval_ingest.inference.resolve import ConfigFiles
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.redaction import names_secret
from eval_ingest.settings import Settings
from eval_ingest.sources.base import ANYBODY, CONFIG_FILES, Source
from eval_ingest.sources.open import open_source

_CONFIG, _MODEL, _RUN = "config.json", "model.yaml", "olmoearth_run.yaml"
_FLAG = "--olmoearth-run-config-path"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FILE_ENDINGS = (".yaml", ".yml", ".json")
_RUN_KEYS = {"window_prep", "inference_results_config", "labeled_data_prep", "config_version"}


@dataclass(frozen=True)
class _Texts:
    """The configuration files that one place holds."""

    where: str
    by_kind: Mapping[str, str]
    """Texts by config.json, model.yaml or olmoearth_run.yaml, whatever the file is called."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Their paths or URLs, by the same."""
    is_file: bool = False
    """One file was named, and not a folder."""


def read_config_files(source: Source, spec: DatasetSpec, settings: Settings) -> ConfigFiles:
    """config.json, model.yaml and olmoearth_run.yaml; those that `spec.config` names come first.

    Raises:
        ConfigError: there is no config.json, or no model.yaml where `spec.config` says.
    """
    own = _folder(source)
    given = _Texts(source.url, {})
    if spec.config is not None:
        given = _given(settings.expand(spec.config))
        _check_given(given, own)
    texts = {**own.by_kind, **given.by_kind}
    if _CONFIG not in texts:
        raise ConfigError(
            f"{source.origin} holds no config.json, so it is no rslearn dataset; "
            "give the folder that holds config.json and windows/"
        )
    variables = {
        kind: _asked_for(text, settings.variables)
        for kind, text in texts.items()
        if _is_the_users(given if kind in given.by_kind else own, own, settings)
    }
    paths = {**own.paths, **given.paths}
    return ConfigFiles(
        texts[_CONFIG],
        texts.get(_MODEL),
        texts.get(_RUN),
        where=given.where,
        variables=variables,
        permissions={kind: _permissions(path) for kind, path in paths.items()},
        paths=paths,
    )


def _permissions(path: str) -> int:
    """The mode bits of a local file; anybody's of one that has none."""
    return os.stat(path).st_mode & ANYBODY if os.path.isfile(path) else ANYBODY


def _folder(source: Source) -> _Texts:
    """The files of a folder by their usual names."""
    names = {_CONFIG: CONFIG_FILES, _MODEL: (_MODEL,), _RUN: (_RUN,)}
    found, paths = {}, {}
    for kind, candidates in names.items():
        read = ((name, source.read_text(name)) for name in candidates)
        name, text = next((there for there in read if there[1] is not None), ("", None))
        if text is not None:
            found[kind], paths[kind] = text, f"{source.url.rstrip('/')}/{name}"
    return _Texts(source.url, found, paths)


def _given(path: str) -> _Texts:
    """What `spec.config` names: a folder, or a file of any name."""
    path = os.path.expanduser(str(weka_mount(path) or path.removeprefix("file://"))).rstrip("/")
    is_file = path.lower().endswith(_FILE_ENDINGS) if "://" in path else os.path.isfile(path)
    if not is_file and ("://" in path or os.path.isdir(path)):
        return _folder(open_source(path))
    # A link that a person names is followed; one that lies in a dataset isn't, if it leads out.
    folder, _, name = (path if "://" in path else os.path.realpath(path)).rpartition("/")
    text = open_source(folder or ".").read_text(name) if is_file else None
    if text is None:
        raise ConfigError(f"{path} does not exist; give a folder or a model.yaml with {_FLAG}")
    kind = _kind_of(text, path)
    return _Texts(path, {kind: text}, {kind: path}, is_file=True)


def _kind_of(text: str, where: str) -> str:
    """Which of the three files a text is, by what stands in it."""
    try:
        content = load_yaml(_VARIABLE.sub("0", text))
    except YamlProblem:
        return _CONFIG if where.endswith(".json") else _MODEL  # told when it is parsed
    keys = set(content) if isinstance(content, dict) else set()
    if "layers" in keys:
        return _CONFIG
    return _RUN if keys & _RUN_KEYS else _MODEL


def _check_given(given: _Texts, own: _Texts) -> None:
    """A folder without a model.yaml doesn't silently mean that of the source."""
    if not given.by_kind:
        raise ConfigError(
            f"{given.where} holds neither model.yaml nor olmoearth_run.yaml; "
            f"give a folder that does, or the file itself, with {_FLAG}"
        )
    if _MODEL in own.by_kind and _MODEL not in given.by_kind and not given.is_file:
        raise ConfigError(
            f"{given.where} holds no model.yaml, and that of {own.where} isn't taken unasked; "
            f"put a copy of it there, or name a single file with {_FLAG}"
        )


def _is_the_users(texts: _Texts, own: _Texts, settings: Settings) -> bool:
    """False where others wrote the texts: in a bucket, or below a root that is watched."""
    if "://" in texts.where:
        return False
    if texts is not own:
        return True
    roots = [os.path.realpath(root) for root in settings.studio_roots if "://" not in root]
    place = os.path.realpath(texts.where)
    return not any(os.path.commonpath((root, place)) == root for root in roots)


def _asked_for(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that a text names and that are set, but for those named like a secret."""
    names = set(_VARIABLE.findall(text))
    return {n: variables[n] for n in sorted(names) if n in variables and not names_secret(n)}
