"""Run llama.cpp's converter; where it does not know the tokenizer, tell it the name of its pre-tokenizer.

python gguf_runner.py SCRIPT NAME ARGUMENTS-OF-THE-SCRIPT; NAME "" where we know none either. A process of its own,
which imports nothing of ours.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any


def main(script: str, name: str, *arguments: str) -> None:
    """Be `script`. Raises SystemExit with words for the user where the tokenizer stays unknown."""
    sys.path[0] = str(Path(script).parent)  # in the place of our own folder, whose names could hide others
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", script)
    assert spec is not None
    assert spec.loader is not None
    converter = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = converter
    spec.loader.exec_module(converter)
    base = converter.ModelBase
    for kind in (base, *base.__subclasses__()):
        if "get_vocab_base_pre" in vars(kind):
            kind.get_vocab_base_pre = told(kind.get_vocab_base_pre, name)
    sys.argv = [script, *arguments]
    converter.main()


def told(known: Any, name: str) -> Any:
    """The method `known`, with `name` for a tokenizer that it does not know."""

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if name:
                return name
            raise SystemExit(
                "this llama.cpp does not know the tokenizer, and its pre-tokenizer is none whose name in llama.cpp "
                "tirkit knows. A newer llama.cpp may know it; until then serve the model with vLLM or `tirkit serve`"
            ) from None

    return get_vocab_base_pre


if __name__ == "__main__":
    main(*sys.argv[1:])
