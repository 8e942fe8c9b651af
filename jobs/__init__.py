"""The command lines, `python -m jobs.NAME`: parse the options, call wsdm_ray, leave with an exit status."""
