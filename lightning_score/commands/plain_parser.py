"""A parser whose errors are one line with the fix, and that needs neither Lightning nor torch."""

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lightning_score.commands.arguments import Arguments
from lightning_score.commands.class_changes import recorded, recording
from lightning_score.commands.class_names import class_names, options_inside
from lightning_score.commands.origins import origin
from lightning_score.commands.total_steps import STAND_IN, WORD, resolve_max_steps
from lightning_score.errors import printable
from lightning_score.runs.old_names import new_option
from lightning_score.runs.yaml_files import MODE, NO_FUNCTION

PLAIN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list",
         "collections.abc.Sequence": "a list", "NoneType": "null"}  # fmt: skip
"""Names of types for messages."""


class UsageError(SystemExit):
    """Ends the program with exit code 2, after the message was printed."""

    def __init__(self, message: str):
        super().__init__(2)
        self.message = message


class PlainParser(ArgumentParser):
    """A parser whose errors are one line with the fix, without the usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "parser_mode": MODE})

    @property
    def _place(self) -> str:
        """For the parser of a class, the dotted name of its option; else empty."""
        changes = recording()
        return changes.place if changes and getattr(self, "_inner_parser", False) else ""

    def parse_args(  # type: ignore[override]
        self, args: Arguments | Sequence[str] = (), namespace: Any = None, **settings: Any
    ) -> Any:
        """Parses options over the configurations below them; a class that is named starts from its own defaults, and one
        line on stderr names the values that this drops. `max_steps` in the schedule becomes the trainer's number.
        """
        arguments = (args if isinstance(args, Arguments) else Arguments.without_command(args)).in_order()
        if recording():  # a parser within this one, which jsonargparse gives a null as None
            words = [re.sub("=None$", "=null", word) for word in arguments.words()]
            config = super().parse_args(words, namespace, **settings)
        else:
            with recorded(arguments) as changes:
                try:
                    for layer in arguments.layers:
                        namespace = self.parse_object(layer.config, namespace, defaults=False, _skip_validation=True)
                    config = super().parse_args(arguments.words(), namespace, **settings)
                finally:
                    lines = [f"{printable(line)}\n".replace(str(STAND_IN), WORD) for line in changes.lines()]
                    _write(lines)
        resolve_max_steps(config)
        return config

    def dump(self, *args: Any, **settings: Any) -> str:
        """The text of a configuration, also of an incomplete one for `--print_config`."""
        return super().dump(*args, **settings).replace(str(STAND_IN), WORD)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and its fix in one line, and exits with code 2."""
        line = printable(str(message)).rstrip(".").replace(str(STAND_IN), WORD)
        line = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"Option '\1.\2' is not accepted", line)
        changes = recording()
        if self._place:  # an inner parser knows only the last part of names
            line = re.sub(r"""(Parser key "|Option ')""", rf"\g<1>{self._place}.", line, count=1)
        explained = self._renamed(line) or self._needed(line) or self._unknown_help(line)
        explained = explained or _function(line) or _group(line) or _wrong_value(line)
        line = explained or " ".join(f"{line}. {self._nearest_option(line)}{_config_hint(line)}".split())
        line = line.rstrip(" .")
        line += origin(changes.arguments, line) if changes else ""
        sys.stderr.write(f"error: {line}\n")
        raise UsageError(line)

    def _needed(self, message: str) -> str:
        """For missing arguments of a class, the option for the first of them; else empty."""
        names, place = message.partition("arguments are required: ")[2], self._place
        return f"{place}: needs {names}; give --{place}.{names.partition(',')[0]}" if names and place else ""

    def _unknown_help(self, message: str) -> str:
        """For `--PART.help` of an unknown class, the known classes; else empty."""
        asked = re.match(r"(--[\w.]+\.help): .*?(\w+)\"?( is not a .*)?$", message)
        typehint = asked and getattr(self._option_string_actions.get(asked[1]), "_typehint", None)
        if asked is None or typehint is None:
            return ""
        return f"{asked[1]} {asked[2]}: no such class; give one of {class_names(typehint, asked[2])}"

    def _renamed(self, message: str) -> str:
        """For an option of an earlier version, its new name; else empty."""
        old = _unknown_option(message)
        return f"{old}: this option has been renamed; give --{new}" if (new := new_option(old)) else ""

    def _nearest_option(self, message: str) -> str:
        """A hint with the options most similar to an unknown one; else empty."""
        stray = re.search(r"[Uu]nrecognized arguments: (?!-)(\S+)", message)
        if stray:
            kind = "--ckpt_path" if stray[1].endswith(".ckpt") else "--config"
            return f"Did you mean {kind} {stray[1]}? Every value needs its option"
        wanted, changes = _unknown_option(message), recording()
        if not wanted:
            return ""
        names = {f"{self._place}.{name[2:]}".lstrip(".") for name in self._option_string_actions if name.startswith("--")}
        names |= set(options_inside(changes.classes if changes else {}))
        known = sorted(name for name in names if not name.endswith((".help", "+")) and not wanted.startswith(f"{name}."))
        near = [name for name in known if name.rpartition(".")[2] == wanted] or difflib.get_close_matches(wanted, known, 1)
        if not near:
            leaf = difflib.get_close_matches(wanted.rpartition(".")[2], {name.rpartition(".")[2] for name in known}, 1)
            near = [name for name in known if leaf and name.rpartition(".")[2] == leaf[0]]
        return f"Did you mean {' or '.join(f'--{name}' for name in near[:3])}?" if near else ""


