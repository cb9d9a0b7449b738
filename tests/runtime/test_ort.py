"""How a graph is run: multi- and single-threaded, sharded, bound to the memory of a device, in threads and forks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from child import decode_in_child
from tiny_model import DIM, SIZE, build_model

from vae_runtime import VAE, InputError
from vae_runtime.errors import DeviceError, DeviceWarning, InputTypeError, ModelFileError
from vae_runtime.images import to_pixels
from vae_runtime.ort import devices
from vae_runtime.ort.devices import CPU, CUDA, TENSORRT, DeviceOptions, Driver, choose_providers
from vae_runtime.ort.graph import Graph, active_device, open_session
from vae_runtime.ort.runners import BUCKETS, BoundRunner, split
from vae_runtime.ort.verify import graph_summary

CLASSIC = Path(__file__).parents[2] / "exported" / "anime-32"


@pytest.fixture(scope="module")
def classic():
    """The small shipped model: quick enough for thousands of calls."""
    return VAE.load(CLASSIC, device="cpu", threads=2)


@pytest.fixture(scope="module")
def vae(tiny):
    return VAE.load(tiny.folder, device="cpu")


def test_split():
    assert split(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert split(0, 4) == [slice(0, 0)]


@pytest.mark.parametrize("model", [CLASSIC, pytest.param(None, marks=pytest.mark.slow)], ids=["classic", "bundled"])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 63, 64, 65, 150])
def test_all_ways_to_run_give_the_same_bits(model, count, rng):
    """Multi-threaded, single-threaded, sharded over two cores, row by row."""
    vae = VAE.load(model, device="cpu", threads=2)
    z = rng.standard_normal((count, vae.latent_dim), np.float32)
    runner = vae.decoder._runner
    whole = vae.decoder.run(z)[0]
    assert runner.pool is not None
    np.testing.assert_array_equal(runner.multi_threaded(z)[0], whole)
    np.testing.assert_array_equal(runner.single_threaded(z)[0], whole)
    np.testing.assert_array_equal(VAE.load(model, device="cpu", threads=1).decoder.run(z)[0], whole)
    np.testing.assert_array_equal(np.concatenate([runner.multi_threaded(row[None])[0] for row in z]), whole)
    images = rng.random((count, 3, vae.image_size, vae.image_size), np.float32)
    for multi, single in zip(
        vae.encoder._runner.multi_threaded(images), vae.encoder._runner.single_threaded(images), strict=True
    ):
        np.testing.assert_array_equal(multi, single)


@pytest.mark.slow
def test_32_threads_of_300_calls_get_the_sequential_bits(classic, rng):
    faces = rng.integers(0, 256, (32, 32, 32, 3), np.uint8)
    codes = [classic.encode(face)[0] for face in faces]
    expected = [classic.decode(code) for code in codes]
    batch = np.concatenate(codes)[:16]
    expected_batch = classic.decode(batch)
    wrong: list[object] = []

    def work(index: int) -> None:
        try:
            for turn in range(300):
                if turn % 50 == 0 and (classic.decode(batch) != expected_batch).any():
                    wrong.append(("batch", index))
                mu, _ = classic.encode(faces[index])
                if (mu != codes[index]).any() or (classic.decode(mu) != expected[index]).any():
                    wrong.append(index)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_10000_calls_do_not_grow_the_memory(tiny):
    """In a process of its own: 200 calls to warm up, then 10,000; at most 10 MB more are resident."""
    code = f"""
import numpy as np
from vae_runtime import VAE
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
vae = VAE.load({str(tiny.folder)!r}, device="cpu")
faces = np.random.default_rng(0).integers(0, 256, (64, {SIZE}, {SIZE}, 3), np.uint8)
for turn in range(10_200):
    if turn == 200:
        before = resident()
    vae.reconstruct(faces[: 64 if turn % 100 == 0 else 1])
print(resident() - before)
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 10


# ---- guests ---------------------------------------------------------------------------------------------------------


