"""From the bytes of an image to pixels: decoding, crops, re-encoding. Imports `bounds`, `errors` and `splitmix`."""
