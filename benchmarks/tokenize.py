"""Runs the benchmark in tokenizing.py, which says what it measures.

Python has a module of this file's name, and finds this one first from any script in this folder: it gets its own.
"""

import importlib.util
import os
import sys

if __name__ == "__main__":
    from tokenizing import main

    main()
else:
    own = importlib.util.spec_from_file_location(__name__, os.path.join(os.path.dirname(os.__file__), "tokenize.py"))
    assert own is not None and own.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(own)
    own.loader.exec_module(sys.modules[__name__])
