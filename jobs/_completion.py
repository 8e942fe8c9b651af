"""Shell completion: a script that knows the jobs, their options, and the values of options that have few.

    eval "$(wsdm-ray completion bash)"          in ~/.bashrc
    eval "$(wsdm-ray completion zsh)"           in ~/.zshrc, after compinit
    wsdm-ray completion fish | source           in ~/.config/fish/config.fish

The script is whole: completing starts no Python. Not covered: `python -m jobs.NAME`.
"""

from collections.abc import Callable, Iterator

from jobs._options import Option, options_of
from jobs._registry import JOBS, SCRIPT

__all__ = ["SHELLS"]

FIRST_WORDS = (*JOBS, "cache", "completion", "--help", "--version")


def bash() -> str:
    """A function for bash: values after an option that has few, options after a dash, else files."""
    cases = "\n".join(
        case
        for name, options in by_job()
        for case in (
            *(
                f'        {name}:{option.flag}) choices="{" ".join(option.choices)}" ;;'
                for option in options
                if option.choices
            ),
            f'        {name}:*) options="{flags(options)}" ;;',
        )
    )
    return f"""_wsdm_ray() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}} choices="" options=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(FIRST_WORDS)}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}:$last" in
        completion:completion) choices="{" ".join(SHELLS)}" ;;
        cache:cache) choices="list clear" ;;
{cases}
    esac
    if [ -n "$choices" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    elif [ "${{word#-}}" != "$word" ]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    fi
}}
complete -o default -F _wsdm_ray {SCRIPT}
"""


def zsh() -> str:
    """The same for zsh's `compdef`."""
    cases = "\n".join(
        case
        for name, options in by_job()
        for case in (
            *(
                f"    {name}:{option.flag}) compadd -- {' '.join(option.choices)}; return ;;"
                for option in options
                if option.choices
            ),
            f"    {name}:*) options=({flags(options)}) ;;",
        )
    )
    return f"""#compdef {SCRIPT}
_wsdm_ray() {{
  local -a options
  if (( CURRENT == 2 )); then
    compadd -- {" ".join(FIRST_WORDS)}
    return
  fi
  case "${{words[2]}}:${{words[CURRENT-1]}}" in
    completion:completion) compadd -- {" ".join(SHELLS)}; return ;;
    cache:cache) compadd -- list clear; return ;;
{cases}
  esac
  if [[ "$PREFIX" == -* ]]; then
    compadd -- $options
  else
    _files
  fi
}}
if [[ "${{funcstack[1]}}" == "_wsdm_ray" ]]; then
  _wsdm_ray "$@"
else
  compdef _wsdm_ray {SCRIPT}
fi
"""


def fish() -> str:
    """The same as `complete` commands of fish, with descriptions."""
    lines = [
        f"complete -c {SCRIPT} -n __fish_use_subcommand -f -l help -d 'List the jobs'",
        f"complete -c {SCRIPT} -n __fish_use_subcommand -f -l version -d 'Versions'",
        f"complete -c {SCRIPT} -n __fish_use_subcommand -f -a completion -d 'Shell completion'",
        f"complete -c {SCRIPT} -n __fish_use_subcommand -f -a cache -d 'Copies of remote models'",
        f"complete -c {SCRIPT} -n '__fish_seen_subcommand_from cache' -f -a 'list clear'",
        f"complete -c {SCRIPT} -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'",
    ]
    for name, options in by_job():
        lines.append(
            f"complete -c {SCRIPT} -n __fish_use_subcommand -f -a {name} -d {quoted(JOBS[name].summary)}"
        )
        for option in options:
            if option.choices:
                takes = f" -x -a '{' '.join(option.choices)}'"
            else:
                takes = "" if option.is_switch else " -r" if option.takes_path else " -x"
            lines += [
                f"complete -c {SCRIPT} -n '__fish_seen_subcommand_from {name}' "
                f"-l {flag.removeprefix('--')}{takes} -d {quoted(option.text)}"
                for flag in option.flags
            ]
    return "\n".join(lines) + "\n"


def by_job() -> Iterator[tuple[str, tuple[Option, ...]]]:
    for name, job in JOBS.items():
        yield name, options_of(job.config_type())


def flags(options: tuple[Option, ...]) -> str:
    """Every spelling of every option, and `--help`."""
    return " ".join([flag for option in options for flag in option.flags] + ["--help"])


def quoted(text: str) -> str:
    """The text up to the end of its first sentence, as one word of fish."""
    first = text.split(". ")[0].removesuffix(".")
    return "'" + first.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""What writes the script of each shell."""
