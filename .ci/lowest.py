"""Print the dependencies of a pyproject.toml as constraints, each at the lowest version that it states."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
print(*(requirement.replace(">=", "==") for requirement in project["dependencies"]), sep="\n")
