"""Smaller variants of an export's graphs, and what they cost: `fp16` for half the size, `int8` for speed on a CPU.

Both are made from the exported graphs and keep their float32 inputs and outputs. `fp16` stores weights and asks for
arithmetic in float16, which a GPU provides; ONNX Runtime on a CPU has no such kernels, and widens the weights once when
it opens the graph. `int8` is quantized statically (Jacob et al., "Quantization and training of neural networks for
efficient integer-arithmetic-only inference", 2018), weights by channel, activations by tensor, calibrated on training
pictures.

Weights use 7 of the 8 bits. Processors without VNNI add pairs of products in 16 bits, which 8 x 8 bits overflow: the
8th bit would cost half a decibel there, and answers would differ between processors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from vae_runtime import latent
from vae_runtime import model as runtime
from vae_runtime.config import CARD_FILE, DECODER_FILE, ENCODER_FILE, VARIANTS, ModelConfig, Variant, graph_files
from vae_runtime.files import write_atomically
from vae_runtime.ort.verify import read_verified
from vae_train.data.faces import Faces
from vae_train.errors import UsageError
from vae_train.evaluation.timing import latencies
from vae_train.export.model_card import write_section
from vae_train.export.onnx_graph import strip
from vae_train.export.publish import replacement
from vae_train.model.metrics import psnr

CALIBRATION = 256
"""Number of training pictures that int8 is calibrated on."""
BATCHES = (1, 16)
"""Batch sizes at which speed is measured."""

_COMMAND = "python -m vae_train variants"
_BATCH = 64
_PEAK = 100.0  # dB reported for identical pictures


@dataclass(frozen=True)
class Limits:
    """What a variant must meet to be published."""

    size: float
    """Largest size of both graphs, as a fraction of the float32 graphs."""
    loss: float
    """Largest loss of PSNR on held-out pictures, in dB."""
    agreement: float
    """Lowest PSNR between its reconstructions and those in float32, in dB."""


LIMITS = {"fp16": Limits(0.51, 0.01, 60), "int8": Limits(0.30, 0.2, 35)}


@dataclass(frozen=True)
class Cost:
    """What a variant saves and costs, measured through vae_runtime on held-out pictures."""

    variant: str
    """One of `VARIANTS`."""
    size: int
    """Bytes of both graphs."""
    share: float
    """`size` divided by the size of the float32 graphs."""
    psnr: float
    """PSNR of decode(mu) with both graphs of the variant, in dB."""
    loss: float
    """By how much that is below float32, in dB."""
    agreement: float
    """PSNR between its reconstructions and those in float32, at most 100 dB."""
    speed: dict[str, float]
    """Speed relative to float32 on one core, by verb and batch size: "encode 1" to "decode 16"."""

    def misses(self) -> str:
        """The limits that it misses, as text; empty if it may be published."""
        limits = LIMITS[self.variant]
        wrong = [
            (not self.share <= limits.size, f"{self.share:.0%} of the size, at most {limits.size:.0%} allowed"),
            (not self.loss <= limits.loss, f"{self.loss:.3f} dB lost, at most {limits.loss:g} allowed"),
            (
                not self.agreement >= limits.agreement,
                f"{self.agreement:.1f} dB from float32, {limits.agreement:g} needed",
            ),
        ]
        return "; ".join(text for missed, text in wrong if missed)


def add_variants(folder: Path, faces: Faces, variants: Sequence[Variant], seconds: float = 1.0) -> list[Cost]:
    """Replace the variants of an exported model: the graphs, their entries in config.json, their costs in the card.

    faces: the source that the model was trained on. seconds: for each measurement of speed. A variant that misses its
    `LIMITS` is left out, with a warning on stderr. The folder is replaced whole or, on an error, not at all.
    Raises UsageError for other pictures, ModelFileError, ConfigError.
    """
    config = ModelConfig.load(folder)
    if not faces.matches(config.training_data.sha256):
        raise UsageError(f"{faces.name}: not the pictures that {config.name} was trained on")
    for file in graph_files():
        read_verified(folder / file, config.files[file])
    with replacement(folder) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        return write_variants(copy, faces, variants, seconds)


def write_variants(folder: Path, faces: Faces, variants: Sequence[Variant], seconds: float = 1.0) -> list[Cost]:
    """`add_variants` in place, for a folder that is not published yet."""
    config = ModelConfig.load(folder)
    for file in sum(map(graph_files, VARIANTS), ()):
        (folder / file).unlink(missing_ok=True)
    known = {name: digest for name, digest in config.files.items() if (folder / name).exists()}
    held_out = faces.held_out()
    training, test = (np.flatnonzero(part) for part in (~held_out, held_out))
    chosen = training[np.linspace(0, len(training) - 1, min(CALIBRATION, len(training))).astype(int)]
    costs = []
    for variant in variants:
        made = _make(folder, config, variant, faces.pixels[chosen])
        for file, data in made.items():
            write_atomically(folder / file, data)
        digests = {file: hashlib.sha256(data).hexdigest() for file, data in made.items()}
        dataclasses.replace(config, files=known | digests).save(folder)
        cost = measure(folder, variant, faces.pixels[test], seconds)
        if wrong := cost.misses():
            print(f"warning: {variant} is left out: {wrong}", file=sys.stderr)
            for file in made:
                (folder / file).unlink()
            continue
        if variant == "int8" and min(cost.speed.values()) < 1:
            slowest = min(cost.speed, key=lambda name: cost.speed[name])
            print(
                f"warning: int8 is slower than float32 here, {cost.speed[slowest]:.2f} times as fast at {slowest}; "
                "ship it for processors where it gains",
                file=sys.stderr,
            )
        known |= digests
        costs.append(cost)
    dataclasses.replace(config, files=known).save(folder)
    if (folder / CARD_FILE).is_file():
        write_section(folder, _COMMAND, card_section(costs, len(test)) if costs else "")
    return costs


def _make(folder: Path, config: ModelConfig, variant: Variant, pixels: NDArray[np.uint8]) -> dict[str, bytes]:
    """The graphs of a variant by their file names. pixels (n, 3, S, S): to calibrate with."""
    data = [read_verified(folder / file, config.files[file]) for file in (ENCODER_FILE, DECODER_FILE)]
    encoder, decoder = (onnx.load_from_string(each) for each in data)
    if variant == "fp16":
        made = [to_fp16(encoder), to_fp16(decoder)]
    else:
        image = pixels.astype(np.float32) / np.float32(255)
        with runtime.VAE.load(folder, device="cpu") as vae:
            mu, logvar = vae.encoder.run(image)
        z = latent.reparameterize(mu, logvar, 0).astype(np.float32)
        made = [to_int8(encoder, image), to_int8(decoder, z)]
    return {
        file: graph.SerializeToString(deterministic=True)
        for file, graph in zip(graph_files(variant), made, strict=True)
    }


def to_fp16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights and arithmetic in float16, between float32 inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = OnnxModel(convert_float_to_float16(_copy(graph), keep_io_types=True))
    model.topological_sort(is_deterministic=True)  # casts were appended, which ONNX forbids
    return _tidy(model.model, graph)


def to_int8(graph: onnx.ModelProto, examples: NDArray[np.float32]) -> onnx.ModelProto:
    """The same graph with pairs of QuantizeLinear and DequantizeLinear around each operator (QDQ).

    examples: inputs (n, ...) that the ranges of activations are calibrated on; values beyond them are clipped.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Examples(CalibrationDataReader):  # type: ignore[misc]
        """Batches of `examples` of equal size, as percentile calibration requires; the rest is dropped."""

        def __init__(self) -> None:
            self.parts = iter(np.split(examples[: size * count], count))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            part = next(self.parts, None)
            return None if part is None else {graph.graph.input[0].name: part}

    size, count = min(_BATCH, len(examples)), max(1, len(examples) // _BATCH)
    with tempfile.TemporaryDirectory() as place, _quiet():
        path = Path(place) / "int8.onnx"
        quantize_static(
            _copy(graph),
            path,
            Examples(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,  # 99.999: a few outliers would take half the range
        )
        return _tidy(onnx.load(path), graph)


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def _tidy(made: onnx.ModelProto, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Give `made` the metadata and opset of the graph it was made from, and check it."""
    strip(made)
    made.ir_version = graph.ir_version
    del made.opset_import[:]
    made.opset_import.extend(graph.opset_import)
    made.metadata_props.extend(graph.metadata_props)
    onnx.checker.check_model(made, full_check=True)
    return made


def measure(folder: Path, variant: Variant, pixels: NDArray[np.uint8], seconds: float) -> Cost:
    """The cost of a variant in `folder`, on held-out pictures (n, 3, S, S) and one core of this machine."""
    with (
        runtime.VAE.load(folder, device="cpu", threads=1) as plain,
        runtime.VAE.load(folder, variant=variant, device="cpu", threads=1) as small,
    ):
        decibels: dict[str, list[torch.Tensor]] = {"plain": [], "small": [], "between": []}
        for start in range(0, len(pixels), _BATCH):
            image = pixels[start : start + _BATCH].astype(np.float32) / np.float32(255)
            exact, found = (vae.decoder.run(vae.encoder.run(image)[0])[0] for vae in (plain, small))
            for name, one, other in (("plain", exact, image), ("small", found, image), ("between", found, exact)):
                pair = (torch.from_numpy(each).double() for each in (one, other))
                decibels[name].append(psnr(*pair).clamp(max=_PEAK))
        mean = {name: torch.cat(parts).mean().item() for name, parts in decibels.items()}
        speed = {}
        for batch in BATCHES:
            image = np.resize(pixels, (batch, *pixels.shape[1:])).astype(np.float32) / np.float32(255)
            z = plain.encoder.run(image)[0]
            for verb, values in (("encode", image), ("decode", z)):
                calls: dict[str, Callable[[], Any]] = {
                    name: partial((vae.encoder if verb == "encode" else vae.decoder).run, values)
                    for name, vae in (("plain", plain), ("small", small))
                }
                median = {name: float(np.median(times)) for name, times in latencies(calls, seconds).items()}
                speed[f"{verb} {batch}"] = median["plain"] / median["small"]
    bytes_of = [sum((folder / file).stat().st_size for file in graph_files(name)) for name in (variant, None)]
    return Cost(
        variant=variant,
        size=bytes_of[0],
        share=bytes_of[0] / bytes_of[1],
        psnr=mean["small"],
        loss=mean["plain"] - mean["small"],
        agreement=mean["between"],
        speed=speed,
    )


def as_table(costs: Sequence[Cost]) -> str:
    """The costs as Markdown."""
    speeds = list(costs[0].speed)
    head = ["variant", "MB", "of float32", "PSNR, dB", "lost, dB", "agreement, dB", *(f"{name}, x" for name in speeds)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for cost in costs:
        figures = [f"{cost.size / 1e6:.2f}", f"{cost.share:.0%}", f"{cost.psnr:.2f}", f"{cost.loss:z.4f}"]
        figures += [f"{cost.agreement:.1f}", *(f"{cost.speed[name]:.2f}" for name in speeds)]
        lines.append(f"| {' | '.join([cost.variant, *figures])} |")
    return "\n".join(lines)


def card_section(costs: Sequence[Cost], count: int) -> str:
    """The section of the model card. count: number of held-out pictures that were measured."""
    return f"""## Precision variants

`VAE.load(folder, variant="{costs[0].variant}")` opens smaller graphs, with float32 inputs and outputs. On {count}
held-out pictures: PSNR of decode(mu), what it loses against float32, and the PSNR between the two. By verb and batch
size: how many times as fast as float32 in the same run, on one core of this processor: {processor()}.

{as_table(costs)}"""


def processor() -> str:
    """The processor's name, if the system tells it, and its widest instruction set for int8: "AMD EPYC, AVX2"."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    known = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "avx512bw": "AVX-512", "avx2": "AVX2"}
    widest = [label for flag, label in known.items() if flags and flag in flags[1].split()]
    return ", ".join([name[1].strip() if name else platform.machine(), *widest[:1]])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer: it prints progress, and logs advice on fusions that folded graphs do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
