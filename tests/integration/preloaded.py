"""What a driver of `campaign` needs, imported once by the process that drivers are forked from."""

__all__: list[str] = []
