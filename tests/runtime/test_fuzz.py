"""Files from strangers: thousands of damaged ones, others in each run. FUZZ_SEED repeats a failure."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_model import DIM

from vae_runtime import VAE, VAEError

pytest.importorskip("onnx")

HERE = Path(__file__).parent
SEED = int(os.environ.get("FUZZ_SEED") or secrets.randbits(32))
COUNT = int(os.environ.get("FUZZ_COUNT") or 2000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pictures", "graphs", "configs"])
def test_damaged_files_are_refused_or_read(kind):
    """No crash, no hang, no foreign exception; in a process of its own, so that a crash is seen as one."""
    command = [sys.executable, str(HERE / "fuzz.py"), kind, str(SEED), str(COUNT)]
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60 + COUNT / 10
    )
    assert done.returncode == 0, f"FUZZ_SEED={SEED}, status {done.returncode}: {done.stderr[-2000:]}"
    refused = int(done.stdout)
    assert COUNT / 4 < refused <= COUNT  # the damage does reach what is checked


@pytest.fixture(scope="module")
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu")


NUMBERS = st.one_of(hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes())


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@example(array=np.full(DIM, np.iinfo(np.int32).min, np.int32))
@given(array=hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))
def test_any_array_is_decoded_rightly_or_refused(vae, tiny, array):
    try:
        faces = vae.decode(array)
    except VAEError:
        fits = array.ndim in (1, 2) and array.shape[-1] == DIM and array.dtype.kind in "iuf"
        # In float64: the magnitude of the least integer is no integer of its type. NaN compares as False.
        assert not (fits and (abs(array.astype(np.float64)) <= 1e6).all())
        return
    plain = np.atleast_2d(array.astype(np.float64))
    with np.errstate(over="ignore"):  # exp in the oracle
        np.testing.assert_allclose(faces.astype(int), tiny.decode(plain).astype(int), atol=1)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(array=hnp.arrays(NUMBERS | st.just(np.dtype(np.uint8)), hnp.array_shapes(max_dims=4, min_side=0, max_side=9)))
def test_any_array_is_a_picture_or_refused(vae, array):
    try:
        mu, logvar = vae.encode(array)
    except VAEError:
        return
    count = len(array) if array.ndim == 4 else 1
    assert array.dtype == np.uint8 or count == 0
    assert mu.shape == logvar.shape == (count, DIM)


@settings(max_examples=100, deadline=None)
@given(
    array=hnp.arrays(np.float32, (6, DIM), elements=st.floats(-9, 9, width=32)),
    step=st.sampled_from([-1, 1, 2, 3]),
    order=st.sampled_from("CF"),
    endian=st.sampled_from("<>"),
)
def test_strides_and_byte_order_do_not_matter(vae, array, step, order, endian):
    odd = np.asarray(array.astype(f"{endian}f4"), order=order)[::step]
    np.testing.assert_array_equal(vae.decode(odd), vae.decode(np.ascontiguousarray(array[::step])))
