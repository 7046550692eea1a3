"""Kernels that are not compiled yet: who answers meanwhile, and who afterwards; processes that begin or end then."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import xpconv
from xpconv.engines import compiled as compiled_calls

pytest.importorskip("llvmlite", reason="the extra fast is not installed")

from xpconv.cpu.compiled.background import Background

if compiled_calls.kernels() is None or not compiled_calls.kernels().are_shared_ready("float32"):
    pytest.skip("this processor has no vector fused multiply-add", allow_module_level=True)

BEGIN = """
import os, sys, threading, time, warnings
import numpy as np
import xpconv
from xpconv.cpu.compiled import build, threads
from xpconv.engines import compiled

rng, ran, made, gate = np.random.default_rng(0), [], [], threading.Event()
x = rng.integers(-3, 4, (2, 30, 30, 32)).astype(np.float32)
w = rng.integers(-3, 4, (7, 7, 32, 32)).astype(np.float32)
right = xpconv.corr2d(x.astype(int), w.astype(int))
run, make = threads.run, build._compiled

def counted(*arguments):
    ran.append(1)
    run(*arguments)

def held(name, *arguments):
    made.append(name)
    gate.wait(60)
    return make(name, *arguments)

def tile(function, *arguments, **options):
    return xpconv.explain(function, *arguments, **options).tile

def wait():
    gate.set()
    while compiled.settled() is None:
        time.sleep(0.01)