def test_a_model_can_be_pickled(tiny, rng):
    vae, z = VAE.load(tiny.folder, device="cpu", threads=1), rng.normal(size=(3, DIM))
    data = pickle.dumps(vae)
    assert len(data) < 1000  # where the model lies, not its weights
    again = pickle.loads(data)
    assert again._options == vae._options
    np.testing.assert_array_equal(again.decode(z), vae.decode(z))


def test_a_pickled_model_checks_its_digests_again(tmp_path):
    folder = build_model(tmp_path / "m").folder
    data = pickle.dumps(VAE.load(folder, device="cpu"))
    (folder / "decoder.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(OSError, match=r"decoder\.onnx"):
        pickle.loads(data)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_model_works_in_child_processes(method, classic, rng):
    """The threads of a session do not live on in a forked child: without care a spread batch would hang there."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    z = rng.standard_normal((40, 128), np.float32)
    expected = classic.decode(z)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=decode_in_child, args=(classic, z, queue))
    child.start()
    try:
        np.testing.assert_array_equal(queue.get(timeout=120), expected)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


FORK = """
import os, sys, threading
import numpy as np
from vae_runtime import VAE
vae = VAE.load(sys.argv[1], device="cpu", threads=2)
z = np.random.default_rng(0).standard_normal((40, 128), np.float32)
expected = vae.decode(z)
stop = threading.Event()
def work():
    while not stop.is_set():
        vae.decode(z)
parents = [threading.Thread(target=work) for _ in range(2)]
for thread in parents:
    thread.start()
held = "held" in sys.argv
if held:
    vae._lock.acquire(), vae.decoder._lock.acquire()
child = os.fork()
if child == 0:
    same = []
    def run():
        same.append((vae.decode(z) == expected).all() and vae.inverse is not None)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0 if same == [True, True] else 7)
_, status = os.waitpid(child, 0)
stop.set()
os._exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.slow
@pytest.mark.parametrize("locks", ["free", "held"])
def test_a_child_that_is_forked_while_threads_run_can_run_in_threads(locks):
    """One of its threads opens the sessions, the others wait for it; locks that the parent held do not count."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(CLASSIC), locks]
    for _ in range(3):
        assert subprocess.run(command, timeout=60).returncode == 0


def test_a_file_of_another_format_is_not_opened_as_such(tiny, tmp_path):
    """ONNX Runtime would take one that begins like its own format for it, whatever the check of ONNX files saw."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "graph.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(tiny.folder / "decoder.onnx"), options, providers=[CPU])
    data = (tmp_path / "graph.ort").read_bytes()
    onnxruntime.InferenceSession(data, providers=[CPU])
    summary = graph_summary((tiny.folder / "decoder.onnx").read_bytes(), "face.onnx")
    with pytest.raises(ModelFileError, match=r"face\.onnx"):
        open_session(data, "face.onnx", [CPU], 1, summary)


@pytest.mark.slow
def test_nothing_is_written_to_the_home_folder_and_a_forked_child_ends(tiny, tmp_path):
    """Telemetry of ONNX Runtime would do the one and hinder the other."""
    code = """
import os, sys
from vae_runtime import VAE
vae = VAE.load(sys.argv[1], device="cpu")
child = os.fork() if hasattr(os, "fork") else 1
vae.sample(1, rng=0)
if child == 0 or not hasattr(os, "fork"):
    sys.exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tiny.folder)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    assert subprocess.run(command, timeout=60, env=kept | {"HOME": str(tmp_path)}).returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_closed_model_stays_closed_in_a_forked_child(tiny):
    code = """
import os, sys
from vae_runtime import VAE, InputError
vae = VAE.load(sys.argv[1], device="cpu")
vae.close()
child = os.fork() if hasattr(os, "fork") else 0
try:
    vae.sample(1, rng=0)
except InputError:
    status = 0
if child:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os._exit(status)
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(tiny.folder)]
    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_closed_model_says_so(tiny, rng):
    with VAE.load(tiny.folder, device="cpu") as vae:
        vae.sample(2, rng=0)
    with pytest.raises(InputError, match="closed"):
        vae.sample(2, rng=0)
    vae.close()


