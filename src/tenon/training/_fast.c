/* The step of a guarded loop at which nothing is due, and the gradients it reads: most of them, in few microseconds.
 *
 * A training step leaves the caches full of weights, so that what a guard's Python costs is memory: some five
 * microseconds for every function it has not run since. `Fast` holds what such a step compares and nothing else. It
 * takes a step only when that can have no other outcome than to go on (`step`), remembers a forward only when its output
 * is one plain tensor (`after`), and else touches nothing and leaves it to `watch_torch` and `guard`, which do the same
 * with everything around it. Without it (no compiler at installation) Python does everything.
 *
 * Tensors are read through the table of functions that PyTorch publishes for this: `__dlpack_c_exchange_api__`, DLPack
 * 1.3 (dmlc.github.io/dlpack/latest). Its structures below are that standard's. Only what is on the processor, dense
 * and of 16 to 64 bits is read; values are squared and added up as doubles, where squares of floats do not overflow: a
 * sum that is finite says that every value is.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <structmember.h>

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#ifdef __APPLE__
#define STEADY CLOCK_UPTIME_RAW /* as time.monotonic there */
#else
#define STEADY CLOCK_MONOTONIC
#endif

enum { ON_CPU = 1, FLOAT = 2, BFLOAT = 4 }; /* DLPack's numbers */

/* ── DLPack ────────────────────────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    uint32_t major, minor;
} Version;

typedef struct {
    void *data;
    int32_t device, device_id;
    int32_t dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* in values */
    uint64_t offset;          /* in bytes */
} Tensor;

typedef struct {
    Version version;
    void *before;
    void *allocate, *export, *import;
    int (*view)(void *object, Tensor *out); /* borrows, and waits for no stream */
    void *stream;
} Exchange;

/* ── values ────────────────────────────────────────────────────────────────────────────────────────────────────── */

static double half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                  : ldexp(fraction, -24);
    return bits >> 15 ? -value : value;
}

