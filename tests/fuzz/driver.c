/* libFuzzer as a Python extension: run(argv, function) calls function(bytes) for each input. Compiled
 * modules that were built for coverage guide it; what Python does between them does not. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*one)(const uint8_t *data, size_t size));

static PyObject *function;

static int one_input(const uint8_t *data, size_t size)
{
    PyObject *result = PyObject_CallFunction(function, "y#", (const char *)data, (Py_ssize_t)size);

    if (!result) {
        PyErr_Print();
        fflush(NULL);
        abort(); /* so that libFuzzer keeps the input */
    }
    Py_DECREF(result);
    return 0;
}

static PyObject *run(PyObject *self, PyObject *args)
{
    static char *words[64];
    char **argv = words;
    PyObject *list;
    int argc = 0;

    if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &list, &function))
        return NULL;
    while (argc < PyList_GET_SIZE(list) && argc < 63) {
        const char *word = PyUnicode_AsUTF8(PyList_GET_ITEM(list, argc));

        if (!word)
            return NULL;
        words[argc++] = strdup(word);
    }
    return PyLong_FromLong(LLVMFuzzerRunDriver(&argc, &argv, one_input));
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, 0}, {0, 0, 0, 0}};
static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT,
                                    .m_name = "fuzzdriver",
                                    .m_size = -1,
                                    .m_methods = methods};

PyMODINIT_FUNC PyInit_fuzzdriver(void) { return PyModule_Create(&module); }
