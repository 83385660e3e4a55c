"""The site's pages: what is typed in them runs, what they quote is said, and nothing is missing."""

import ast
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import griffe
import pytest

import eval_ingest
from eval_ingest import cli, settings
from eval_ingest.core.validate import PROBLEMS
from eval_ingest.testing import demo

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site() -> ModuleType:
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        import site_pages
    finally:
        sys.path.pop(0)
    return site_pages


def blocks(page: str) -> Iterator[tuple[str, str]]:
    yield from _BLOCK.findall((DOCS / page).read_text())


def whole_lines(text: str) -> str:
    """A text in which no line goes on on the next one, as in a shell behind a backslash."""
    return re.sub(r"\\\n *", "", text)


def type_in(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a shell, in this process: starting Python for each takes seconds."""
    words = shlex.split(line.replace("$PWD", str(Path.cwd())), comments=True)
    if words[0] == "export":
        monkeypatch.setenv(*words[1].split("="))
        return
    programs = {"eval-ingest": cli.main, "python": lambda rest: demo.main(rest[2:])}
    assert programs[words[0]](words[1:]) == 0, line


def test_the_tutorial_and_the_pages_that_go_on_from_it_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    pages = ("tutorial.md", "use_in_training.md", "publish.md", "troubleshooting.md")
    for page in pages:
        for language, text in blocks(page):
            if "hf://" in text:
                continue  # test_integrations_huggingface.py does that, on a hub of its own
            if language == "python":
                exec(compile(text, page, "exec"), names)
                continue
            for line in whole_lines(text).splitlines():
                type_in(line, monkeypatch)
    told = capsys.readouterr()
    assert "my_crops is registered" in told.out and "raster_unreadable" in told.out
    whole, sample = names["whole"], names["sample"]
    assert whole[0]["sentinel2_l2a"].shape == (64, 64, 12, 12)  # type: ignore[index]
    assert sample["sentinel2_l2a"].shape == (16, 16, 12, 12)  # type: ignore[index]
    assert (tmp_path / "evals/my_crops/report/report.html").is_file()

    # What is advised against leaks is typed as it is printed, and helps.
    advised = re.search(r"eval-ingest ingest my_crops --split-strategy.*?--ratios [\d ]+", told.out)
    assert advised and "of a train window" in told.out
    type_in(advised[0], monkeypatch)
    told = capsys.readouterr()
    assert "is registered" in told.out and "of a train window" not in told.out
    assert "is empty" not in told.out


def test_what_a_package_index_does_not_have_is_installed_from_nowhere_else() -> None:
    pages = [*DOCS.glob("*.md"), *REPOSITORY.glob("*.md"), *(REPOSITORY / "examples").glob("*.py")]
    told = {page.name: page.read_text() for page in pages} | {"messages": said()}
    for name, text in told.items():
        assert not re.search(r"pip install[^;\n]*eval-ingest|eval-ingest\[", text), name


def test_the_demo_ends_with_commands_that_can_be_typed() -> None:
    demo = (REPOSITORY / "scripts/demo.sh").read_text()
    lines = demo.partition("<<NEXT")[2].splitlines()[3:-1]
    commands = [re.split(r" {2,}", line.strip())[0].split() for line in lines]
    assert commands[-1] == ["make", "clean"]
    ours = [words[1:] for words in commands if words[0] == "eval-ingest"]
    assert [cli._parser().parse_args(words).run.args for words in ours] == [("list",), ("ingest",)]


def test_every_shell_line_of_every_page_is_one_that_the_command_takes() -> None:
    parser = cli._parser()
    seen = 0
    for page in [*DOCS.glob("*.md"), REPOSITORY / "README.md"]:
        text = whole_lines(page.read_text())
        for line in re.findall(r"^ *(eval-ingest [a-z].*)$", text, re.MULTILINE):
            words = shlex.split(re.split(r"[|>]", line)[0], comments=True)[1:]
            parser.parse_args([word if word != "X" else "x" for word in words])
            seen += 1
    assert seen > 30


def test_everything_that_a_run_writes_is_in_the_page_about_it(
    ingested: Callable[[str], Path],
) -> None:
    text = (DOCS / "outcome.md").read_text()
    of_splits = {"train", "val", "test"}
    for case in ("segmentation", "class_mapping"):
        names = {path.name for path in (ingested(case) / case).iterdir()} - of_splits
        assert not [name for name in names if name not in text], case


def test_every_variable_that_is_read_is_in_the_page_about_them(site: ModuleType) -> None:
    text = (DOCS / "environment.md").read_text() + site.environment()
    read = re.compile(r'environ(?:\.get\(|\[)"(\w+)"')
    code = "".join(path.read_text() for path in (REPOSITORY / "eval_ingest").rglob("*.py"))
    assert not [name for name in read.findall(code) if name not in {"TERM"} and name not in text]


def test_a_petabyte_is_reckoned_from_the_parts_above_it() -> None:
    text = (DOCS / "scaling.md").read_text()
    parts, _, reckoned = text.partition("## What a petabyte")
    measured = re.findall(r"\| ([\d.]+) ms \|", parts)
    found = re.findall(r"800 million x ([\d.]+) ms.*?\| ([\d,]+) (?:core|worker) hours", reckoned)
    assert len(found) == 2 and {each for each, _ in found} < set(measured)
    for each, hours in found:
        assert int(hours.replace(",", "")) == pytest.approx(800e6 * float(each) / 3.6e6, rel=0.02)
    looks = re.search(r"([\d,]+) a second at every 30 s; (\d+) once", reckoned)
    assert looks and [round(40_000 / 30, -2), round(40_000 / 900)] == [
        int(n.replace(",", "")) for n in looks.groups()
    ]


def test_python_in_every_page_is_python() -> None:
    for page in [*DOCS.glob("*.md"), REPOSITORY / "README.md"]:
        for text in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            compile(text, str(page), "exec")


def test_code_in_pages_is_no_wider_than_a_terminal() -> None:
    for page in [*DOCS.glob("*.md"), REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]:
        text = re.sub(r"^```mermaid.*?^```", "", page.read_text(), flags=re.M | re.S)
        fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
        text = re.sub(r"\n(\d+\.|-) .*(\n .*)*", "", text)  # what goes on in a list is no code
        indented = re.findall(r"(?<=\n\n)((?: {4}.*\n)+)", text)
        lines = "\n".join([*fenced, *map(textwrap.dedent, indented)]).splitlines()
        assert not [line for line in lines if len(line) > 80], page.name


def said() -> str:
    """All texts of the package, with a mark where something is filled in."""
    texts = []
    for path in (REPOSITORY / "eval_ingest").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(getattr(part, "value", "") if isinstance(part, ast.Constant)
                                     else "\0" for part in node.values))  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_that_troubleshooting_quotes_are_messages() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    texts = said()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 15
    for text in quoted:
        for part in text.split("..."):
            assert part.strip() in texts, f"nothing says {part.strip()!r}"


def test_every_finding_of_the_verdict_is_explained() -> None:
    source = (REPOSITORY / "eval_ingest/core/quality.py").read_text()
    codes = re.findall(r'(?:Finding|_named|data\.rows|data\.windows)\(\s*"([a-z_]+)"', source)
    page = (DOCS / "split_honestly.md").read_text()
    assert len(codes) > 15
    assert not [code for code in codes if f"`{code}`" not in page]


def test_generated_tables_hold_everything(site: ModuleType) -> None:
    filled = site.on_page_markdown("{{ problems }}\n\n{{ environment }}\n\n{{ commands }}")
    assert all(f"`{code}`" in filled for code in PROBLEMS)
    assert f"`{settings.EVAL_ROOT_VARIABLE}`" in filled
    assert "--split-strategy" in filled and "## leaderboard" in filled
    named = set(re.findall(r'"((?:EVAL_INGEST|OLMOEARTH|WEKA|STUDIO)_[A-Z_]+)"',
                           (REPOSITORY / "eval_ingest/settings.py").read_text()))  # fmt: skip
    assert all(f"`{name}`" in filled for name in named), named


def test_examples_of_docstrings_are_code_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    from doctest_examples import DoctestExamples

    module = griffe.load("eval_ingest.api", search_paths=[str(REPOSITORY)])
    found = module["list_datasets"]
    DoctestExamples().on_object(obj=found)
    assert "```pycon\n>>> [name for" in found.docstring.value
    assert found.docstring.value.endswith("['tolbi_crops']\n```")
    assert "doctest" not in found.docstring.value


def test_the_reference_has_everything_that_is_public() -> None:
    page = (DOCS / "api.md").read_text()
    missing = [
        name for name in eval_ingest.__all__ if not re.search(rf"^::: .*\.{name}$", page, re.M)
    ]
    assert missing == ["__version__"]


def test_every_line_of_the_threat_model_names_a_test_that_there_is() -> None:
    page = (DOCS / "threat_model.md").read_text().partition("## Left to others")[0]
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(named) > 15
    assert not [name for name in named if not (REPOSITORY / "eval_ingest_tests" / name).is_file()]
    rows = page.partition("| what | how | held by |\n")[2].partition("\n\n")[0].splitlines()[1:]
    sections = page.split("\n## ")[2:-1]
    assert len(rows) > 8 and len(sections) > 2
    for line in (*rows, *sections, *re.findall(r"\n(\*\*.*?)\n\n", page, re.DOTALL)[1:]):
        assert re.search(r"`test_\w+\.py`", line), line
    files = re.findall(r"`((?:[\w]+/)+\w+\.(?:py|c))`", page)
    assert files and not [
        name for name in files if not (REPOSITORY / "eval_ingest" / name).is_file()
    ]
