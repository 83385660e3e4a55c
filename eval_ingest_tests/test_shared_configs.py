"""What the registry says of datasets of public configurations; their samples are test_corpus.py's.

The configurations lie beside the repository; without them these tests are skipped.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from eval_ingest import pipeline
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support.corpus import CONFIGS
from eval_ingest_tests.support.shared_configs import generate

pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs ../shared/configs")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("tolbi", {"task_type": "segmentation", "num_classes": 7, "num_timesteps": 3}),
        ("nandi", {"task_type": "classification", "num_classes": 8, "window_size": 8}),
        ("worldcover", {"task_type": "segmentation", "num_classes": 12, "window_size": 16}),
        ("lfmc", {"task_type": "scalar_regression", "num_classes": 1, "num_timesteps": 12}),
        ("landslide", {"task_type": "segmentation", "num_classes": 2, "timeseries": True}),
    ],
)
def test_the_registry_says_what_the_configuration_means(
    name: str, facts: dict[str, Any], tmp_path: Path
) -> None:
    source = generate(CONFIGS / name, tmp_path / "source", windows=8)
    pipeline.ingest(make_job(source, tmp_path, name))
    entry = json.loads((tmp_path / "registry.json").read_text())["datasets"][name]
    assert {key: entry[key] for key in facts} == facts
    assert len(entry["modalities"]) == len(set(entry["modalities"]))
    assert not any(known.isdigit() for known in entry["classes"])
