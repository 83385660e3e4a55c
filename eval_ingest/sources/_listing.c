/* The files of one window on a local disk, listed and read: see listing.py. One call lets go of the
 * GIL once, where Python's own would do so for each of some hundred system calls.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#define _GNU_SOURCE
#include <Python.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEEPEST = 8, LONGEST = 4096 };

typedef struct {
    size_t place; /* of its path among the texts */
    const char *path; /* the path itself, once all texts are there and stay where they are */
    int64_t size, modified, changed;
    uint64_t inode;
} File;

typedef struct {
    File *files;
    size_t n_files, room, most_files;
    char *texts;
    size_t n_texts, text_room;
    char path[LONGEST]; /* of the folder that is being listed, relative to the window */
    int odd; /* a link, no file or folder, too deep or too many: Python has to look closer */
} Listing;

#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int add_file(Listing *listing, const char *path, const struct stat *found)
{
    const size_t length = strlen(path) + 1;
    if (listing->n_files >= listing->most_files)
        return E2BIG;
    if (listing->n_files == listing->room) {
        const size_t room = listing->room ? 2 * listing->room : 64;
        File *files = realloc(listing->files, room * sizeof(File));
        if (files == NULL)
            return ENOMEM;
        listing->files = files;
        listing->room = room;
    }
    if (listing->n_texts + length > listing->text_room) {
        const size_t room = 2 * listing->text_room + length + LONGEST;
        char *texts = realloc(listing->texts, room);
        if (texts == NULL)
            return ENOMEM;
        listing->texts = texts;
        listing->text_room = room;
    }
    memcpy(listing->texts + listing->n_texts, path, length);
    listing->files[listing->n_files++] =
        (File){listing->n_texts,
               NULL,
               (int64_t)found->st_size,
               nanoseconds(found->st_mtim),
               nanoseconds(found->st_ctim),
               (uint64_t)found->st_ino};
    listing->n_texts += length;
    return 0;
}

/* True if the part of an entry's name before its first point is one of the layers. */
static int is_wanted(const char *name, const char *layers, size_t n_bytes)
{
    const size_t length = strcspn(name, ".");
    for (const char *layer = layers; layer < layers + n_bytes; layer += strlen(layer) + 1)
        if (strlen(layer) == length && memcmp(layer, name, length) == 0)
            return 1;
    return 0;
}

/* Adds the files below the folder at listing->path; `layers` is NULL below the layers themselves. */
static int list_folder(Listing *listing, int parent, const char *name, const char *layers,
                       size_t n_bytes, int depth)
{
    if (depth > DEEPEST)
        return ELOOP; /* a link that leads round in circles */
    const int opened = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (opened < 0) {
        listing->odd |= errno == ENOTDIR || errno == ELOOP; /* it may be a link */
        return errno;
    }
    DIR *folder = fdopendir(opened);
    if (folder == NULL) {
        const int error = errno;
        close(opened);
        return error;
    }
    const size_t length = strlen(listing->path);
    int error = 0;
    while (!error) {
        errno = 0;
        const struct dirent *entry = readdir(folder);
        if (entry == NULL) {
            error = errno;
            break;
        }
        const char *inner = entry->d_name;
        if (strcmp(inner, ".") == 0 || strcmp(inner, "..") == 0)
            continue;
        if (layers != NULL && !is_wanted(inner, layers, n_bytes))
            continue;
        if (length + strlen(inner) + 2 > LONGEST) {
            error = ENAMETOOLONG;
            break;
        }
        listing->path[length] = '/';
        strcpy(listing->path + length + 1, inner);
        int is_folder = entry->d_type == DT_DIR;
        if (!is_folder) {
            struct stat found;
            if (fstatat(opened, inner, &found, AT_SYMLINK_NOFOLLOW) < 0)
                error = errno == ENOENT ? 0 : errno; /* gone meanwhile */
            else if (S_ISDIR(found.st_mode))
                is_folder = 1;
            else if (S_ISREG(found.st_mode))
                error = add_file(listing, listing->path, &found);
            else
                listing->odd = 1;
        }
        if (is_folder)
            error = list_folder(listing, opened, inner, NULL, 0, depth + 1);
        if (!error)
            listing->path[length] = '\0';
    }
    closedir(folder);
    return error;
}

