"""What the process that workers are forked from imports: all that a worker needs.

What doesn't belong here: anything that only the process which hands out the work needs.
"""

import gc

gc.disable()  # a tenth of the time would go into looking for garbage where there is none

import eval_ingest.copying.worker  # noqa: E402
import eval_ingest.indexing.work  # noqa: E402
import eval_ingest.sources.local  # noqa: E402, F401
from eval_ingest.decoding.machine import judges  # noqa: E402

judges()  # looks for the versions of libraries, and remembers them

gc.freeze()  # workers needn't look at it again, and their memory stays shared
gc.enable()
