"""The recipe reference, docs/recipe.md, generated from the model so that it cannot go stale.

Run `python docs/generate_reference.py > docs/recipe.md`; a test compares the two.
"""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sprachbund.recipe import Recipe
from sprachbund.recipe_file import PRESETS, packaged

HEAD = """# The recipe

One YAML file describes a whole run. It is checked before anything is loaded; unknown keys are errors. `--set a.b=value`
changes one value on the command line. This page is generated from the code.

Where a default comes from: [paper] is DMoE (Li et al., Findings of ACL 2025) and its released code, [ours] is where we
differ from it; [comparison.md](comparison.md) has them side by side. A preset gives the starting values of some parts;
what the recipe says goes over it.
"""


def _type(annotation: Any) -> str:
    """Return a type in the words of YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " | ".join(_type(a) if a is not NoneType else "null" for a in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    if origin is not None and arguments:  # Annotated
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    words = {"str": "text", "int": "number", "float": "number", "bool": "true | false", "Any": "values"}
    return words.get(annotation.__name__, "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return "see below"
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parts(model: type[BaseModel], found: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """Return a model and the models inside it, each once, in the order they appear."""
    if model in found:
        return found
    found.append(model)
    for field in model.model_fields.values():
        pending = [field.annotation]
        while pending:
            annotation = pending.pop(0)
            pending += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                _parts(annotation, found)
    return found


def reference() -> str:
    """Return docs/recipe.md."""
    lines = [HEAD]
    for model in _parts(Recipe, []):
        doc = " ".join((model.__doc__ or "").split())
        lines += [f"## {model.__name__}", "", doc, "", "| key | value | default | |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            kind = _type(field.annotation).replace("|", "\\|")
            lines.append(
                f"| `{name}` | {kind} | {_default(field)} | {(field.description or '').replace('|', chr(92) + '|')} |"
            )
        lines.append("")
    lines += ["## Presets", ""]
    for preset in PRESETS:
        lines += [f"### {preset}", "", "```yaml", packaged(preset).rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
