"""Model cards: what a model is, what was measured of it, and how to measure that again."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_score.errors import printable, require
from lightning_score.runs.bundle import CARD, LARGEST_CONFIG, SAMPLES, SECRET, Parts, as_yaml, without_machine
from lightning_score.runs.records import FILE, Record, described, read_records
from lightning_score.runs.status import read_status
from lightning_score.runs.trust import trust_for
from lightning_score.runs.yaml_files import load

LICENSES = ("mit", "apache-2.0", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
            "openrail", "other")  # fmt: skip
"""Common identifiers of licenses on the Hub."""
IMAGES = "unconditional-image-generation"
LEFT_OUT = ("--ckpt_path", "--output", "--name", "--runs", "--trust")
"""Options that a repeated command gets anew, or that say nothing of the result."""


class Measured(NamedTuple):
    """A record, and the command that measured it without its checkpoint."""

    record: Record
    command: tuple[str, ...]


def measured(run: Path, step: int, weights: str = "averaged") -> list[Measured]:
    """The newest records of a checkpoint: of training, and those that `validate` and `test` left next to it.

    Args:
        run: the folder of the checkpoint.
        step: its training step.
        weights: averaged, raw, or what records call them.
    """
    kind = "ema" if weights == "averaged" else weights
    found: dict[tuple[Any, ...], Measured] = {}
    for folder in (run, *sorted([*run.glob("validate/*"), *run.glob("test/*")], key=lambda folder: folder.name)):
        command = _command(folder)
        for record in read_records(folder / FILE) if (folder / FILE).is_file() else ():
            if (record.step, record.weights) == (step, kind):
                found[record.axis, str(record.sampler), record.seed, record.denoised] = Measured(record, command)
    return list(found.values())


def training_of(run: Path) -> str:
    """The command that trained a run; empty if it is not known."""
    words = _words(run)
    resumed = any(word.startswith("--ckpt_path") for word in words)
    return _line(("fit", *_options(words[1:]))) if words[:1] == ["fit"] and not resumed else ""


def _command(folder: Path) -> tuple[str, ...]:
    words = _words(folder)
    evaluated = words[:1] in (["test"], ["validate"])
    return (words[0], *_options(words[1:])) if evaluated else ("validate",)  # which measures as training does


def _words(folder: Path) -> list[str]:
    """The command line that wrote a folder; none if it is not known."""
    words = read_status(folder).get("arguments")
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else []


def _options(words: Sequence[str]) -> list[str]:
    """Options for another machine: without those of `LEFT_OUT`, loggers, secrets and folders."""
    kept, left_out = list[str](), False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") or word == "-c":
            last = name.rpartition(".")[2].lstrip("-")
            left_out = name in LEFT_OUT or name.startswith("--trainer.logger") or SECRET.search(last) is not None
        if not left_out:
            cleaned = without_machine(value if equals else word)
            kept.append(f"{name}={cleaned}" if equals else str(cleaned))
    return kept


def _line(words: Sequence[str]) -> str:
    return shlex.join(("python", "-m", "lightning_score", *words))


def check_license(name: str | None) -> str:
    """A license as the Hub names it.

    Raises:
        InputError: there is none, or it is not such a name.
    """
    listed = ", ".join(LICENSES)
    require(bool(name), f"--license: a model card needs one; the common ones are {listed}")
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", str(name)) is not None
    require(known, f"--license {name}: must be an identifier in small letters; the common ones are {listed}")
    return str(name)


def license_of(folder: Path) -> str | None:
    """The license in the head of the card in a folder, if there is one."""
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text[:LARGEST_CONFIG], re.DOTALL)
    try:
        found = load(head[1]) if head else {}
    except yaml.YAMLError:
        return None
    license = found.get("license") if isinstance(found, dict) else None
    return printable(license)[:80] if isinstance(license, str) else None


def model_card(
    parts: Parts, records: Sequence[Measured], license: str, source: str, training: str = "", picture: bool = False
) -> str:
    """The card of a model.

    Args:
        parts: what is passed on of it.
        records: what was measured.
        license: as the Hub names it.
        source: what `--ckpt_path` is given for it, such as `hf://user/name`.
        training: the command that trained it.
        picture: whether the bundle has a picture of samples.
    """
    config, tensors, state = parts
    shape, title = state["linked"].get("shape", []), str(config.get("name") or source.rpartition("/")[2])
    trust = trust_for(config).split()
    modules = trust[-1] if trust else ""
    trusting = f", trust={json.dumps(modules.split(','))}" if trust else ""
    again = [_line((each.command[0], "--ckpt_path", source, *trust, *each.command[1:])) for each in records]
    sections = [
        f"---\n{as_yaml(_front_matter(config, shape, records, license, title))}---",
        f"# {_plain(title)}",
        f"A score-based generative model of lightning_score {state['version']}, in PyTorch Lightning.",
        f"![samples]({SAMPLES})" if picture else "",
        _parts(config, state, shape, sum(tensor.numel() for tensor in tensors.values())),
        "## Samples",
        _code(_line(("predict", "--ckpt_path", source, *trust, "--num_samples", "64"))),
        _code(
            "from lightning_score import ScoreModel\n\n"
            f"model = ScoreModel.from_pretrained({json.dumps(source.removeprefix('hf://'))}{trusting})\n"
            "samples = model.sample(64, seed=0)",
            "python",
        ),
        f"Its config names classes of {modules}, whose code is not part of it; `--trust` allows to import it."
        if trust
        else "",
        "## Measurements",
        _tables([each.record for each in records]) if records else "Nothing has been measured of these weights.",
        "## Reproduction" if again or training else "",
        _code("\n".join(dict.fromkeys([training, *again])).strip()) if again or training else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _code(text: str, language: str = "bash") -> str:
    return f"```{language}\n{text}\n```"


def _tables(records: Sequence[Record]) -> str:
    """A table for every set of samples."""
    tables: dict[str, list[str]] = {}
    for each in records:
        noisy = "" if each.denoised else " before the last denoising"
        samples = f"{each.n:,} samples{noisy} with seed {each.seed}, {each.nfe:g} network evaluations each, drawn by "
        of_samples = tables.setdefault(_plain(f"{samples}{described(each.sampler)}; data: {_data(each)}, {each.split}"), [])
        error = "" if each.error is None else f"{2 * each.error:.2g}"
        floor = "" if each.floor is None else f"{each.floor:.4g}"
        of_samples.append(f"| {_plain(each.metric)} | {each.value:.4g} | {error} | {floor} |")
    libraries = ", ".join(f"{name} {number}" for name, number in records[-1].versions.items())
    head = "| metric | value | two standard errors | perfect model |\n|---|---|---|---|"
    shown = [f"{samples}:\n\n{head}\n" + "\n".join(rows) for samples, rows in tables.items()]
    note = f"A perfect model scores the value in its column with as many samples. Measured with {_plain(libraries)}."
    return "\n\n".join((*shown, note))


def _front_matter(
    config: Mapping[str, Any], shape: Sequence[int], records: Sequence[Measured], license: str, title: str
) -> dict[str, Any]:
    """What the Hub reads: license, library, tags, and the numbers."""
    image = len(shape) == 3 and not config["model"].get("conditional")
    front: dict[str, Any] = {"license": license, "library_name": "lightning_score"}
    front |= {"pipeline_tag": IMAGES} if image else {}
    front["tags"] = ["lightning_score", "score-based-generative-model", "diffusion", "score-matching"]
    by_data: dict[str, list[Record]] = {}
    for each in records:
        by_data.setdefault(_data(each.record), []).append(each.record)
    results = [
        {
            "task": {"type": IMAGES if image else "other"},
            "dataset": {"type": data.lower().replace(" ", "-"), "name": data},
            "metrics": [{"type": each.metric, "name": each.metric, "value": each.value} for each in of_data],
        }
        for data, of_data in by_data.items()
    ]
    return front | ({"model-index": [{"name": title, "results": results}]} if results else {})


def _parts(config: Mapping[str, Any], state: Mapping[str, Any], shape: Sequence[int], weights: int) -> str:
    """A table of what the model is."""
    model = config["model"]
    given = state["linked"].get("condition") or f"{state['linked'].get('num_classes')} classes"
    rows = {
        "data": f"{described(config['data'], False)}, examples of {' x '.join(map(str, shape))}",
        "condition": described(given) if model.get("conditional") else "none",
        "network": f"{described(model.get('network'), False)}, {weights:,} weights",
        "process": described(model.get("process")),
        "parametrization": described(model.get("parametrization")),
        "objective": described(model.get("objective"), False),
        "sampler": described(model.get("sampler")),
        "trained": f"{state['step']:,} steps; the weights are {state['weights']}",
    }
    return "\n".join(["| part | |", "|---|---|", *(f"| {name} | {_plain(text)} |" for name, text in rows.items())])


def _data(record: Record) -> str:
    return str(without_machine(record.data)).removeprefix("./")


def _plain(text: str) -> str:
    """Text for a cell of a table, in which nothing is markup."""
    text = " ".join(text.split())
    for letter in "\\`*|<>[]":
        text = text.replace(letter, f"\\{letter}")
    return text