static int list_window(Listing *listing, const char *root, const char *layers, size_t n_bytes)
{
    const int opened = open(root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (opened < 0) {
        listing->odd = errno == ENOTDIR; /* it may be a link */
        return errno == ENOENT ? 0 : errno;
    }
    int error = 0;
    static const char *const names[] = {"metadata.json", "items.json"};
    for (int k = 0; k < 2 && !error; k++) {
        struct stat found;
        if (fstatat(opened, names[k], &found, AT_SYMLINK_NOFOLLOW) < 0)
            error = errno == ENOENT ? 0 : errno;
        else if (S_ISREG(found.st_mode))
            error = add_file(listing, names[k], &found);
        else
            listing->odd = 1;
    }
    if (!error) {
        strcpy(listing->path, "layers");
        error = list_folder(listing, opened, "layers", layers, n_bytes, 0);
        if ((error == ENOENT || error == ENOTDIR) && strcmp(listing->path, "layers") == 0)
            error = 0; /* a window without layers */
    }
    close(opened);
    return error;
}

static int by_path(const void *one, const void *other)
{
    return strcmp(((const File *)one)->path, ((const File *)other)->path);
}

static void sort_files(Listing *listing)
{
    for (size_t k = 0; k < listing->n_files; k++)
        listing->files[k].path = listing->texts + listing->files[k].place;
    if (listing->n_files > 1)
        qsort(listing->files, listing->n_files, sizeof(File), by_path);
}

/* Writes a file's version, with a zero byte after it; returns where that is. */
static char *write_version(char *to, const File *file, int inodes)
{
    to += sprintf(to, "%lld", (long long)file->modified);
    if (inodes)
        to += sprintf(to, " %lld %llu", (long long)file->changed, (unsigned long long)file->inode);
    return to;
}

/* Per file its path, size and version, each with a zero byte after it; NULL without memory. */
static char *as_text(const Listing *listing, int inodes, size_t *length)
{
    char *text = malloc(listing->n_texts + 96 * listing->n_files + 1), *to = text;
    if (text == NULL)
        return NULL;
    for (size_t k = 0; k < listing->n_files; k++) {
        const File *file = &listing->files[k];
        const size_t n_bytes = strlen(file->path) + 1;
        memcpy(to, file->path, n_bytes);
        to += n_bytes;
        to += sprintf(to, "%lld", (long long)file->size) + 1;
        to = write_version(to, file, inodes) + 1;
    }
    *length = (size_t)(to - text);
    return text;
}

static PyObject *py_list_window(PyObject *self, PyObject *args)
{
    PyObject *root, *result = NULL;
    const char *layers;
    Py_ssize_t n_bytes;
    int inodes;
    Py_ssize_t most_files;
    /* layers: names, each with a zero byte after it */
    if (!PyArg_ParseTuple(args, "O&y#pn", PyUnicode_FSConverter, &root, &layers, &n_bytes,
                          &inodes, &most_files))
        return NULL;
    if (n_bytes > 0 && layers[n_bytes - 1] != '\0') {
        PyErr_SetString(PyExc_ValueError, "layers must end with a zero byte");
        Py_DECREF(root);
        return NULL;
    }
    Listing *listing = calloc(1, sizeof(Listing));
    if (listing == NULL) {
        Py_DECREF(root);
        return PyErr_NoMemory();
    }
    listing->most_files = (size_t)most_files;
    const char *path = PyBytes_AsString(root);
    char *text = NULL;
    size_t length = 0;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = list_window(listing, path, layers, (size_t)n_bytes);
    listing->odd |= error == ELOOP || error == ENAMETOOLONG || error == E2BIG;
    if (!error) {
        sort_files(listing);
        text = as_text(listing, inodes, &length);
        if (text == NULL)
            error = ENOMEM;
    }
    Py_END_ALLOW_THREADS
    if (error == ENOMEM) {
        PyErr_NoMemory();
    } else if (listing->odd) {
        result = Py_NewRef(Py_None);
    } else if (error) {
        errno = error;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
    } else {
        result = PyBytes_FromStringAndSize(text, (Py_ssize_t)length);
    }
    free(text);
    free(listing->files);
    free(listing->texts);
    free(listing);
    Py_DECREF(root);
    return result;
}

/* A file that is to be read, as it was listed. */
typedef struct {
    const char *path, *version;
    char *bytes;
    size_t size;
    int mode; /* below 0: it can't be read, or isn't what was listed any more */
} Wanted;

enum { ANY_VERSION = -1, MOST_AT_ONCE = 1 << 30 };

static int is_as_listed(const struct stat *found, const Wanted *wanted, int inodes)
{
    char text[96];
    const File file = {0,
                       NULL,
                       (int64_t)found->st_size,
                       nanoseconds(found->st_mtim),
                       nanoseconds(found->st_ctim),
                       (uint64_t)found->st_ino};
    if (!S_ISREG(found->st_mode) || found->st_size != (off_t)wanted->size)
        return 0;
    if (inodes == ANY_VERSION)
        return 1;
    write_version(text, &file, inodes);
    return strcmp(text, wanted->version) == 0;
}

static void read_file(int folder, Wanted *file, int inodes)
{
    struct stat found;
    size_t done = 0;
    int error;
    if (file->size == 0) { /* a marker: a third of all files */
        error = fstatat(folder, file->path, &found, AT_SYMLINK_NOFOLLOW);
    } else {
        const int opened =
            openat(folder, file->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (opened < 0)
            return; /* a link, or gone: Python has to look closer */
        while (done < file->size) {
            const size_t left = file->size - done;
            const ssize_t n =
                read(opened, file->bytes + done, left < MOST_AT_ONCE ? left : MOST_AT_ONCE);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                break;
            done += (size_t)n;
        }
        error = fstat(opened, &found);
        close(opened);
    }
    if (error == 0 && done == file->size && is_as_listed(&found, file, inodes))
        file->mode = (int)(found.st_mode & 0777);
}

/* The next of the texts before `end`, each of which has a zero byte after it; NULL without one. */
static const char *next_text(const char **from, const char *end)
{
    const char *text = *from, *zero = text < end ? memchr(text, 0, (size_t)(end - text)) : NULL;
    if (zero == NULL)
        return NULL;
    *from = zero + 1;
    return text;
}

/* The files of a listing; their bytes go into new objects of `result`. */
static Wanted *wanted_files(const char *listed, Py_ssize_t n_bytes, PyObject *result)
{
    const char *from = listed, *end = listed + n_bytes;
    size_t count = 0;
    for (const char *text = listed; text < end; text++)
        count += *text == '\0';
    Wanted *files = calloc(count / 3 + 1, sizeof(Wanted));
    if (files == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (size_t k = 0; k < count / 3; k++) {
        const char *path = next_text(&from, end), *size = next_text(&from, end);
        const char *version = next_text(&from, end);
        if (path == NULL || size == NULL || version == NULL)
            break;
        const long long n = strtoll(size, NULL, 10);
        PyObject *bytes = n < 0 ? NULL : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
        if (bytes == NULL || PyList_Append(result, bytes) < 0) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "a size below 0");
            Py_XDECREF(bytes);
            free(files);
            return NULL;
        }
        files[k] = (Wanted){path, version, PyBytes_AsString(bytes), (size_t)n, -1};
        Py_DECREF(bytes); /* the list holds it */
    }
    return files;
}

static PyObject *py_read_files(PyObject *self, PyObject *args)
{
    PyObject *root;
    const char *listed;
    Py_ssize_t n_bytes;
    int inodes;
    /* listed: as list_plain_window gives it; inodes: as there, or -1 for other versions */
    if (!PyArg_ParseTuple(args, "O&y#i", PyUnicode_FSConverter, &root, &listed, &n_bytes, &inodes))
        return NULL;
    PyObject *result = PyList_New(0);
    Wanted *files = result == NULL ? NULL : wanted_files(listed, n_bytes, result);
    if (files == NULL) {
        Py_DECREF(root);
        Py_XDECREF(result);
        return NULL;
    }
    const Py_ssize_t count = PyList_Size(result);
    const char *path = PyBytes_AsString(root);
    Py_BEGIN_ALLOW_THREADS
    const int opened = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (Py_ssize_t k = 0; k < count && opened >= 0; k++)
        read_file(opened, &files[k], inodes);
    if (opened >= 0)
        close(opened);
    Py_END_ALLOW_THREADS
    PyObject *modes = PyList_New(count);
    for (Py_ssize_t k = 0; k < count && modes != NULL; k++) {
        PyObject *mode = PyLong_FromLong(files[k].mode);
        if (mode == NULL)
            Py_CLEAR(modes);
        else
            PyList_SetItem(modes, k, mode);
    }
    free(files);
    Py_DECREF(root);
    if (modes == NULL) {
        Py_DECREF(result);
        return NULL;
    }
    PyObject *both = PyTuple_Pack(2, result, modes);
    Py_DECREF(result);
    Py_DECREF(modes);
    return both;
}

static PyMethodDef methods[] = {
    {"list_plain_window", py_list_window, METH_VARARGS, NULL},
    {"read_files", py_read_files, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "eval_ingest.sources._listing",
    .m_doc = "See eval_ingest.sources.listing.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__listing(void)
{
    return PyModuleDef_Init(&module);
}
