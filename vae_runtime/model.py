"""class VAE: an encoder, a decoder and a config behind verbs such as encode, decode, sample, interpolate and edit."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_runtime import inversion, latent, latent_analysis
from vae_runtime.attributes import Attributes
from vae_runtime.checks import Rng, as_codes, as_latent, check_choice, check_count, check_number
from vae_runtime.config import (
    ATTRIBUTES_FILE,
    CONFIG_FILE,
    DIRECTIONS_FILE,
    INVERSE_FILE,
    NEIGHBORS_FILE,
    PRIOR_FILE,
    VARIANTS,
    ModelConfig,
    Variant,
    graph_files,
)
from vae_runtime.directions import Directions, Neighbors
from vae_runtime.errors import ImageError, InputError, InputTypeError, ModelFileError
from vae_runtime.forks import reset_in_children
from vae_runtime.hub import resolve
from vae_runtime.images import (
    Images,
    ImageSource,
    Pixels,
    each_image,
    fit_square,
    load_each,
    prepare,
    to_pixels,
    to_unit,
)
from vae_runtime.latent import Method
from vae_runtime.latent_analysis import Metric
from vae_runtime.masks import Masks, prepare_masked
from vae_runtime.ort.devices import DeviceOptions, Provider
from vae_runtime.ort.graph import MAX_BATCH, Graph
from vae_runtime.ort.verify import read_verified
from vae_runtime.prior import Codes, Prior, fit_prior, text_code
from vae_runtime.prior.mixture import MAX_SAMPLES
from vae_runtime.stream import Batches, batches, chunks, prefetch

T = TypeVar("T")
OnError: TypeAlias = Literal["raise", "skip"]

_CHUNK = 16

MAX_CODE = 1e6
"""Largest absolute value of a code that is decoded: far beyond any prior, far below the overflow of float32."""
MAX_CODE_FP16 = 1e3
"""The same for the variant fp16, whose activations overflow at 65504."""


class VAE:
    """An exported variational autoencoder.

    Attributes: config (ModelConfig), encoder and decoder (Graph: float32 NCHW in and out), inverse (Graph, opened when
    it is first used), prior (Prior), directions (Directions or None), classifiers (Attributes or None), neighbors
    (Neighbors or None), device ("cpu", "cuda:0"), variant (None, "fp16", "int8").

    Safe to call from many threads. Pickling stores the folder, which is opened and verified again when unpickled.
    A forked child opens its own sessions. If onnxruntime was imported before this package, with its telemetry on, the
    child must leave by os._exit, as multiprocessing does: ONNX Runtime 1.32 would hang at its exit. `with VAE.load() as
    vae:` frees the sessions.
    """

    def __init__(
        self,
        folder: Path,
        options: DeviceOptions,
        variant: Variant | None = None,
        prior: Prior | str | os.PathLike[str] | None = None,
    ) -> None:
        """Open the model in `folder`; see `VAE.load`, which also finds it."""
        self._folder, self._options, self.variant = folder.absolute(), options, variant
        self.config = config = ModelConfig.load(folder)
        picture = (config.channels, config.image_size, config.image_size)
        code = (config.latent_dim,)
        encoder, decoder = self._graphs_of_variant()
        self.encoder = self._graph(encoder, {"image": picture}, {"mu": code, "logvar": code})
        self.decoder = self._graph(decoder, {"z": code}, {"image": picture})
        self._inverse: Graph | None = None
        self._lock, self._closed = threading.Lock(), False
        reset_in_children(self)
        self._own_prior = Prior.load(prior) if isinstance(prior, (str, os.PathLike)) else prior
        self.prior = Prior.standard(config.latent_dim)
        if self._own_prior is not None:
            self.prior = self._prior_of(self._own_prior)
        elif PRIOR_FILE in config.files:
            self.prior = self._beside(PRIOR_FILE, Prior.from_bytes, lambda prior: prior.latent_dim)
        self.directions: Directions | None = None
        if DIRECTIONS_FILE in config.files:
            self.directions = self._beside(DIRECTIONS_FILE, Directions.from_bytes, lambda d: d.vectors.shape[1])
        self.classifiers: Attributes | None = None
        if ATTRIBUTES_FILE in config.files:
            self.classifiers = self._beside(ATTRIBUTES_FILE, Attributes.from_bytes, lambda a: a.latent_dim)
        self.neighbors: Neighbors | None = None
        if NEIGHBORS_FILE in config.files:
            self.neighbors = self._beside(NEIGHBORS_FILE, Neighbors.from_bytes, lambda n: n.codes.shape[1])

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        variant: Variant | None = None,
        prior: Prior | str | os.PathLike[str] | None = None,
        device: str = "auto",
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        tensorrt: bool = False,
        cuda_graph: bool = False,
    ) -> VAE:
        """Open a model.

        model: None for the bundled one, a folder, or "hf:owner/name[@revision]" (needs the extra `hub`).
        variant: None for float32; "fp16" or "int8" where the model has it: smaller graphs, slightly different answers.
        The model's card says how different, and where they are faster. Never chosen automatically.
        prior: a Prior, or the .npz of one, in place of the model's own; see `fit_prior`.
        device: "cpu", "cuda" or "cuda:n" (strict: DeviceError if not available), or "auto": $VAE_DEVICE if set, else
        CUDA where a session really runs on it, else the CPU with one DeviceWarning that names the cause.
        providers: a provider list for ONNX Runtime in place of `device`, strict; for experts.
        threads: CPU threads (default: all cores that the process may use); 1 for a server with a worker per core.
        tensorrt: TensorRT on the CUDA device; the first run of each model builds an engine (minutes), cached in
        $ANIME_VAE_CACHE. cuda_graph: replay CUDA graphs, for many small batches.

        The digests in config.json are verified before a file is used. Raises ModelFileError, ConfigError,
        DeviceError, InputError, HubError, RuntimeMissingError.
        """
        options = DeviceOptions(
            device=device, providers=providers, threads=threads, tensorrt=tensorrt, cuda_graph=cuda_graph
        )
        if variant is not None and not (isinstance(variant, str) and variant in VARIANTS):
            raise InputError(f"variant: got {variant!r}, expected None, {' or '.join(map(repr, VARIANTS))}")
        return cls(resolve(model, variant), options, variant, prior)

    def _graphs_of_variant(self) -> tuple[str, str]:
        """The files of encoder and decoder; ModelFileError if this model, or this copy of it, lacks them."""
        files = graph_files(self.variant)
        if self.variant is not None:
            if not self.config.files.keys() >= set(files):
                raise ModelFileError(
                    f"{self._folder}: has no variant {self.variant}; load it with variant=None, "
                    "or make one by python -m vae_train variants"
                )
            for file in files:
                if not (self._folder / file).exists():
                    raise ModelFileError(
                        f"{self._folder / file}: named in {CONFIG_FILE}, missing in this copy of the model; "
                        f"download all files for variant={self.variant!r}, or load it with variant=None"
                    )
        return files

    def _graph(self, file: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> Graph:
        path, config = self._folder / file, self.config
        graph = Graph(read_verified(path, config.files[file]), str(path), inputs, outputs, self._options)
        if graph.metadata.get("model_id") != config.model_id:
            raise ModelFileError(
                f"{path}: of the model {graph.metadata.get('model_id')!r}, config.json says {config.model_id!r}; "
                "use files of one export"
            )
        if graph.summary.opset != config.opset:
            raise ModelFileError(
                f"{path}: opset {graph.summary.opset}, config.json says {config.opset}; use files of one export"
            )
        return graph

    def _beside(self, file: str, parse: Callable[[bytes, str], Any], dim: Callable[[Any], int]) -> Any:
        """The parsed content of a file beside the graphs, with its digest and its latent_dim verified."""
        path = self._folder / file
        try:
            found = parse(read_verified(path, self.config.files[file]), str(path))
        except InputError as error:
            raise ModelFileError(f"{path}: {error}") from error
        if dim(found) != self.latent_dim:
            raise ModelFileError(f"{path}: for codes of {dim(found)} numbers, this model has {self.latent_dim}")
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        options = {item.name: getattr(self._options, item.name) for item in dataclasses.fields(self._options)}
        return functools.partial(
            VAE.load, str(self._folder), variant=self.variant, prior=self._own_prior, **options
        ), ()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent, which the child lacks, may have held it

    def __enter__(self) -> VAE:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the sessions, with their threads and memory. A second call does nothing; later runs raise InputError."""
        with self._lock:
            self._closed = True
            for graph in (self.encoder, self.decoder, self._inverse):
                if graph is not None:
                    graph.close()

    @property
    def has_inverse(self) -> bool:
        """Whether the model has inverse.onnx, which `invert`, `inpaint` and `upscale` need."""
        return INVERSE_FILE in self.config.files

    @property
    def inverse(self) -> Graph:
        """The graph of inverse.onnx: z, image, weight -> loss, gradient (see vae_train/export/decoder_gradient.py).

        ModelFileError if the model has none.
        """
        if not self.has_inverse:
            raise ModelFileError(
                f"{self._folder}: has no {INVERSE_FILE}, which this needs; add it by python -m vae_train inverse FOLDER"
            )
        with self._lock:
            if self._closed:
                raise InputError(f"{self._folder}: closed; load the model again")
            if self._inverse is None:
                (code,), (picture,) = self.decoder.inputs.values(), self.decoder.outputs.values()
                inputs = {"z": code, "image": picture, "weight": (1, *picture[1:])}
                self._inverse = self._graph(INVERSE_FILE, inputs, {"loss": (), "gradient": code})
            return self._inverse

    @property
    def device(self) -> str:
        """Where the graphs really run, read from their sessions."""
        return self.encoder.device if self.encoder.device == self.decoder.device else "cpu"

    @property
    def latent_dim(self) -> int:
        """Length of a code."""
        return self.config.latent_dim

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.config.image_size

    def __repr__(self) -> str:
        size, dim = self.image_size, self.latent_dim
        return f"VAE({self.config.name!r}, image_size={size}, latent_dim={dim}, device={self.device!r})"

    def warmup(self, *batches: int) -> None:
        """Run both graphs once for each batch size (default: 1 and 64), because first runs are slow."""
        for batch in batches or (1, MAX_BATCH):
            count = check_count(batch, "batches", 1, MAX_BATCH)
            self.reconstruct(np.zeros((count, self.image_size, self.image_size, 3), np.uint8))

    def prepare(self, images: Images) -> Pixels:
        """The pictures as the model sees them: uint8 (n, S, S, 3), each cut to its central square and resampled.

        images: one picture or any iterable of pictures, each as `vae_runtime.load_image` takes it. An error names the
        position of its picture.
        """
        return prepare(images, self.image_size)

    def encode(self, images: Images) -> tuple[Codes, Codes]:
        """mu and logvar of q(z|x), float32 (n, latent_dim) each; n is 1 for a single picture, 0 for an empty list."""
        mu, logvar = self.encoder.run(self.prepare(images), preprocess=to_unit)
        return mu, logvar

    def decode(self, z: ArrayLike) -> Pixels:
        """The pictures of codes z (n, latent_dim) or (latent_dim,): uint8 (n, S, S, 3).

        Raises InputTypeError or InputError, with the first index, for non-finite values and those beyond `MAX_CODE`
        (`MAX_CODE_FP16` for that variant).
        """
        codes, largest = as_codes(z, self.latent_dim), MAX_CODE_FP16 if self.variant == "fp16" else MAX_CODE
        if codes.size and max(codes.max(), -codes.min()) > largest:
            row, column = np.argwhere(np.abs(codes) > largest)[0]
            raise InputError(
                f"z: {codes[row, column]:g} at index ({row}, {column}), expected absolute values up to {largest:g}; "
                "codes are of the order of 1"
            )
        (pictures,) = self.decoder.run(np.ascontiguousarray(codes, dtype=np.float32), postprocess=to_pixels)
        return pictures

    def reconstruct(self, images: Images) -> Pixels:
        """decode(mu), without noise: uint8 (n, S, S, 3), deterministic."""
        return self.decode(self.encode(images)[0])

    def iter_prepare(
        self, images: Iterable[ImageSource], batch_size: int = MAX_BATCH, on_error: OnError = "raise"
    ) -> Batches[Pixels]:
        """`prepare`, lazily: uint8 (n, S, S, 3), n <= batch_size, one batch after the other.

        The next pictures are read and decoded in a thread while the caller works on these; a million pictures take the
        memory of three batches. `close()` ends it early. on_error: "raise" raises an ImageError that names the position
        when its picture is reached; "skip" leaves the picture out and adds (position, error) to the result's `skipped`.
        """
        size = check_count(batch_size, "batch_size", 1, 4096)
        check_choice(on_error, "on_error", "raise", "skip")
        each_image(images)  # refuses other types before anything is read
        skipped: list[tuple[int, ImageError]] = []
        loaded = load_each(images, None if on_error == "raise" else skipped)

        def generate() -> Generator[Pixels]:
            fitted = (fit_square(picture, self.image_size) for picture in loaded)
            few = min(size, _CHUNK)  # through the queue at once: one by one costs time, a batch delays `close`
            with closing(prefetch(chunks(fitted, few), -(-2 * size // few))) as ahead:
                for batch in batches(itertools.chain.from_iterable(ahead), size):
                    yield np.stack(batch)

        return Batches(generate(), skipped)

    def iter_encode(
        self, images: Iterable[ImageSource], batch_size: int = MAX_BATCH, on_error: OnError = "raise"
    ) -> Batches[tuple[Codes, Codes]]:
        """`encode`, lazily: (mu, logvar) of one batch after the other; see `iter_prepare`."""
        return self._each_batch(self.iter_prepare(images, batch_size, on_error), self.encode)

    def iter_reconstruct(
        self, images: Iterable[ImageSource], batch_size: int = MAX_BATCH, on_error: OnError = "raise"
    ) -> Batches[Pixels]:
        """`reconstruct`, lazily: uint8 (n, S, S, 3), one batch after the other; see `iter_prepare`."""
        return self._each_batch(self.iter_prepare(images, batch_size, on_error), self.reconstruct)

    @staticmethod
    def _each_batch(source: Batches[Pixels], function: Callable[[Pixels], T]) -> Batches[T]:
        def generate() -> Generator[T]:
            with closing(source):
                for pixels in source:
                    yield function(pixels)

        return Batches(generate(), source.skipped)

    def iter_decode(self, codes: Iterable[ArrayLike], batch_size: int = MAX_BATCH) -> Iterator[Pixels]:
        """`decode`, lazily: codes (latent_dim,), one by one from any iterable; uint8 (n, S, S, 3), n <= batch_size."""
        size = check_count(batch_size, "batch_size", 1, 4096)
        try:
            numbered = enumerate(codes)
        except TypeError as error:
            raise InputTypeError(f"codes: got {type(codes).__name__}, expected an iterable of codes") from error
        rows = (as_codes(code, self.latent_dim, f"codes[{index}]") for index, code in numbered)
        return (self.decode(np.concatenate(batch)) for batch in batches(rows, size))

    def sample(
        self,
        n: int = 16,
        rng: Rng = None,
        temperature: float = 1.0,
        truncation: float | None = None,
        prior: Literal["model", "unit"] | Prior = "model",
        where: Mapping[str, str] | None = None,
    ) -> Pixels:
        """`n` new faces, z from the prior: uint8 (n, S, S, 3). rng: a seed, a numpy Generator, or None.

        prior: "model" is `VAE.prior`, the density fitted at export where the model has one; "unit" is N(0, I); or a
        Prior, as `fit_prior` makes it. temperature and truncation: see `Prior.sample`.
        where: attributes that the faces shall have, as {"hair": "blue"}, for a model with `classifiers`.
        """
        source = self._prior_of(prior)
        if where is None:
            return self.decode(source.sample(n, rng, temperature, truncation))
        count = check_count(n, "n", 0, MAX_SAMPLES)
        return self.decode(self._classifiers().sample(source, count, where, rng, temperature, truncation))

    def attributes(self, images: Images) -> dict[str, NDArray[np.float64]]:
        """Column -> probability of each value, as {"hair": (n, 12)}, by a linear classifier of mu.

        The values are `VAE.classifiers.values`, the held-out accuracies `VAE.classifiers.accuracy`. InputError if the
        model has no attributes.
        """
        return self._classifiers().probabilities(self.encode(images)[0])

    def _classifiers(self) -> Attributes:
        if self.classifiers is None:
            raise InputError(f"attributes: the model {self.config.name!r} has none; export a run with labels")
        return self.classifiers

    def _prior_of(self, prior: Literal["model", "unit"] | Prior) -> Prior:
        if isinstance(prior, Prior):
            if prior.latent_dim != self.latent_dim:
                raise InputError(f"prior: for codes of {prior.latent_dim} numbers, this model has {self.latent_dim}")
            return prior
        if not isinstance(prior, str) or prior not in ("model", "unit"):
            raise InputError(f"prior: got {prior!r}, expected 'model', 'unit' or a Prior")
        return self.prior if prior == "model" else Prior.standard(self.latent_dim)

    def fit_prior(self, images: Iterable[ImageSource], rng: Rng = 0) -> Prior:
        """A prior for your own pictures, at least 16: what `sample(16, prior=...)` draws from, without training.

        images: any iterable of pictures; read lazily. The model's own prior is moved to their codes; without a second
        stage, they may get a Gaussian or a mixture of their own: what gives held-out codes the highest density (see
        `vae_runtime.prior.fit_prior`). Takes seconds; keep it with `prior.save("mine.npz")` and load it with
        `VAE.load(prior="mine.npz")`. The pictures are drawn by the same decoder, so a style that the model has never
        seen stays out of reach. The same pictures and `rng` give the same prior.
        """
        parts = list(self.iter_encode(images))
        if not parts:
            raise InputError("images: got none, expected at least 16 to fit a prior")
        mu, logvar = (np.concatenate(part) for part in zip(*parts, strict=True))
        return fit_prior(mu, logvar, rng, self.prior)[0]

    def face_of(self, text: str, temperature: float = 0.8) -> Pixels:
        """The face of a name or any other text: uint8 (S, S, 3), the same for the same text, whatever its case.

        Its code is a draw from `VAE.prior` that is seeded by the text, equal to the last bit on every machine and in
        the browser (`vae_runtime.prior.text_code`); its pixels differ by at most 1 of 255 between machines. Another
        model, or another prior, gives other faces. temperature: see `sample`; below 1 for cleaner faces.
        """
        face: Pixels = self.decode(text_code(text, self.prior, temperature))[0]
        return face

    def interpolate(self, a: ImageSource, b: ImageSource, steps: int = 8, method: Method = "slerp") -> Pixels:
        """Pictures between `a` and `b` by interpolation of their codes: uint8 (steps, S, S, 3), both ends included."""
        check_count(steps, "steps", 2, latent.MAX_STEPS)
        mu, _ = self.encode([a, b])
        return self.decode(latent.interpolate(mu[0], mu[1], steps, method))

    def direction(self, name: str | ArrayLike) -> NDArray[np.float32]:
        """A direction (latent_dim,): one of the model's by name, "z7" for latent 7 alone, or an array (latent_dim,).

        Strength 1 along a named direction is a standard deviation of the codes; along "z7" it is one of N(0, I).
        """
        if not isinstance(name, str):
            vectors = as_codes(name, self.latent_dim, "direction")
            if len(vectors) != 1:
                raise InputError(f"direction: got the shape {vectors.shape}, expected ({self.latent_dim},)")
            return np.asarray(vectors[0], np.float32)
        if self.directions is not None and name in self.directions.names:
            return np.asarray(self.directions[name], np.float32)
        if re.fullmatch("z[0-9]{1,6}", name):
            index = check_count(int(name[1:]), "direction", 0, self.latent_dim - 1)
            single: NDArray[np.float32] = np.eye(self.latent_dim, dtype=np.float32)[index]
            return single
        if self.directions is not None:
            self.directions[name]  # raises, with the nearest name
        raise InputError(
            f"direction: got {name!r}, but this model has no named directions; expected an array ({self.latent_dim},) "
            f"or 'z0' to 'z{self.latent_dim - 1}' for a single latent"
        )

    def edit(self, images: Images, direction: str | ArrayLike, strength: float = 1.0) -> Pixels:
        """decode(mu + strength * direction): uint8 (n, S, S, 3). strength 0 is `reconstruct`; it may be negative.

        direction: see `VAE.direction`.
        """
        amount = as_latent(strength, "strength")
        if amount.ndim:
            raise InputError(f"strength: got the shape {amount.shape}, expected one number")
        return self.decode(self.encode(images)[0] + amount * self.direction(direction))

    def nearest(
        self, images: Images, count: int = 5, metric: Metric = "euclidean"
    ) -> tuple[list[list[str]], Pixels, NDArray[np.float64]]:
        """The known faces most similar to each picture, nearest first: `count` names each, their pictures uint8
        (n, count, S, S, 3) as this model decodes them, and distances (n, count) between the codes.

        The known faces are `VAE.neighbors`; InputError if the model has none. For faces of your own use
        `vae_runtime.nearest` with their codes.
        """
        known = self.neighbors
        if known is None:
            raise InputError(
                f"nearest: the model {self.config.name!r} has no known faces; "
                "encode your own and call vae_runtime.nearest"
            )
        places, distances = latent_analysis.nearest(self.encode(images)[0], known.codes, count, metric)
        faces = self.decode(known.codes[places.ravel()]).reshape(*places.shape, self.image_size, self.image_size, 3)
        return [[known.names[place] for place in row] for row in places], faces, distances

    def invert(self, images: Images, mask: Masks | None = None, steps: int = 200, *, temperature: float = 1.0) -> Codes:
        """The most probable codes of pictures: argmax over z of p(x|z)^(1/temperature) p(z), float32 (n, latent_dim).

        p(x|z) = N(decode(z), sigma^2 I) over the known pixels, with sigma of config.json; p(z) is `VAE.prior.of_codes`.
        Starts at the encoder's mu and takes `steps` steps of Adam, 0 to 10,000; deterministic.
        `vae.decode(vae.invert(noisy))` denoises, because the decoder cannot draw noise.

        mask: what is hidden, None for nothing. A bool array (H, W), True where hidden; or a picture as `load_image`
        takes it, hidden where it is opaque if it has transparency, else where it is brighter than 127 (or 1, if all is
        0 or 1). As large as the picture, or (S, S) for the picture as `prepare` returns it. One mask for all pictures,
        or an iterable or a bool array (n, H, W) of one for each. Hidden pixels have no influence. A mask that hides
        nothing or everything is an InputError.
        temperature: how many neighboring pixels count as one, 1 to 1e6. 1 is closest to the picture; higher values are
        closer to the prior, see `inpaint`.

        Raises InputError, ImageError, and ModelFileError if the model has no inverse.onnx.
        """
        return self._invert(*self.prepare_masked(images, mask), steps, temperature)

    def inpaint(self, images: Images, mask: Masks, steps: int = 200, *, temperature: float = 16.0) -> Pixels:
        """The pictures with the hidden part filled in: uint8 (n, S, S, 3).

        Known pixels are those of `prepare`, bit by bit; hidden ones are those of decode(invert(images, mask, ...)).
        Errors of neighboring pixels are correlated: counted one by one (temperature 1) they outweigh the prior, and the
        hidden part stops looking like a face; 16 counts each 4 x 4 block as one. Arguments and errors: see `invert`.
        """
        pixels, hidden = self.prepare_masked(images, mask)
        return np.where(hidden[..., None], self.decode(self._invert(pixels, hidden, steps, temperature)), pixels)

    def upscale(self, images: Images, side: int, steps: int = 200) -> Pixels:
        """Super-resolution: pictures (n, S, S, 3), uint8, whose block means are the small pictures.

        The small pictures are the central squares of `images`, resampled to side x side pixels; side must divide S.
        The large ones are decoded from their most probable codes, as in `invert`.
        """
        if self.image_size % check_count(side, "side", 1, self.image_size):
            raise InputError(f"side: got {side}, expected a divisor of the model's {self.image_size}")
        taken = check_count(steps, "steps", 0, inversion.MAX_STEPS)
        small, variance = prepare(images, side), self.config.sigma**2
        prior = self.prior.of_codes
        return self.decode(inversion.upscale(small, self._mu, self.decoder, self.inverse, prior, variance, taken))

    def _invert(self, pixels: Pixels, hidden: NDArray[np.bool_], steps: int, temperature: float) -> Codes:
        taken = check_count(steps, "steps", 0, inversion.MAX_STEPS)
        variance = self.config.sigma**2 * check_number(temperature, "temperature", 1, 1e6)
        prior = self.prior.of_codes
        return inversion.invert(pixels, hidden, self._mu, self.decode, self.inverse, prior, variance, taken)

    def _mu(self, pixels: Pixels) -> Codes:
        return self.encode(pixels)[0]

    def prepare_masked(self, images: Images, mask: Masks | None) -> tuple[Pixels, NDArray[np.bool_]]:
        """The pictures as `prepare` returns them, and which of their pixels are hidden, bool (n, S, S)."""
        return prepare_masked(images, mask, self.image_size)

    def anomaly_score(self, images: Images) -> NDArray[np.float64]:
        """How unlike the training data each picture is, float64 (n,), in nats: the negative ELBO at z = mu.

        D/2 log(2 pi sigma^2) + |x - decode(mu)|^2 / (2 sigma^2) + KL(q(z|x) || N(0, I)), with x in [0, 1] and the sigma
        of config.json. Compare it with the scores of known faces by `vae_runtime.percentile`.
        """
        pixels = self.prepare(images)
        mu, logvar = self.encode(pixels)
        variance, size = self.config.sigma**2, 3 * self.image_size**2
        difference = pixels.astype(np.float64) / 255 - self.decode(mu).astype(np.float64) / 255
        squares = (difference**2).sum(axis=(1, 2, 3))
        score = size / 2 * math.log(2 * math.pi * variance) + squares / (2 * variance)
        return np.asarray(score + latent.kl_divergence(mu, logvar))
