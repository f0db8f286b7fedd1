import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixtok.data import images
from pixtok.errors import InputError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_ramp(mode: str) -> Image.Image:
    return Image.fromarray(np.arange(0, 256, dtype=np.uint8).reshape(16, 16)).convert(mode)


@pytest.mark.parametrize(("mode", "holds"), [("RGB", True), ("L", True), ("P", True), ("RGBA", False), ("I;16", False)])
def test_exact_refuses_what_rgb_cannot_hold(mode, holds, tmp_path):
    file = tmp_path / "image.png"
    Image.new(mode, (3, 2)).save(file)
    if holds:
        assert images.read(file, exact=True).shape == (2, 3, 3)
        return
    with pytest.raises(InputError, match=r"8-bit RGB cannot hold its pixels"):
        images.read(file, exact=True)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "PA"])
def test_modes_keep_their_colours(mode):
    pixels, changed = images.decode(encoded(grey_ramp(mode), "TIFF" if mode == "PA" else "PNG"))
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(grey_ramp(mode).convert("RGB")))
    assert changed == (mode != "RGB")


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("LAB", "TIFF")])
def test_other_colour_spaces_come_out_as_the_same_grey(mode, kind):
    flat = Image.new("RGB", (8, 8), (100, 100, 100))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        flat = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
    else:
        flat = flat.convert(mode)
    pixels, _ = images.decode(encoded(flat, kind))
    assert np.abs(pixels.astype(int) - 100).max() <= 3


def test_transparency_goes_over_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    pixels, _ = images.decode(encoded(half))
    assert pixels.tolist() == [[[255, 255, 255], [255, 0, 0]]]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert images.decode(encoded(palette, transparency=0))[0].tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert images.decode(encoded(deep, kind))[0][0, :, 0].tolist() == [0, 100, 255]


def test_floats_are_scaled():
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert images.decode(encoded(unit, "TIFF"))[0][0, :, 0].tolist() == [0, 128, 255]


def test_rotation_in_the_metadata_is_applied():
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90° clockwise to view
    pixels, changed = images.decode(encoded(image, exif=exif))
    assert pixels.shape == (3, 2, 3)
    assert pixels[0, 1].tolist() == [255, 0, 0]
    assert changed


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert (images.decode(content)[0] == 255).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "not an image that Pillow knows"),
        (encoded(Image.effect_noise((64, 64), 90).convert("RGB"))[:700], "OSError"),
        (encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:700], "OSError"),
    ],
)
def test_damaged_files_are_named(content, reason):
    with pytest.raises(images.ImageError, match=reason):
        images.decode(content)


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(images.ImageError, match="more than 99"):
        images.decode(encoded(Image.new("1", (10, 10))))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 512))
def test_fit_keeps_the_shape_and_never_enlarges(height, width, size):
    h, w = images.fit(height, width, size)
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert max(h, w) == min(size, max(height, width))
    scale = max(h, w) / max(height, width)
    assert abs(h - height * scale) <= 1
    assert abs(w - width * scale) <= 1


def test_resizing_gives_the_planned_size():
    pixels, changed = images.decode(encoded(Image.new("RGB", (90, 31))), image_size=40)
    assert pixels.shape[:2] == images.fit(31, 90, 40) == (14, 40)
    assert changed


def test_encoding_loses_nothing():
    pixels = np.random.default_rng(0).integers(256, size=(7, 5, 3), dtype=np.uint8)
    decoded, changed = images.decode(images.encode(pixels))
    np.testing.assert_array_equal(decoded, pixels)
    assert not changed
