"""Every configuration gives rslearn's samples, split by split, or is refused for a stated reason.

A dataset that matches it is written by rslearn's own writers, ingested, and held against rslearn's
own data module: pixels, dates, targets, number and order. The public configurations lie beside the
repository; without them theirs are skipped.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_ingest import pipeline
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import stored_variations, variations
from eval_ingest_tests.support.comparing import index_values
from eval_ingest_tests.support.corpus import CONFIGS, SPECS, Comparison, Corpus
from eval_ingest_tests.support.factories import pack

NAMES = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()) if CONFIGS.is_dir() else []


@pytest.mark.skipif(not NAMES, reason="needs ../shared/configs")
@pytest.mark.parametrize("name", NAMES)
def test_a_public_configuration_gives_rslearn_s_samples(name: str, tmp_path: Path) -> None:
    texts = [(CONFIGS / name / file).read_text() for file in ("config.json", "model.yaml")]
    found = Corpus(tmp_path).compare(name, *texts, windows=8, **SPECS.get(name, {}))
    assert found.verdict == "equal"
    assert sum(found.samples.values()) >= 6


PLAIN = {name: ({}, {}, model) for name, model in variations.EQUAL.items()}


@pytest.mark.parametrize("name", PLAIN | stored_variations.EQUAL)
def test_a_variation_gives_rslearn_s_samples(name: str, tmp_path: Path) -> None:
    layers, more, model = (PLAIN | stored_variations.EQUAL)[name]
    spec = (variations.SPECS | stored_variations.SPECS).get(name, {})
    found = compare(layers, more, model, tmp_path, **spec)
    assert found.verdict == "equal"
    assert found.samples["train"] >= 1
    if name in stored_variations.EQUAL:
        archive = pack(tmp_path / "d" / "source", tmp_path / "d.tar.gz")
        spec |= {"max_invalid_fraction": 0.5, "copy": "stream"}
        pipeline.run_stage(make_job(archive, tmp_path, "corpus", **spec), "window_index")
        assert index_values(tmp_path, "corpus") == index_values(tmp_path / "d" / "root", "corpus")


@pytest.mark.parametrize("name", variations.REFUSED | stored_variations.REFUSED)
def test_what_can_t_be_read_as_rslearn_does_is_refused(name: str, tmp_path: Path) -> None:
    model, reason = (variations.REFUSED | stored_variations.REFUSED)[name]
    found = compare({}, {}, model, tmp_path)
    assert re.search(reason, found.refused), found.verdict


def compare(
    layers: dict[str, Any], more: dict[str, Any], model: dict[str, Any], path: Path, **spec: Any
) -> Comparison:
    """Compare a dataset that has the layers which model.yaml reads."""
    text, known = yaml.safe_dump(model, sort_keys=False), variations.LAYERS | layers
    read = {name for name in known if re.search(rf"- {name}(\.\d+)?$", text, re.MULTILINE)}
    config = {"layers": {name: known[name] for name in known if name in read}, **more}
    return Corpus(path).compare("d", json.dumps(config), text, **spec)