threads.run, build._compiled = counted, held
MEANWHILE, COMPILED = "; by NumPy, as the kernels are being compiled", "compiled: "
"""


def in_a_new_process(code, folder, how="background"):
    """What the code prints, with nothing compiled yet; it must end well and say nothing else."""
    source = str(Path(xpconv.__file__).parents[1])
    variables = {"XPCONV_CACHE_DIR": str(folder), "XPCONV_COMPILE": how, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code)], capture_output=True, text=True, timeout=120,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_numpy_answers_until_the_kernels_are_compiled_and_then_they_do(tmp_path):
    in_a_new_process("""
        calls = {
            xpconv.corr2d: (x, w), xpconv.max_pool2d: (x, 2), xpconv.global_avg_pool: (x,), xpconv.avg_pool2d: (x, 3),
            xpconv.corr_grad_input: (x, w), xpconv.conv2d: (x[0, :8, :8, :16].copy(), w[:3, :3, :16, :16].copy()),
        }  # the last is so small that NumPy, too, prepares it to be repeated
        for _ in range(3):
            results = {f: f(*given, **({"size": 36} if "grad" in f.__name__ else {})) for f, given in calls.items()}
        gradient = xpconv.corr_grad_weight(x, x[:, 3:-3, 3:-3], window=7)
        assert not ran
        np.testing.assert_array_equal(results[xpconv.corr2d], right)
        told = [tile(f, *given, **({"size": 36} if "grad" in f.__name__ else {})) for f, given in calls.items()]
        told.append(tile(xpconv.corr_grad_weight, x, x[:, 3:-3, 3:-3], window=7))
        assert all(text.endswith(MEANWHILE) for text in told), told
        assert tile(xpconv.corr2d, x.astype(int), w.astype(int)).find("compiled") < 0
        wait()
        for f, given in calls.items():
            options = {"size": 36} if "grad" in f.__name__ else {}
            for _ in range(3):  # planned, then prepared
                ran.clear()
                np.testing.assert_allclose(f(*given, **options), results[f], rtol=1e-6)
                assert ran, f
            assert tile(f, *given, **options).startswith(COMPILED), f
        np.testing.assert_array_equal(xpconv.corr_grad_weight(x, x[:, 3:-3, 3:-3], window=7), gradient)
        assert tile(xpconv.corr_grad_weight, x, x[:, 3:-3, 3:-3], window=7).startswith(COMPILED)
    """, tmp_path)  # fmt: skip


def test_what_many_threads_ask_for_at_once_is_compiled_once(tmp_path):
    in_a_new_process("""
        beside = build._make_beside
        build._make_beside = lambda name, *arguments: (begun.append(name), beside(name, *arguments))
        begun = []
        def call():
            for _ in range(5):
                np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
        callers = [threading.Thread(target=call) for _ in range(8)]
        for caller in callers:
            caller.start()
        gate.set()
        for caller in callers:
            caller.join()
        wait()
        assert len(set(made)) == len(made) > 1, made
        assert begun == made
        assert tile(xpconv.corr2d, x, w).startswith(COMPILED)
        assert len(list(os.scandir(os.environ["XPCONV_CACHE_DIR"] + "/cpu"))) == len(made)
    """, tmp_path)  # fmt: skip


def test_callers_wait_where_they_are_told_to(tmp_path):
    in_a_new_process("""
        gate.set()
        np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
        assert ran
        assert tile(xpconv.corr2d, x, w).startswith(COMPILED)
    """, tmp_path, "wait")  # fmt: skip
    in_a_new_process("""
        assert tile(xpconv.corr2d, x, w).startswith(COMPILED)  # from disk, at once
        assert not made
    """, tmp_path)  # fmt: skip


def test_a_word_that_says_nothing_of_how_to_compile_is_refused(tmp_path):
    message = in_a_new_process("""
        gate.set()
        try:
            xpconv.corr2d(x, w)
        except ValueError as error:
            print(error)
    """, tmp_path, "later")  # fmt: skip
    assert message == "XPCONV_COMPILE must be \"background\" or \"wait\", got 'later'\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_process_that_begins_while_kernels_are_compiled_compiles_its_own(tmp_path):
    in_a_new_process("""
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        def compute_in_a_child():
            child = os.fork()
            if child == 0:
                gate.set()
                os.environ["XPCONV_COMPILE"] = "wait"
                same = np.array_equal(xpconv.corr2d(x, w), right)
                os._exit(0 if same and tile(xpconv.corr2d, x, w).startswith(COMPILED) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        xpconv.corr2d(x, w)
        compute_in_a_child()  # while a kernel is waiting for its turn
        gate.set()
        time.sleep(0.1)
        compute_in_a_child()  # while LLVM is at work
        wait()
        np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
        assert ran
    """, tmp_path)  # fmt: skip


def test_a_program_that_ends_while_kernels_are_compiled_keeps_the_one_under_way(tmp_path):
    in_a_new_process("""
        def release():
            while build._background._open:
                time.sleep(0.01)
            gate.set()
        threading.Thread(target=release, daemon=True).start()
        np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
        while not made:  # one that has not begun is left out
            time.sleep(0.01)
    """, tmp_path)  # fmt: skip
    assert len(list((tmp_path / "cpu").iterdir())) == 1


def test_at_the_very_end_of_a_program_numpy_answers(tmp_path):
    in_a_new_process("""
        import atexit
        gate.set()
        @atexit.register
        def late():
            build._background._close()
            np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
            assert not made
    """, tmp_path, "wait")  # fmt: skip


def test_kernels_that_do_not_compile_warn_once_and_leave_the_answer_to_numpy(tmp_path):
    in_a_new_process("""
        def fails(text):
            raise RuntimeError("no such instruction")
        build._object_code = fails
        gate.set()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                np.testing.assert_array_equal(xpconv.corr2d(x, w), right)
                wait()
        (warning,) = told
        assert "do not compile here, NumPy answers: no such instruction" in str(warning.message)
        assert warning.filename == "<string>" or "xpconv" in warning.filename
        assert tile(xpconv.corr2d, x, w).endswith("; by NumPy, as the kernels do not compile here")
        assert not ran
    """, tmp_path)  # fmt: skip


def test_jobs_in_the_background_are_done_in_order_until_it_is_closed():
    background, gate, done = Background("a test's"), threading.Event(), []
    background.do(lambda: gate.wait(60))
    for number in range(5):
        assert background.do(lambda number=number: done.append(number))
    assert not background.is_idle
    gate.set()
    last = threading.Event()
    assert background.do(last.set)
    assert last.wait(60)
    assert done == [0, 1, 2, 3, 4]
    background._close()
    assert not background.do(lambda: done.append(5))
    assert background.is_idle
