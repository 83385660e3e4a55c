/* The files of one window on a local disk: see listing.py. One call lets go of the GIL once, where
 * Python's own would do so for each of seventy system calls.
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
    size_t n_files, room;
    char *texts;
    size_t n_texts, text_room;
    char path[LONGEST]; /* of the folder that is being listed, relative to the window */
    int odd; /* a link, or neither a file nor a folder: Python has to look closer */
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
    const int opened = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opened < 0)
        return errno == ENOENT || errno == ENOTDIR ? 0 : errno;
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
        to += sprintf(to, "%lld", (long long)file->modified);
        if (inodes)
            to += sprintf(to, " %lld %llu", (long long)file->changed,
                          (unsigned long long)file->inode);
        to++; /* the zero that sprintf wrote */
    }
    *length = (size_t)(to - text);
    return text;
}

static PyObject *py_list_files(PyObject *self, PyObject *args)
{
    PyObject *root, *result = NULL;
    const char *layers;
    Py_ssize_t n_bytes;
    int inodes;
    /* layers: names, each with a zero byte after it */
    if (!PyArg_ParseTuple(args, "O&y#p", PyUnicode_FSConverter, &root, &layers, &n_bytes,
                          &inodes))
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
    const char *path = PyBytes_AsString(root);
    char *text = NULL;
    size_t length = 0;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = list_window(listing, path, layers, (size_t)n_bytes);
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

static PyMethodDef methods[] = {
    {"list_files", py_list_files, METH_VARARGS, NULL},
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