static double brain(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

#define SUM(TYPE, VALUE)                                                                   \
    do {                                                                                   \
        const TYPE *at = start;                                                            \
        int64_t i = 0;                                                                     \
        for (; i + 4 <= count; i += 4, at += 4 * stride) {                                 \
            double a = VALUE(at[0]), b = VALUE(at[stride]);                                \
            double c = VALUE(at[2 * stride]), d = VALUE(at[3 * stride]);                   \
            one += a * a, two += b * b, three += c * c, four += d * d;                     \
        }                                                                                  \
        for (; i < count; i++, at += stride) one += (double)VALUE(*at) * VALUE(*at);       \
    } while (0)
#define ITSELF(value) (value)

/* The sum of squares of a number, a vector, or the first column of a matrix; NaN for what cannot be read here. */
static double squares(const Tensor *tensor) {
    if (tensor->device != ON_CPU || tensor->lanes != 1 || (tensor->dims && !tensor->strides)) return NAN;
    const void *start = (const char *)tensor->data + tensor->offset;
    int64_t count = tensor->dims ? tensor->shape[0] : 1, stride = tensor->dims ? tensor->strides[0] : 1;
    double one = 0, two = 0, three = 0, four = 0;
    for (int i = 0; i < tensor->dims; i++)
        if (!tensor->shape[i]) return 0;
    if (!tensor->data) return NAN; /* its storage was taken away */
    if (tensor->code == FLOAT && tensor->bits == 32) SUM(float, ITSELF);
    else if (tensor->code == FLOAT && tensor->bits == 64) SUM(double, ITSELF);
    else if (tensor->code == FLOAT && tensor->bits == 16) SUM(uint16_t, half);
    else if (tensor->code == BFLOAT && tensor->bits == 16) SUM(uint16_t, brain);
    else return NAN;
    return one + two + three + four;
}

/* ── Fast ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Objects that a Fast holds. TURNS is a tuple of tuples of parameters, RATIOS a list of floats beside it; LOSSES, NORMS
 * and CALLS are lists of others. CASTING tells whether autocast is on. */
enum { MODEL, HOOK, PLAIN, CASTING, TURNS, RATIOS, LOSSES, NORMS, CALLS, GRAD, REQUIRES_GRAD, RETAIN_GRAD, TRAINING, COUNT };

typedef struct {
    PyObject_HEAD
    PyObject *of[COUNT];
    const Exchange *exchange; /* NULL: nothing can be read here */
    long long steps;          /* taken so far */
    long long due;            /* at which Python has something to look at */
    long long next;           /* the loop's own number of the step at which the trend has */
    long long most, hold, held; /* calls; bytes of gradients at outputs */
    double read;              /* monotonic second at which it is next read what has been spent */
    double limit;             /* of the gradient norm, above which it is told */
} Fast;

/* View a tensor that is exactly a torch.Tensor; false for anything else. */
static bool view(Fast *self, PyObject *object, Tensor *out) {
    if ((PyObject *)Py_TYPE(object) != self->of[PLAIN]) return false;
    if (!self->exchange->view(object, out)) return true;
    PyErr_Clear(); /* sparse, or whatever else DLPack has no words for */
    return false;
}

/* The norm of what this turn reads of the gradients: not finite when one of them may not be, negative without any. */
static double norm(Fast *self) {
    PyObject *turn = PyTuple_GetItem(self->of[TURNS], (Py_ssize_t)(self->steps % PyTuple_Size(self->of[TURNS])));
    double sum = 0;
    bool any = false;
    for (Py_ssize_t i = 0, count = PyTuple_Size(turn); i < count; i++) {
        Tensor tensor;
        PyObject *grad = PyObject_GetAttr(PyTuple_GetItem(turn, i), self->of[GRAD]);
        if (!grad) return PyErr_Clear(), NAN;
        if (grad != Py_None) {
            any = true;
            sum += view(self, grad, &tensor) ? squares(&tensor) : NAN;
        }
        Py_DECREF(grad);
    }
    return any ? sqrt(sum) : -1;
}

/* Read a loss: a float, or a tensor of one number. */
static bool number(Fast *self, PyObject *loss, double *out) {
    Tensor tensor;
    if (PyFloat_CheckExact(loss)) return *out = PyFloat_AsDouble(loss), true;
    if (!view(self, loss, &tensor) || tensor.device != ON_CPU || tensor.lanes != 1 || tensor.code != FLOAT) return false;
    for (int i = 0; i < tensor.dims; i++)
        if (tensor.shape[i] != 1) return false;
    if (!tensor.data) return false;
    const char *at = (const char *)tensor.data + tensor.offset;
    if (tensor.bits == 32) return *out = *(const float *)at, true;
    if (tensor.bits == 64) return *out = *(const double *)at, true;
    return false;
}

static bool append(PyObject *list, PyObject *fresh) {
    bool done = fresh && !PyList_Append(list, fresh);
    Py_XDECREF(fresh);
    return done;
}

/* The norm of all gradients, estimated from what this turn reads by the last ratio of both; not finite or negative when
 * that cannot be told here: a gradient that is not finite, none at all, a ratio that is not known. */
static double estimate(Fast *self) {
    PyObject *ratio = PyList_GetItem(self->of[RATIOS], (Py_ssize_t)(self->steps % PyTuple_Size(self->of[TURNS])));
    if (!ratio) return PyErr_Clear(), NAN;
    return norm(self) * PyFloat_AsDouble(ratio);
}

PyDoc_STRVAR(STEP, "step(step, loss, norm, /)\n--\n\nTake a step at which everything is finite and no look at the model is "
                   "due: 1, or 2 when the losses or what has been spent are to be judged. 0, with nothing done, for any "
                   "other. Loss and norm are numbers, tensors of one, or None; a norm that is given is believed.");

static PyObject *fast_step(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Fast *self = (Fast *)object;
    struct timespec now;
    double loss = 0, all = NAN;
    if (count != 3) return PyErr_SetString(PyExc_TypeError, "expected a step, a loss and a norm"), NULL;
    bool told = args[1] != Py_None, taken = self->exchange && self->of[MODEL] && self->steps < self->due;
    if (!taken || !PyLong_CheckExact(args[0]) || (told && !(number(self, args[1], &loss) && isfinite(loss))))
        return PyLong_FromLong(0);
    long long step = PyLong_AsLongLong(args[0]);
    if (PyErr_Occurred()) return PyErr_Clear(), PyLong_FromLong(0);
    if (args[2] == Py_None) all = estimate(self);
    else if (!number(self, args[2], &all)) return PyLong_FromLong(0);
    if (!(all >= 0 && all <= self->limit && isfinite(all))) return PyLong_FromLong(0);
    if (told && !append(self->of[LOSSES], PyFloat_FromDouble(loss))) return NULL;
    if (!append(self->of[NORMS], PyFloat_FromDouble(all))) return NULL;
    if (PyList_SetSlice(self->of[CALLS], 0, PY_SSIZE_T_MAX, NULL)) return NULL;
    self->held = 0;
    self->steps++;
    clock_gettime(STEADY, &now);
    bool read = (double)now.tv_sec + (double)now.tv_nsec * 1e-9 >= self->read;
    return PyLong_FromLong(read || (told && step >= self->next) ? 2 : 1);
}

PyDoc_STRVAR(NORM, "norm()\n--\n\nReturn the norm of what this turn reads of the gradients: not finite when one of them may "
                   "not be, None without any.");

static PyObject *fast_norm(PyObject *object, PyObject *unused) {
    Fast *self = (Fast *)object;
    (void)unused;
    double found = self->exchange && self->of[MODEL] ? norm(self) : NAN;
    if (found < 0) Py_RETURN_NONE;
    return PyFloat_FromDouble(found);
}

/* Have the gradient kept that will arrive at a plain output, while what is held so is small: 1; 0 for any other. */
static int kept(Fast *self, PyObject *output) {
    Tensor tensor;
    if (!self->exchange || PyList_Size(self->of[CALLS]) >= self->most || !view(self, output, &tensor)) return 0;
    long long bytes = tensor.bits / 8;
    for (int i = 0; i < tensor.dims; i++) bytes *= tensor.shape[i];
    if (self->held + bytes > self->hold) return 0;
    PyObject *wanted = PyObject_GetAttr(output, self->of[REQUIRES_GRAD]);
    Py_XDECREF(wanted);
    if (wanted != Py_True) return wanted ? 0 : -1;
    PyObject *cast = PyObject_CallFunctionObjArgs(self->of[CASTING], NULL);
    Py_XDECREF(cast);
    if (cast != Py_False) return cast ? 0 : -1;
    PyObject *done = PyObject_CallMethodObjArgs(output, self->of[RETAIN_GRAD], NULL);
    Py_XDECREF(done);
    if (!done) return PyErr_Clear(), 0; /* in the hands of torch.func */
    self->held += bytes;
    return 1;
}

PyDoc_STRVAR(AFTER, "after(module, args, kwargs, output, /)\n--\n\nRemember a forward of the model whose output is a plain "
                    "tensor; the hook in Python is asked for any other.");

static PyObject *fast_after(PyObject *object, PyObject *const *args, Py_ssize_t count) {
    Fast *self = (Fast *)object;
    if (count != 4) return PyErr_SetString(PyExc_TypeError, "expected module, args, kwargs and output"), NULL;
    if (args[0] != self->of[MODEL]) Py_RETURN_NONE; /* a copy of it, which has copied the hook */
    PyObject *training = PyObject_GetAttr(args[0], self->of[TRAINING]);
    Py_XDECREF(training);
    int plain = training == Py_True ? kept(self, args[3]) : training ? 0 : -1;
    if (plain < 0) return NULL;
    if (!plain) return PyObject_CallFunctionObjArgs(self->of[HOOK], args[0], args[1], args[2], args[3], NULL);
    if (!append(self->of[CALLS], PyTuple_Pack(3, args[1], args[2], args[3]))) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(FOLLOW, "follow(losses, /)\n--\n\nAppend losses to this list from now on.");

static PyObject *fast_follow(PyObject *object, PyObject *losses) {
    Fast *self = (Fast *)object;
    if (!PyList_Check(losses)) return PyErr_SetString(PyExc_TypeError, "expected a list"), NULL;
    PyObject *before = self->of[LOSSES];
    self->of[LOSSES] = Py_NewRef(losses);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* A model that is pickled with its hooks is pickled without what watches it. */
static PyObject *fast_reduce(PyObject *object, PyObject *unused) {
    (void)object, (void)unused;
    PyObject *module = PyImport_ImportModule("tenon.training.fast");
    PyObject *gone = module ? PyObject_GetAttrString(module, "Gone") : NULL;
    Py_XDECREF(module);
    return gone ? Py_BuildValue("N()", gone) : NULL;
}

/* ── the type ──────────────────────────────────────────────────────────────────────────────────────────────────── */

static PyObject *fast_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *NAMES[] = {"tensor", "model", "hook", "casting", "turns", "ratios", "norms", "calls", NULL};
    PyObject *of[COUNT] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO!O!O!O!", NAMES, &of[PLAIN], &of[MODEL], &of[HOOK], &of[CASTING],
                                     &PyTuple_Type, &of[TURNS], &PyList_Type, &of[RATIOS], &PyList_Type,
                                     &of[NORMS], &PyList_Type, &of[CALLS]))
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_Size(of[TURNS]); i++)
        if (!PyTuple_Check(PyTuple_GetItem(of[TURNS], i))) return PyErr_SetString(PyExc_TypeError, "expected tuples"), NULL;
    if (!PyTuple_Size(of[TURNS]) || PyTuple_Size(of[TURNS]) != PyList_Size(of[RATIOS]))
        return PyErr_SetString(PyExc_ValueError, "expected turns, and a ratio for each"), NULL;
    PyObject *capsule = PyObject_GetAttrString(of[PLAIN], "__dlpack_c_exchange_api__");
    const Exchange *exchange = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    Py_XDECREF(capsule); /* its table is static in PyTorch */
    PyErr_Clear();
    Fast *self = (Fast *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    if (exchange && exchange->version.major == 1 && exchange->view) self->exchange = exchange;
    for (int i = 0; i < COUNT; i++) self->of[i] = Py_XNewRef(of[i]);
    self->of[LOSSES] = PyList_New(0);
    self->of[GRAD] = PyUnicode_InternFromString("grad");
    self->of[REQUIRES_GRAD] = PyUnicode_InternFromString("requires_grad");
    self->of[RETAIN_GRAD] = PyUnicode_InternFromString("retain_grad");
    self->of[TRAINING] = PyUnicode_InternFromString("training");
    for (int i = 0; i < COUNT; i++)
        if (!self->of[i]) return Py_DECREF(self), NULL;
    return (PyObject *)self;
}

