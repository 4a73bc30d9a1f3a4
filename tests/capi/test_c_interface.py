"""The host from other languages: headers alone, and the table of functions three ways."""

import ctypes
import gc
import subprocess
import sysconfig
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import ghcbcore
import pysev
from ghcbcore import errors
from ghcbcore._cffi import ffi, lib
from ghcbcore.device import Device
from ghcbcore.foreign import ops_structure
from ghcbcore.host import VCPU_DTYPE, VM_DTYPE, Host
from ghcbcore.profile import Profile

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "c" / "ask_host.c"
INCLUDE = ghcbcore.get_include()
STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic"]
PYTHON_H = sysconfig.get_path("include")

pytestmark = pytest.mark.capi


def gcc(*args: object) -> None:
    done = subprocess.run(
        ["gcc", *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def shared_object(folder: Path, text: str, *flags: str) -> Path:
    source, target = folder / "consumer.c", folder / "consumer.so"
    source.write_text(text)
    gcc("-std=c11", "-O2", "-shared", "-fPIC", f"-I{INCLUDE}", *flags, source, "-o", target)
    return target


def snp_host(n_vcpus: int = 2, device: Device | None = None) -> Host:
    return Host(Profile(guest=lib.GHCB_GUEST_SNP), n_vcpus, device)


# A program in C


def test_consumer_builds_from_the_installed_package_alone(tmp_path):
    source = tmp_path / "ask_host.c"
    source.write_bytes(EXAMPLE.read_bytes())
    gcc(*STRICT, f"-I{INCLUDE}", source, "-o", tmp_path / "ask_host")
    asked = [0x2, 0x80, 0x8000_001F_4000_0004, 0x4E1_4012, 0x0010_0000_1234_5014]
    done = subprocess.run(
        [tmp_path / "ask_host", *map(hex, asked)], capture_output=True, text=True, timeout=60
    )
    host = pysev.Host(
        guest=pysev.Guest.SNP, cpuid=[(0x8000_001F, 0, 0x0101_FD3F, 0x4133, 0x1FD, 1)]
    )
    lines = done.stdout.splitlines()
    answers = [int(line.split()[1], 16) for line in lines if line.startswith("answer")]
    assert answers == [host.vmgexit(0, value) for value in asked]
    assert lines[-2:] == [
        "CPUID 0x8000001f by page without RCX: INFO1 2, INFO2 4, rbx 0x0",
        "CPUID 0x8000001f by page with RCX: INFO1 0, INFO2 0, rbx 0x4133",
    ]
    assert done.returncode == 0


def test_consumer_says_how_the_run_ended(tmp_path):
    gcc(*STRICT, f"-I{INCLUDE}", EXAMPLE, "-o", tmp_path / "ask_host")
    done = subprocess.run(
        [tmp_path / "ask_host", "0x11100", "0x2"], capture_output=True, text=True, timeout=60
    )
    assert "terminate set=0x1 reason=0x1" in done.stdout
    assert done.stdout.splitlines()[-1] == "the run has ended with event 1, data 0x11100"


# The table of functions, three ways

EXTENSION = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <ghcbcore/ops.h>

/* n questions for the SEV information, without the GIL; the sum of the answers' low halves */
static PyObject *ask(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    unsigned long long n, sum = 0;
    ghcb_ops_t *ops;
    int status = 0;
    if (!PyArg_ParseTuple(args, "OK", &capsule, &n))
        return NULL;
    ops = PyCapsule_GetPointer(capsule, GHCB_OPS_CAPSULE);
    if (!ops)
        return NULL;
    if (ops->abi_version != GHCB_OPS_ABI || ops->struct_size < sizeof(*ops))
        return PyErr_Format(PyExc_RuntimeError, "another interface");
    Py_BEGIN_ALLOW_THREADS
    for (unsigned long long i = 0; i < n && !status; i++) {
        uint64_t answer = 0;
        status = ops->msr(ops->self, i % ops->n_vcpus, 2, &answer);
        sum += answer & 0xffff;
    }
    Py_END_ALLOW_THREADS
    return Py_BuildValue("iK", status, sum);
}
static PyMethodDef methods[] = {{"ask", ask, METH_VARARGS, 0}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "consumer", 0, -1, methods};
PyMODINIT_FUNC PyInit_consumer(void) { return PyModule_Create(&module); }
"""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    import importlib.util

    path = shared_object(tmp_path_factory.mktemp("capi"), EXTENSION, f"-I{PYTHON_H}")
    spec = importlib.util.spec_from_file_location("consumer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_capsule_leads_to_the_host(consumer):
    assert consumer.ask(snp_host().capsule, 1000) == (0, 1000)


def test_capsule_keeps_the_host_alive(consumer):
    host = snp_host()
    there = weakref.ref(host)
    capsule = host.capsule
    del host
    gc.collect()
    assert there() is not None
    assert consumer.ask(capsule, 3) == (0, 3)
    del capsule
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("way", ["cffi", "ctypes"])
def test_interface_keeps_the_host_alive(way):
    host = snp_host()
    there = weakref.ref(host)
    view = getattr(host, way)
    del host
    gc.collect()
    assert there() is view.owner
    del view
    gc.collect()
    assert there() is None


def test_a_host_ends_while_others_ask_it_through_its_capsule(consumer):
    host = snp_host()
    capsule = host.capsule
    threads = [threading.Thread(target=consumer.ask, args=(capsule, 200_000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [host.msr(0, 0x80) for _ in range(1000)] == [0x3081] * 1000
    host.msr(1, 0x100)
    for thread in threads:
        thread.join()
    assert consumer.ask(capsule, 5)[0] == lib.GHCB_E_STATE_CONFLICT


def test_cffi_calls_answer_as_the_methods_do():
    one, other = snp_host(), snp_host()
    view = one.cffi
    answer = ffi.new("uint64_t *")
    for value in (0x2, 0x80, 0x4E14012, 0x0010_0000_1234_5014, 0x8000_001F_4000_0004, 0xF03):
        assert view.ops.msr(view.ops.self, 1, value, answer) == lib.GHCB_OK
        assert answer[0] == other.msr(1, value)
    page, same = np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)
    at = ffi.cast("uint8_t *", ffi.from_buffer(page))
    assert view.ops.page(view.ops.self, 1, 0x4E14000, at) == lib.GHCB_OK
    other.page(1, same, 0x4E14000)
    assert page.tobytes() == same.tobytes() != bytes(4096)


def test_cffi_batches_say_how_far_they_came():
    view = snp_host().cffi
    cpus = np.array([0, 1, 7, 0], np.uint32)
    asked, got = np.full(4, 2, np.uint64), np.zeros(4, np.uint64)
    n_done = ffi.new("uint64_t *")
    status = view.ops.msr_batch(
        view.ops.self,
        ffi.cast("uint32_t *", ffi.from_buffer(cpus)),
        ffi.cast("uint64_t *", ffi.from_buffer(asked)),
        ffi.cast("uint64_t *", ffi.from_buffer(got)),
        4,
        n_done,
    )
    assert (status, n_done[0]) == (lib.GHCB_E_OUT_OF_RANGE, 2)
    assert got.tolist() == [0x0002_0001_3300_0001] * 2 + [0, 0]


def test_ctypes_calls_answer_as_the_methods_do():
    host = snp_host()
    view = host.ctypes
    answer = ctypes.c_uint64()
    assert view.ops.abi_version == lib.GHCB_OPS_ABI
    assert view.ops.n_vcpus == 2
    assert view.ops.msr(view.ops.self, 0, 0x80, ctypes.addressof(answer)) == 0
    assert answer.value == 0x3081
    assert view.ops.msr(view.ops.self, 2, 0x80, ctypes.addressof(answer)) == lib.GHCB_E_OUT_OF_RANGE
    assert view.ops.call(view.ops.self, 1, lib.GHCB_CALL_SEND_INIT) == 0
    assert view.ops.call(view.ops.self, 1, lib.GHCB_CALL_END) == lib.GHCB_E_OUT_OF_RANGE
    assert host.vcpus["init_pending"].tolist() == [0, 1]
    vcpu = np.zeros(1, VCPU_DTYPE)
    assert view.ops.get_vcpu(view.ops.self, 1, vcpu.ctypes.data) == 0
    assert vcpu[0] == host.vcpus[1]
    vm = np.zeros(1, VM_DTYPE)
    assert view.ops.get_vm(view.ops.self, vm.ctypes.data) == 0
    assert vm[0] == host.vm[0]


def test_a_request_after_the_end_is_a_conflict_in_every_language():
    host = snp_host()
    answer = ctypes.c_uint64(7)
    host.msr(0, 0x100)
    view = host.ctypes
    status = view.ops.msr(view.ops.self, 0, 2, ctypes.addressof(answer))
    assert (status, answer.value) == (lib.GHCB_E_STATE_CONFLICT, 7)
    with pytest.raises(errors.StateConflict):
        host.msr(0, 2)


# Layouts


@pytest.mark.parametrize(("name", "dtype"), [("ghcb_vm_t", VM_DTYPE), ("ghcb_vcpu_t", VCPU_DTYPE)])
def test_layouts_are_the_same_in_cffi_and_numpy(name, dtype):
    c = ffi.typeof(name)
    assert ffi.sizeof(name) == dtype.itemsize
    fields = {
        field: (dtype.fields[field][1], dtype.fields[field][0].itemsize) for field in dtype.names
    }
    assert {f: (t.offset, ffi.sizeof(t.type)) for f, t in c.fields} == fields


def test_the_table_has_the_same_layout_in_ctypes_and_cffi():
    structure = ops_structure()
    c = dict(ffi.typeof("ghcb_ops_t").fields)
    assert [name for name, _ in structure._fields_] == list(c)
    assert {n: getattr(structure, n).offset for n in c} == {n: f.offset for n, f in c.items()}


# A device in C

DEVICE = r"""
#include <ghcbcore/host.h>
static uint64_t n_calls;
static int answer(void *self, ghcb_access_t *access)
{
    (void)self;
    n_calls++;
    if (access->kind == GHCB_ACCESS_MSR && !access->is_write)
        access->result = access->address << 32 | access->cpu;
    return 0;
}
uint64_t calls(void) { return n_calls; }
ghcb_device_t device = {0, 1 << GHCB_ACCESS_MSR | 1 << GHCB_ACCESS_MAP_GPA, answer, 0};
"""


def test_a_device_in_c_answers_without_python(tmp_path):
    library = ctypes.CDLL(str(shared_object(tmp_path, DEVICE)))
    address = ctypes.addressof(ctypes.c_char.in_dll(library, "device"))
    host = snp_host(2, Device.from_address(address, library))
    assert host.msr(1, 0x0010_0000_1234_5014) == 0x15
    batch = np.full(1000, 0x0020_0000_1234_5014, np.uint64)
    assert set(host.msr_batch(np.ones(1000, np.uint32), batch).tolist()) == {0x15}
    library.calls.restype = ctypes.c_uint64
    assert library.calls() == 1001


def test_no_device_is_at_address_zero():
    with pytest.raises(errors.OutOfRange, match="address 0"):
        Device.from_address(0)
