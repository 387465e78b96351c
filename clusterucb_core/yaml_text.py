"""YAML as configurations are written: bounded in size, each key once, no value that is none."""

import yaml

from clusterucb_core.errors import InvalidConfig

# A configuration with every setting and its comment has 20,000 characters.
MAX_CHARS = 1_000_000
# Aliases (`*name`) repeat what they stand for: a dozen lines of them can stand for more than a memory holds.
MAX_VALUES = 100_000
MAX_DIGITS = 100
_TEXT, _NUMBER, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "merge"))


def parse_yaml(text: str, *, where: str) -> object:
    """Return the value of a YAML text.

    Args:
        text: one YAML document, or nothing.
        where: what the text is, for the messages.

    Raises:
        InvalidConfig: the text is no YAML, too large or too deep, names a key twice, or has a key that is no
            text.
    """
    if len(text) > MAX_CHARS:
        raise InvalidConfig(f"{where} has more than {MAX_CHARS} characters; a configuration is a few pages")
    try:
        return _value(text, where)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{where} is no valid YAML: {error}") from error
    except RecursionError as error:
        raise InvalidConfig(f"{where} is nested too deeply; no setting is deeper than four levels") from error
    # What YAML takes for a number, a date or a boolean may be none: 2024-13-45, a number of 5,000 digits.
    except (ValueError, LookupError, OverflowError) as error:
        raise InvalidConfig(
            f"{where} is no valid YAML: a value cannot be read ({error}); put it in quotes"
        ) from error


def _value(text: str, where: str) -> object:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {}, where)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counted: dict[int, int | None], where: str) -> int:
    """Return how many values a node stands for, aliases written out, and check the keys of every section.

    Args:
        node: where to begin.
        counted: what is known of nodes by their identity; None: begun and not done.
        where: for the messages.
    """
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise InvalidConfig(f"{where}{_line(node)}: a value holds itself; write it out without an alias")
        return known
    counted[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif node.tag == _NUMBER and len(node.value) > MAX_DIGITS:
        raise InvalidConfig(
            f"{where}{_line(node)}: a number of {len(node.value)} characters; no setting takes such a one"
        )
    count = 1 + sum(_count_values(part, counted, where) for part in parts)
    if count > MAX_VALUES:
        raise InvalidConfig(
            f"{where}{_line(node)}: more than {MAX_VALUES} values with all aliases written out; cut it"
        )
    counted[id(node)] = count
    return count


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag == _MERGE:
            continue
        if key.tag != _TEXT:
            raise InvalidConfig(f"{where}{_line(key)}: the key {_shown(key)} is no text; put it in quotes")
        if key.value in seen:
            raise InvalidConfig(
                f"{where}{_line(key)}: the key {_shown(key)} is there twice, and one would be ignored; "
                "keep one"
            )
        seen.add(key.value)


def _line(node: yaml.Node) -> str:
    return f", line {node.start_mark.line + 1}"


def _shown(key: yaml.Node) -> str:
    return ascii(key.value)[:80] if isinstance(key, yaml.ScalarNode) else "that is a list or a section"