static int fast_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(object));
    for (int i = 0; i < COUNT; i++) Py_VISIT(((Fast *)object)->of[i]);
    return 0;
}

static int fast_clear(PyObject *object) {
    for (int i = 0; i < COUNT; i++) Py_CLEAR(((Fast *)object)->of[i]);
    return 0;
}

static void fast_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    fast_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMethodDef METHODS[] = {
    {"step", (PyCFunction)(void (*)(void))fast_step, METH_FASTCALL, STEP},
    {"norm", fast_norm, METH_NOARGS, NORM},
    {"after", (PyCFunction)(void (*)(void))fast_after, METH_FASTCALL, AFTER},
    {"follow", fast_follow, METH_O, FOLLOW},
    {"__reduce__", fast_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef MEMBERS[] = {
    {"steps", T_LONGLONG, offsetof(Fast, steps), 0, "steps taken so far"},
    {"due", T_LONGLONG, offsetof(Fast, due), 0, "of them, at which Python has something to look at"},
    {"next", T_LONGLONG, offsetof(Fast, next), 0, "the loop's own number of the step at which the trend has"},
    {"most", T_LONGLONG, offsetof(Fast, most), 0, "calls that are remembered"},
    {"hold", T_LONGLONG, offsetof(Fast, hold), 0, "bytes of gradients at outputs that are held at most"},
    {"held", T_LONGLONG, offsetof(Fast, held), 0, "bytes of them that are held"},
    {"read", T_DOUBLE, offsetof(Fast, read), 0, "monotonic second at which it is next read what has been spent"},
    {"limit", T_DOUBLE, offsetof(Fast, limit), 0, "of the gradient norm, above which it is told"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, "Takes the steps of a guarded loop at which nothing is due."},
    {Py_tp_new, fast_new},
    {Py_tp_dealloc, fast_dealloc},
    {Py_tp_traverse, fast_traverse},
    {Py_tp_clear, fast_clear},
    {Py_tp_methods, METHODS},
    {Py_tp_members, MEMBERS},
    {0, NULL},
};

static PyType_Spec SPEC = {"tenon.training._fast.Fast", sizeof(Fast), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, SLOTS};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_fast", NULL, 0, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
    PyObject *module = PyModule_Create(&MODULE), *type = module ? PyType_FromSpec(&SPEC) : NULL;
    if (!type || PyModule_AddObjectRef(module, "Fast", type)) {
        Py_XDECREF(module);
        module = NULL;
    }
    Py_XDECREF(type);
    return module;
}
