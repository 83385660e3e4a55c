"""A script that has done its work ends with 0, however busy the machine is.

CPython ends a thread that asks for the GIL when the interpreter is on its way out; if that thread
is one of C++, the process aborts. So no thread but Python's own may ever ask for it. A shim before
CPython's PyGILState_Ensure tells of each that does, whoever is faster at the end.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval_ingest_tests import conftest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int PyGILState_Ensure(void)
{
    int (*real)(void) = (int (*)(void))dlsym(RTLD_NEXT, "PyGILState_Ensure");
    void *(*state)(void) = (void *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    if (getpid() != (pid_t)syscall(SYS_gettid) && state() == NULL)
        dprintf(2, "a foreign thread asks for the GIL\n");
    return real();
}
"""

SCRIPT = """
import sys
from pathlib import Path
from eval_ingest import EvalDataset
from eval_ingest_tests.conftest import make_job
from eval_ingest import pipeline
from eval_ingest.store.index_file import read_index

def read(path):
    return read_index(path).table.whole()

if sys.argv[1] == "provoke":  # what must not be: Arrow's threads read Python's memory
    import pyarrow as pa
    import pyarrow.parquet as pq
    def read(path):
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(path.read_bytes()))).read()
job = make_job(Path(sys.argv[2]), Path(sys.argv[3]))
pipeline.ingest(job)
for _ in range(150):
    read(job.layout.window_index)
for batch in EvalDataset("crops", split="train", root=sys.argv[3]).batches(8):
    pass
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "shim.so"


def run(shim: Path, how: str, source: Path, root: Path) -> subprocess.CompletedProcess[str]:
    checkout = str(Path(conftest.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, how, str(source), str(root)],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": checkout},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_no_thread_but_pythons_own_asks_for_the_gil(
    shim: Path, small: Path, tmp_path: Path
) -> None:
    done = run(shim, "as it is", small, tmp_path / "root")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    provoked = run(shim, "provoke", small, tmp_path / "root")
    assert "a foreign thread asks for the GIL" in provoked.stderr  # the shim would have told
