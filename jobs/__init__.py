"""The command lines: `python -m jobs.NAME`. Each parses its options, calls wsdm_ray and leaves with an exit status."""