def _write(lines: Sequence[str]) -> None:
    """Writes lines to stderr, on the first process."""
    if lines:
        import lightning_score.lean_imports  # noqa: F401

        from lightning.pytorch.utilities import rank_zero_only  # takes a second to import

        rank_zero_only(sys.stderr.writelines)(lines)


def _unknown_option(message: str) -> str:
    """The dotted name of an option that is refused as unknown, or empty."""
    found = re.search(r"(?:[Uu]nrecognized arguments: |Key |[Oo]ption )['\"]?(?:--)?([\w.]+)", message)
    return found[1].replace(".init_args", "") if found else ""


def _function(message: str) -> str:
    """For a function, or anything else that is not a class, the fix; else empty."""
    denied = re.search(r'Parser key "([\w.]+)": .*?Importing \'([\w.]+)\' is not allowed', message)
    if denied:
        return f"{denied[1]}={denied[2]}: a config makes only classes of this package, of torch, or of your own"
    found = re.search(r'Parser key "([\w.]+)": (?!.*Parser key).*value: (.*)$', message) if NO_FUNCTION in message else None
    return f"{found[1]}={found[2]}: {NO_FUNCTION}" if found else ""


def _group(message: str) -> str:
    """For a plain value in place of a group of options, what may be given; else empty."""
    found = re.search(r"""Parser key "([\w.]+)": Unable to load config ['"](.*?)['"]""", message)
    return f"{found[1]}={found[2]}: must be a YAML file of options; for one of them, --{found[1]}.NAME" if found else ""


def _wrong_value(message: str) -> str:
    """For a value of the wrong plain type, the allowed types; else empty."""
    found = re.search(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)$', message)
    expected = re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]*)\])", message)
    if not found or not expected or not {name for name, _ in expected} <= {*PLAIN, ""}:
        return ""
    if within := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?) - ", message):  # a list
        return f"{found[1]}={found[2]}: {within[2]} must be {PLAIN[within[1]]}"
    allowed = [word for name, words in expected for word in ([PLAIN[name]] if name else re.findall(r"[^', ]+", words))]
    *others, last = dict.fromkeys(allowed)
    return f"{found[1]}={found[2]}: must be {', '.join(others)}{' or ' if others else ''}{last}"


def _config_hint(message: str) -> str:
    """A hint for missing required options; else empty."""
    if "arguments are required" not in message:
        return ""
    return "Give one: --ckpt_path runs/NAME/latest/last.ckpt" if "ckpt_path" in message else "Give a config: --config ncsn"
