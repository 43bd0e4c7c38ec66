"""The commands `push` and `pull`: models to and from the Hugging Face Hub."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lightning_score import stopping
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.parser import Parser
from lightning_score.errors import printable, require
from lightning_score.runs.averages import LENGTH, weights_name
from lightning_score.runs.bundle import CARD, FILES, Kind, copy_bundle, is_bundle, passed_on, read_bundle, write_bundle
from lightning_score.runs.cards import check_license, license_of, measured, model_card, training_of
from lightning_score.runs.checkpoints import LAST, read_checkpoint
from lightning_score.runs.folders import leads_out
from lightning_score.runs.hub import HUB, download, parse_name, require_login, upload
from lightning_score.runs.pretrained import find_checkpoint
from lightning_score.runs.trust import trust_for


def push(arguments: Arguments) -> None:
    """Uploads the weights, the settings and the card of a model to the Hub, or writes them to a folder.

    Args:
        arguments: `push` and its options.

    Raises:
        InputError: there is no license, the model cannot be passed on, or the Hub refuses it.
    """
    options = _push_parser().parse_args(arguments)
    repository, revision = parse_name(options.name)
    require(revision is None, f"{options.name}: push makes a new revision of main; give {repository} alone")
    if not options.output:
        require_login()
    with tempfile.TemporaryDirectory(prefix="lightning_score-") as place, stopping.cleaning(lambda: shutil.rmtree(place)):
        folder = Path(options.output or f"{place}/model")
        _pack(options, repository, folder)
        print(f"{HUB}{repository}: license {license_of(folder)}{', private' if options.private else ''}")
        _print_files(folder)
        if options.output:
            print(f"written to {folder}, not uploaded; next: python -m lightning_score push {folder} {repository}")
            return
        address = upload(folder, repository, options.private, "Upload a model of lightning_score")
    print(f"uploaded: {address}")
    print(f"next: python -m lightning_score predict --ckpt_path {HUB}{repository} --num_samples 64")


def pull(arguments: Arguments) -> None:
    """Writes a model of the Hub to a new folder.

    Args:
        arguments: `pull` and its options.

    Raises:
        InputError: the folder exists, or the model cannot be had.
    """
    options = _pull_parser().parse_args(arguments)
    repository, _ = parse_name(options.name)
    folder = Path(options.output or repository.rpartition("/")[2])
    require(not folder.exists() and not folder.is_symlink(), f"{folder}: already exists; give a new folder by --output")
    found = download(options.name, options.revision)
    config = read_bundle(found)["config"]
    copy_bundle(found, folder)
    print(f"{HUB}{repository}, commit {found.name[:12]}: license {license_of(folder) or 'not given'}")
    _print_files(folder)
    if trust := trust_for(config).split():
        print(f"its config names classes of {printable(trust[1])}: if you have them and trust its author, add --trust")
    print(f"next: python -m lightning_score predict --ckpt_path {folder} --num_samples 64")


def _pack(options: Any, repository: str, folder: Path) -> None:
    """Writes a bundle of a run, a checkpoint or a bundle."""
    source = find_checkpoint(options.source)
    weights: Kind = "raw" if options.raw_weights else "averaged"
    if is_bundle(source):
        source = source if source.is_dir() else source.parent
        read_bundle(source)
        require(not options.raw_weights, f"--raw_weights: {source} has one kind of weights; leave it out")
        own = license_of(source)
        require(own is not None, f"{source / CARD}: has no license; write one into its head, as license: mit")
        require(options.license in (None, own), f"--license {options.license}: {source / CARD} says {own}; change it there")
        outside = [file for file in FILES if leads_out(source / file, source)]
        require(not outside, f"{source}: {', '.join(outside)}: leads out of the folder; copy the file into it")
        copy_bundle(source, folder)
        return
    license = check_license(options.license)
    file = source / LAST if source.is_dir() else source
    require(not source.is_dir() or file.is_file(), f"{source}: not a run folder, for it has no {LAST}")
    checkpoint = read_checkpoint(file)
    parts = passed_on(checkpoint, weights)
    step = parts[2]["step"]
    picture = file.parent / f"samples/step_{step:07d}.png"
    samples = picture.read_bytes() if picture.is_file() and weights == "averaged" else b""
    records = measured(file.parent, step, weights_name(checkpoint[LENGTH]) if LENGTH in checkpoint else weights)
    if not records:
        print(f"note: {file.parent} has no evaluation of these weights, so the card has no numbers; run test before")
    card = model_card(parts, records, license, f"{HUB}{repository}", training_of(file.parent), bool(samples))
    write_bundle(folder, parts, card, samples)


def _print_files(folder: Path) -> None:
    sizes = {file: (folder / file).stat().st_size for file in FILES if (folder / file).is_file()}
    for name, size in {**sizes, "together": sum(sizes.values())}.items():
        print(f"  {name:<20} {size / 1e3:>12,.1f} kB")


def _push_parser() -> Parser:
    parser = Parser(
        prog="python -m lightning_score push",
        description="Uploads a model to the Hugging Face Hub: its weights without the state of training, the settings of "
        "model and data without paths of this machine, and a card with the evaluations of the run.",
    )
    parser.add_argument("source", type=str, help="A run folder, a checkpoint, or a folder that push or pull wrote.")
    parser.add_argument("name", type=str, help="Name of the model on the Hub, as user/name; made if there is none.")
    parser.add_argument("--license", type=str | None, default=None, help="Its license, as mit, apache-2.0 or cc-by-4.0.")
    parser.add_argument("--private", action="store_true", help="Let only you and your organization see a new model.")
    parser.add_argument("--raw_weights", action="store_true", help="Pass on the raw weights instead of the averaged ones.")
    parser.add_argument("--output", type=str | None, default=None, help="A new folder to write to, instead of uploading.")
    return parser


def _pull_parser() -> Parser:
    parser = Parser(
        prog="python -m lightning_score pull",
        description="Writes a model of the Hugging Face Hub to a folder, which --ckpt_path takes. No code in it is run.",
    )
    parser.add_argument("name", type=str, help="Name of the model on the Hub, as user/name.")
    parser.add_argument("--revision", type=str | None, default=None, help="Branch, tag or commit; main by default.")
    parser.add_argument("--output", type=str | None, default=None, help="The new folder; by default the name's second part.")
    return parser
