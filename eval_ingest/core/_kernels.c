/* The loops that decide how fast an ingest and a loader are: see kernels.py for what each does.
 *
 * Every function works on buffers (bytes, memory maps, numpy arrays), keeps nothing, and lets go of
 * the GIL while it works, so threads scale. Files come from elsewhere: whatever in them is not
 * exactly as expected makes a function say so, and the caller takes another way.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build for all processors of a kind: the loader picks the widest version that runs here. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define WIDEST __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define WIDEST
#endif

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ------------------------------------------------------------------------------------ LZW */

enum { CLEAR = 256, END = 257, FIRST = 258, CODES = 4096, MAX_WIDTH = 12 };

/* Per code its string: the first eight bytes, the length, and where all of it stands in the output.
 * In arrays of their own, since heads and lengths alone fit into the nearest cache.
 */
typedef struct {
    uint64_t head[CODES + 1];
    uint16_t length[CODES + 1];
    uint32_t place[CODES + 1];
} Strings;

static inline uint64_t load_big_endian(const uint8_t *at)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t word;
    memcpy(&word, at, 8);
    return __builtin_bswap64(word);
#else
    uint64_t word = 0;
    for (int i = 0; i < 8; i++)
        word = word << 8 | at[i];
    return word;
#endif
}

static inline void store_head(uint8_t *to, uint64_t head)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(to, &head, 8);
#else
    for (int i = 0; i < 8; i++)
        to[i] = (uint8_t)(head >> (8 * i));
#endif
}

/* Decodes one strip or tile of TIFF's LZW: codes of 9 to 12 bits, most significant bit first, each
 * width ending one code early.
 *
 * A new string is always a piece of what has been written, so the table only says where. Eight
 * bytes are written at a time, and what is too much is overwritten by what follows: both buffers
 * need eight bytes more than they hold.
 *
 * Returns 1 if exactly `size` bytes came out of a stream without any oddity, else 0.
 */
static int decode_lzw(const uint8_t *data, size_t n_bytes, uint8_t *out, size_t size,
                      Strings *strings)
{
    const uint64_t n_bits = (uint64_t)n_bytes * 8;
    uint64_t bit = 0;
    uint8_t *to = out, *const stop = out + size;
    uint32_t code;

#define NEXT_CODE(width)                                                                     \
    do {                                                                                     \
        code = (uint32_t)((load_big_endian(data + (bit >> 3)) << (bit & 7)) >> (64 - (width))); \
        bit += (width);                                                                      \
    } while (0)
#define NEXT_CODE_IF_ANY(width)                                                              \
    do {                                                                                     \
        if (bit + (width) > n_bits)                                                          \
            return 0;                                                                        \
        NEXT_CODE(width);                                                                    \
    } while (0)

    NEXT_CODE_IF_ANY(9);
    if (code != CLEAR)
        return 0;
clear:
    do
        NEXT_CODE_IF_ANY(9);
    while (code == CLEAR);
    if (code > 255 || to == stop)
        return 0;
    uint32_t width = 9, next = FIRST;
    uint32_t last_place = (uint32_t)(to - out), last_length = 1;
    uint64_t last_head = code;
    *to++ = (uint8_t)code;
    if (to == stop)
        return 1;
    for (;;) {
        /* Each code makes a string, so this many can be read before the width changes. */
        const uint32_t full = (1u << width) - 1;
        const uint64_t there = (n_bits - bit) / width;
        uint32_t last = there < full - next ? next + (uint32_t)there : full;
        while (next < last) {
            NEXT_CODE(width);
            if (UNLIKELY((code & ~1u) == CLEAR)) {
                if (code == END)
                    return 0;
                goto clear;
            }
            uint64_t first = strings->head[code] & 0xff;
            if (UNLIKELY(code >= next)) {
                if (code > next)
                    return 0;
                first = last_head & 0xff; /* the string that is being made: it begins as the last */
            }
            const uint32_t made = next++;
            strings->head[made] = last_head | (last_length < 8 ? first << (8 * last_length) : 0);
            strings->place[made] = last_place;
            strings->length[made] = (uint16_t)(last_length + 1);

            const uint64_t head = strings->head[code];
            const uint32_t length = strings->length[code];
            store_head(to, head);
            if (UNLIKELY(length >= (size_t)(stop - to))) {
                if (length > (size_t)(stop - to))
                    return 0;
                last = next; /* the last string */
            }
            if (UNLIKELY(length > 8)) {
                const uint8_t *from = out + strings->place[code];
                for (uint32_t i = 8; i < length; i += 8)
                    memcpy(to + i, from + i, 8); /* at least eight bytes apart */
            }
            last_place = (uint32_t)(to - out);
            last_head = head;
            last_length = length;
            to += length;
        }
        if (to == stop)
            return 1;
        if (next < full)
            return 0; /* the stream ends here */
        if (width < MAX_WIDTH) {
            width++;
            continue;
        }
        NEXT_CODE_IF_ANY(MAX_WIDTH);
        if (code != CLEAR)
            return 0;
        goto clear;
    }
#undef NEXT_CODE
#undef NEXT_CODE_IF_ANY
}

