"""Makes the trained models in the package from runs of the shipped configs: averaged weights in half precision, and cards.

    python tests/support/pack_models.py WORK digits/ncsn=runs/ncsn/latest ...

Each checkpoint is measured by `test` in WORK, a new folder, before and after rounding; the card has the second.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import torch
import yaml

from lightning_score.cli import run
from lightning_score.runs.bundle import CONFIG, PACKED, WEIGHTS, passed_on, write_bundle
from lightning_score.runs.cards import measured, model_card, training_of
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.pretrained import FOLDER
from lightning_score.runs.records import read_records

SAMPLES = {"digits": 898, "fashion_mnist": 1000}
DATA = {
    "digits": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998) of the UCI Machine Learning Repository, "
    "under CC BY 4.0, as in scikit-learn",
    "fashion_mnist": "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), under the MIT license, averaged to 16x16",
}
NOTE = """
## License

The weights are under the MIT license, as lightning_score is. The data are {data}.

## Precision

The weights are stored in half precision, and the numbers above are those of the stored weights. {change}
"""


def rounded(checkpoint):
    """The checkpoint with averaged weights that are numbers of half precision."""
    weights = {name: tensor.half().to(tensor.dtype) for name, tensor in checkpoint["state_dict"].items()}
    return checkpoint | {"state_dict": weights}


def measure(checkpoint, folder, n):
    """The record of the Frechet distance of a checkpoint, which `test` writes next to it, unless it is there."""
    if not folder.exists():
        folder.mkdir(parents=True)
        torch.save(checkpoint, folder / "last.ckpt")
        assert run(["test", f"--ckpt_path={folder}/last.ckpt", f"--evaluate.num_samples={n}", "--evaluate.neighbors=0"]) == 0
    (file,) = folder.glob("test/*/evaluations.jsonl")
    return next(record for record in read_records(file) if record.metric.startswith("fid_"))


def pack(name, source, work):
    """Measures the weights before and after rounding, and writes the bundle."""
    checkpoint, collection = read_checkpoint(source / "last.ckpt"), name.partition("/")[0]
    checkpoint["config"]["data"]["init_args"].pop("root", None)  # the folder of the data on this machine
    half = rounded(checkpoint)
    exact = measure(checkpoint, work / "float" / name, SAMPLES[collection])
    folder = work / "half" / name
    record = measure(half, folder, SAMPLES[collection])
    parts = passed_on(half)
    (folder / "run.json").write_text(json.dumps({"arguments": ["fit", "--config", name]}))
    card = model_card(parts, measured(folder, parts[2]["step"]), "mit", name, training_of(folder))
    change = f"In single precision {record.metric} is {exact.value:.4g} with the same noise, not {record.value:.4g}."
    small = half | {"state_dict": {name: tensor.half() for name, tensor in half["state_dict"].items()}}
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    write_bundle(FOLDER / name, passed_on(small), card + NOTE.format(data=DATA[collection], change=change))
    steps = parts[2]["step"]
    trainer = {"max_steps": steps, "val_check_interval": steps // 2, "check_val_every_n_epoch": None}
    with (FOLDER / name / CONFIG).open("a") as config:
        yaml.safe_dump({"trainer": trainer}, config)  # with which `fit --config` trains it again
    file = FOLDER / name / WEIGHTS
    file.with_name(PACKED).write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    file.unlink()
    print(name, exact.value, record.value, record.error)


if __name__ == "__main__":
    for each in sys.argv[2:]:
        pack(each.partition("=")[0], Path(each.partition("=")[2]), Path(sys.argv[1]))
