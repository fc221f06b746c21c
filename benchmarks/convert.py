"""Memory, seconds and bytes of converting SAM 3's 840 M parameters: FP32 artifact in, each precision out.

    python benchmarks/convert.py [--folder FOLDER] [--methods fp16 int8_weight …]

Random weights in the full architecture (FOLDER needs 8 GB). Every conversion is a process of its own, measured as
``extract.py`` measures: the largest ``RssAnon`` seen; the source's mapped pages are not in it. Nothing is evaluated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from extract import evict, run
from full_size import write_full_size

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv

RESULTS = Path(__file__).parent / "results" / "convert.csv"
CONVERT = """
import sys
from sam3slim.checkpoints import load
from sam3slim.compression import compress, method_from_name
model, _ = load(sys.argv[1], mapped=True)
compress(model, method_from_name(sys.argv[3])).write(model, sys.argv[2])
"""
LIMITS = {"fp16": 0.502, "int8_weight": 0.258}  # of FP32, wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    parser.add_argument("--methods", nargs="+", default=["weights_only", "fp16", "int8_weight", "int8_dynamic"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(Path(name), arguments.methods)


def measure(folder: Path, methods: list[str]) -> None:
    source = write_full_size(folder / "fp32")
    full = (source / "model.safetensors").stat().st_size
    rows = []
    for method in methods:
        evict(folder)
        target = folder / method
        seconds, peak = run([sys.executable, "-c", CONVERT, str(source), str(target), method])
        size = (target / "model.safetensors").stat().st_size
        share = size / full
        wanted = f" (wanted: {100 * LIMITS[method]:.1f} %)" if method in LIMITS else ""
        print(
            f"{method:>12}: {size:,} bytes, {100 * share:.2f} % of FP32{wanted}; {seconds:.1f} s, {peak / 1e6:.0f} MB"
        )
        rows.append({
            "method": method, "bytes": size, "share_of_fp32": round(share, 5), "seconds": round(seconds, 1),
            "peak_anon_mb": peak // 10**6, "device": describe_device(), "torch": library_versions()["torch"],
        })  # fmt: skip
    write_csv(RESULTS, rows)


if __name__ == "__main__":
    main()
