"""The command `report`."""

import json
import sys
import webbrowser
from pathlib import Path

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.plain_parser import PlainParser
from lightning_score.errors import InputError, require
from lightning_score.files import replace_text
from lightning_score.report import page
from lightning_score.report.export import exported, table_of
from lightning_score.report.server import HOST, server


def report(arguments: Arguments) -> None:
    """Writes the page of all runs or serves it, or prints the runs for programs.

    Args:
        arguments: `report` and its options.

    Raises:
        InputError: the folder is missing, or the page cannot be written or served.
    """
    options = _parser().parse_args(arguments)
    chosen = [f"--{name}" for name in ("wandb", "json", "csv", "serve") if options[name]]
    require(len(chosen) < 2, f"{' '.join(chosen)}: one of them at a time; leave the others out")
    if options.wandb is not None:
        from lightning_score.report.on_wandb import publish

        print(f"on W&B: {publish(options.wandb, options.kind)}")
        return
    root = Path(options.runs)
    require(root.is_dir(), f"{root}: there is no such folder; give the folder of all runs, as in `report runs`")
    require(not options.query or options.json or options.csv, "--query: selects runs for --json or --csv; add one of them")
    if options.json or options.csv:
        found = exported(root, options.query)
        text = table_of(found["runs"]) if options.csv else json.dumps(found, indent=1, allow_nan=False) + "\n"
        if options.output:
            return _write(Path(options.output), text)
        sys.stdout.write(text)
        return
    title = options.title or f"{root.resolve().name}: score-based models"
    if options.serve:
        return _serve(root, title, options.port, options.open)
    require(options.size > 0, f"--size {options.size}: must be above 0, in MB, as in 10")
    file = Path(options.output or root / "report.html")
    text = page.render_page(root, title, int(options.size * 1e6))
    _write(file, text)
    print(f"written: {file} ({len(text.encode()) / 1e6:.1f} MB); any browser opens it, also offline")
    if options.open:
        webbrowser.open(file.absolute().as_uri())


def _write(file: Path, text: str) -> None:
    try:
        replace_text(file, text)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give another file by --output") from error


def _serve(root: Path, title: str, port: int, show: bool) -> None:
    require(0 <= port < 65536, f"--port {port}: must be between 0 and 65535")
    with server(root, title, port) as serving:
        address = f"http://{HOST}:{serving.server_port}/"
        print(f"serving {root} at {address}, for this machine only; Ctrl-C stops it", flush=True)
        if show:
            webbrowser.open(address)
        serving.serve_forever()


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="python -m lightning_score report",
        description="Writes a page that compares all runs: a table of runs, Frechet distances, losses per noise level, "
        "pictures, Langevin dynamics and sweeps.",
    )
    add = parser.add_argument
    add("runs", type=str, nargs="?", default="runs", help="Folder of all runs.")
    add("--output", type=str, help="File of the page, which is overwritten; RUNS/report.html by default.")
    add("--serve", action="store_true", help="Serve the page on loopback instead, and update it during training.")
    add("--port", type=int, default=8787, help="Port of --serve; 0: any free port.")
    add("--open", action="store_true", help="Open the page in the browser.")
    add("--size", type=float, default=10.0, help="Maximal size of the page in MB; pictures that do not fit are left out.")
    add("--json", action="store_true", help="Print all runs and sweeps as JSON instead, or write it to --output.")
    add("--csv", action="store_true", help="The same as a table in CSV with a row per run.")
    add("--query", type=str, default="", help="With --json or --csv: only these runs, as in 'fid < 2 and \"ncsn\" in name'.")
    add("--wandb", type=str, help="Create the same panels on W&B instead, for ENTITY/PROJECT.")
    add("--kind", choices=["workspace", "report"], default="workspace", help="What --wandb creates.")
    add("--title", type=str, help="Heading of the page.")
    return parser