def test_closing_ends_the_threads():
    before = threading.active_count()
    with VAE.load(device="cpu", threads=3) as vae:
        vae.sample(64, rng=0)
        assert threading.active_count() > before
    gc.collect()
    assert threading.active_count() == before


def test_warmup(vae):
    vae.warmup()
    vae.warmup(1, 3)
    with pytest.raises(InputError, match="batches"):
        vae.warmup(0)


def test_a_run_that_fails_is_our_error(vae, tiny):
    class Broken:
        def each(self, count, part):
            def run(values):
                raise MemoryError("BFCArena: failed to allocate\nwith details")

            return [part(slice(0, count), run)]

        def close(self):
            """Nothing to free."""

    broken = VAE.load(tiny.folder, device="cpu")
    broken.decoder._runner = Broken()
    with pytest.raises(DeviceError, match=r"run of 3 rows failed on cpu \(BFCArena: failed to allocate\)") as caught:
        broken.decode(np.zeros((3, DIM)))
    assert "details" not in str(caught.value)


# ---- memory of a device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 8, 33, 64, 100])
def test_bound_runs_equal_plain_ones(classic, count, rng):
    """The CUDA way of running, with the CPU as the device whose memory is bound."""
    encoder = classic.encoder
    runner = BoundRunner(encoder.session, ("cpu", 0), encoder.inputs, encoder.outputs, cuda_graph=False)
    for _ in range(2):  # the second round uses the buffers of the first
        images = rng.random((count, 3, 32, 32), np.float32)
        parts = runner.each(count, lambda rows, run, images=images: run(images[rows]))
        for got, expected in zip(map(np.concatenate, zip(*parts, strict=True)), encoder.run(images), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert set(runner._bound) <= set(BUCKETS)
    assert len(runner._bound) <= 2


def test_bound_results_do_not_change_with_the_next_run(classic, rng):
    encoder = classic.encoder
    runner = BoundRunner(encoder.session, ("cpu", 0), encoder.inputs, encoder.outputs, cuda_graph=False)
    first = runner._run(rng.random((2, 3, 32, 32), np.float32))[0]
    kept = first.copy()
    runner._run(rng.random((2, 3, 32, 32), np.float32))
    np.testing.assert_array_equal(first, kept)


def test_bound_runs_share_their_buffers_under_a_lock(classic, rng):
    encoder = classic.encoder
    runner = BoundRunner(encoder.session, ("cpu", 0), encoder.inputs, encoder.outputs, cuda_graph=False)
    images = rng.random((8, 1, 3, 32, 32), np.float32)
    expected = [encoder.run(image)[0] for image in images]
    wrong = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(200) if (runner._run(images[index])[0] != expected[index]).any())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_captured_graph_has_its_own_number(classic):
    encoder = classic.encoder
    runner = BoundRunner(encoder.session, ("cpu", 0), encoder.inputs, encoder.outputs, cuda_graph=True)
    numbers = [runner._bind(bucket)[3].get_run_config_entry("gpu_graph_id") for bucket in (1, 8)]
    assert numbers == ["1", "8"]


# ---- the choice of the device ---------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with two GPUs and the CUDA wheel, as far as the choice of providers asks."""

    class Wheel:
        providers = (TENSORRT, CUDA, CPU)

        @classmethod
        def get_available_providers(cls):
            return list(cls.providers)

        @staticmethod
        def preload_dlls():
            print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(devices, "import_onnxruntime", lambda: Wheel)
    monkeypatch.setattr(devices, "cuda_driver", lambda: Driver("13.0", ("H200", "H200")))
    devices.preload_cuda.cache_clear()
    yield Wheel
    devices.preload_cuda.cache_clear()


def test_auto_takes_cuda_and_the_libraries_are_preloaded_quietly(machine, capsys):
    (name, settings), last = choose_providers(DeviceOptions())
    assert (name, last, settings["device_id"]) == (CUDA, CPU, "0")
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert "enable_cuda_graph" not in settings
    assert capsys.readouterr().out == ""
    assert devices.preload_cuda() == "Failed to load libcudnn.so.9"


