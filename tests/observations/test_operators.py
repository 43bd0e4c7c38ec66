"""Operators: their adjoints and normal equations against dense matrices, known transforms, and clear errors."""

import lightning_score.lean_imports  # noqa: F401

import math
import pickle

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage
from skimage.transform import radon

from lightning_score.errors import InputError
from lightning_score.observations import (
    BlockMean,
    Blur,
    Composition,
    Fourier,
    GaussianNoise,
    Gray,
    LinearOperator,
    Mask,
    Matrix,
    Operator,
    PhaseRetrieval,
    Radon,
    base,
    read_observation,
    write_observation,
)
from lightning_score.runs.trust import ClassParser

SHAPES = [(2, 10), (2, 5, 6), (2, 3, 4, 5)]
GENERATOR = torch.Generator().manual_seed(0)


class Differences(LinearOperator):
    """A user's operator: neighbors' differences."""

    def apply(self, x):
        return x.diff(dim=-1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def operators(shape):
    """All linear operators that observe samples of a shape, by name."""
    sizes = shape[1:]
    kernel = 0.05 * random(*[3, 2, 3][: len(sizes)])
    kernel[tuple(n // 2 for n in kernel.shape)] = 1.0
    some, rows = (random(*sizes) > 0) | (random(*sizes) > 1), random(7, math.prod(shape))
    found = {
        "mask": Mask(random(*shape) > 0),
        "mask of pixels": Mask(some),
        "gray": Gray(),
        "matrix": Matrix(rows),
        "rank-deficient matrix": Matrix(torch.cat([rows, rows[:2]])),
        "tall matrix": Matrix(random(math.prod(shape) + 2, math.prod(shape))),
        "blur": Blur(0.7),
        "wide blur": Blur(3.0),
        "kernel": Blur(kernel=kernel),
        "kernel, zeros": Blur(kernel=kernel, border="zeros"),
        "kernel, reflect": Blur(kernel=kernel, border="reflect"),
        "MRI": Fourier(acceleration=2),
        "MRI of some": Fourier(some),
        "complex MRI": Fourier(some, complex_images=True),
        "full MRI": Fourier(acceleration=1),
        "blur, then mask": Composition([Blur(0.7), Mask(some)]),
        "user's": Differences(),
    }
    if len(sizes) > 1:
        found["CT"] = Radon([0.0, 40.0, 90.0])
    return found


EVERY = [(shape, name) for shape in SHAPES for name in operators(shape)]
every = pytest.mark.parametrize(("shape", "name"), EVERY, ids=[f"{len(shape) - 1}-D {name}" for shape, name in EVERY])


def dense(operator, shape):
    """The matrix of an operator, (m, D), from the inner products of A e_i with the unit vectors."""
    d = math.prod(shape)
    return operator.apply(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).flatten(1).mT


def assert_close(found, expected, **tolerances):
    torch.testing.assert_close(found, expected.reshape(found.shape), **{"rtol": 1e-6, "atol": 1e-8, **tolerances})


@every
def test_operators_agree_with_their_matrices(shape, name, monkeypatch):
    """<A x, v> = <x, A^T v>; gram_solve is the dense solution for each row's r2 and s2, in any batch, and the pseudo-inverse
    for s2 = 0; it is symmetric, and so are its derivatives; lift is A^+; settings and copies are enough.
    """
    monkeypatch.setattr(base, "LARGEST_DENSE", 0 if "blur" in name and len(shape) < 4 else 4096)
    original = operators(shape)[name]
    operator = pickle.loads(pickle.dumps(original))
    a, x = dense(original, shape), random(3, *shape)
    v = random(3, *operator.observed_shape(shape)).requires_grad_()
    y = operator.apply(x)
    assert_close(y, x.flatten(1) @ a.mT)
    back = operator.adjoint(v, shape)
    assert_close(back, v.flatten(1) @ a)
    assert_close(torch.autograd.grad((back * x).sum(), v)[0], y)

    r2, s2 = torch.tensor([0.1, 1.0, 2.0]), torch.tensor([0.3, 0.05, 1.0])
    gram = (r2.double().reshape(-1, 1, 1) * (a @ a.mT)) + s2.double().reshape(-1, 1, 1) * torch.eye(len(a))
    inverse = torch.linalg.inv(gram)
    solved = operator.gram_solve(v, r2, s2)
    assert_close(solved, torch.einsum("bij,bj->bi", inverse, v.flatten(1)))
    (gradient,) = torch.autograd.grad((solved**2).sum() / 2, v, create_graph=True)
    assert_close(gradient, torch.einsum("bij,bj->bi", inverse @ inverse, v.flatten(1)))
    (second,) = torch.autograd.grad((gradient * y).sum(), v)
    assert_close(second, torch.einsum("bij,bj->bi", inverse @ inverse, y.flatten(1)))
    with torch.inference_mode():
        assert_close(operator.gram_solve(v[1:2], r2[1], float(s2[1])), solved[1:2], rtol=1e-9)
        if name != "wide blur":  # whose smallest singular values are lost in rounding
            assert_close(operator.lift(v, shape), v.flatten(1) @ torch.linalg.pinv(a, rtol=1e-10).mT)
            pseudo = torch.linalg.pinv(a @ a.mT, rtol=1e-10, hermitian=True)
            assert_close(operator.gram_solve(y, r2, 0.0), y.flatten(1) @ pseudo / r2[:, None])


def test_a_blur_is_that_of_scipy():
    """Gaussian or any kernel, with each border, in one to three dimensions."""
    modes = {"circular": "wrap", "reflect": "mirror", "zeros": "constant"}
    for sizes in [(12,), (9, 10), (7, 8, 9)]:
        x, kernel = random(1, 2, *sizes), random(*(2, 3, 4)[: len(sizes)])
        for border, mode in modes.items():
            gaussian = ndimage.gaussian_filter(x[0, 1].numpy(), 0.8, mode=mode, truncate=4)
            assert_close(Blur(0.8, border=border).apply(x)[0, 1], torch.from_numpy(gaussian))
            convolved = ndimage.convolve(x[0, 1].numpy(), kernel.numpy(), mode=mode)
            assert_close(Blur(kernel=kernel, border=border).apply(x)[0, 1], torch.from_numpy(convolved))


def test_a_wide_blur_with_a_circular_border_wraps():
    """A kernel wider than the image goes around it: the blur of width s twice is that of width sqrt(2) s."""
    x = random(1, 1, 6)
    twice = Composition([Blur(3.0), Blur(3.0)]).apply(x)
    assert_close(Blur(3.0 * math.sqrt(2)).apply(x), twice, atol=1e-3)
    assert_close(twice.sum(), x.sum())


def test_exact_inverses_do_not_amplify_rounding():
    """A blur without noise, in 32 bits: what is lost in rounding is left out, and the observation is matched."""
    operator, x = Blur(2.0), random(1, 1, 16, 16).float()
    lifted = operator.lift(operator.apply(x), [1, 16, 16])
    assert_close(operator.apply(lifted), operator.apply(x), atol=1e-4)
    assert lifted.norm() <= 1.01 * x.norm()


def test_solutions_are_exact_in_32_bits():
    """To 1e-6, also where the noise is far below the largest eigenvalue, here about 1000 times."""
    operator, v = Radon(8), random(4, 1, 8, 23)
    assert operator.observed_shape([1, 16, 16]) == (1, 8, 23)
    a = dense(operator, (1, 16, 16))
    expected = torch.linalg.solve(0.25 * a @ a.mT + 0.01 * torch.eye(len(a)), v.flatten(1).mT).mT
    found = operator.gram_solve(v.float(), torch.tensor(0.25), 0.01).double().flatten(1)
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_frequencies_are_those_of_numpy():
    """Orthonormal and centered; the observation keeps the norm of an image whose frequencies are all sampled."""
    for sizes in [(6,), (5, 6), (3, 4, 5)]:
        x, some, axes = random(1, 2, *sizes), random(*sizes) > 0, tuple(range(1, len(sizes) + 1))
        spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(x[0], axes), axes=axes, norm="ortho"), axes)
        expected = spectrum[:, some.numpy()]
        y = Fourier(some).apply(x)
        assert_close(y.reshape(2, -1), torch.from_numpy(np.stack([expected.real, expected.imag])))
        assert_close(Fourier(acceleration=1).apply(x).norm(), x.norm())
        complex_ = Fourier(some, complex_images=True).apply(x).reshape(2, -1)
        both = expected[0] + 1j * expected[1]
        assert_close(complex_, torch.from_numpy(np.stack([both.real, both.imag])))


def test_lines_are_sampled_at_random_and_in_the_center():
    sampled = Fourier(acceleration=4, center=0.08, seed=1).sampled([20, 100])
    assert sampled.shape == (20, 100) and bool((sampled == sampled[0]).all())
    assert int(sampled[0].sum()) == 25 and bool(sampled[0, 46:54].all())
    assert not bool((sampled == Fourier(seed=2).sampled([20, 100])).all())
    assert not bool(Fourier(acceleration=1000, center=0.1).sampled([7]).all())


def test_projections_are_those_of_scikit_image():
    """Of images and of the slices of volumes; the mass of an image is that of each projection, about."""
    theta = [0.0, 30.0, 77.0, 90.0, 135.0]
    for sizes in [(16, 16), (15, 15)]:
        x = torch.rand(2, 3, *sizes, dtype=torch.float64, generator=GENERATOR)
        y = Radon(theta).apply(x)
        expected = radon(x[1, 2].numpy(), theta, circle=False)
        assert_close(y[1, 2], torch.from_numpy(expected.T), atol=1e-5)
    volume = torch.rand(1, 2, 3, 6, 8, generator=GENERATOR)
    operator = Radon(theta)
    assert_close(operator.apply(volume)[:, :, 1], operator.apply(volume[:, :, 1]))
    assert_close(Radon(4).angles, torch.tensor([0.0, 45.0, 90.0, 135.0], dtype=torch.float64))


def test_magnitudes_are_those_of_numpy():
    """Of the image surrounded by zeros: a shift or an inversion of what does not reach the border changes nothing."""
    for sizes in [(6,), (5, 6), (3, 4, 5)]:
        x, axes = random(1, 2, *sizes), tuple(range(1, len(sizes) + 1))
        expected = np.abs(np.fft.fftn(x[0], [2 * n for n in sizes], axes, norm="ortho"))
        assert_close(PhaseRetrieval().apply(x), torch.from_numpy(expected))
        assert_close(PhaseRetrieval().apply(x.flip(tuple(range(2, x.ndim)))).double(), PhaseRetrieval().apply(x))
    assert torch.autograd.gradcheck(PhaseRetrieval(1.5).apply, random(1, 1, 4).requires_grad_())


def test_a_composition_applies_the_first_part_first():
    x = random(2, 3, 8, 8)
    both = Composition([Blur(1.0), BlockMean(2), Gray()])
    assert_close(both.apply(x), Gray().apply(BlockMean(2).apply(Blur(1.0).apply(x))))
    assert both.observed_shape([3, 8, 8]) == (1, 4, 4)


def parsed(*words):
    """The operator of a command line, and of one with its settings."""
    parser = ClassParser(exit_on_error=False)
    parser.add_subclass_arguments(Operator, "operator")
    config = parser.parse_args([f"--operator{word}" for word in words])
    again = parser.parse_object(yaml.safe_load(parser.dump(config)))
    return [parser.instantiate(each).operator for each in (config, again)]


def test_operators_are_made_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = np.random.RandomState(0).rand(8, 8) > 0.5
    Image.fromarray(np.uint8(255 * some)).save("mask.png")
    np.save("kernel.npy", np.array([[1.0, 2.0, 1.0]], ">f8"))
    blur = "{class_path: Blur, init_args: {std: 0.8}}"
    mask = "{class_path: Mask, init_args: {mask: mask.png}}"
    x = random(2, 1, 8, 8)
    for words, expected in (
        (["=Blur", ".std=1.5", ".border=reflect"], Blur(1.5, border="reflect")),
        (["=Blur", ".kernel=kernel.npy"], Blur(kernel=[1.0, 2.0, 1.0])),
        (["=Blur", ".kernel=[[1,2],[3,4]]"], Blur(kernel=[[1.0, 2.0], [3.0, 4.0]])),
        (["=Mask", ".mask=mask.png"], Mask(some)),
        (["=Mask", ".mask=[1,0,0,0,0,1,1,1]"], Mask([1, 0, 0, 0, 0, 1, 1, 1])),
        (["=Fourier", ".mask=mask.png"], Fourier(some)),
        (["=Fourier", ".acceleration=2", ".seed=3"], Fourier(acceleration=2, seed=3)),
        (["=Radon", ".angles=5"], Radon(5)),
        (["=Radon", ".angles=[0,45.5]"], Radon([0.0, 45.5])),
        (["=PhaseRetrieval"], PhaseRetrieval()),
        (["=Composition", f".parts=[{blur},{mask}]"], Composition([Blur(0.8), Mask(some)])),
    ):
        for operator in parsed(*words):
            assert_close(operator.apply(x), expected.apply(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in operators(SHAPES[1]) if "user" not in name])
def test_operators_travel_with_their_observations(name, tmp_path):
    """Their settings in the file of an observation make them again."""
    operator, x = operators(SHAPES[1])[name], random(1, *SHAPES[1])
    write_observation(tmp_path / "y.npz", operator.apply(x), operator, GaussianNoise(0.1))
    stored = read_observation(str(tmp_path / "y.npz"))
    parser = ClassParser(exit_on_error=False)
    parser.add_subclass_arguments(Operator, "operator")
    again = parser.instantiate(parser.parse_object({"operator": stored.settings["operator"]})).operator
    assert_close(again.apply(x), stored.y)


def made(apply, base=Operator):
    """A user's operator."""
    return type("Own", (base,), {"apply": lambda self, x: apply(x)})()


def test_a_users_function_is_an_operator():
    assert made(lambda x: x.flatten(1)[:, :3].sin()).observed_shape([2, 4]) == (3,)


def test_mistakes_have_one_clear_line():
    image, vector = [3, 8, 8], [2]
    for wrong, words in (
        (lambda: made(lambda x: x.reshape(3, 5)).check(image), "operator=Own: fails for samples of shape .3, 8, 8.: shape"),
        (lambda: made(lambda x: [x]).check(image), "must be a tensor, and it is of type list"),
        (lambda: made(lambda x: x.sum(0)).check(image), "real numbers .B, ....* has the shape .3, 8, 8."),
        (lambda: made(lambda x: x.mean((1, 2, 3))).check(image), "real numbers .B, "),
        (lambda: made(lambda x: torch.fft.fft(x)).check(image), "complex64"),
        (lambda: made(lambda x: (x - 3).log()).check(image), "NaN or infinite"),
        (lambda: made(lambda x: x.detach()).check(image), "no gradient"),
        (lambda: made(lambda x: x - x.mean(0)).check(image), "depend on that sample alone"),
        (lambda: made(lambda x: x**2, LinearOperator).check(image), "not linear"),
        (lambda: made(lambda x: x + 1, LinearOperator).check(image), "not linear"),
        (lambda: made(lambda x: x, LinearOperator).gram_solve(torch.zeros(1, 2), torch.ones(()), 1.0), "observed_shape"),
        (lambda: Blur(0.0), "std=0.0: must be above 0"),
        (lambda: Blur(border="mirror"), "border=mirror: must be circular, reflect, zeros"),
        (lambda: Blur(kernel=[[0.0]]), "kernel of shape .1.: all entries are zero"),
        (lambda: Blur(kernel=torch.ones(2, 2, 2)).check(image), "must have at most 2 axes"),
        (lambda: Blur(3.0, border="reflect").check(image), "border=reflect: a kernel of shape .25, 25."),
        (lambda: Blur().check(vector), "signals .C, L. and images"),
        (lambda: Blur(kernel=[[1.0, 2.0], [1.0]]), "kernel=..1.0, 2.0., .1.0..: must be numbers, in rows of equal"),
        (lambda: Mask(["a", "b"]), "mask=.'a', 'b'.: must be numbers"),
        (lambda: Mask([1.0, math.nan]), "mask of shape .2.: must be finite"),
        (lambda: Mask("none.png"), "none.png: does not exist"),
        (lambda: Fourier([0, 0]), "all entries are zero"),
        (lambda: Fourier(acceleration=0.5), "acceleration=0.5"),
        (lambda: Fourier(center=2.0), "center=2.0"),
        (lambda: Fourier([1, 0]).check(image), "mask of shape .2.: does not fit the shape .8, 8."),
        (lambda: Fourier(complex_images=True).check(image), "complex_images=true"),
        (lambda: Mask([0, 0]), "nothing is observed"),
        (lambda: Mask([[1, 0], [0, 1]]).check(vector), "mask of shape .2, 2.: does not fit the shape .2."),
        (lambda: Radon(0), "angles=0"),
        (lambda: Radon([]), "angles=.."),
        (lambda: Radon().check([3, 8]), "images .C, H, W. and volumes"),
        (lambda: PhaseRetrieval(0.5), "oversampling=0.5"),
        (lambda: Composition([]), "at least one"),
        (lambda: Composition([Gray(), Mask([1, 0])]).check(image), "does not fit the shape .1, 8, 8."),
    ):
        with pytest.raises(InputError, match=words) as found:
            wrong()
        assert "\n" not in str(found.value)
