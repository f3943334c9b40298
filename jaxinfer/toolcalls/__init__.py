"""What an assistant's text holds: reasoning, calls of tools, and the answer itself.

`Reader` turns text that grows into events, whatever the pieces it comes in; `formats` says how
models write a call, finds the format of a chat template and makes the grammar of a forced call.
The room knows nothing of models, tokens or HTTP.
"""

from jaxinfer.toolcalls.formats import FORMATS, THINK, Format, Markers, detect, forced, reasoning_of
from jaxinfer.toolcalls.reader import Arguments, Call, Event, Reader, Reasoning, Text

__all__ = [
    "FORMATS",
    "THINK",
    "Arguments",
    "Call",
    "Event",
    "Format",
    "Markers",
    "Reader",
    "Reasoning",
    "Text",
    "detect",
    "forced",
    "reasoning_of",
]
