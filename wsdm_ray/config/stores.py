"""The option of every job that reads or writes stores."""

from dataclasses import dataclass

from wsdm_ray.config.checks import check_positive

__all__ = ["StoreConfig"]


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What jobs on stores share. It decides nothing of what comes out."""

    store_timeout_seconds: float = 120.0
    """How long an operation on S3 or GCS that fails is tried again, while the store is away or overloaded."""

    def check_stores(self) -> None:
        """Raise `ConfigError` for a time that is not one."""
        check_positive("store_timeout_seconds", self.store_timeout_seconds)
