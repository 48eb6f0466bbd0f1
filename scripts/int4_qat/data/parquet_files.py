"""Read parquet files, which must be whole and hold the given columns."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from int4_qat.system.errors import InputError

BATCH_ROWS = 8192  # rows that are in memory at once


def read_batches(path: Path | str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a parquet file; raise InputError if it is truncated or lacks a column."""
    with open_file(path, columns) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def open_file(path: Path | str, columns: list[str]) -> pq.ParquetFile:
    """Return an open parquet file; raise InputError, which names the file, if it is truncated or lacks a column."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected a complete parquet file ({error})") from None
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}, found no {', '.join(missing)}")
    return file
