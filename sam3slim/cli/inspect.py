"""``sam3slim inspect``: an architecture's sizes, or what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sam3slim.cli.command import Command, plain_console, quick_imports
from sam3slim.errors import UserError
from sam3slim.files import at_home, size_text

if TYPE_CHECKING:
    from sam3slim.checkpoints.inspection import Inspection
    from sam3slim.specs import ModelSpec


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="SOURCE|KEY=VALUE",
        help="a checkpoint (file, folder or hub id), or settings as for train.py (model=slim model/encoder=l6); "
        "after a checkpoint, sizes it does not tell (text.num_heads=2)",
    )
    parser.add_argument(
        "--memory",
        nargs="*",
        metavar="KEY=VALUE",
        help="what a training step with these settings will hold in memory, and on which cards it fits",
    )
    parser.add_argument("--cards", default="16,24,40,80", metavar="GB", help="with --memory: cards to compare with")
    parser.add_argument("--instances", type=int, default=2, help="with --memory: objects of every prompt (2)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="with --memory: which keeps the tensors (cuda)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.memory is not None:
        from sam3slim.cli.memory import show_memory_plan

        show_memory_plan(arguments)
        return
    sources = [text for text in arguments.targets if _is_source(text)]
    settings = [text for text in arguments.targets if not _is_source(text)]
    if not sources:
        _inspect_architecture(settings, arguments.json)
    elif len(sources) == 1:
        _inspect_checkpoint(sources[0], parse_overrides(settings), arguments.json)
    else:
        raise UserError(f"inspect takes one checkpoint, got {', '.join(sources)}")


def _is_source(text: str) -> bool:
    """Whether ``text`` is a checkpoint and no ``KEY=VALUE``; ``epoch=3-step=10.ckpt`` is one."""
    name, sign, _ = text.partition("=")
    path = at_home(text)
    return not sign or path.exists() or (path.suffix in (".ckpt", ".pt", ".pth", ".safetensors") and "." not in name)


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """``["text.num_heads=2"]`` → ``{"text.num_heads": 2}``; values are JSON where they can be."""
    values: dict[str, Any] = {}
    for text in settings:
        key, _, value = text.partition("=")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values


def _inspect_architecture(overrides: list[str], as_json: bool) -> None:
    with quick_imports():
        from sam3slim.launch.compose import compose_model

    from sam3slim.models.flops import count_flops

    spec = compose_model(overrides)
    table = size_table(spec)
    if as_json:
        print(json.dumps({"model": spec.to_dict(), **table, "flops": asdict(count_flops(spec))}, indent=2))
    else:
        _print_sizes(spec, table)


def _inspect_checkpoint(source: str, overrides: dict[str, Any], as_json: bool) -> None:
    with quick_imports():
        from sam3slim.checkpoints.inspection import inspect

    found = inspect(source, overrides)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print_checkpoint(found)


def size_table(spec: ModelSpec) -> dict[str, Any]:
    """Parameters and weight bytes by part, and in all; no weight is allocated.

    Returns:
        ``{"params": {"total", "by_part"}, "bytes": {"fp32" | "fp16" | "int8": {"total", "by_part"}}}``
    """
    from sam3slim.models.count import bytes_by_part, count_params

    params, sizes = count_params(spec), bytes_by_part(spec)
    by_precision = {name: {part: row[name] for part, row in sizes.items()} for name in next(iter(sizes.values()))}
    return {
        "params": _with_total(params),
        "bytes": {name: _with_total(column) for name, column in by_precision.items()},
    }


def _with_total(by_part: dict[str, int]) -> dict[str, Any]:
    return {"total": sum(by_part.values()), "by_part": by_part}


def architecture_lines(spec: ModelSpec) -> list[str]:
    """The sizes of every part in the words of its command-line keys."""
    vit, text = spec.vit, spec.text
    bank = f"bank of {len(text.bank.phrases)} phrases instead of a tower " if text.bank else ""
    return [
        f"vit       {vit.embed_dim} wide, {vit.depth} deep, {vit.num_heads} heads, MLP {vit.intermediate_size}, "
        f"{vit.image_size} px in patches of {vit.patch_size}, window {vit.window_size}, "
        f"global blocks {', '.join(map(str, vit.global_blocks))}",
        f"text      {bank}{text.width} wide, {text.layers} layers, {text.num_heads} heads, "
        f"context {text.context_length}, vocabulary {text.vocab_size}"
        + (f" trimmed from {text.untrimmed_size}" if text.vocabulary else ""),
        f"detector  d_model {spec.d_model}, {spec.num_heads} heads, FFN {spec.ffn_dim}, geometry "
        f"{spec.geometry.num_layers}, encoder {spec.encoder.num_layers}, decoder {spec.decoder.num_layers} layers, "
        f"{spec.decoder.num_queries} queries",
    ]


def _print_sizes(spec: ModelSpec, table: dict[str, Any]) -> None:
    from rich.table import Table

    params, columns = table["params"], table["bytes"]
    shown = Table(title=f"{spec.name}: {params['total']:,} parameters", title_justify="left")
    shown.add_column("part")
    for heading in ("parameters", "share", *(name.upper() for name in columns)):
        shown.add_column(heading, justify="right")
    for part, count in params["by_part"].items():
        sizes = [size_text(column["by_part"][part]) for column in columns.values()]
        shown.add_row(part, f"{count:,}", f"{count / params['total']:.1%}", *sizes)
    shown.add_section()
    totals = [size_text(column["total"]) for column in columns.values()]
    shown.add_row("total", f"{params['total']:,}", "100.0%", *totals)
    console = plain_console()
    console.print(shown)
    for line in [*architecture_lines(spec), *flops_lines(spec)]:
        console.print(line, soft_wrap=True)


def flops_lines(spec: ModelSpec) -> list[str]:
    """Operations of one image, phrase and prompt, by part."""
    from sam3slim.models.flops import count_flops

    found = count_flops(spec)
    rows = {"image": found.image, "phrase": found.phrase, "prompt": found.prompt}
    return [
        f"per {what:<7}{operations_text(sum(parts.values()))}"
        + (
            f" ({', '.join(f'{part} {operations_text(n)}' for part, n in parts.items() if n)})"
            if len(parts) > 1
            else ""
        )
        for what, parts in rows.items()
    ]


def operations_text(count: int) -> str:
    """``5.61 TFLOP``."""
    for scale, unit in ((1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e6:.3g} MFLOP"


def _print_checkpoint(found: Inspection) -> None:
    from rich.table import Table

    report, total = found.report, sum(found.params.values())
    shown = Table()
    for heading in ("part", "parameters", "bytes stored"):
        shown.add_column(heading, justify="left" if heading == "part" else "right")
    for part, count in found.params.items():
        shown.add_row(part, f"{count:,}", size_text(found.bytes[part]))
    shown.add_section()
    shown.add_row("weights", f"{total:,}", size_text(sum(found.bytes.values())))
    for name, size in found.other.items():
        shown.add_row(name, "", size_text(size))
    shown.add_section()
    shown.add_row("on disk", "", size_text(found.file_bytes))
    console = plain_console()
    # Not as the table's title, which is folded to its width: a path stays on one line.
    console.print(f"{report.source}: {report.kind}, {report.precision}", soft_wrap=True)
    console.print(shown)
    types = [f"{name} {row['params'] / total:.1%}" for name, row in found.dtypes.items()]
    for line in [*architecture_lines(report.spec), *flops_lines(report.spec), f"types     {', '.join(types)}"]:
        console.print(line, soft_wrap=True)
    complete = f"complete  every tensor {'that is read ' if report.absent else ''}is there"
    for line in report.notes():
        console.print(line, soft_wrap=True)
    console.print(complete if report.ok else f"broken    {report.problem()}", soft_wrap=True)


INSPECT = Command(
    "inspect",
    "parameters, bytes and operations of an architecture or a checkpoint, by part",
    _arguments,
    _run,
    epilog="sam3slim inspect model=slim model/encoder=l6   or   sam3slim inspect sam3.pt",
)
