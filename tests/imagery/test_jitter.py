"""Against torchvision's functions, whose factors are 1 + ours (the hue's is ours)."""

import pytest
import torch
import torchvision.transforms.v2.functional as torchvision_functional

from imagery2flow.imagery import jitter
from imagery2flow.imagery.jitter import blur, brightness, contrast, draw_jitter, hue, luma, saturation
from imagery2flow.run.config import ViewConfig
from imagery2flow.run.errors import BandError

OFF = {"shift": 0.0, "gain": 0.0}
HIGHEST = torch.full((3,), 255.0)


def images(batch: int = 4, size: int = 9, num_bands: int = 3) -> torch.Tensor:
    """Values of 0 to 1, grey, black, white and equal bands among them."""
    values = torch.rand(batch, num_bands, size, size, generator=torch.Generator().manual_seed(0))
    values[0, :, 0, :3] = torch.tensor([0.0, 0.5, 1.0])
    values[0, 0, 1] = values[0, 1, 1]
    values[0, -1, 2] = values[0, -2, 2]
    return values


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jitter_rgb(values, highest, config, random):
    return jitter.jitter_rgb(values, highest[:, None, None], draw_jitter(*values.shape[:2], config, random))


def jitter_bands(values, config, random):
    return jitter.jitter_bands(values, draw_jitter(*values.shape[:2], config, random))


