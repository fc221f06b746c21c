"""Commands in README and docs are commands of this project: they compose, parse, or name what is there."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from sam3slim.cli import make_parser
from sam3slim.launch.compose import compose_plain
from sam3slim.runs.specs import CompressSpec, EvaluateSpec, TrainSpec
from sam3slim.strict import spec_from_dict

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = [ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
PAGES = [*ENGLISH, *CHINESE]
WIDTH = 120
# Chinese pages that follow an English one command by command, number by number.
TRANSLATED = {"README.zh.md": "README.md", "docs/zh/tutorial.md": "docs/tutorial.md"}
SPECS = {"train": TrainSpec, "evaluate": EvaluateSpec, "compress": CompressSpec}
# Not ours to check.
FOREIGN = ("apt-get", "cd", "git", "hf", "kill", "sbatch", "scancel", "srun", "ray", "export")


def commands(page: Path) -> list[str]:
    """The lines of bash blocks, continued ones joined, comments dropped."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(shlex.join(words))
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


ALL = [(name(page), command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command}"[:110] for page, command in ALL])
def test_commands__are_known(page: str, command: str) -> None:
    words = shlex.split(command)
    while "=" in words[0] and words[0].split("=")[0].isidentifier():
        words = words[1:]  # VARIABLE=value
    if words[0] == "torchrun":
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    head, arguments = words[0], words[1:]
    if head == "python" and arguments[0] in ("train.py", "evaluate.py", "compress.py"):
        check_entry(arguments[0].removesuffix(".py"), arguments[1:])
    elif head == "python" and arguments[0] == "-m":
        module = ROOT / arguments[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), command
    elif head == "python":
        assert (ROOT / arguments[0]).is_file(), command
    elif head == "sam3slim":
        make_parser().parse_args(arguments)
    elif head == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        assert set(arguments) <= set(targets), command
    elif head == "pip":
        check_extras(arguments)
    else:
        assert head in FOREIGN, f"{page}: what is {head}?"


def check_entry(script: str, arguments: list[str]) -> None:
    """Composes and is checked as the command does it; of a sweep the first trial."""
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = [word for word in arguments if not word.startswith("-")]
    if sweep:
        overrides = [re.sub(r"=([^\[{(',]*),.*$", r"=\1", word) for word in overrides]
    for word in overrides:
        # Its sweeper may be an extra that is not installed.
        assert not word.startswith("sweep=") or (ROOT / f"conf/sweep/{word[6:]}.yaml").is_file(), word
    overrides = [word for word in overrides if not word.lstrip("+").startswith(("hydra", "sweep="))]
    spec_from_dict(SPECS[script], compose_plain(script, overrides), "")


def check_extras(arguments: list[str]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", pyproject, flags=re.M), f"no extra {extra}"


def test_commands__are_found() -> None:
    assert len(ALL) > 25


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links__lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path = page.parent / target if target else page
            assert path.exists(), f"{name(page)}: {target}"
            assert not anchor or anchor in anchors(path), f"{name(page)}: {target}#{anchor}"


@pytest.mark.parametrize("page", [*ENGLISH, ROOT / "CHANGELOG.md"], ids=name)
def test_prose__keeps_the_width(page: Path) -> None:
    """Chinese pages have a line per paragraph: Markdown turns a line break into a space, which Chinese has not."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S).splitlines()
    assert [line for line in prose if len(line) > WIDTH and not line.startswith(("|", "!["))] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths__are_there(page: Path) -> None:
    """Files of the project that a page names."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:sam3slim|scripts|tests|benchmarks)/[\w/.-]+?)/?`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def other_blocks(page: Path) -> list[str]:
    """Blocks that are no shell, such as output; a picture of the flow has translated words."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    return [text for language, text in blocks if language not in ("bash", "mermaid")]


def numbers_in_tables(page: Path) -> list[str]:
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return re.findall(r"\d[\d.,]*", "\n".join(rows))


@pytest.mark.parametrize(("chinese", "english"), TRANSLATED.items(), ids=TRANSLATED)
def test_translations__keep_commands_and_numbers(chinese: str, english: str) -> None:
    for read in (commands, other_blocks, numbers_in_tables):
        assert read(ROOT / chinese) == read(ROOT / english)


def rows_by_command(page: Path) -> dict[str, list[str]]:
    """Numbers of a table's rows, by the command in the last cell."""
    rows = [line.strip("| ").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if "=" in line]
    return {row[-1]: re.findall(r"[\d.]+", " ".join(row[1:-1])) for row in rows if len(row) == 5}


def test_chinese_compression__has_the_numbers_of_claims() -> None:
    claims, chinese = rows_by_command(ROOT / "docs/claims.md"), rows_by_command(ROOT / "docs/zh/compression.md")
    assert len(chinese) == 7
    assert chinese.items() <= claims.items()


def test_dry_runs__are_the_benchmarks() -> None:
    """What docs/training.md says of the experiments at real size is what benchmarks/dry_run.py measured."""
    with (ROOT / "benchmarks" / "results" / "dry_run.csv").open(newline="", encoding="utf-8") as file:
        measured = [
            f"| `{row['experiment']}` | {int(row['params']) / 1e6:.0f} M "
            f"| {int(row['peak_resident_bytes']) / 1e9:.1f} GB | {float(row['seconds']):.0f} |"
            for row in csv.DictReader(file)
        ]
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.split("| largest resident memory |")[1].split("\n\n")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == measured
