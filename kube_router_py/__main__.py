"""``python -m kube_router_py``."""

import sys

from kube_router_py.cli import main

sys.exit(main())
