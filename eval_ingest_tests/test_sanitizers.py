"""The compiled loops under AddressSanitizer and UBSan: their own tests, once more, with both on.

Whatever reads or writes a byte beyond its array, or does what C leaves undefined, ends the run.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
MODULES = {
    "eval_ingest.core._kernels": "eval_ingest/core/_kernels.c",
    "eval_ingest.sources._listing": "eval_ingest/sources/_listing.c",
    "eval_ingest.store._writing": "eval_ingest/store/_writing.c",
}
TESTS = [
    "eval_ingest_tests/test_core_kernels.py",
    "eval_ingest_tests/test_sources_listing.py",
    "eval_ingest_tests/test_store_window_files.py",
]
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]

RUN = """
import importlib.util, sys
for name, path in (text.split("=") for text in sys.argv[1].split(",")):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""
RUN_TESTS = (
    RUN
    + """
import pytest
sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""
)
RUN_FAULT = RUN + "print(module.fault(int(sys.argv[2])))"

FAULTY = """
#include <Python.h>

static PyObject *fault(PyObject *self, PyObject *number)
{
    const int n = (int)PyLong_AsLong(number);
    const int size = 8 + (n > 8);
    char *bytes = calloc(size, 1);
    const int value = n < 0 ? bytes[size - n] : 2147483647 + n;
    free(bytes);
    return PyLong_FromLong(value);
}

static PyMethodDef methods[] = {{"fault", fault, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "faulty", NULL, -1, methods};
PyMODINIT_FUNC PyInit_faulty(void) { return PyModule_Create(&module); }
"""


pytestmark = pytest.mark.skipif(
    not os.environ.get("SANITIZE"), reason="slow: make sanitize runs it, and CI does"
)


@pytest.fixture(scope="module")
def gcc() -> str:
    found = shutil.which("gcc")
    if found is None or not sys.platform.startswith("linux"):
        pytest.skip("needs gcc on Linux")
    if not Path(library(found, "libasan.so")).is_absolute():
        pytest.skip("this gcc has no AddressSanitizer (Debian: apt-get install libasan8)")
    return found


def library(gcc: str, name: str) -> str:
    """Where a library of gcc's lies; the bare name if it has none."""
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip()


def build(gcc: str, source: Path, target: Path) -> Path:
    include = sysconfig.get_paths()["include"]
    # Optimised as in pyproject.toml: how a product and a sum are rounded depends on it.
    command = [
        gcc,
        "-shared",
        "-fPIC",
        "-O3",
        "-fno-math-errno",
        *FLAGS,
        f"-I{include}",
        "-o",
        str(target),
        str(source),
    ]
    subprocess.run(command, check=True)
    return target


def sanitized(gcc: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "LD_PRELOAD": library(gcc, "libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself never frees all
        "PYTHONMALLOC": "malloc",  # else small objects share pages, and nothing is noticed
    }
    return subprocess.run(
        [sys.executable, "-c", *command],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.parametrize(
    ("number", "told"), [(-1, "heap-buffer-overflow"), (1, "signed integer overflow"), (0, "")]
)
def test_the_sanitizers_tell_of_a_fault(gcc: str, number: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.c").write_text(FAULTY)
    module = build(gcc, tmp_path / "faulty.c", tmp_path / "faulty.so")
    done = sanitized(gcc, RUN_FAULT, f"faulty={module}", str(number))
    assert told in done.stderr and (done.returncode == 0) == (number == 0), done.stderr


def test_the_compiled_loops_are_clean(gcc: str, tmp_path: Path) -> None:
    built = {
        name: build(gcc, CHECKOUT / source, tmp_path / f"{name.rpartition('.')[2]}.so")
        for name, source in MODULES.items()
    }
    modules = ",".join(f"{name}={path}" for name, path in built.items())
    done = sanitized(gcc, RUN_TESTS, modules, *TESTS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed in .*", last), done.stdout[-2000:]  # and none was skipped
