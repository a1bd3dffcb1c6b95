"""The weights of the Inception network of published FIDs: fetched once, or given; verified before they are read."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpm.data.cache import cache_root
from ddpm.errors import DataError, ModelFileError
from ddpm.evaluation.extractors.extraction import NetworkExtractor, Outputs
from ddpm.evaluation.extractors.inception import SIDE, InceptionV3, resize
from ddpm.files import sha256_of, write_atomically
from ddpm.terminal import bar

FILE = "weights-inception-2015-12-05-6726825d.pth"

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file; both addresses give the same bytes."""

URLS = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)

_CHUNK = 1 << 20
_PATIENCE = 30.0  # seconds without an answer


def inception_extractor(place: Path | None, device: torch.device) -> NetworkExtractor:
    """Return the extractor of published FIDs, sFIDs and inception scores.

    Args:
        place: the file of weights; none to take it from the cache, and to fetch it if it is not there.
        device: where it runs.

    Raises:
        DataError: if the weights cannot be fetched.
        ModelFileError: if the file is not the one whose hash is known.
    """
    place = place or fetched(cache_root(None).parent / "weights")
    network = network_of(read(place)).to(device)
    return NetworkExtractor(
        name="inception",
        sha256=SHA256,
        network=network,
        outputs=lambda pictures: Outputs(*network(2 * resize(pictures) - 1)),
        details={
            "network": "Inception v3 of TensorFlow, 2015-12-05, as ported by pytorch-fid",
            "input_size": [SIDE, SIDE],
            "resize": "bilinear, align_corners=False, no antialiasing",
            "range": [-1, 1],
            "pooled": "2048, mean after the last block",
            "spatial": "2023, first 7 channels of mixed_6/conv",
            "probabilities": "1008, softmax without biases",
            "domain": "photographs; says little of digits, drawings or textures",
        },
        device=device,
        batch_size=32,
    )


def network_of(state: dict[str, Any]) -> InceptionV3:
    """Return the network with these weights, key for key.

    Raises:
        ModelFileError: if a key is missing, unknown, or of another shape.
    """
    with torch.device("meta"):  # no time and memory for weights that are replaced
        network = InceptionV3()
    # counts of training steps, which files hold or not, by their age; a plain dictionary may lack them
    weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelFileError(f"these are no weights of the FID Inception network: {_first_lines(error)}") from error
    return network.requires_grad_(False)


def read(place: Path, sha256: str = SHA256) -> dict[str, Any]:
    """Return the weights of a file, after its hash is known to be right.

    Raises:
        ModelFileError: if it is another file, is damaged, or cannot be read.
    """
    found = sha256_of(place)
    if found != sha256:
        raise ModelFileError(
            f"'{place}' has the SHA-256 {found}; the Inception weights of published FIDs have {sha256}: it is another "
            f"file, or is damaged; delete it, and get {URLS[0]}"
        )
    state: dict[str, Any] = torch.load(place, map_location="cpu", weights_only=True)
    return state


def fetched(folder: Path, urls: Sequence[str] = URLS, sha256: str = SHA256) -> Path:
    """Return the file of weights in `folder`; if it is not there, fetch it, verify it, and only then give it its name.

    Raises:
        DataError: if no address gives it.
    """
    place = folder / FILE
    if place.is_file():
        return place
    reasons = []
    for url in urls:
        try:
            write_atomically(place, partial(_download, url, sha256))
            return place
        except (OSError, ValueError, ModelFileError) as error:
            reasons.append(str(error))
    raise DataError(
        f"the Inception weights cannot be fetched ({reasons[0]}); get {urls[0]} on another machine and put it at "
        f"'{place}', or give its path as the features"
    )


def _download(url: str, sha256: str, part: Path) -> None:
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, part.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with bar(total, "fetching the Inception weights") as progress:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
                progress.update(len(chunk))
    if digest.hexdigest() != sha256:
        raise ModelFileError(f"{url} gave a file with the SHA-256 {digest.hexdigest()}; expected {sha256}")


def _first_lines(error: RuntimeError) -> str:
    return "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:3])
