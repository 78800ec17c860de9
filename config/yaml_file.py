"""YAML files of sections, read strictly: every scalar stays text, so that config/options.py decides what it means."""

import typing

import yaml

from ffcv_ops.errors import UserError, one_line
from ffcv_ops.files import read_regular

MOST_BYTES = 2**22  # of a recipe


class _StrictLoader(yaml.SafeLoader):
    """Scalars stay text; keys that appear twice or are no words, aliases (which can blow up) and tags are refused."""

    yaml_implicit_resolvers: typing.ClassVar = {}

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            problem = "aliases and tags are not allowed; write the value out"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", name.start_mark)
            if name.value in seen:
                problem = f"the key {name.value!r} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def read_yaml(path) -> dict:
    """The mapping in a YAML file: text, lists and mappings of text."""
    try:
        content = yaml.load(read_regular(path, MOST_BYTES), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{one_line(path)}{line}: {one_line(error.problem or error.context)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "reason", "nested too deeply" if isinstance(error, RecursionError) else error)
        raise UserError(f"{one_line(path)} is not YAML: {one_line(reason)}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {'list' if isinstance(content, list) else 'single value'}"
        raise UserError(f"{one_line(path)} {found}; it must hold sections of keys, such as `stage: {{epochs: 10}}`")
    return content
