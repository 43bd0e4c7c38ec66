"""A file of random weights of Inception."""

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity


def colors(n):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def inception_file(folder):
    """Random weights in the format of torch-fidelity's file."""
    path = folder / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
        for module in network.modules():  # with statistics of its activations, which would vanish otherwise
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train()
                module.momentum = None
        network(colors(8))
        torch.save(network.state_dict(), path)
    return path
