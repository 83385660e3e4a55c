"""Passwords and signatures in URLs: seen in no output, kept in no file."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from eval_ingest import EvalDataset, cli
from eval_ingest.errors import EvalIngestError
from eval_ingest.objects.reading import Objects
from eval_ingest.redaction import in_markdown, without_secrets_of
from eval_ingest.report.terminal import discover_lines
from eval_ingest.settings import Settings
from eval_ingest.store.roots.open import open_root
from eval_ingest.watching import survey

SECRET = "s3cr3t/pass"
URL = "memory://somebody:s3cr3tpass@evals/root"
"""One that a file system takes as it is."""


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", URL)
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVAL_INGEST_WORKERS", "2")
    yield URL
    memory = fsspec.filesystem("memory")
    if memory.exists("/somebody:s3cr3tpass@evals"):
        memory.rm("/somebody:s3cr3tpass@evals", recursive=True)


def test_an_eval_root_with_a_password_shows_and_keeps_it_nowhere(
    root: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        f"ingest --name crops --source {small} --dry-run",
        f"ingest --name crops --source {small}",
        f"ingest --name crops --source {small} --json",
        "list",
        "list --json",
        "info --name crops",
        "info --name crops --json",
        "verify --name crops",
        "discover --root nowhere-at-all",
        "tasks --format olmoearth",
        "sweep --encoder pixels --datasets nope",
        "info --name nope",
        "registry rebuild",
        f"export --name crops --to {tmp_path}/published",
        "report --name crops",
    ):
        cli.main(command.split())
    assert len(EvalDataset("crops", "train")) > 0
    memory = fsspec.filesystem("memory")
    objects = memory.find("/somebody:s3cr3tpass@evals")
    kept = {name: memory.cat(name) for name in objects}
    kept |= {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert any(name.endswith("registry.json") for name in kept)
    assert [name for name, data in kept.items() if b"s3cr3tpass" in data] == []
    assert cli.main(["remove", "--name", "crops", "--yes"]) == 0
    told = capsys.readouterr()
    assert "memory://***@evals/root" in told.out
    assert "s3cr3tpass" not in told.out + told.err


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        (f"s3://AKIAKEY:{SECRET.replace('/', '%2F')}@bucket/evals", "AWS_SECRET_ACCESS_KEY"),
        ("weka://key:s3cr3tpass@bucket/evals", "AWS_SECRET_ACCESS_KEY"),
        ("gs://user:s3cr3tpass@bucket/evals", "gcloud auth application-default login"),
        ("https://host.invalid/evals?sv=1&sig=s3cr3tpass", "a signature is for one object"),
    ],
)
def test_a_root_that_can_not_take_its_secret_is_told_in_one_line(
    url: str,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", url)
    for command in ("list", "info --name x", "remove --name x --yes", "registry rebuild"):
        assert cli.main(command.split()) == 1
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 4 and told.err.count(cure) == 4
    assert "***" in told.err and "s3cr3t" not in told.out + told.err


def test_a_bucket_never_stands_in_a_message_with_its_password() -> None:
    with pytest.raises(EvalIngestError, match=r"source s3://\*\*\*@b/x can't be opened") as told:
        Objects("s3://key:s3cr3tpass@b/x").require()
    assert "s3cr3tpass" not in f"{told.value}{told.value.__cause__}"


def test_what_another_library_says_is_rid_of_the_url_s_secrets() -> None:
    url = "ftp://user:p%40ss-word@host/x?token=abc"
    said = "login of user:p@ss-word failed, p%40ss-word, with abc"
    assert without_secrets_of(url, said) == "login of *** failed, ***, with ***"


def test_roots_to_discover_are_shown_without_passwords(tmp_path: Path) -> None:
    roots = ["s3://key:s3cr3tpass@bucket/x"]
    found = survey(roots, Settings(eval_root=str(tmp_path)), timeout_s=0.0)
    late = survey(roots, Settings(eval_root=str(tmp_path)), timeout_s=None)
    for survey_ in (found, late):
        lines = discover_lines(roots, [], survey_.down)
        assert survey_.down and "s3cr3tpass" not in "\n".join(lines)


def test_the_address_of_a_root_opens_it_again(root: str) -> None:
    opened = open_root(Settings.load())
    assert opened.url == "memory://***@evals/root"
    assert open_root(Settings.load(), opened.address) == opened


def test_what_becomes_a_link_by_itself_is_words_and_a_buckets_address_stays() -> None:
    for url in ("http://h/x", "HTTPS://h/x", "ftp://h/x", "www.h.org", "mailto:a@h", "xmpp:a@h"):
        assert "&#" in in_markdown(f"see {url}")
    for url in ("gs://bucket/a_b", "s3://bucket/x.tar.gz", "weka://bucket/x", "hf://org/repo"):
        assert in_markdown(f"Source: {url}") == f"Source: {url}"
