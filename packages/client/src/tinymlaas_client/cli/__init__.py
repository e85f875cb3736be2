"""The command line `tinymlaas`.

Exit codes: 0 done · 1 the work ended badly (a build or deployment failed) · 2 wrong usage · 3 refused by the service ·
4 the service or the suite could not be reached.
"""

from tinymlaas_client.cli._app import main

__all__ = ["main"]
