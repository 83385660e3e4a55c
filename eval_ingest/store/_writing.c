/* The files of one window written into a folder and read back: see window_files.py. One call lets go
 * of the GIL once, where Python's own would do so for each of four system calls a file.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LONGEST = 4096, MOST_AT_ONCE = 1 << 20, DIFFERS = -1 };

typedef struct {
    const char *path; /* relative to the folder */
    const char *bytes;
    size_t size;
    int mode;
} File;

/* Makes the folders above a path, those that aren't there and that the file before hasn't. */
static int make_folders(int root, const char *path, const char *before)
{
    char folder[LONGEST];
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        const size_t length = (size_t)(slash - path);
        if (strncmp(path, before, length + 1) == 0)
            continue;
        if (length >= LONGEST)
            return ENAMETOOLONG;
        memcpy(folder, path, length);
        folder[length] = '\0';
        if (mkdirat(root, folder, 0777) < 0 && errno != EEXIST)
            return errno;
    }
    return 0;
}

static int write_all(int opened, const char *bytes, size_t size)
{
    while (size > 0) {
        const ssize_t n = write(opened, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : EIO;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

/* 0 if the file holds these bytes and no more, DIFFERS if not, or an error's number. */
static int compare(int opened, const char *bytes, size_t size, char *buffer)
{
    size_t done = 0;
    for (;;) {
        const ssize_t n = pread(opened, buffer, MOST_AT_ONCE, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            return done == size ? 0 : DIFFERS;
        if ((size_t)n > size - done || memcmp(bytes + done, buffer, (size_t)n) != 0)
            return DIFFERS;
        done += (size_t)n;
        if (done == size && n < MOST_AT_ONCE)
            return 0; /* a short read at the very end: nothing follows */
    }
}

static int write_file(int root, const File *file, const char *before, char *buffer)
{
    int error = make_folders(root, file->path, before);
    if (error)
        return error;
    const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    const int opened = openat(root, file->path, flags, file->mode);
    if (opened < 0)
        return errno;
    error = write_all(opened, file->bytes, file->size);
    if (!error && file->size > 0)
        error = compare(opened, file->bytes, file->size, buffer);
    if (close(opened) < 0 && !error)
        error = errno;
    return error;
}

/* The files of a list of (path, bytes, mode); the list keeps what they point at. */
static File *files_of(PyObject *list, Py_ssize_t count)
{
    File *files = calloc((size_t)count + 1, sizeof(File));
    if (files == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t k = 0; k < count; k++) {
        PyObject *path, *bytes;
        char *text;
        int mode;
        PyObject *item = PyList_GetItem(list, k);
        if (item == NULL || !PyArg_ParseTuple(item, "SSi", &path, &bytes, &mode))
            break;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(path, &text, NULL) < 0)
            break; /* it holds a zero byte */
        files[k].path = text;
        PyBytes_AsStringAndSize(bytes, &text, &size);
        files[k].bytes = text;
        files[k].size = (size_t)size;
        files[k].mode = mode;
    }
    if (PyErr_Occurred()) {
        free(files);
        return NULL;
    }
    return files;
}

static PyObject *py_write_files(PyObject *self, PyObject *args)
{
    PyObject *folder, *list;
    if (!PyArg_ParseTuple(args, "O&O", PyUnicode_FSConverter, &folder, &list))
        return NULL;
    const Py_ssize_t count = PyList_Size(list);
    File *files = count < 0 ? NULL : files_of(list, count);
    if (files == NULL) {
        Py_DECREF(folder);
        return NULL;
    }
    const char *path = PyBytes_AsString(folder);
    Py_ssize_t k = 0;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    char *buffer = malloc(MOST_AT_ONCE);
    const int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (buffer == NULL)
        error = ENOMEM;
    else if (root < 0)
        error = errno;
    for (; k < count && !error; k++)
        error = write_file(root, &files[k], k ? files[k - 1].path : "", buffer);
    if (root >= 0)
        close(root);
    free(buffer);
    Py_END_ALLOW_THREADS
    if (error > 0) {
        errno = error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, k ? files[k - 1].path : path);
    }
    free(files);
    Py_DECREF(folder);
    if (error > 0)
        return NULL;
    return PyLong_FromSsize_t(error == DIFFERS ? k - 1 : -1);
}

static PyMethodDef methods[] = {
    {"write_files", py_write_files, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "eval_ingest.store._writing",
    .m_doc = "See eval_ingest.store.window_files.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__writing(void)
{
    return PyModuleDef_Init(&module);
}
