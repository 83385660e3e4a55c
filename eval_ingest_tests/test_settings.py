"""Settings: the environment, .env, and `${VAR:-default}`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval_ingest import settings as settings_module
from eval_ingest.errors import SettingsError
from eval_ingest.settings import DEFAULT_EVAL_ROOT, Settings, literal, user_path
from eval_ingest.store.roots.open import open_root
from eval_ingest_tests.support import killing


def test_no_setting_of_the_machine_reaches_a_test() -> None:
    names = re.findall(r"^\| ([A-Z_]+) \|", settings_module.__doc__ or "", re.M)
    assert len(names) > 12 and not set(names) & os.environ.keys()
    assert killing.MARK in os.environ  # by which what tests start is found when they have ended


def test_without_environment_evals_are_on_weka() -> None:
    assert Settings.load({}, Path("none")).eval_root == DEFAULT_EVAL_ROOT


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("OLMOEARTH_EVAL_DATASETS=/from/dotenv\nSTUDIO_ROOT=/studio\n")
    assert Settings.load({}, dotenv).eval_root == "/from/dotenv"
    settings = Settings.load({"OLMOEARTH_EVAL_DATASETS": "/from/environment"}, dotenv)
    assert settings.eval_root == "/from/environment"
    assert settings.expand("${STUDIO_ROOT:-gs://x}/tolbi") == "/studio/tolbi"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_what_was_exported_before_a_command_of_dagster_wins_below_it(tmp_path: Path) -> None:
    # As `dagster dev` does: it starts code servers with what .env says laid over the environment.
    program, dotenv = tmp_path / "dagster", tmp_path / ".env"
    dotenv.write_text("OLMOEARTH_EVAL_DATASETS=/file\nSTUDIO_ROOT=/file\n")
    show = (
        "from eval_ingest.settings import Settings; s = Settings.load(); "
        "print(s.eval_root, s.expand('${STUDIO_ROOT}'))"
    )
    program.write_text(
        "import os, subprocess, sys\n"
        "os.environ |= {'OLMOEARTH_EVAL_DATASETS': '/file', 'STUDIO_ROOT': '/file'}\n"
        f"if len(sys.argv) == 1: subprocess.run([sys.executable, '-c', {show!r}])\n"
        "else: subprocess.run([sys.executable, *sys.argv[1:]])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "STUDIO_ROOT"}
    environment["OLMOEARTH_EVAL_DATASETS"] = "/exported"
    for more in ([], [str(program)]):  # a code server, and a run that it started
        command = [sys.executable, str(program), *more]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == "/exported /file\n"


def test_defaults_stand_in_for_unset_variables() -> None:
    settings = Settings.load({"A": ""}, Path("none"))
    assert settings.expand("${A:-gs://x/y}/tolbi") == "gs://x/y/tolbi"
    with pytest.raises(SettingsError, match="needs the environment variable B; set it"):
        settings.expand("${B}/tolbi")


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_unusable_workers_are_told(workers: str) -> None:
    with pytest.raises(SettingsError, match="must be a number from 1 up"):
        Settings.load({"EVAL_INGEST_WORKERS": workers}, Path("none"))


GROUPS = {
    "version 2": ({"sys/fs/cgroup/pod/a/cpu.max": "150000 100000\n"}, "0::/pod/a\n", 2),
    "of a parent": (
        {
            "sys/fs/cgroup/pod/a/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "100000 100000\n",
        },
        "0::/pod/a\n",
        1,
    ),
    "within a namespace": ({"sys/fs/cgroup/cpu.max": "300000 100000\n"}, "0::/\n", 3),
    "version 1": (
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        "3:memory:/x\n4:cpu,cpuacct:/docker/of/the/host\n0::/\n",
        1,
    ),
    "none": (
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        "4:cpu:/\n0::/\n",
        4,
    ),
    "no groups at all": ({}, None, 4),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_a_container_has_as_many_workers_as_its_quota(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, groups, expected = GROUPS[kind]
    for name, text in files.items() | ({("proc/self/cgroup", groups)} if groups else set()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert settings_module._cores(tmp_path) == expected


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


@pytest.mark.parametrize("name", ["EVAL_INGEST_WORKERS", "EVAL_INGEST_DISCOVERY_SECONDS"])
@pytest.mark.parametrize("value", ["\u00b2", "9" * 5000, "0", "-1", "1_000", "\u0663", "1.0", "x"])
def test_what_is_no_number_is_told_in_a_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}=.* must be a number from 1 up") as told:
        Settings.load({name: value}, Path("none"))
    assert len(str(told.value)) < 200
    assert Settings.load({name: "0012"}, Path("none"))


def test_a_dotenv_that_is_no_utf_8_is_told_in_a_line(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes("# f\u00fcr alle\nSTUDIO_ROOT=/x\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"\.env can't be read as UTF-8 text .* remove it"):
        Settings.load({}, dotenv)


def test_the_home_of_nobody_is_no_home() -> None:
    settings = Settings(eval_root="~nobody-is-called-so/evals", cache="~nobody-is-called-so")
    assert open_root(settings).path == Path.cwd() / "~nobody-is-called-so" / "evals"
    assert user_path("~/x") == Path.home() / "x"


def test_windows_can_be_no_larger_than_what_copying_and_loading_take() -> None:
    assert Settings.load({"EVAL_INGEST_WINDOW_MIB": "4096"}, Path("none")).window_mib == 4096
    with pytest.raises(SettingsError, match=r"EVAL_INGEST_WINDOW_MIB=4097 is too much: .* 4096"):
        Settings.load({"EVAL_INGEST_WINDOW_MIB": "4097"}, Path("none"))
