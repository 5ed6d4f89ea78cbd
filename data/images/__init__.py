"""From the bytes of an image to pixels: decoding, crops, re-encoding. Imports `errors` and `splitmix`."""
