"""The one reader of every job: files of any ordinary kind to rows with the canonical columns."""
