"""Every kind of image file is converted by a rule or rejected with a reason.

No image becomes completely white or black.
"""

import csv
import errno
import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import gpvit.data.image_io
import numpy as np
import pytest
from gpvit.data import InstanceMapper
from gpvit.data.datasets.to_coco import size_of
from gpvit.data.image_io import MAX_PIXELS, exif_orientation, read_image
from gpvit.utils.errors import UserError
from PIL import Image, ImageOps, PngImagePlugin

GRAY = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)  # 0 to 98
COLOR = np.stack([GRAY, GRAY[::-1] * 2, 255 - GRAY], axis=2)
ORIENTATION = 0x0112  # EXIF tag

# The result for each real file: height and width, or the reason for the error.
ODD_IMAGES = {
    "Landscape_3.jpg": (1200, 1800),
    "Landscape_6.jpg": (1200, 1800),
    "Portrait_8.jpg": (1800, 1200),
    "sharp_Channel_digital_image_CMYK_color_no_profile.jpg": (333, 500),
    "sharp_concert.jpg": (267, 400),
    "sharp_grey-8bit-alpha.png": (300, 400),
    "sharp_16-bit-grey-alpha.png": (96, 109),
    "sharp_embedgravitybird.png": (384, 576),
    "sharp_tifftag-photoshop.tiff": (211, 317),
    "sharp_Flag_of_the_Netherlands-16bit.png": (600, 900),
    "sharp_full-transparent.png": "white or transparent everywhere",
    "sharp_cielab-dagams.tiff": "it has the color space CIELAB",
    "sharp_truncated.png": "damaged or incomplete",
    "sharp_corrupt-header.jpg": "damaged or incomplete",
    "sharp_giant-image.jpg": "more than 100 million pixels",
    "sharp_5_webp_a.webp": (300, 300),
    "pillow_ifd_tag_type.tiff": (512, 640),
    "pillow_10ct_32bit_128.tiff": "floats from -3.14094 to 3.14068",
    "pillow_exif_imagemagick_orientation.png": (512, 512),
    "pillow_hopper.Lab.tif": "it has the color space CIELAB",
    "stardist_img2d_16bit.tif": (512, 512),
}


def error_of(path: str | Path) -> str:
    """The one-line error of a file that cannot be read."""
    with pytest.raises(UserError) as error:
        read_image(path)
    message = str(error.value)
    assert "\n" not in message and f"{path}: cannot be read: " in message
    return message


def test_all_odd_images_have_expected_result(real_data: Path) -> None:
    with open(real_data / "odd_images" / "manifest.csv") as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(ODD_IMAGES)


@pytest.mark.parametrize(("name", "expected"), ODD_IMAGES.items())
def test_odd_image_is_converted_or_rejected_with_reason(
    real_data: Path, name: str, expected
) -> None:
    path = real_data / "odd_images" / name
    if isinstance(expected, str):
        assert expected in error_of(path)
        return
    image = read_image(path)
    assert image.shape == (*expected, 3) and image.dtype == np.uint8
    assert image.std() > 5 and len(np.unique(image)) > 2  # neither white nor black


def test_images_rotated_by_exif_are_equal(real_data: Path) -> None:
    third = read_image(real_data / "odd_images" / "Landscape_3.jpg")
    sixth = read_image(real_data / "odd_images" / "Landscape_6.jpg")
    difference = np.abs(third.astype(int) - sixth).mean(axis=2)
    assert np.median(difference) < 5  # each image shows its own number


def test_real_16_bit_image_has_expected_colors(real_data: Path) -> None:
    flag = read_image(real_data / "odd_images" / "sharp_Flag_of_the_Netherlands-16bit.png")
    assert flag[100, 450].tolist() == [174, 28, 40] and flag[300, 450].tolist() == [255] * 3
    assert flag[500, 450].tolist() == [33, 70, 139]


