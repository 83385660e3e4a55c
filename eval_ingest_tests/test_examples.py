"""The encoders in examples/ run as they stand, from their own folder."""

from pathlib import Path

import pytest

from eval_ingest.settings import Settings
from eval_ingest.sweep.run import run_sweep
from eval_ingest.sweep.suite import Suite
from eval_ingest_tests.support.fake_evals import write_fake

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_finds_a_planted_signal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    sizes = {"size": 16, "counts": (40, 12, 24), "steps": (1, 2)}
    write_fake(tmp_path, "pixels", "segmentation", **sizes)  # type: ignore[arg-type]
    write_fake(tmp_path, "windows", "classification", **sizes)  # type: ignore[arg-type]
    suite = Suite(encoders=(f"{name}:make",), patch_size=4, probe="linear")
    settings = Settings(cache=str(tmp_path / "cache"))
    table = run_sweep(suite, tmp_path / "out", settings, root=tmp_path, device="cpu")
    assert table.failures == []
    scores = {row.dataset: row.metrics["accuracy"] for row in table.rows}
    assert scores["windows"] > 0.5 and scores["pixels"] > 0.33, scores  # chance is a quarter
