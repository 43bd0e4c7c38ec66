"""Non-leaky augmentation: each change is as documented and as frequent as it should be, and sampling makes none."""

import math

import pytest
import torch

from lightning_score import ScoreModel
from lightning_score.data.augmentation import Changes, GeometricAugmentation, changed
from lightning_score.errors import InputError
from lightning_score.networks import DDPMpp, UNet
from lightning_score.process import VE

NAMES = Changes._fields


def changes(n=1, **values):
    return Changes(*(torch.full((n,), float(values.get(name, 0.0))) for name in NAMES))


def smooth(height=32, width=32):
    """An image of a few low frequencies, with its coordinates in pixels from the middle."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return picture(x, y)[None, None], x, y


def picture(x, y):
    return torch.sin(0.11 * x + 0.5) + torch.cos(0.07 * y - 0.3) + 0.5 * torch.sin(0.05 * x * 0.9 - 0.08 * y)


def middle(x, cut=10):
    return x[..., cut:-cut, cut:-cut]


class TestChanges:
    def test_nothing_keeps_every_pixel(self):
        x = torch.rand(3, 2, 8, 12)
        assert torch.equal(changed(x, changes(3)), x)

    def test_mirrors_keep_the_pixels(self):
        x = torch.rand(1, 2, 8, 12)
        assert torch.equal(changed(x, changes(mirror=1)), x.flip(3))
        assert torch.equal(changed(x, changes(flip=1)), x.flip(2))
        assert torch.equal(changed(x, changes(mirror=1, flip=1)), x.rot90(2, (2, 3)))

    @pytest.mark.parametrize(
        ("values", "origin"),
        [
            ({"right": 0.5}, lambda x, y: (x - 0.5 * 0.125 * 48, y)),
            ({"down": -1}, lambda x, y: (x, y + 0.125 * 32)),
            ({"scale": 1}, lambda x, y: (x / 2**0.2, y / 2**0.2)),
            ({"angle": math.pi / 2}, lambda x, y: (y, -x)),
            ({"angle": 0.4}, lambda x, y: (math.cos(0.4) * x + math.sin(0.4) * y, math.cos(0.4) * y - math.sin(0.4) * x)),
            ({"stretch": 1}, lambda x, y: (x / 2**0.2, y * 2**0.2)),
            ({"stretch": -1, "axis": math.pi / 2}, lambda x, y: (x / 2**0.2, y * 2**0.2)),
            ({"right": 0.3, "angle": math.pi / 2}, lambda x, y: (y, -(x - 0.3 * 0.125 * 48))),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_a_point_shows_what_was_at_its_origin(self, values, origin):
        """To the accuracy of the interpolation, in the middle of an image that is not square."""
        image, x, y = smooth(32, 48)
        expected = picture(*origin(x, y))
        torch.testing.assert_close(middle(changed(image, changes(**values)))[0, 0], middle(expected), rtol=0, atol=0.004)

    def test_images_are_changed_each_for_itself(self):
        image, _, _ = smooth()
        x = image.expand(3, -1, -1, -1).clone()
        several = Changes(*(torch.tensor([0.0, 1.0, 2.0]) * (name in ("right", "scale")) for name in NAMES))
        result = changed(x, several)
        assert torch.equal(result[0], x[0])
        for i in (1, 2):
            torch.testing.assert_close(result[i], changed(image, changes(right=i, scale=i))[0])

    def test_labels_are_zero_without_changes_and_describe_others(self):
        assert changes().labels().tolist() == [[0.0] * 9]
        labels = changes(
            mirror=1, flip=1, scale=-0.5, angle=math.pi / 2, stretch=2, axis=math.pi / 2, right=3, down=4
        ).labels()
        torch.testing.assert_close(labels, torch.tensor([[1.0, 1, -0.5, -1, 1, 0, 2, 3, 4]]), rtol=0, atol=1e-6)


class TestGeometric:
    def test_each_change_happens_as_often_as_it_should(self):
        n = 40_000
        drawn = GeometricAugmentation(0.12).draw(n)
        for name, share in {
            "mirror": 0.5,
            "flip": 0.06,
            "scale": 0.12,
            "angle": 0.12,
            "stretch": 0.12,
            "axis": 0.5,
            "right": 0.12,
            "down": 0.12,
        }.items():
            found = float((getattr(drawn, name) != 0).float().mean())
            assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / n), name
        assert torch.equal(drawn.right != 0, drawn.down != 0)
        assert abs(float(drawn.scale[drawn.scale != 0].std()) - 1) < 0.05
        assert abs(float(drawn.angle[drawn.angle != 0].std()) - math.pi / math.sqrt(3)) < 0.08

    def test_without_probability_images_are_mirrored_only(self):
        torch.manual_seed(0)
        x = torch.rand(64, 1, 4, 4)
        result, labels = GeometricAugmentation(0.0)(x)
        mirrored = labels[:, 0] > 0
        assert 16 < mirrored.sum() < 48 and labels[:, 1:].abs().max() == 0
        assert torch.equal(result[mirrored], x[mirrored].flip(3)) and torch.equal(result[~mirrored], x[~mirrored])

    @pytest.mark.parametrize("probability", [-0.1, 1.1])
    def test_refuses(self, probability):
        with pytest.raises(InputError, match="must be in"):
            GeometricAugmentation(probability)


class TestTraining:
    def model(self, network=DDPMpp, **options):
        torch.manual_seed(0)
        small = {"channels": 8, "multipliers": [1], "blocks": 1, "attention": [], **options}
        return ScoreModel(
            lambda shape, n: network(shape, n, **small), [1, 8, 8], VE(), augmentation=GeometricAugmentation(1.0)
        )

    def test_the_network_sees_the_changes_and_samples_without(self):
        model = self.model(augmentations=9, dropout=0.0)
        network = model.score_function.network
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        x, label = torch.rand(4, 1, 8, 8), torch.zeros(4)
        plain = network(x, label)
        with network.augmented(torch.zeros(4, 9)):
            assert torch.equal(network(x, label), plain), "no change is what sampling sees"
        with network.augmented(torch.eye(9)[:4]):
            assert (network(x, label) - plain).abs().amax((1, 2, 3)).min() > 0
        assert torch.equal(network(x, label), plain)
        model.train()
        model.loss((x, torch.zeros(4, dtype=torch.long))).backward()
        assert network.conditioning.augment.weight.grad.abs().amax(0).min() > 0

    def test_evaluation_is_not_augmented(self, monkeypatch):
        model = self.model(augmentations=9).eval()
        monkeypatch.setattr(GeometricAugmentation, "__call__", lambda *_: pytest.fail("augmented"))
        model.loss((torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)))

    def test_a_network_without_augmentation_labels_is_refused(self):
        with pytest.raises(
            InputError, match=r"augmentation GeometricAugmentation: .*--model\.network\.augmentations 9; this one has 0"
        ):
            self.model(UNet, groups=2)
