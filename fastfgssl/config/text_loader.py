"""YAML's structure with every scalar as the text that was written."""

from __future__ import annotations

import yaml

from fastfgssl.runtime.errors import UserError


class TextLoader(yaml.BaseLoader):
    """Reads every scalar as its text, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1}: {key.value} is given twice; keep one of the two")
            seen.add(key.value)
        return mapping
