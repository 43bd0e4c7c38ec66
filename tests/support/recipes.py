"""The published configs: the sizes of their networks, and their headers."""

from lightning_score.commands.configs import shipped

PARAMETERS = {
    "cifar10/ncsn": 30_117_635,
    "cifar10/ncsnv2": 29_694_083,
    "cifar10/ddpm": 35_746_307,
    "cifar10/ddpmpp_vp": 61_804_419,
    "cifar10/ddpmpp_subvp": 61_804_419,
    "cifar10/ncsnpp_ve": 62_758_915 - 128,  # the authors count the Fourier frequencies, which are not trained
    "cifar10/edm": 55_733_891,
    "cifar10/ect": 55_733_891,
    "cifar10/ddo": 55_733_891,
    "cifar10/flow": 35_746_307,
    "imagenet64/edm": 295_899_267 + 768,  # the authors have no row for "no class"
    "ncsnv2/celeba64": 29_694_083,
    "ncsnv2/church96": 83_445_379,
    "ncsnv2/bedroom128": 83_445_379,
    "ncsnv2/ffhq256": 94_132_611,
}

SCIENCE = ["brain", "cancer", "ecg", "faces", "superresolution"]
"""The configs of arrays and conditions."""


def header(name):
    """The comment at the top of a config, on one line."""
    lines = (shipped() / f"{name}.yaml").read_text().splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, line in enumerate(lines) if line[0] != "#")]]
    return " ".join(comment)
