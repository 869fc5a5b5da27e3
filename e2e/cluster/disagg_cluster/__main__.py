import sys

from disagg_cluster.cli import main

sys.exit(main())
