"""Settings: the environment, .env, and `${VAR:-default}`."""

from pathlib import Path

import pytest

from eval_ingest.errors import SettingsError
from eval_ingest.settings import DEFAULT_EVAL_ROOT, Settings, literal


def test_without_environment_evals_are_on_weka() -> None:
    assert Settings.load({}, Path("none")).eval_root == DEFAULT_EVAL_ROOT


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("OLMOEARTH_EVAL_DATASETS=/from/dotenv\nSTUDIO_ROOT=/studio\n")
    assert Settings.load({}, dotenv).eval_root == "/from/dotenv"
    settings = Settings.load({"OLMOEARTH_EVAL_DATASETS": "/from/environment"}, dotenv)
    assert settings.eval_root == "/from/environment"
    assert settings.expand("${STUDIO_ROOT:-gs://x}/tolbi") == "/studio/tolbi"


def test_defaults_stand_in_for_unset_variables() -> None:
    settings = Settings.load({"A": ""}, Path("none"))
    assert settings.expand("${A:-gs://x/y}/tolbi") == "gs://x/y/tolbi"
    with pytest.raises(SettingsError, match="needs the environment variable B; set it"):
        settings.expand("${B}/tolbi")


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_unusable_workers_are_told(workers: str) -> None:
    with pytest.raises(SettingsError, match="must be a number from 1 up"):
        Settings.load({"EVAL_INGEST_WORKERS": workers}, Path("none"))


@pytest.mark.parametrize("size", ["0", "-1", "much", "inf", "nan"])
def test_an_unusable_cache_size_is_told(size: str) -> None:
    with pytest.raises(SettingsError, match=r"EVAL_INGEST_CACHE_GIB=.* must be a number above 0"):
        Settings.load({"EVAL_INGEST_CACHE_GIB": size}, Path("none"))
    assert Settings.load({"EVAL_INGEST_CACHE_GIB": "0.5"}, Path("none")).cache_gib == 0.5


def test_a_dollar_more_keeps_a_variable_as_it_is() -> None:
    settings = Settings.load({"A": "x"}, Path("none"))
    assert settings.expand("/$${A}/${A}/$${NONE}/$A/$$") == "/${A}/x/${NONE}/$A/$$"
    for found in ("/${A}", "/$${A}", "/$$${A}", "/$", "/${A:-b}", "/${"):
        assert settings.expand(literal(found)) == found