def save(values: np.ndarray, path: Path) -> Path:
    """Write RGB, RGBA or gray of any bit depth. Pillow cannot write 16-bit color."""
    if values.dtype == np.uint16 and values.ndim == 3:
        order = cv2.COLOR_RGBA2BGRA if values.shape[2] == 4 else cv2.COLOR_RGB2BGR
        assert cv2.imwrite(str(path), cv2.cvtColor(values, order))
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 235), (0, 4095), (7301, 8206), (0, 65535), (32768, 32868), (5, 6)]
)
def test_16_bit_gray_is_stretched_from_black_to_white(
    tmp_path: Path, suffix: str, low: int, high: int
) -> None:
    values = np.linspace(low, high, GRAY.size).reshape(GRAY.shape).round().astype(np.uint16)
    image = read_image(save(values, tmp_path / f"deep.{suffix}"))
    expected = (values - float(low)) * 255 / (high - low)
    assert (image == image[..., :1]).all() and np.abs(image[..., 0] - expected).max() <= 0.5
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize(
    "values", [GRAY.astype(np.int32) * 1000 - 5000, GRAY.astype(np.int32) * 10**6]
)
def test_32_bit_integers_are_stretched_from_black_to_white(
    tmp_path: Path, values: np.ndarray
) -> None:
    image = read_image(save(values, tmp_path / "deep.tiff"))
    assert np.abs(image[..., 0] - GRAY * (255 / 98)).max() <= 0.5 + 1e-6


def test_constant_16_bit_image_is_black(tmp_path: Path) -> None:
    assert not read_image(save(np.full((4, 5), 777, np.uint16), tmp_path / "one.png")).any()


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
@pytest.mark.parametrize(("bits", "factor"), [(16, 257), (12, 4095 / 255), (8, 1)])
def test_16_bit_color_is_scaled_to_8_bits(
    tmp_path: Path, suffix: str, bits: int, factor: float
) -> None:
    values = (COLOR * float(factor)).round().astype(np.uint16)
    assert int(values.max()).bit_length() == bits
    image = read_image(save(values, tmp_path / f"deep.{suffix}"))
    assert np.abs(image.astype(int) - COLOR).max() <= (0 if bits in (8, 16) else 1)


def test_16_bit_color_with_alpha_is_blended_over_white(tmp_path: Path) -> None:
    alpha = np.full((*GRAY.shape, 1), 65535 // 5, np.uint16)
    values = np.concatenate([COLOR * np.uint16(257), alpha], axis=2)
    image = read_image(save(values, tmp_path / "deep.png"))
    assert np.abs(image - (255 - (255.0 - COLOR) / 5)).max() <= 0.51  # alpha is 1 / 5


def test_floats_from_0_to_1_are_scaled_to_255(tmp_path: Path) -> None:
    image = read_image(save(GRAY.astype(np.float32) / 98, tmp_path / "float.tiff"))
    assert np.abs(image[..., 1] - GRAY * (255 / 98)).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (GRAY.astype(np.float32), "floats from 0 to 98"),
        (GRAY.astype(np.float32) / 98 - 0.1, "floats from -0.1"),
        (np.where(GRAY == 5, np.nan, GRAY / 98).astype(np.float32), "floats from nan"),
        (np.where(GRAY == 5, np.inf, GRAY / 98).astype(np.float32), "to inf"),
        (GRAY.astype(np.float32) / 1e6, "would all become 0 of 255"),
    ],
)
def test_floats_of_unknown_range_are_rejected(
    tmp_path: Path, values: np.ndarray, reason: str
) -> None:
    assert reason in error_of(save(values, tmp_path / "float.tiff"))


