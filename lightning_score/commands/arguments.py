"""The command line, parsed once: a command, its options, and the configurations that the options override."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

CONFIG = "--config"
GROUP_NAMES = ("trainer", "model", "ema", "samples", "evaluate", "guard")
"""The options that hold others."""


class Option(NamedTuple):
    """An option as it was written.

    Attributes:
        name: `--name`; empty for words without an option, such as a file.
        values: the words after it, as a rule one.
        joined: whether it is written as `--name=value`.
    """

    name: str
    values: tuple[str, ...] = ()
    joined: bool = False

    def words(self) -> list[str]:
        """The words of the command line."""
        return ["=".join((self.name, *self.values))] if self.joined else [*([self.name] if self.name else []), *self.values]


class Layer(NamedTuple):
    """A configuration below the options, and the file that it comes from, if any."""

    config: Mapping[str, Any]
    file: str = ""


@dataclass(frozen=True)
class Arguments:
    """A command and its options.

    Attributes:
        command: its name.
        options: in their order; `-c` is `--config`.
        layers: configurations that configs and options override; the later ones override the earlier.
    """

    command: str = ""
    options: tuple[Option, ...] = ()
    layers: tuple[Layer, ...] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Arguments":
        """The command line of these words."""
        return cls("".join(words[:1]), _options(words[1:]))

    @classmethod
    def without_command(cls, words: Sequence[str]) -> "Arguments":
        """Options alone."""
        return cls("", _options(words))

    def get(self, name: str) -> list[str]:
        """All values given for an option."""
        return [option.values[0] for option in self.options if option.name == name and option.values]

    def drop(self, *names: str) -> "Arguments":
        """The same without some options."""
        return replace(self, options=tuple(option for option in self.options if option.name not in names))

    def set(self, name: str, value: str) -> "Arguments":
        """The same with one value of an option, in place of all others."""
        return replace(self.drop(name), options=(*self.drop(name).options, Option(name, (value,), True)))

    def replace(self, name: str, change: Callable[[str], str]) -> "Arguments":
        """The same with every value of an option changed."""

        def changed(option: Option) -> Option:
            first = (change(value) for value in option.values[:1])
            return option._replace(values=(*first, *option.values[1:])) if option.name == name else option

        return replace(self, options=tuple(map(changed, self.options)))

    def over(self, *layers: Layer) -> "Arguments":
        """The same over further configurations, as far as they are not empty."""
        return replace(self, layers=(*self.layers, *(layer for layer in layers if layer.config)))

    def in_order(self) -> "Arguments":
        """The same with configs first, which options override, and a part before the options inside it.

        `--model.process.class_path VP` becomes `--model.process VP`, `init_args` in names are left out, and a whole group,
        `--model {process: VP}`, becomes a config.
        """
        options = [_plain(option) for option in self.options]
        placed: list[Option] = []
        for option in options:
            if option.name != CONFIG:
                inside = (i for i, other in enumerate(placed) if option.name and other.name.startswith(f"{option.name}."))
                placed.insert(next(inside, len(placed)), option)
        return replace(self, options=(*(option for option in options if option.name == CONFIG), *placed))

    def words(self) -> list[str]:
        """The words of the options."""
        return [word for option in self.options for word in option.words()]

    def command_line(self) -> list[str]:
        """The words of the command and its options."""
        return [self.command, *self.words()]

    @property
    def files(self) -> list[str]:
        """The configs, each after those that it overrides."""
        return [layer.file for layer in self.layers if layer.file] + self.get(CONFIG)

    @property
    def asks_for_help(self) -> bool:
        """Whether the command is to print something about itself and not to run."""
        return any(name.endswith("help") or name == "--print_config" for name, *_ in self.options) or "-h" in self.words()


def _options(words: Sequence[str]) -> tuple[Option, ...]:
    options: list[Option] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--") or name == "-c":
            options.append(Option(CONFIG if name == "-c" else name, (value,) if equals else (), bool(equals)))
        elif options and not options[-1].joined:
            options[-1] = options[-1]._replace(values=(*options[-1].values, word))
        else:
            options.append(Option("", (word,)))
    return tuple(options)


def _plain(option: Option) -> Option:
    name = option.name.replace(".init_args.", ".").removesuffix(".class_path")
    value = " ".join(option.values)
    if name.removeprefix("--") in GROUP_NAMES and value.startswith("{"):
        return Option(CONFIG, (f"{name.removeprefix('--')}: {value}",))
    return option._replace(name=name)
