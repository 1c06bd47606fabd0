"""What the fields of a row become: the prompt that a field holds or a template makes, beside its image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from batchq.formats.images import image_url, with_image
from batchq.formats.rows import ReadOptions, RowError, checked_prompt, fields_of
from batchq.jobs import Json


class Prompts:
    """Makes the payload of each row of a file, as its options ask."""

    __slots__ = ("_image_field", "_root", "_template", "is_plain")

    def __init__(self, options: ReadOptions, directory: Path) -> None:
        """Look for images in `directory`, unless the options name another.

        `is_plain` says that a payload is nothing but the prompt's field.
        """
        self._template = options.template
        self._image_field = options.image_field
        self._root = options.image_root or directory
        self.is_plain = options.template is None and options.image_field is None

    def payload(self, fields: Mapping[str, object], prompt_field: str) -> Json:
        """Return what a row asks. Raises RowError where a field is missing, or no prompt or image."""
        if self._template is not None:
            prompt = checked_prompt(self._template.render(fields), prompt_field)
        else:
            prompt = checked_prompt(_field(fields, prompt_field), prompt_field)
        if self._image_field is None:
            return prompt
        return with_image(prompt, image_url(_field(fields, self._image_field), self._image_field, self._root))


def _field(fields: Mapping[str, object], name: str) -> object:
    if name not in fields:
        raise RowError(f"no field `{name}`; {fields_of(fields)}")
    return fields[name]