def test_16_bit_color_with_too_little_contrast_is_rejected(tmp_path: Path) -> None:
    values = np.repeat(32768 + GRAY[..., None].astype(np.uint16) // 2, 3, axis=2)
    message = error_of(save(values, tmp_path / "flat.png"))
    assert "32768 to 32817, would all become 128 of 255" in message


def test_alpha_is_blended_over_white_and_opaque_pixels_are_unchanged(tmp_path: Path) -> None:
    alpha = np.full((*GRAY.shape, 1), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 0, 51
    image = read_image(save(np.concatenate([COLOR, alpha], axis=2), tmp_path / "alpha.png"))
    assert (image[:, :20] == 255).all() and np.array_equal(image[:, 40:], COLOR[:, 40:])
    assert np.abs(image[:, 20:40] - (255 - (255.0 - COLOR[:, 20:40]) / 5)).max() <= 0.51


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_opaque_rgba_image_becomes_its_rgb(tmp_path: Path, suffix: str) -> None:
    opaque = np.concatenate([COLOR, np.full((*GRAY.shape, 1), 255, np.uint8)], axis=2)
    Image.fromarray(opaque).save(tmp_path / f"opaque.{suffix}", lossless=True)
    assert np.array_equal(read_image(tmp_path / f"opaque.{suffix}"), COLOR)


@pytest.mark.parametrize("rgba", [(10, 20, 30, 0), (255, 255, 255, 0), (255, 255, 255, 100)])
def test_white_or_transparent_image_is_rejected(tmp_path: Path, rgba: tuple) -> None:
    Image.new("RGBA", (8, 8), rgba).save(tmp_path / "nothing.png")
    assert "nothing can be seen" in error_of(tmp_path / "nothing.png")


def test_transparency_of_gray_palette_and_key_color_is_blended_over_white(
    tmp_path: Path,
) -> None:
    two = np.zeros((6, 8), np.uint8)
    two[:, 4:] = 1  # the left half is transparent, the right half gray 80
    Image.fromarray(np.stack([two * 80, two * 255], axis=2), "LA").save(tmp_path / "la.png")
    Image.fromarray(two * 80).save(tmp_path / "l.png", transparency=0)
    Image.fromarray(np.repeat(two[..., None] * 80, 3, axis=2)).save(
        tmp_path / "rgb.png", transparency=(0, 0, 0)
    )
    palette = Image.fromarray(two, "P")
    palette.putpalette([0, 0, 0, 80, 80, 80])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    expected = np.where(two[..., None] == 1, 80, 255).repeat(3, axis=2)
    for name in ("la.png", "l.png", "rgb.png", "p.png", "p.gif"):
        assert np.array_equal(read_image(tmp_path / name), expected), name


def test_common_modes_become_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(COLOR)
    palette = rgb.quantize(256)
    cases = {
        "rgb.png": (rgb, COLOR),
        "gray.png": (Image.fromarray(GRAY), np.stack([GRAY] * 3, axis=2)),
        "one_bit.png": (Image.fromarray(GRAY > 50), np.stack([(GRAY > 50) * 255] * 3, axis=2)),
        "palette.png": (palette, np.array(palette.convert("RGB"))),
        "rgb.bmp": (rgb, COLOR),
        "rgb.ppm": (rgb, COLOR),
        "rgb.tiff": (rgb, COLOR),
        "lossless.jp2": (rgb, COLOR),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), expected), name


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_is_converted_to_rgb(tmp_path: Path, suffix: str) -> None:
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, light in inks.items():
        Image.new("CMYK", (16, 16), ink).save(tmp_path / f"ink.{suffix}")
        assert np.abs(read_image(tmp_path / f"ink.{suffix}").astype(int) - light).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"rotated.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(COLOR).save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    image = read_image(path)
    assert image.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))
    assert np.array_equal(image, expected) and image.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_xmp_orientation_is_ignored(tmp_path: Path, suffix: str) -> None:
    path, xmp = tmp_path / f"image.{suffix}", b'<rdf:Description tiff:Orientation="6"/>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    options = {"pnginfo": text} if suffix == "png" else {"xmp": xmp}
    upside_down = Image.Exif()
    upside_down[ORIENTATION] = 3
    for exif, orientation in ((Image.Exif(), 1), (upside_down, 3)):
        Image.fromarray(COLOR).save(path, exif=exif, **options)
        with Image.open(path) as image:
            assert exif_orientation(image) == orientation
        assert read_image(path).shape == COLOR.shape and size_of(path) == COLOR.shape[:2]


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file: length, name, content and checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_applied_to_16_bit_color(tmp_path: Path, orientation: int) -> None:
    path = save(COLOR * np.uint16(257), tmp_path / "deep.png")
    content = path.read_bytes()
    # A TIFF header with one directory entry: tag, type (unsigned short), count and value.
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
    end_of_header = 33  # signature and IHDR
    path.write_bytes(content[:end_of_header] + chunk(b"eXIf", tiff) + content[end_of_header:])
    quarter_turns = {3: 2, 6: -1}[orientation]
    assert np.array_equal(read_image(path), np.rot90(COLOR, quarter_turns))


@pytest.mark.parametrize(
    "exif", [b"MM\0*\0\0\0\x08\xff\xff" + bytes(range(200)), b"no TIFF header", b"MM"]
)
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(COLOR).save(tmp_path / "damaged.png", exif=b"Exif\0\0" + exif)
    assert np.array_equal(read_image(tmp_path / "damaged.png"), COLOR)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_of_several_frames_is_read(tmp_path: Path, suffix: str) -> None:
    path, color = tmp_path / f"frames.{suffix}", (200, 0, 0)
    first, *others = (Image.new("RGB", (8, 6), c) for c in (color, (0, 200, 0), (0, 0, 200)))
    options = {"webp": {"lossless": True}}.get(suffix, {})
    first.save(path, save_all=True, append_images=others, **options)
    assert (read_image(path) == color).all()


