"""What a path holds, told by its content and never by its name."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.files import at_home, read_json
from sam3slim.specs import ModelSpec

ARTIFACT_FILE = "sam3slim.json"
WEIGHTS_FILE = "model.safetensors"
# Under another name transformers finds no weights. Else it would open a bank with a text tower of random ones.
BANK_FILE = "bank.safetensors"
# The formats sam3slim.json names when the weights lie in graphs → the files that hold them.
ONNX, PROGRAMS = "onnx", "torch-export"
GRAPH_FILES = {ONNX: (".onnx", ".onnx.data"), PROGRAMS: (".pt2",)}
OLD_WEIGHTS_FILE = "pytorch_model.bin"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
LOOKED_AT = 1000  # files below a folder without weights of its own
BESIDE_WEIGHTS = ("optimizer", "scheduler", "training_args", "rng_state", "scaler", "adapter_")
ADAPTER_CONFIG = "adapter_config.json"
# Where a run leaves its weights, the best first.
RUN_CHECKPOINTS = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt")

# A zip, or the bare pickles that torch.save wrote before 1.6.
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")

OTHER_KINDS = {
    b"\x1f\x8b": "compressed with gzip; unpack it: gunzip -k FILE, or tar -xzf FILE",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it: unzstd FILE",
    b"GGUF": "a GGUF file, whose quantised weights sam3slim does not read; give the checkpoint it was made from",
    b"\x89HDF": "an HDF5 file of Keras or TensorFlow; give the PyTorch checkpoint",
}

SourceKind = Literal["artifact", "transformers", "torch", "safetensors"]


@dataclass(frozen=True)
class Located:
    """A readable source: a folder for ``artifact`` and ``transformers``, a file for ``torch`` and ``safetensors``."""

    kind: SourceKind
    path: Path


def locate(source: str | Path) -> Located:
    """Find the weights behind ``source``.

    Args:
        source: a folder (artifact, transformers, run), one of their files, a file of ``torch.save``, a
            safetensors file, or the id of a repository on the hub (``facebook/sam3``), which is downloaded.

    Raises:
        CheckpointError: nothing there, an empty folder, or a file that holds no weights.
    """
    path = at_home(source)
    if not path.exists():
        if _is_hub_id(str(source)):
            return _locate_folder(_download(str(source)))
        raise CheckpointError(f"checkpoint {path} does not exist; give a folder, a file or a hub id (facebook/sam3)")
    return _locate_folder(path) if path.is_dir() else _locate_file(path)


def weight_files(located: Located) -> list[Path]:
    """The files that hold a source's weights."""
    if not located.path.is_dir():
        return [located.path]
    if located.kind == "transformers":
        return transformers_files(located.path)
    suffixes = GRAPH_FILES.get(graph_format(located) or "", (".safetensors",))
    return sorted(path for suffix in suffixes for path in located.path.glob(f"*{suffix}"))


def transformers_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder that has a ``config.json``: the safetensors, or else what is there.

    Raises:
        CheckpointError: none, or several and nothing that says which.
    """
    for name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE):
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_metadata(index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise CheckpointError(f"{index} has no weight_map of tensors to files; copy it again")
            return [folder / shard for shard in sorted(set(shards.values()))]
        if (folder / name).is_file():
            return [folder / name]
    found = _weights_in(folder)
    if not found:
        raise CheckpointError(f"checkpoint {folder} has no {WEIGHTS_FILE}; copy the whole folder")
    return [_only(folder, found)]


def _only(folder: Path, found: list[Path]) -> Path:
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(
            f"checkpoint {folder} has several files of weights ({names}); give one of them: {found[0]}"
        )
    return found[0]


def _weights_in(folder: Path) -> list[Path]:
    """Files that may hold a model, told by their endings; not what trainers write beside it."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in WEIGHT_SUFFIXES and path.is_file() and not path.name.startswith(BESIDE_WEIGHTS)
    ]


def is_torch(path: Path) -> bool:
    """Whether a file starts as ``torch.save`` starts one."""
    return refuse_pointer(path).startswith(TORCH_MAGIC)


