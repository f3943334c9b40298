"""The programs of the serving path: the only jit, with donation, static buckets and ahead-of-time
compiles.

What a sequence is doing lives on the device in `State`; a step takes the parameters, the state
(donated) and a small feed. Two programs do all the work: `advance` runs one ragged step (prompt
chunks, decodes, or both), `decode_loop` several decode steps without the host.
"""

from jaxinfer.step.edits import admit as admit
from jaxinfer.step.edits import assign as assign
from jaxinfer.step.edits import copy_in as copy_in
from jaxinfer.step.edits import copy_out as copy_out
from jaxinfer.step.edits import halt as halt
from jaxinfer.step.edits import mask as mask
from jaxinfer.step.programs import Programs as Programs
from jaxinfer.step.scorer import Scorer as Scorer
from jaxinfer.step.state import Changes as Changes
from jaxinfer.step.state import Entry as Entry
from jaxinfer.step.state import Feed as Feed
from jaxinfer.step.state import Masks as Masks
from jaxinfer.step.state import Output as Output
from jaxinfer.step.state import State as State
from jaxinfer.step.state import new_state as new_state
from jaxinfer.step.steps import advance as advance
from jaxinfer.step.steps import decode_loop as decode_loop
