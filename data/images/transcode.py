"""Re-encoding images while they are packed: the shorter side to N pixels, another format or quality.

Training crops 224 pixels from photographs of 500, so shards of resized images are read and decoded several times as
fast. The loss is permanent. Without options the bytes of an image are packed unchanged.
"""

from dataclasses import dataclass

import cv2

from data.images.decode import decode

FORMATS = ("jpg", "png", "webp")
QUALITY = 90


@dataclass(frozen=True)
class Transcode:
    """Called with (extension, encoded image); returns the same two of the changed image.

    Attributes:
        resize: pixels of the shorter side, by area averaging; smaller images keep their size. None: all keep it.
        image_format: one of `FORMATS`; None keeps each image's format.
        quality: of JPEG and WebP, 1 to 100. None: 90 for images whose size or format changes; the others keep their
            bytes.
    """

    resize: int | None = None
    image_format: str | None = None
    quality: int | None = None

    def __call__(self, extension: str, encoded: bytes) -> tuple[str, bytes]:
        """Decode (RGB, 8 bits, EXIF orientation ignored, as in training), shrink, encode.

        Raises:
            BadSample: the image cannot be decoded.
        """
        pixels = decode(encoded)
        height, width = pixels.shape[:2]
        wanted = self.image_format or extension
        shrinks = self.resize is not None and min(height, width) > self.resize
        if not shrinks and wanted == extension and self.quality is None:
            return extension, encoded
        if shrinks:
            assert self.resize is not None
            scale = self.resize / min(height, width)
            size = (max(round(width * scale), self.resize), max(round(height * scale), self.resize))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        options = {
            "jpg": [cv2.IMWRITE_JPEG_QUALITY, self.quality or QUALITY],
            "webp": [cv2.IMWRITE_WEBP_QUALITY, self.quality or QUALITY],
            "png": [],
        }[wanted]
        _, content = cv2.imencode(f".{wanted}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
        return wanted, content.tobytes()
