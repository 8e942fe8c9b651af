"""The one place that touches files: list, read and write atomically, on a disk, S3 or GCS.

Every path is a plain path, `s3://bucket/key`, `gs://bucket/key` or, to read, `hf://...`. A file that has its
final name is whole: a local file is written beside it and renamed; an object appears with the last byte of
its put. Not covered: what the bytes mean.
"""

from wsdm_ray.storage.cache import CachedFolder, cache_folder, cached_folders, clear_cache
from wsdm_ray.storage.files import (
    STREAM_BYTES,
    WHOLE_BYTES,
    delete_file,
    is_damage,
    is_leftover,
    open_parquet,
    open_read,
    read_json,
    write_atomic,
    write_json,
    write_parquet,
)
from wsdm_ray.storage.folders import (
    bytes_to_fetch,
    check_writable,
    copy_of_files,
    delete_folder,
    folder_identity,
    local_copy,
    model_location,
    names_in_folder,
    sha256_of_files,
    upload_file,
    upload_folder,
)
from wsdm_ray.storage.hub import HUB, OFFLINE_BY_US, hub_name
from wsdm_ray.storage.hub_datasets import expand_hub, resolve_dataset
from wsdm_ray.storage.listing import (
    FileVersion,
    Found,
    each_once,
    exists,
    file_identity,
    file_version,
    file_versions_now,
    find_files,
    list_files,
)
from wsdm_ray.storage.names import is_description, is_hidden, is_partition, looks_like_data
from wsdm_ray.storage.patience import (
    STORE_TIMEOUT_SECONDS,
    count_retry,
    retries,
    set_store_timeout,
    store_timeout,
)
from wsdm_ray.storage.stores import absolute, errors_for, filesystem, is_remote, join, reason

__all__ = [
    "HUB",
    "OFFLINE_BY_US",
    "STORE_TIMEOUT_SECONDS",
    "STREAM_BYTES",
    "WHOLE_BYTES",
    "CachedFolder",
    "FileVersion",
    "Found",
    "absolute",
    "bytes_to_fetch",
    "cache_folder",
    "cached_folders",
    "check_writable",
    "clear_cache",
    "copy_of_files",
    "count_retry",
    "delete_file",
    "delete_folder",
    "each_once",
    "errors_for",
    "exists",
    "expand_hub",
    "file_identity",
    "file_version",
    "file_versions_now",
    "filesystem",
    "find_files",
    "folder_identity",
    "hub_name",
    "is_damage",
    "is_description",
    "is_hidden",
    "is_leftover",
    "is_partition",
    "is_remote",
    "join",
    "list_files",
    "local_copy",
    "looks_like_data",
    "model_location",
    "names_in_folder",
    "open_parquet",
    "open_read",
    "read_json",
    "reason",
    "resolve_dataset",
    "retries",
    "set_store_timeout",
    "sha256_of_files",
    "store_timeout",
    "upload_file",
    "upload_folder",
    "write_atomic",
    "write_json",
    "write_parquet",
]