typedef struct {
    const uint8_t *at;
    Py_ssize_t bytes_each;
} Numbers;

/* Element k of a tag's values: unsigned little-endian integers of 2, 4 or 8 bytes. */
static inline uint64_t number(Numbers numbers, Py_ssize_t k)
{
    const uint8_t *at = numbers.at + k * numbers.bytes_each;
    uint64_t value = 0;
    for (Py_ssize_t i = numbers.bytes_each; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

enum { SLACK = 16 };

static int decode_blocks(const uint8_t *file, size_t file_size, Numbers offsets, Numbers sizes,
                         Py_ssize_t height, Py_ssize_t row_bytes, Py_ssize_t block_height,
                         Py_ssize_t block_row_bytes, int tiled, uint8_t *out)
{
    const Py_ssize_t across = (row_bytes + block_row_bytes - 1) / block_row_bytes;
    const Py_ssize_t down = (height + block_height - 1) / block_height;
    const size_t most = (size_t)block_height * (size_t)block_row_bytes;
    size_t longest = 0;
    if (most > UINT32_MAX / 2)
        return 0;
    for (Py_ssize_t k = 0; k < across * down; k++) {
        const uint64_t offset = number(offsets, k), size = number(sizes, k);
        if (offset > file_size || size > file_size - offset)
            return 0;
        if (size > longest)
            longest = (size_t)size;
    }
    /* The strings, one block's stream, one block's pixels. */
    uint8_t *memory = malloc(sizeof(Strings) + longest + SLACK + most + SLACK);
    if (memory == NULL)
        return -1;
    Strings *strings = (Strings *)memory;
    uint8_t *stream = memory + sizeof(Strings), *pixels = stream + longest + SLACK;
    for (uint32_t i = 0; i < 256; i++) {
        strings->head[i] = i;
        strings->length[i] = 1;
    }
    int good = 1;
    for (Py_ssize_t k = 0; good && k < across * down; k++) {
        const Py_ssize_t row = k / across * block_height, column = k % across * block_row_bytes;
        const Py_ssize_t rows = height - row < block_height ? height - row : block_height;
        const Py_ssize_t width = row_bytes - column < block_row_bytes ? row_bytes - column
                                                                      : block_row_bytes;
        const size_t offset = (size_t)number(offsets, k), size = (size_t)number(sizes, k);
        const size_t wanted = (size_t)(tiled ? block_height : rows) * (size_t)block_row_bytes;
        const uint8_t *data = file + offset;
        if (file_size - offset < size + 8) { /* the last block of a file */
            memcpy(stream, data, size);
            data = stream;
        }
        good = decode_lzw(data, size, pixels, wanted, strings);
        if (!good)
            break;
        if (width == block_row_bytes && across == 1)
            memcpy(out + row * row_bytes, pixels, (size_t)rows * (size_t)row_bytes);
        else
            for (Py_ssize_t r = 0; r < rows; r++)
                memcpy(out + (row + r) * row_bytes + column, pixels + r * block_row_bytes,
                       (size_t)width);
    }
    free(memory);
    return good;
}

static PyObject *py_decode_lzw(PyObject *self, PyObject *args)
{
    Py_buffer file, out;
    Numbers offsets, sizes;
    Py_ssize_t offsets_at, sizes_at, count, height, row_bytes, block_height, block_row_bytes;
    int tiled, good = 0;
    if (!PyArg_ParseTuple(args, "y*nnnnnnnnnpw*", &file, &offsets_at, &offsets.bytes_each,
                          &sizes_at, &sizes.bytes_each, &count, &height, &row_bytes,
                          &block_height, &block_row_bytes, &tiled, &out))
        return NULL;
    if (height > 0 && row_bytes > 0 && block_height > 0 && block_row_bytes > 0 &&
        height <= out.len / row_bytes && height * row_bytes == out.len &&
        (offsets.bytes_each == 2 || offsets.bytes_each == 4 || offsets.bytes_each == 8) &&
        (sizes.bytes_each == 2 || sizes.bytes_each == 4 || sizes.bytes_each == 8) &&
        block_height <= PY_SSIZE_T_MAX / block_row_bytes && count > 0 && count <= file.len &&
        offsets_at >= 0 && sizes_at >= 0 && offsets_at <= file.len - count * offsets.bytes_each &&
        sizes_at <= file.len - count * sizes.bytes_each) {
        const Py_ssize_t across = (row_bytes - 1) / block_row_bytes + 1;
        const Py_ssize_t down = (height - 1) / block_height + 1;
        if (across <= count && down <= count && across * down == count) {
            offsets.at = (const uint8_t *)file.buf + offsets_at;
            sizes.at = (const uint8_t *)file.buf + sizes_at;
            Py_BEGIN_ALLOW_THREADS
            good = decode_blocks(file.buf, (size_t)file.len, offsets, sizes, height, row_bytes,
                                 block_height, block_row_bytes, tiled, out.buf);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&file);
    PyBuffer_Release(&out);
    if (good < 0)
        return PyErr_NoMemory();
    return PyBool_FromLong(good);
}

/* ----------------------------------------------------------------------------- interleaving */

#define GATHER_BANDS(type, n)                                                            \
    for (Py_ssize_t p = first; p < last; p++) {                                          \
        const type *from = (const type *)source + p * stored;                            \
        type *to = (type *)out + p * out_row + step * bands;                             \
        for (Py_ssize_t c = 0; c < n; c++)                                               \
            to[c] = from[order[c]];                                                      \
    }
/* Sentinel-2 has twelve bands, and a number that the compiler knows is half as slow. */
#define GATHER(type)                                                                     \
    if (bands == 12)                                                                     \
        GATHER_BANDS(type, 12)                                                           \
    else                                                                                 \
        GATHER_BANDS(type, bands)

/* Pixels first to last of one raster (N, stored) into step `step` of out (N, T, bands). */
static void gather(const uint8_t *restrict source, Py_ssize_t stored, const uint8_t *restrict order, Py_ssize_t bands,
                   uint8_t *restrict out, Py_ssize_t out_row, Py_ssize_t step, Py_ssize_t first,
                   Py_ssize_t last, Py_ssize_t itemsize)
{
    switch (itemsize) {
    case 1: GATHER(uint8_t) break;
    case 2: GATHER(uint16_t) break;
    case 4: GATHER(uint32_t) break;
    case 8: GATHER(uint64_t) break;
    }
}

static PyObject *py_interleave(PyObject *self, PyObject *args)
{
    PyObject *rasters, *result = NULL;
    Py_buffer out, order;
    Py_ssize_t pixels, itemsize;
    if (!PyArg_ParseTuple(args, "O!y*nnw*", &PyList_Type, &rasters, &order, &pixels, &itemsize,
                          &out))
        return NULL;
    const Py_ssize_t steps = PyList_Size(rasters), bands = order.len;
    Py_ssize_t stored = 0, opened = 0;
    Py_buffer *views = calloc((size_t)(steps ? steps : 1), sizeof(Py_buffer));
    if (views == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if ((itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8) || pixels < 1 ||
        bands < 1 || steps < 1 || out.len % (pixels * itemsize) ||
        out.len / (pixels * itemsize) != steps * bands) {
        PyErr_SetString(PyExc_ValueError, "out must hold pixels x rasters x bands items");
        goto done;
    }
    for (; opened < steps; opened++) {
        PyObject *raster = PyList_GetItem(rasters, opened);
        if (raster == NULL || PyObject_GetBuffer(raster, &views[opened], PyBUF_SIMPLE) < 0)
            goto done;
        if (opened == 0)
            stored = views[0].len / (pixels * itemsize);
        if (stored < 1 || views[opened].len != stored * pixels * itemsize) {
            opened++;
            PyErr_SetString(PyExc_ValueError, "every raster must hold pixels x stored bands items");
            goto done;
        }
    }
    for (Py_ssize_t c = 0; c < bands; c++)
        if (((const uint8_t *)order.buf)[c] >= stored) {
            PyErr_SetString(PyExc_ValueError, "order names a band that the rasters lack");
            goto done;
        }
    Py_BEGIN_ALLOW_THREADS
    /* Some pixels at a time, so that what is written stays in the cache until it is complete. */
    const Py_ssize_t block = 256;
    for (Py_ssize_t first = 0; first < pixels; first += block)
        for (Py_ssize_t step = 0; step < steps; step++)
            gather(views[step].buf, stored, order.buf, bands, out.buf, steps * bands, step, first,
                   first + block < pixels ? first + block : pixels, itemsize);
    Py_END_ALLOW_THREADS
    result = Py_None;
    Py_INCREF(result);
done:
    while (opened-- > 0)
        PyBuffer_Release(&views[opened]);
    free(views);
    PyBuffer_Release(&order);
    PyBuffer_Release(&out);
    return result;
}

/* ---------------------------------------------------------------------------------- moments */

enum { FOLDED = 192, FLUSH_ROWS = 32768 };

/* Sums, sums of squares, minimum and maximum of each of `width` columns, width <= FOLDED. The sums
 * are whole numbers, exact as long as they stay below 2^63; `part` is flushed before it overflows.
 */
#define MEASURE(name, type, wide, square)                                                        \
    WIDEST static void name(const type *rows, Py_ssize_t n, Py_ssize_t width, int64_t *sums,     \
                            uint64_t *squares, type *low, type *high)                            \
    {                                                                                            \
        wide part[FOLDED];                                                                       \
        for (Py_ssize_t j = 0; j < width; j++) {                                                 \
            sums[j] = 0;                                                                         \
            squares[j] = 0;                                                                      \
            low[j] = high[j] = rows[j];                                                          \
        }                                                                                        \
        for (Py_ssize_t start = 0; start < n; start += FLUSH_ROWS) {                             \
            const Py_ssize_t end = n - start < FLUSH_ROWS ? n : start + FLUSH_ROWS;              \
            memset(part, 0, sizeof part);                                                        \
            for (Py_ssize_t i = start; i < end; i++) {                                           \
                const type *row = rows + i * width;                                              \
                for (Py_ssize_t j = 0; j < width; j++) {                                         \
                    const type x = row[j];                                                       \
                    part[j] += (wide)x;                                                          \
                    squares[j] += (square)x * (square)x;                                         \
                    low[j] = x < low[j] ? x : low[j];                                            \
                    high[j] = x > high[j] ? x : high[j];                                         \
                }                                                                                \
            }                                                                                    \
            for (Py_ssize_t j = 0; j < width; j++)                                               \
                sums[j] += part[j];                                                              \
        }                                                                                        \
    }

MEASURE(measure_uint8, uint8_t, uint32_t, uint32_t)
MEASURE(measure_uint16, uint16_t, uint32_t, uint32_t)
MEASURE(measure_int16, int16_t, int32_t, int32_t)

#define MEASURE_AS(name, type)                                                                   \
    {                                                                                            \
        type low[FOLDED], high[FOLDED];                                                          \
        name(data, n / fold, width, sums, squares, low, high);                                   \
        for (Py_ssize_t j = 0; j < width; j++) {                                                 \
            const Py_ssize_t c = j % bands;                                                      \
            total[c] += sums[j];                                                                 \
            total_squares[c] += squares[j];                                                      \
            least[c] = j < bands || low[j] < least[c] ? low[j] : least[c];                       \
            most[c] = j < bands || high[j] > most[c] ? high[j] : most[c];                        \
        }                                                                                        \
    }

static PyObject *py_measure(PyObject *self, PyObject *args)
{
    Py_buffer view, out;
    Py_ssize_t bands;
    int kind; /* u 8 bits, H unsigned 16, h signed 16 */
    if (!PyArg_ParseTuple(args, "y*Cnw*", &view, &kind, &bands, &out))
        return NULL;
    const Py_ssize_t itemsize = kind == 'u' ? 1 : 2;
    int good = (kind == 'u' || kind == 'H' || kind == 'h') && bands > 0 && bands <= FOLDED &&
               view.len > 0 && view.len % (itemsize * bands) == 0 &&
               out.len == 5 * bands * (Py_ssize_t)sizeof(double) &&
               view.len < (Py_ssize_t)1 << 31; /* sums of squares stay below 2^63 */
    if (good) {
        const Py_ssize_t n = view.len / (itemsize * bands);
        const void *data = view.buf;
        double *moments = out.buf;
        Py_BEGIN_ALLOW_THREADS
        /* Wide rows are what vector units like: fold neighbouring pixels into one. */
        Py_ssize_t fold = FOLDED / bands;
        while (n % fold)
            fold--;
        const Py_ssize_t width = fold * bands;
        int64_t sums[FOLDED], total[FOLDED] = {0};
        uint64_t squares[FOLDED], total_squares[FOLDED] = {0};
        int32_t least[FOLDED], most[FOLDED];
        if (kind == 'u')
            MEASURE_AS(measure_uint8, uint8_t)
        else if (kind == 'H')
            MEASURE_AS(measure_uint16, uint16_t)
        else
            MEASURE_AS(measure_int16, int16_t)
        for (Py_ssize_t c = 0; c < bands; c++) {
            moments[c] = (double)n;
            moments[bands + c] = (double)total[c];
            moments[2 * bands + c] = (double)total_squares[c];
            moments[3 * bands + c] = least[c];
            moments[4 * bands + c] = most[c];
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    PyBuffer_Release(&out);
    return PyBool_FromLong(good);
}

/* ------------------------------------------------------------------------------ normalising */

#define SCALE(name, type)                                                                        \
    WIDEST static void name(const type *from, float *to, const float *scale,                     \
                            const float *offset, Py_ssize_t width)                               \
    {                                                                                            \
        for (Py_ssize_t j = 0; j < width; j++)                                                   \
            to[j] = (float)from[j] * scale[j] + offset[j];                                       \
    }                                                                                            \
    WIDEST static void name##_as_is(const type *from, float *to, Py_ssize_t width)               \
    {                                                                                            \
        for (Py_ssize_t j = 0; j < width; j++)                                                   \
            to[j] = (float)from[j];                                                              \
    }

SCALE(scale_uint8, uint8_t)
SCALE(scale_uint16, uint16_t)
SCALE(scale_int16, int16_t)
SCALE(scale_float32, float)

static void scale_row(int kind, const uint8_t *from, float *to, const float *scale,
                      const float *offset, Py_ssize_t width)
{
    switch (kind) {
#define CASE(letter, name, type)                                                                 \
    case letter:                                                                                 \
        if (scale != NULL)                                                                       \
            name((const type *)from, to, scale, offset, width);                                  \
        else                                                                                     \
            name##_as_is((const type *)from, to, width);                                         \
        break;
        CASE('u', scale_uint8, uint8_t)
        CASE('H', scale_uint16, uint16_t)
        CASE('h', scale_int16, int16_t)
        CASE('f', scale_float32, float)
#undef CASE
    }
}

static PyObject *py_scale(PyObject *self, PyObject *args)
{
    PyObject *stored, *scales, *offsets;
    Py_buffer in = {0}, out = {0}, scale = {0}, offset = {0};
    Py_ssize_t width;
    int kind, good = 0;
    if (!PyArg_ParseTuple(args, "OCnOOw*", &stored, &kind, &width, &scales, &offsets, &out))
        return NULL;
    const Py_ssize_t itemsize = kind == 'u' ? 1 : kind == 'f' ? 4 : 2;
    if ((kind != 'u' && kind != 'H' && kind != 'h' && kind != 'f') || width < 1 ||
        PyObject_GetBuffer(stored, &in, PyBUF_STRIDES) < 0)
        goto done;
    const int has_scale = scales != Py_None;
    if (has_scale && (PyObject_GetBuffer(scales, &scale, PyBUF_SIMPLE) < 0 ||
                      PyObject_GetBuffer(offsets, &offset, PyBUF_SIMPLE) < 0))
        goto done;
    /* The innermost dimensions that lie without gaps make a run; up to three lie around it. */
    Py_ssize_t run = itemsize;
    int around = in.ndim;
    while (around > 0 && in.strides[around - 1] == run)
        run *= in.shape[--around];
    const Py_ssize_t items = run / itemsize;
    if (in.itemsize != itemsize || around > 3 || items % width ||
        out.len / (Py_ssize_t)sizeof(float) * itemsize != in.len ||
        (has_scale && (scale.len != width * (Py_ssize_t)sizeof(float) || offset.len != scale.len)))
        goto done;
    good = 1;
    if (in.len > 0) {
        Py_ssize_t shape[3] = {1, 1, 1}, strides[3] = {0, 0, 0};
        for (int k = 0; k < around; k++) {
            shape[3 - around + k] = in.shape[k];
            strides[3 - around + k] = in.strides[k];
        }
        Py_BEGIN_ALLOW_THREADS
        float *to = out.buf;
        const float *a = scale.buf, *b = offset.buf;
        const Py_ssize_t step = has_scale ? width : items;
        for (Py_ssize_t i = 0; i < shape[0]; i++)
            for (Py_ssize_t j = 0; j < shape[1]; j++)
                for (Py_ssize_t k = 0; k < shape[2]; k++) {
                    const uint8_t *from = (const uint8_t *)in.buf + i * strides[0] +
                                          j * strides[1] + k * strides[2];
                    for (Py_ssize_t n = 0; n < items; n += step, to += step)
                        scale_row(kind, from + n * itemsize, to, a, b, step);
                }
        Py_END_ALLOW_THREADS
    }
done:
    if (in.obj)
        PyBuffer_Release(&in);
    if (scale.obj)
        PyBuffer_Release(&scale);
    if (offset.obj)
        PyBuffer_Release(&offset);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(good);
}

/* ------------------------------------------------------------------------------------ batches */

static PyObject *py_gather(PyObject *self, PyObject *args)
{
    PyObject *scales, *offsets;
    Py_buffer in = {0}, starts = {0}, places = {0}, out = {0}, scale = {0}, offset = {0};
    Py_ssize_t rows, row_bytes, items, width;
    int kind, good = 0;
    if (!PyArg_ParseTuple(args, "y*Cy*y*nnnnOOw*", &in, &kind, &starts, &places, &rows,
                          &row_bytes, &items, &width, &scales, &offsets, &out))
        return NULL;
    const int raw = kind == 'b', has_scale = scales != Py_None;
    const Py_ssize_t itemsize = kind == 'u' || raw ? 1 : kind == 'f' ? 4 : 2;
    const Py_ssize_t count = starts.len / (Py_ssize_t)sizeof(int64_t);
    if ((!raw && kind != 'u' && kind != 'H' && kind != 'h' && kind != 'f') || rows < 1 ||
        items < 1 || width < 1 || row_bytes < 1 || items % width || row_bytes % itemsize ||
        places.len != starts.len ||
        items > in.len / itemsize || rows - 1 > (in.len - items * itemsize) / row_bytes)
        goto done;
    if (has_scale && (PyObject_GetBuffer(scales, &scale, PyBUF_SIMPLE) < 0 ||
                      PyObject_GetBuffer(offsets, &offset, PyBUF_SIMPLE) < 0 ||
                      scale.len != width * (Py_ssize_t)sizeof(float) || offset.len != scale.len))
        goto done;
    const Py_ssize_t last = in.len - items * itemsize - (rows - 1) * row_bytes;
    const Py_ssize_t size = raw ? 1 : (Py_ssize_t)sizeof(float);
    const Py_ssize_t room = out.len / size / rows / items;
    const int64_t *start = starts.buf, *place = places.buf;
    for (Py_ssize_t k = 0; k < count; k++)
        if (start[k] < 0 || start[k] > last || start[k] % itemsize || place[k] < 0 ||
            place[k] >= room)
            goto done;
    good = 1;
    Py_BEGIN_ALLOW_THREADS
    const Py_ssize_t step = has_scale ? width : items;
    for (Py_ssize_t k = 0; k < count; k++)
        for (Py_ssize_t r = 0; r < rows; r++) {
            const uint8_t *from = (const uint8_t *)in.buf + start[k] + r * row_bytes;
            char *to = (char *)out.buf + (place[k] * rows + r) * items * size;
            if (raw)
                memcpy(to, from, (size_t)items);
            else
                for (Py_ssize_t n = 0; n < items; n += step)
                    scale_row(kind, from + n * itemsize, (float *)to + n, scale.buf, offset.buf,
                              step);
        }
    Py_END_ALLOW_THREADS
done:
    if (scale.obj)
        PyBuffer_Release(&scale);
    if (offset.obj)
        PyBuffer_Release(&offset);
    PyBuffer_Release(&in);
    PyBuffer_Release(&starts);
    PyBuffer_Release(&places);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(good);
}

/* ------------------------------------------------------------------------------------ module */

static PyMethodDef methods[] = {
    {"decode_lzw", py_decode_lzw, METH_VARARGS, NULL},
    {"interleave", py_interleave, METH_VARARGS, NULL},
    {"measure", py_measure, METH_VARARGS, NULL},
    {"scale", py_scale, METH_VARARGS, NULL},
    {"gather", py_gather, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "eval_ingest.core._kernels",
    .m_doc = "See eval_ingest.core.kernels.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&module);
}
