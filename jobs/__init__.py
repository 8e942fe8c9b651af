"""The command lines: `wsdm-ray NAME` and `python -m jobs.NAME` parse the options and call wsdm_ray.

_registry     the jobs by name: summary, config, function
_options      the options of a config as records
_parse        arguments to a config
_values       options of a file, or of Python's keywords, to arguments
_main         run a job: help, status, errors of one line
_help         the help and the list of jobs
_completion   shell completion
_cli          the console script
_cache        the copies of remote models: list, clear
"""
