"""The CPU half of scoring a unit, in a process of its own: what crashes on a row takes that row alone."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from wsdm_ray.errors import ClusterError, DataError
from wsdm_ray.failures import FinalError, pack_error
from wsdm_ray.inputs.values import with_common_ids
from wsdm_ray.runs import check_same_numbers
from wsdm_ray.scoring.child_process import Death, StartError
from wsdm_ray.scoring.encode import encode_without_texts, table_from_bytes, table_to_bytes
from wsdm_ray.scoring.isolation import Part
from wsdm_ray.scoring.model_spec import ModelSpec
from wsdm_ray.scoring.plan import WorkUnit, narrowed, place_of
from wsdm_ray.scoring.supervision import Answer, Supervision, Supervisor, answering
from wsdm_ray.storage import set_store_timeout

__all__ = ["Encode", "Reader", "reader_of_process", "reading"]

Encode = Callable[[WorkUnit, Sequence[ModelSpec], pa.Schema], pa.Table]
"""What reads and encodes a unit: `encode_unit`."""


def reading(
    encode: Encode,
    models: Sequence[ModelSpec],
    keep: pa.Schema,
    numbers: Mapping[str, str],
    store_timeout_seconds: float,
    notify: Callable[[Any], None],
) -> Answer:
    """What the child of a `Reader` answers with: tables as the bytes of Arrow streams.

    Args:
        numbers: versions of what changes numbers, where the run was started; none: any will do.
        store_timeout_seconds: of `set_store_timeout`.
    """
    set_store_timeout(store_timeout_seconds, reached=True)

    def read(unit: WorkUnit) -> bytes:
        check_same_numbers(numbers)
        return table_to_bytes(encode(unit, models, keep))

    def read_ids(unit: WorkUnit, error: str) -> bytes:
        return table_to_bytes(encode_without_texts(unit, error, models, keep))

    return answering({"read": read, "read_ids": read_ids}, notify)


class Reader:
    """Reads and encodes units in a child process.

    Args:
        child: in place of a `ChildProcess`.
    """

    def __init__(self, supervision: Supervision, child: Any = None):
        self.supervisor = Supervisor(supervision, "reader", child=child)
        # One that is asked to end reads on until it is ended: what it read is of use.
        supervision.coordination.on_notice(lambda: None)

    def __call__(self, unit: WorkUnit) -> dict[str, Any]:
        """The unit for a `ReplicaSlot`: its number, rows, encoded bytes, or a packed error."""
        try:
            encoded, error = self.read(unit), ""
        except FinalError as failure:
            encoded, error = b"", str(failure)
        except StartError as failure:
            reason = f"no process can be started to read the input, on {os.uname().nodename}: {failure}"
            encoded, error = b"", pack_error(ClusterError(f"{reason}; see the log of that node"))
        except Exception as failure:  # of this process: Ray Data would go on without the unit
            encoded, error = b"", pack_error(failure)
        return {"unit": unit.number, "rows": unit.rows, "encoded": encoded, "error": error}

    def read(self, unit: WorkUnit) -> bytes:
        def run(part: Part) -> Any:
            return self.supervisor.call("read", narrowed(unit, part.start, part.rows))

        done = self.supervisor.isolate(("read", unit.number), unit.rows, run)
        tables = [self.without_texts(unit, one.part) if one.value is None else one.value for one in done]
        return tables[0] if len(tables) == 1 else joined(tables)

    def without_texts(self, unit: WorkUnit, part: Part) -> bytes:
        """Rows that cannot be read, with the reason as their error. Raises `FinalError` of a `DataError`."""
        rows = narrowed(unit, part.start, part.rows)
        outcome = self.supervisor.call("read_ids", rows, part.reason)
        if isinstance(outcome, Death):  # it may be by chance
            outcome = self.supervisor.call("read_ids", rows, part.reason)
        if not isinstance(outcome, Death):
            return outcome
        raise FinalError(
            pack_error(
                DataError(
                    f"{place_of(rows)}: reading it ends the process, even of the ids alone "
                    f"({outcome.reason}); repair the file, or leave it out"
                )
            )
        )


@functools.lru_cache(maxsize=1)
def readers_of(key: str) -> list[Reader]:
    return []


def reader_of_process(key: str, supervision: Supervision) -> Reader:
    """The reader of this process for the pass with `key`: its child serves unit after unit."""
    readers = readers_of(key)
    if not readers:
        readers.append(Reader(supervision))
    return readers[0]


def joined(tables: Sequence[bytes]) -> bytes:
    """The rows of several Arrow streams as one; ids are text where those of any are."""
    parts = with_common_ids([table_from_bytes(table) for table in tables])
    return table_to_bytes(pa.concat_tables(parts).combine_chunks())
