"""Bounds of what a data set may claim or hold, in one place.

A sample beyond one of them is a bad sample with a named cause; it never ends a run. So a single broken file costs
neither hours nor gigabytes: a bound is checked before the memory is taken.
"""

CLASSES = 1 << 24  # class numbers are below
LABELS = 10_000  # labels of a sample
LABEL_BYTES = 8 << 20  # of a label field, .cls or .json
CLASS_NAMES = 1 << 20  # different names that indexing may find
CLASS_NAME_CHARACTERS = 1_000  # of the name of a class
KEY_CHARACTERS = 1_000  # of the key of a label in .json
LONGEST_STRIDE = 1 << 16  # samples between two offsets of an index, so that a count of samples is no mere claim
SHARD_BYTES = 1 << 62  # of a shard, as its index claims: offsets are int64
PIXELS = 1 << 28  # of an image, by its header: 768 MiB of RGB
DECODING_BYTES = 2 << 30  # of memory for large images that one process decodes at one time
SHOWN_BYTES = 512 << 20  # the same for `show`, and the largest image that it draws, at the scale at which it is decoded
IMAGE_BYTES = 1 << 31  # of an image file that is packed: 2^28 pixels of 8 bytes
FIELD_BYTES = 256 << 20  # of one field of a sample: a longer one counts as missing
SAMPLE_BYTES = 512 << 20  # of all fields of a sample
RECORD_BYTES = 8 << 20  # of the records before a tar's member, such as its long name