def noise() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(values)


SUFFIXES = ["jpg", "png", "tiff", "bmp", "gif", "webp", "ppm", "jp2"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_file_is_rejected(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise().save(path)
    content = path.read_bytes()
    for fraction in np.linspace(0, 0.9, 25):
        path.write_bytes(content[: int(len(content) * fraction)])
        error_of(path)


def test_truncated_16_bit_color_is_rejected(tmp_path: Path) -> None:
    for suffix in ("png", "tiff", "ppm"):
        path = save(np.asarray(noise()) * np.uint16(257), tmp_path / f"cut.{suffix}")
        content = path.read_bytes()
        for fraction in np.linspace(0, 0.9, 10):
            path.write_bytes(content[: int(len(content) * fraction)])
            error_of(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_file_gives_image_or_user_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    noise().save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(60):
        damaged = content.copy()
        # Eight bytes anywhere, or in the header.
        places = rng.integers(0, len(content) if rng.random() < 0.5 else 100, 8)
        damaged[places] = rng.integers(0, 256, 8)
        path.write_bytes(damaged.tobytes())
        try:
            image = read_image(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_non_image_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "program.eps").write_text(eps)
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would block forever
    assert "it is empty (0 bytes)" in error_of(tmp_path / "empty.jpg")
    assert "it is not an image in JPEG" in error_of(tmp_path / "text.jpg")
    assert "it is not an image in JPEG" in error_of(tmp_path / "program.eps")
    assert "it is not a file" in error_of(tmp_path / "pipe.jpg")
    assert "it is not a file" in error_of(tmp_path)
    assert "it does not exist" in error_of(tmp_path / "missing.jpg")
    for name in ("two\nlines.jpg", "zero\0byte.jpg", "half\ud800pair.jpg"):
        with pytest.raises(UserError, match="cannot be read") as error:
            read_image(tmp_path / name)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP])
def test_unopenable_image_is_not_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(path: Path, *arguments: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    path = tmp_path / ("x" * 300 if number == errno.ENAMETOOLONG else "a.png")
    if number == errno.ELOOP:
        path.symlink_to(path)
    elif number != errno.ENAMETOOLONG:
        save(COLOR, path)
        monkeypatch.setattr(Path, "open", fail)
    assert f"it cannot be opened ({os.strerror(number)}); check its path" in error_of(path)


def test_pixel_limit_is_checked_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (10_001, 10_000)).save(tmp_path / "large.png")  # Pillow only warns
    # Width, height, bit depth, color type (RGB), compression, filter and interlacing.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"0"))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels)
    for name in ("large.png", "bomb.png"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "more than 100 million pixels; make it smaller" in error_of(tmp_path / name)
    assert MAX_PIXELS == 100_000_000
    path, pixel_count = save(COLOR, tmp_path / "limit.png"), COLOR[..., 0].size
    monkeypatch.setattr(gpvit.data.image_io, "MAX_PIXELS", pixel_count)
    assert read_image(path).shape == COLOR.shape
    monkeypatch.setattr(gpvit.data.image_io, "MAX_PIXELS", pixel_count - 1)
    error_of(path)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "too large"])
def test_mapper_names_path_and_image_id_of_unreadable_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, train: bool
) -> None:
    path = save(COLOR, tmp_path / "image.png")
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "too large":
        monkeypatch.setattr(gpvit.data.image_io, "MAX_PIXELS", 10)
    else:
        path.write_bytes(content[: len(content) // 2] if fault == "truncated" else b"")
    mapper = InstanceMapper(is_train=train, augmentations=[], image_format="RGB")
    record = {"file_name": str(path), "image_id": 77, "height": 40, "width": 60, "annotations": []}
    with pytest.raises(UserError) as error:
        mapper(record)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot be read: ") and "(image id 77)" in message
    assert "\n" not in message


def test_mapper_returns_rgb_or_bgr(tmp_path: Path) -> None:
    record = {"file_name": str(save(COLOR, tmp_path / "image.png")), "image_id": 1}
    for image_format, order in (("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])):
        output = InstanceMapper(is_train=False, augmentations=[], image_format=image_format)(record)
        assert np.array_equal(output["image"].numpy(), COLOR.transpose(2, 0, 1)[order])
        assert (output["height"], output["width"]) == (40, 60)
