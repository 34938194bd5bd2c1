"""What the tutorials share: checks that end a script when they fail, and --picture PATH."""
import argparse
import sys
from typing import Any, Callable

import __main__

_parser = argparse.ArgumentParser(description=__main__.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--picture", metavar="PATH", help="save the tutorial's plot there (needs matplotlib)")
_arguments = _parser.parse_args()


def check(what: str, right: Any) -> None:
    """Says whether it is right, and ends the script when it is not."""
    print(f"  {'ok   ' if right else 'WRONG'} {what}")
    if not right:
        sys.exit(1)


def picture(draw: Callable[[Any], None]) -> None:
    """Calls draw(pyplot) and saves the figure, when a picture is asked for and matplotlib is there."""
    if _arguments.picture is None:
        return
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture is drawn")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    draw(plt)
    plt.savefig(_arguments.picture, dpi=120, bbox_inches="tight")
    plt.close("all")
    print(f"picture: {_arguments.picture}")