def column(*factors: float) -> torch.Tensor:
    return torch.tensor(factors)[:, None, None, None]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brightness, torchvision_functional.adjust_brightness),
        (contrast, torchvision_functional.adjust_contrast),
        (saturation, torchvision_functional.adjust_saturation),
    ],
)
@pytest.mark.parametrize("factor", [-1.0, -0.4, 0.0, 0.3, 1.0])
def test_brightness_contrast_and_saturation_equal_torchvisions(ours, theirs, factor):
    torch.testing.assert_close(ours(images(), column(*[factor] * 4)), theirs(images(), 1 + factor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [-0.5, -0.1, 0.0, 0.05, 0.25, 0.5])
def test_hue_equals_torchvisions(factor):
    torch.testing.assert_close(hue(images(), column(*[factor] * 4)), torchvision_functional.adjust_hue(images(), factor), atol=1e-5, rtol=0)


def test_a_third_of_a_circle_turns_red_into_green():
    red = torch.tensor([0.8, 0.2, 0.2]).reshape(1, 3, 1, 1)
    assert hue(red, column(1 / 3)).flatten().tolist() == pytest.approx([0.2, 0.8, 0.2], abs=1e-6)


def test_grey_equals_torchvisions():
    torch.testing.assert_close(luma(images()), torchvision_functional.rgb_to_grayscale(images()), atol=1e-6, rtol=0)
    grey = jitter_rgb(255 * images(), HIGHEST, ViewConfig(grey_probability=1.0), generator())
    torch.testing.assert_close(grey, 255 * luma(images()).expand(-1, 3, -1, -1), atol=1e-4, rtol=0)


def test_each_image_has_its_own_factor():
    factors = (-0.4, 0.0, 0.1, 0.4)
    for operation in (brightness, contrast, saturation, hue):
        together = operation(images(), column(*factors))
        for number, factor in enumerate(factors):
            alone = operation(images()[number : number + 1], column(factor))
            torch.testing.assert_close(together[number], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvisions_away_from_the_edges(sigma):
    values = images(size=15, num_bands=5)
    inside = (..., slice(3, -3), slice(3, -3))
    expected = torchvision_functional.gaussian_blur(values, [7, 7], [sigma, sigma])
    torch.testing.assert_close(blur(values, torch.full((4,), sigma))[inside], expected[inside], atol=1e-6, rtol=0)


def test_blur_takes_each_images_own_sigma_and_keeps_constants():
    values, sigma = images(size=15), torch.tensor([0.1, 0.5, 1.0, 2.0])
    together = blur(values, sigma)
    for number in range(4):
        torch.testing.assert_close(together[number], blur(values[number : number + 1], sigma[number : number + 1])[0], atol=1e-6, rtol=0)
    constant = torch.full((2, 3, 5, 5), 7.0)
    torch.testing.assert_close(blur(constant, torch.tensor([0.3, 2.0])), constant)


def test_rgb_jitter_changes_each_image_on_its_own():
    same = 255 * images(1).expand(100, -1, -1, -1)
    jittered = jitter_rgb(same, HIGHEST, ViewConfig(rgb_jitter=0.5, rgb_jitter_probability=1.0), generator())
    assert len({tuple(image.flatten().tolist()) for image in jittered}) == 100  # many more than the 24 orders of the four changes
    assert jittered.min() >= 0 and jittered.max() <= 255


def test_each_image_has_its_own_order_of_changes(monkeypatch):
    # Each change shifts the digits and adds its number, so that the result spells the order.
    monkeypatch.setattr(jitter, "OPERATIONS", tuple(lambda values, factor, k=k: values / 10 + k for k in range(4)))
    config = ViewConfig(rgb_jitter=0.5, rgb_jitter_probability=1.0)
    spelt = jitter_rgb(torch.zeros(1000, 3, 1, 1), torch.ones(3), config, generator())[:, 0, 0, 0]
    orders, counts = (spelt * 1000).round().unique(return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 20


def test_rgb_jitter_changes_about_the_share_of_images_that_is_asked_for():
    same = 255 * images(1).expand(1000, -1, -1, -1)
    jittered = jitter_rgb(same, HIGHEST, ViewConfig(rgb_jitter=0.5, rgb_jitter_probability=0.8), generator())
    unchanged = (jittered - same).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert unchanged.float().mean() == pytest.approx(0.2, abs=0.04)


def test_rgb_jitter_is_the_same_on_another_scale():
    config = ViewConfig(rgb_jitter=0.5, rgb_jitter_probability=1.0, grey_probability=0.3)
    bytes_, reflectance = (jitter_rgb(high * images(), torch.full((3,), high), config, generator()) for high in (255.0, 10_000.0))
    torch.testing.assert_close(bytes_ / 255, reflectance / 10_000, atol=1e-5, rtol=0)


def test_rgb_jitter_needs_three_bands():
    with pytest.raises(BandError, match=r"needs the three bands red, green, blue but the patches have 2 bands; set --views.rgb_jitter 0"):
        jitter_rgb(images(num_bands=2), HIGHEST[:2], ViewConfig(rgb_jitter=0.5), generator())


def test_off_means_unchanged():
    values = images(num_bands=6)
    assert torch.equal(jitter_bands(values, ViewConfig(**OFF), generator()), values)
    never = ViewConfig(rgb_jitter=0.5, rgb_jitter_probability=0.0, grey_probability=0.0)
    torch.testing.assert_close(jitter_rgb(255 * images(), HIGHEST, never, generator()), 255 * images(), atol=1e-4, rtol=0)


def test_shift_and_gain_change_each_band_of_each_image_within_their_bounds():
    ones = torch.ones(50, 4, 3, 3)
    shifted = jitter_bands(0 * ones, ViewConfig(shift=0.2, gain=0.0), generator())
    assert torch.equal(shifted, shifted[..., :1, :1].expand_as(shifted))  # one number per band of an image
    offsets = shifted[..., 0, 0]
    assert len(offsets.flatten().unique()) == 200
    assert 0.15 < offsets.abs().max() <= 0.2 and abs(offsets.mean()) < 0.03
    gains = jitter_bands(ones, ViewConfig(shift=0.0, gain=0.1), generator())[..., 0, 0] - 1
    assert 0.08 < gains.abs().max() <= 0.1001


def test_one_band_is_dropped_of_the_share_of_images_that_is_asked_for():
    ones = torch.ones(1000, 4, 2, 2)
    every = jitter_bands(ones, ViewConfig(band_drop_probability=1.0, **OFF), generator())
    assert (every.sum(dim=(1, 2, 3)) == 12).all()
    dropped_per_band = (every[:, :, 0, 0] == 0).sum(dim=0)
    assert dropped_per_band.min() > 200
    some = jitter_bands(ones, ViewConfig(band_drop_probability=0.3, **OFF), generator())
    assert (some.sum(dim=(1, 2, 3)) == 12).float().mean() == pytest.approx(0.3, abs=0.04)


def test_the_share_of_images_that_is_asked_for_is_blurred():
    values = images(1).expand(500, -1, -1, -1)
    blurred = jitter_bands(values, ViewConfig(blur_probability=0.4, **OFF), generator())
    assert (blurred - values).abs().amax(dim=(1, 2, 3)).gt(0).float().mean() == pytest.approx(0.4, abs=0.06)
