"""The bytes of one text file, unpacked, once its first bytes are those of a text in UTF-8."""

import bz2
import contextlib
import functools
import gzip
import io
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import pyarrow as pa

from wsdm_ray import storage
from wsdm_ray.errors import DataError

__all__ = ["BYTE_ORDER_MARK", "open_text", "warn_once"]

logger = logging.getLogger(__name__)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

UNPACK: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\0", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda file: pa.CompressedInputStream(file, "zstd")),
}
"""How a compressed file begins, and what opens it."""

OF_CODEC = re.compile("Truncated compressed|ZSTD decompress|Invalid data stream")
"""What an `OSError` of zstd or bzip2 says; others are the store's."""

OTHER_STARTS = (
    (rb"\x1f\x8b", "compressed with gzip", "rename it to end with .gz"),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2", "rename it to end with .bz2"),
    (rb"\xfd7zXZ\0", "compressed with xz", "rename it to end with .xz"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", "rename it to end with .zst"),
    (rb"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save it as CSV in UTF-8"),
    (rb"PAR1\x15", "a parquet file", "rename it to end with .parquet"),
    (rb"ARROW1\0\0", "an Arrow file", "rename it to end with .arrow"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
)
"""How files begin that are no text in UTF-8, what they are, and the remedy."""


@contextlib.contextmanager
def open_text(path: str) -> Iterator[IO[bytes]]:
    """A text file open for reading, unpacked where its name ends with .gz, .bz2, .xz or .zst.

    Raises:
        DataError: it is cut short or damaged, or is not what its name says.
        StorageError: it cannot be read.
    """
    ending = next((ending for ending in UNPACK if path.lower().endswith(ending)), None)
    with storage.open_read(path) as file:
        try:
            stream = unpacked(file, path, ending) if ending else file
            reader = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)
            check_start(reader.peek(16)[:16], path)
            yield reader
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            of_store = isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile)
            if of_store and not OF_CODEC.match(str(error)):
                raise
            raise DataError(
                f"{path}: cut short or damaged ({storage.reason(error)}); copy or make it anew"
            ) from error


def unpacked(file: IO[bytes], path: str, ending: str) -> Any:
    """The content of a compressed file; of an empty file, nothing."""
    magic, unpack = UNPACK[ending]
    start = file.read(len(magic))
    file.seek(0)
    if start and start != magic:
        raise DataError(f"{path}: is not compressed as its name says; rename it without {ending}")
    return unpack(file) if start else file


def check_start(start: bytes, path: str) -> None:
    """Raise `DataError` where a file begins as no text in UTF-8 does; warn where it is empty."""
    if not start:
        warn_once(f"{path}: is empty, so it has no rows")
    for pattern, what, remedy in OTHER_STARTS:
        if re.match(pattern, start):
            if what.startswith("compressed") and path.lower().endswith(tuple(UNPACK)):
                what, remedy = f"{what} twice or as something else", "unpack it once"
            raise DataError(f"{path}: is {what}; {remedy}")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, however often a file is read."""
    logger.warning("%s", message)