def weights_name(spec: ModelSpec) -> str:
    """What the file of an artifact's weights is called."""
    return WEIGHTS_FILE if spec.text.bank is None else BANK_FILE


def graph_format(located: Located) -> str | None:
    """``onnx`` or ``torch-export`` for an artifact of graphs, which are run and not loaded into a model; else None."""
    if located.kind != "artifact":
        return None
    found = read_metadata(located.path / ARTIFACT_FILE).get("format")
    return found if found in GRAPH_FILES else None


def refuse_pointer(path: Path) -> bytes:
    """The file's first bytes. Raises CheckpointError for a Git LFS pointer in place of the weights."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    return head


def _locate_folder(folder: Path) -> Located:
    if (folder / ARTIFACT_FILE).is_file():
        return Located("artifact", folder)
    if (folder / "config.json").is_file():
        return Located("transformers", folder)
    for name in RUN_CHECKPOINTS:
        if (folder / name).is_file():
            return _locate_file(folder / name)
    if (folder / "artifact" / ARTIFACT_FILE).is_file():
        return Located("artifact", folder / "artifact")
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"checkpoint folder {folder} is a LoRA adapter, no model; merge it into the checkpoint it was trained on: "
            f"sam3slim extract BASE OUT --lora {folder}"
        )
    if (folder / ".metadata").is_file():
        raise CheckpointError(
            f"checkpoint folder {folder} is a distributed checkpoint; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} sam3.pt"
        )
    if (folder / "zero_to_fp32.py").is_file():
        raise CheckpointError(
            f"checkpoint folder {folder} is DeepSpeed's; make whole weights of it and give what this writes: "
            f"python {folder}/zero_to_fp32.py {folder} OUT"
        )
    if weights := _weights_in(folder):
        return _locate_file(_only(folder, weights))
    deeper = next((path for path in islice(folder.rglob("*"), LOOKED_AT) if path.suffix in WEIGHT_SUFFIXES), None)
    if deeper is not None:
        raise CheckpointError(f"checkpoint folder {folder} has weights further down; give one, such as {deeper}")
    names = sorted(p.name for p in folder.iterdir())
    found = f"holds only {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "is empty"
    raise CheckpointError(
        f"checkpoint folder {folder} {found}; expected {ARTIFACT_FILE} (an artifact), config.json (transformers) "
        f"or checkpoints/best.ckpt (a run)"
    )


def _locate_file(path: Path) -> Located:
    head = refuse_pointer(path)
    if not head:
        raise CheckpointError(f"checkpoint {path} is an empty file; copy or download it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"checkpoint {path} is an HTML page, not weights; download the file itself")
    if head.startswith(TORCH_MAGIC):
        return Located("torch", path)
    if path.name == "config.json" or path.name == ARTIFACT_FILE or _is_safetensors(head):
        if any((path.parent / name).is_file() for name in (ARTIFACT_FILE, "config.json")):
            return _locate_folder(path.parent)
        if path.suffix != ".json":
            return Located("safetensors", path)
    for magic, what in OTHER_KINDS.items():
        if head.startswith(magic):
            raise CheckpointError(f"checkpoint {path} is {what}")
    raise CheckpointError(
        f"checkpoint {path} is neither safetensors nor a zip written by torch.save "
        f"(it starts with {head[:8]!r}); it is damaged or of another type"
    )


def _is_hub_id(source: str) -> bool:
    """``owner/name``, unless ``owner`` is a folder here: then the name is a mistyped path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None and not Path(source).parent.exists()


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except GatedRepoError as error:
        raise CheckpointError(
            f"checkpoint {repository}: access to this repository must be granted; ask for it on its page, "
            "then log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise CheckpointError(
            f"checkpoint {repository} is neither a path here nor to be had from the hub ({reason}); "
            "download it elsewhere and give the folder"
        ) from error


def _is_safetensors(head: bytes) -> bool:
    """A little-endian header length, then a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**31


def read_metadata(path: Path) -> dict[str, Any]:
    """A JSON file of an artifact or of transformers. Raises CheckpointError when it is missing or broken."""
    return read_json(path, "write the artifact again", CheckpointError)