def test_an_index_a_graph_and_tensorrt_reach_the_providers(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("ANIME_VAE_CACHE", str(tmp_path))
    options = DeviceOptions(device="cuda:1", tensorrt=True, cuda_graph=True)
    (first, engine), (second, cuda), last = choose_providers(options, "image:3x32x32")
    assert (first, second, last) == (TENSORRT, CUDA, CPU)
    assert cuda["device_id"] == engine["device_id"] == "1"
    assert cuda["enable_cuda_graph"] == "1"
    assert engine["trt_profile_max_shapes"] == "image:64x3x32x32"
    assert engine["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert (tmp_path / "tensorrt").is_dir()


def test_a_gpu_that_is_not_there_is_refused_by_number(machine):
    with pytest.raises(DeviceError, match=r"cuda:2.*shows 2 GPUs"):
        choose_providers(DeviceOptions(device="cuda:2"))


def test_the_environment_decides_what_auto_means(machine, monkeypatch):
    monkeypatch.setenv("VAE_DEVICE", "cpu")
    assert choose_providers(DeviceOptions()) == [CPU]
    assert choose_providers(DeviceOptions(device="cuda"))[0][0] == CUDA  # what is said in the code counts more
    monkeypatch.setenv("VAE_DEVICE", "cuda:1")
    assert choose_providers(DeviceOptions())[0][1]["device_id"] == "1"
    monkeypatch.setenv("VAE_DEVICE", "gpu")
    with pytest.raises(InputError, match="VAE_DEVICE"):
        choose_providers(DeviceOptions())


def test_two_wheels_are_named_as_the_cause(machine, monkeypatch):
    machine.providers = (CPU,)
    monkeypatch.setattr(devices, "installed_wheels", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    with pytest.raises(DeviceError, match="overwritten the CUDA one; pip uninstall -y onnxruntime onnxruntime-gpu"):
        choose_providers(DeviceOptions(device="cuda"))
    machine.providers = (TENSORRT, CUDA, CPU)


class Session:
    """A session that came up with these providers."""

    def __init__(self, *active: str) -> None:
        self.active = active

    def get_providers(self):
        return list(self.active)

    def get_provider_options(self):
        return {name: {"device_id": "1"} if name == CUDA else {} for name in self.active}


def test_what_runs_is_read_from_the_session(machine):
    asked = [(CUDA, {"device_id": "1"}), CPU]
    assert active_device(Session(CUDA, CPU), asked, DeviceOptions(device="cuda:1")) == "cuda:1"
    assert active_device(Session(CPU), [CPU], DeviceOptions(device="cpu")) == "cpu"
    assert active_device(Session("OpenVINOExecutionProvider", CPU), ["OpenVINOExecutionProvider"], DeviceOptions()) == (
        "openvino"
    )


def test_a_silent_fallback_is_an_error_where_cuda_was_asked_for_and_a_warning_where_not(machine, monkeypatch):
    monkeypatch.setattr("vae_runtime.ort.graph.preload_cuda", lambda: "Failed to load libcudnn.so.9")
    asked = [(CUDA, {}), CPU]
    with pytest.raises(DeviceError, match=r"could not start CUDA.*libcudnn.*\[gpu\]"):
        active_device(Session(CPU), asked, DeviceOptions(device="cuda"))
    devices.warn_once.cache_clear()
    with pytest.warns(DeviceWarning, match="libcudnn"):
        assert active_device(Session(CPU), asked, DeviceOptions()) == "cpu"


def test_an_experts_provider_runs_plainly(tiny, rng, monkeypatch):
    z = rng.normal(size=(40, DIM))
    expected = VAE.load(tiny.folder, device="cpu").decode(z)
    monkeypatch.setattr("vae_runtime.ort.graph.active_device", lambda *arguments: "openvino")
    vae = VAE.load(tiny.folder, providers=[CPU])
    assert (vae.device, vae.decoder._runner.pool) == ("openvino", None)
    np.testing.assert_array_equal(vae.decode(z), expected)


def test_providers_are_the_experts_door(tiny, rng):
    vae = VAE.load(tiny.folder, providers=[("CPUExecutionProvider", {})])
    assert vae.device == "cpu"
    with pytest.raises(DeviceError, match="ROCMExecutionProvider is not in the installed"):
        VAE.load(tiny.folder, providers=["ROCMExecutionProvider"])


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"providers": "CPUExecutionProvider"}, InputTypeError, "list"),
        ({"providers": []}, InputTypeError, "list"),
        ({"providers": [3]}, InputTypeError, "name"),
        ({"providers": [CPU], "device": "cpu"}, InputError, "combined"),
        ({"threads": 0}, InputError, "1 to 1024"),
        ({"threads": 1.5}, InputTypeError, "threads"),
        ({"threads": True}, InputTypeError, "threads"),
        ({"device": "cpu", "tensorrt": True}, InputError, "tensorrt"),
        ({"device": "cpu", "cuda_graph": True}, InputError, "cuda_graph"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny, options, kind, said):
    with pytest.raises(kind, match=said):
        VAE.load(tiny.folder, **options)


def test_usable_cores_respects_the_affinity():
    code = (
        "import os, vae_runtime.ort.devices as devices; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "print(devices.usable_cores())"
    )
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("files", "group", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", [1.5]),
        ({"cpu.max": "max 100000"}, "0::/", []),
        ({"a.slice/cpu.max": "200000 100000", "a.slice/b/cpu.max": "50000 100000"}, "0::/a.slice/b", [0.5, 2.0]),
        ({"cpu/b/cpu.cfs_quota_us": "300000", "cpu/b/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/b", [3.0]),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", []),
        ({}, "nonsense", []),
    ],
)
def test_quotas_of_both_versions_of_control_groups_are_read(tmp_path, files, group, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(group + "\n")
    assert sorted(devices._cpu_quotas(tmp_path, tmp_path / "own")) == expected
    assert devices._cpu_quotas(tmp_path / "none", tmp_path / "no file") == []


@pytest.mark.parametrize(
    ("usable", "host", "load", "threads"), [(8, 8, 0.2, 8), (8, 8, 3.1, 5), (8, 8, 30, 4), (4, 64, 30, 4), (1, 2, 9, 1)]
)
def test_threads_follow_what_is_free(monkeypatch, tiny, usable, host, load, threads):
    monkeypatch.setattr(devices, "usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert devices.free_cores() == threads
    assert VAE.load(tiny.folder, device="cpu").decoder.threads == threads


def test_numpy_integers_are_threads(tiny):
    assert VAE.load(tiny.folder, device="cpu", threads=np.int64(2)).decoder.threads == 2


def test_a_graph_needs_no_model_folder(tiny, rng):
    data = (tiny.folder / "decoder.onnx").read_bytes()
    graph = Graph(data, "mine", {"z": (DIM,)}, {"image": (3, SIZE, SIZE)}, DeviceOptions(device="cpu"))
    assert graph.run(np.zeros((2, DIM), np.float32))[0].shape == (2, 3, SIZE, SIZE)


@pytest.mark.filterwarnings("error")
def test_output_that_is_not_finite_is_an_error_and_no_black_picture(tiny):
    weight = tiny.v[0, 0].tobytes()
    data = (tiny.folder / "decoder.onnx").read_bytes()
    assert data.count(weight) == 1
    data = data.replace(weight, np.float32(np.nan).tobytes())
    graph = Graph(data, "decoder.onnx", {"z": (DIM,)}, {"image": (3, SIZE, SIZE)}, DeviceOptions(device="cpu"))
    with pytest.raises(ModelFileError, match=r"decoder\.onnx"):
        graph.run(np.ones((2, DIM), np.float32), postprocess=to_pixels)


def test_names_that_are_no_text_are_refused(tiny):
    """A fuzzer found it: ONNX Runtime opens such a graph, and Python cannot read its names."""
    data = (tiny.folder / "decoder.onnx").read_bytes().replace(b"batch", b"b\xfftch")
    with pytest.raises(ModelFileError, match="not a graph of an exported model"):
        Graph(data, "decoder", {"z": (DIM,)}, {"image": (3, SIZE, SIZE)}, DeviceOptions(device="cpu"))
