"""Every configuration gives rslearn's samples, split by split, or is refused for a stated reason.

A dataset that matches it is written by rslearn's own writers, ingested, and held against rslearn's
own data module: pixels, dates, targets, number and order. The public configurations lie beside the
repository; without them theirs are skipped.
"""

import json
from pathlib import Path

import pytest
import yaml

from eval_ingest_tests.support import variations
from eval_ingest_tests.support.corpus import CONFIGS, SPECS, Corpus

NAMES = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()) if CONFIGS.is_dir() else []


@pytest.mark.skipif(not NAMES, reason="needs ../shared/configs")
@pytest.mark.parametrize("name", NAMES)
def test_a_public_configuration_gives_rslearn_s_samples(name: str, tmp_path: Path) -> None:
    texts = [(CONFIGS / name / file).read_text() for file in ("config.json", "model.yaml")]
    found = Corpus(tmp_path).compare(name, *texts, **SPECS.get(name, {}))
    assert found.verdict == "equal"
    assert sum(found.samples.values()) >= 6


@pytest.mark.parametrize("name", variations.EQUAL)
def test_a_variation_gives_rslearn_s_samples(name: str, tmp_path: Path) -> None:
    config, model = json.dumps({"layers": variations.LAYERS}), variations.EQUAL[name]
    text = yaml.safe_dump(model, sort_keys=False)
    spec = variations.SPECS.get(name, {})
    found = Corpus(tmp_path).compare("d", config, text, windows=6, **spec)
    assert found.verdict == "equal"
    assert found.samples["train"] >= 1


@pytest.mark.parametrize("name", variations.REFUSED)
def test_what_can_t_be_read_as_rslearn_does_is_refused(name: str, tmp_path: Path) -> None:
    import re

    model, reason = variations.REFUSED[name]
    config = json.dumps({"layers": variations.LAYERS})
    found = Corpus(tmp_path).compare("d", config, yaml.safe_dump(model, sort_keys=False))
    assert re.search(reason, found.refused), found.verdict
